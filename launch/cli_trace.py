"""`unlearn trace` on the command line. What it needs is imported inside it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from launch.answering import AsJson, KeyFile, LedgerUrl, answering

if TYPE_CHECKING:
    from launch.trace import ModelTrace, Trace

__all__ = ["add_to", "model_lines", "trace", "trace_lines"]

SHOWN = 20


def add_to(app: typer.Typer) -> None:
    """Give the application this command."""
    app.command()(trace)


def trace(
    key: Annotated[str, typer.Option("--key", help="Key of an image; `-` reads it from standard input.")] = "",
    subject: Annotated[str, typer.Option("--subject", help="A person, as named with the requests; `-` reads it.")] = "",
    request: Annotated[str, typer.Option("--request", help="A request's name.")] = "",
    checkpoint: Annotated[
        str,
        typer.Option("--checkpoint", metavar="SHA|FOLDER", help="Weights: digits of their sha256, a file, a run folder."),
    ] = "",
    alias: Annotated[str, typer.Option("--alias", metavar="LINE/NAME", help="The model that an alias names.")] = "",
    ledger: LedgerUrl = "",
    pseudonym_key: KeyFile = "",
    as_json: AsJson = False,
) -> None:
    """Say which models saw images, or which requests shaped a model."""
    with answering():
        from launch import trace as ask
        from launch.acts import carry_out
        from launch.show import print_json
        from pipeline.errors import ConfigError
        from pipeline.ledger.store import open_ledger
        from pipeline.schedule_orders import TraceAnswer, TraceOrder

        given = [name for name in (key, subject, request, checkpoint, alias) if name]
        if len(given) != 1:
            raise ConfigError(
                f"trace: {len(given)} of --key, --subject, --request, --checkpoint, --alias are given", "give one of them"
            )

        def worker(order: TraceOrder) -> TraceAnswer:
            return carry_out("trace", order, TraceAnswer, to_stderr=as_json)

        with open_ledger(ledger, create=False, key_file=pseudonym_key) as opened:
            if checkpoint or alias:
                model = ask.trace_model(opened, checkpoint=checkpoint, alias=alias)
                if as_json:
                    print_json(model)
                else:
                    print("\n".join(model_lines(model)))
                return
            if request:
                found = ask.trace_request(opened, request, worker)
            elif subject:
                found = ask.trace_subject(opened, _read(subject), worker)
            else:
                found = ask.trace_key(opened, _read(key), worker)
        if as_json:
            print_json(found)
            return
        print("\n".join(trace_lines(found)))


def _read(text: str) -> str:
    """A text, or the first line of standard input: what is on a command line, others on the machine can see."""
    return sys.stdin.readline().rstrip("\r\n") if text == "-" else text


def trace_lines(found: Trace) -> list[str]:
    """What is said of images."""
    lines = [f"{len(found.requests)} requests: {_some(f'{name} ({state})' for name, state in found.requests)}"]
    lines += [f"{name}: {state}, {outcome}: {folder or 'never run'}" for name, state, outcome, folder in found.batches]
    for run in found.runs:
        if run.state == "gone":
            lines.append(f"{run.folder}: its index is gone: which of the images it held is not computed")
            continue
        counts = ", ".join(f"{images} in {split}" for split, images in run.images.items())
        part = "; part of its index is gone" if run.state == "part" else ""
        lines.append(f"{run.folder}: {counts}, in {len({shard.uri for shard in run.shards})} shards{part}")
    for model in found.models:
        place = ", ".join((model.batch_id or model.line, *model.aliases, *(["removed"] if model.removed_at else [])))
        lines.append(f"{model.how}: {model.kind} model {model.model_id[:12]} ({place})")
    return lines if found.requests or found.models or found.runs else ["nothing in this ledger has to do with it"]


def model_lines(model: ModelTrace) -> list[str]:
    """What is said of a model."""
    came = " <- ".join(f"{kind} {name[:12]}" for name, kind in model.ancestry)
    return [
        f"model: {model.model_id}, {model.kind} of {model.line}{f', verdict {model.verdict}' if model.verdict else ''}",
        f"run: {model.folder}",
        f"came from: {came}",
        f"shaped by batches: {', '.join(model.batches) or 'none'}",
        f"{len(model.requests)} requests: {_some(f'{name} ({state})' for name, state, _, _ in model.requests)}",
        f"trained on {len(model.trained)} shards, forgot {len(model.forgotten)}",
        f"aliases: {', '.join(model.aliases) or 'none'}",
    ]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more; --json names them all" if len(listed) > SHOWN else ""
    return (", ".join(listed[:SHOWN]) or "none") + more
