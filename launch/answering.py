"""What the commands share: how they take a run, and how a named failure becomes one message and an exit code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from pipeline.errors import UnlearnError

__all__ = ["AsJson", "KeyFile", "LedgerUrl", "Overrides", "Run", "answering", "complain"]

Run = Annotated[str, typer.Argument(metavar="RUN", help="A packaged run (see `unlearn list`) or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Fields to change, e.g. engine.zero_stage=2 requests=batch.csv", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with one line of JSON on standard output.")]

LedgerUrl = Annotated[
    str,
    typer.Option(
        "--ledger", metavar="URL", envvar="UNLEARN_LEDGER", show_default=False, help="sqlite:///FILE or postgresql://..."
    ),
]
KeyFile = Annotated[
    str,
    typer.Option(
        "--pseudonym-key",
        metavar="FILE",
        envvar="UNLEARN_PSEUDONYM_KEY",
        show_default=False,
        help="The ledger's pseudonym key; by default beside it.",
    ),
]


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Turn named failures into one message and their exit code."""
    from launch.worker import WorkerError

    try:
        yield
    except UnlearnError as fault:
        complain(f"error: {fault.message}", *([f"  cure: {fault.cure}"] if fault.cure else []))
        raise typer.Exit(fault.exit_code) from None
    except WorkerError as crash:
        complain(crash.output, f"error: {crash}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        complain("interrupted; run the same command again to go on")
        raise typer.Exit(130) from None


def complain(*lines: str) -> None:
    """Lines on standard error, after what was said on standard output."""
    sys.stdout.flush()
    for line in lines:
        print(line, file=sys.stderr)
