"""The command that attacks a finished run. What it needs is imported inside it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from launch.answering import AsJson, Overrides, Run, answering

if TYPE_CHECKING:
    from pipeline.findings import Audit

__all__ = ["add_to", "finding_rows"]


def add_to(app: typer.Typer) -> None:
    """Give the application this command."""
    app.command()(audit)


def audit(
    run: Run,
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option("--samples", min=16, help="Forget images of each group to attack at most.")] = 400,
    planted: Annotated[
        bool, typer.Option("--planted", help="Also train a twin of the run with canaries, noise and a backdoor, and attack it.")
    ] = False,
    canaries: Annotated[int, typer.Option("--canaries", min=1, help="Canaries of --planted, each with its own coin.")] = 200,
    shadows: Annotated[
        int, typer.Option("--shadows", min=0, help="Also train the run again at so many other seeds, for likelihood ratios.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Attack a finished run's models: relearning, a second decoder, extraction, beside the retrained model."""
    with answering():
        import sys

        from launch.acts import carry_out
        from launch.local import refuse_erased, refuse_other_batch
        from launch.show import print_json, print_table
        from pipeline.audit_orders import AuditOrder
        from pipeline.config import read_batch, resolve, run_folder
        from pipeline.errors import GateFailed
        from pipeline.findings import Audit
        from pipeline.requests import batch_digest

        config = dataclasses.replace(resolve(run, overrides), methods={})
        batch = read_batch(config)
        folder = run_folder(config, batch)
        refuse_other_batch(folder, batch_digest(batch))
        refuse_erased(folder)
        speech = sys.stderr if as_json else sys.stdout
        say = lambda line: print(line, file=speech, flush=True)  # noqa: E731
        if planted:
            from launch.planted import audit_planted

            audit_planted(config, batch, folder, canaries=canaries, samples=samples, say=say, to_stderr=as_json)
        if shadows:
            from launch.shadows import attack_with_shadows

            attack_with_shadows(config, batch, shadows, samples=samples, say=say, to_stderr=as_json)
        found = carry_out("audit", AuditOrder(config=config, folder=folder, samples=samples), Audit, to_stderr=as_json)
        if as_json:
            print_json(found)
        else:
            print_table(*finding_rows(found))
            print(f"\n{found.words}\nverdict: {found.verdict.words}\naudit: {folder}/audit.json\npage: {folder}/audit.html")
        if found.verdict.outcome == "failed":
            raise GateFailed(
                f"audit: the verdict {found.verdict.words}: {found.words}",
                "see the table; a verdict that fails is a result, and nothing was changed",
            )


def finding_rows(audit: Audit) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of findings."""
    rows = []
    for item in audit.findings:
        known = item.value is not None and item.low is not None and item.high is not None
        figure = f"{item.value:+.3f} ({item.low:+.3f} to {item.high:+.3f})" if known else "not computed"
        kept = "-" if item.kept_low is None else f"{item.kept_low:+.3f} to {item.kept_high:+.3f}"
        bound = f"epsilon is at least {item.epsilon_low:.2f}; " if item.epsilon_low else ""
        what = bound + (item.note or item.measure)
        rows.append([item.attack, item.group, item.subject, figure, kept, str(item.samples), item.says, what])
    return ["attack", "group", "model", "beside retrained", "on unseen kept images", "images", "says", "what it is"], rows
