"""How requests come in: the commands `requests add` and `requests import`, and what they look up first."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.answering import AsJson, KeyFile, LedgerUrl, answering
from pipeline.errors import ConfigError, DataError, StorageError

if TYPE_CHECKING:
    from pipeline.ledger.refusals import Looked
    from pipeline.ledger.requests import Submission
    from pipeline.request_orders import LookupOrder

__all__ = ["add", "chosen_values", "import_requests", "line_name"]

Line = Annotated[str, typer.Option("--line", metavar="RUN", help="The model line: a packaged run, or a YAML file.")]
Confirm = Annotated[bool, typer.Option("--confirm", help="Take it in however many images it means.")]
Share = Annotated[float, typer.Option("--share", min=0, max=1, help="Share of the training images that is too broad.")]
Values = list[str] | None


def chosen_values(**given: Values) -> tuple[str, tuple[str, ...]]:
    """Kind and values where exactly one kind was given; `-` stands for the lines of standard input. Raises ConfigError."""
    chosen = {kind: values for kind, values in given.items() if values}
    if len(chosen) != 1:
        message = f"{len(chosen)} kinds of values are given" if chosen else "empty: no value is given"
        raise ConfigError(
            f"request: {message}", "give --key, --label, --prefix, --digest, --image or --like, and one of them only"
        )
    kind, values = next(iter(chosen.items()))
    if values == ["-"]:
        values = [line for line in sys.stdin.read().splitlines() if line.strip()]
    return kind, tuple(values)


def _image_digest(path: str) -> str:
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as fault:
        raise StorageError(f"--image: {fault.strerror}", "name an image file that can be read") from None


def _likenesses(paths: list[str], *, to_stderr: bool) -> list[str]:
    from launch.acts import carry_out
    from pipeline.request_orders import LikenessAnswer, LikenessOrder
    from pipeline.storage import absolute

    order = LikenessOrder(files=tuple(absolute(path) for path in paths))
    hashes = carry_out("likeness", order, LikenessAnswer, to_stderr=to_stderr).hashes
    if not all(hashes):
        raise DataError(f"--like: file {hashes.index('') + 1}: no image, or one that everything looks like", "name keys instead")
    return list(hashes)


def line_name(run: str) -> str:
    """What a model line is called in the ledger: a packaged run's name, or the whole path of its file.

    Raises:
        ConfigError: no such run, or a faulty one.
    """
    from pipeline.config import packaged, resolve
    from pipeline.storage import absolute

    if run:
        resolve(run)
    return absolute(run) if run and run not in packaged("run") else run


def _look_up(order: LookupOrder, *, to_stderr: bool) -> Looked | None:
    from launch.acts import carry_out
    from pipeline.request_orders import LookupAnswer

    return carry_out("lookup", order, LookupAnswer, to_stderr=to_stderr).looked


def add(
    line: Annotated[str, typer.Argument(metavar="RUN", help="The model line: a packaged run, or a YAML file.")],
    key: Annotated[Values, typer.Option("--key", help="Key of an image; `-` reads lines from standard input.")] = None,
    label: Annotated[Values, typer.Option("--label", help="A class, by name or number.")] = None,
    prefix: Annotated[Values, typer.Option("--prefix", help="Beginning of keys.")] = None,
    digest: Annotated[Values, typer.Option("--digest", help="sha256 of an image file.")] = None,
    image: Annotated[Values, typer.Option("--image", metavar="FILE", help="An image file whose very bytes are meant.")] = None,
    like: Annotated[
        Values, typer.Option("--like", metavar="FILE", help="An image file: all that look like it are meant.")
    ] = None,
    subject: Annotated[str, typer.Option("--subject", help="Who is in them; only a pseudonym is kept.")] = "",
    copies: Annotated[str, typer.Option("--copies", help="Retained copies: stop, include or ignore.")] = "stop",
    basis: Annotated[str, typer.Option("--basis", help="Why: e.g. GDPR-17-1-b.")] = "",
    note: Annotated[str, typer.Option("--note", help="Kept with the request, and shown by `show --values` only.")] = "",
    received: Annotated[str, typer.Option("--received", metavar="DATE", help="When it came in; by default now.")] = "",
    due: Annotated[str, typer.Option("--due", metavar="DATE", help="By default a month after it came in.")] = "",
    name: Annotated[str, typer.Option("--id", help="A name for the request; by default one is made.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Make a new one though the same was released or withdrawn.")] = False,
    confirm: Confirm = False,
    share: Share = 0.05,
    look_up: Annotated[bool, typer.Option("--lookup/--no-lookup", help="Look the values up in the source's index.")] = True,
    ledger: LedgerUrl = "",
    pseudonym_key: KeyFile = "",
    as_json: AsJson = False,
) -> None:
    """Take a deletion request in; the same one again is counted, not doubled."""
    with answering():
        from launch.show import print_json
        from pipeline.ledger.refusals import refuse_broad, refuse_unknown
        from pipeline.ledger.requests import Submission, check_form, submit
        from pipeline.ledger.states import FINAL
        from pipeline.ledger.store import open_ledger

        line = line_name(line)
        files = [_image_digest(path) for path in image or []]
        hashes = _likenesses(like, to_stderr=as_json) if like else None
        kind, values = chosen_values(keys=key, label=label, prefix=prefix, digest=[*(digest or []), *files], likeness=hashes)
        wish = Submission(
            kind=kind,
            values=values,
            line=line,
            subject=subject,
            copies=copies,
            basis=basis,
            note=note,
            received_at=received,
            due_at=due,
            request_id=name,
        )
        check_form(wish)
        looked = _look_up(_order(line, wish), to_stderr=as_json) if look_up else None
        if looked is not None:
            refuse_unknown(looked)
        if not confirm:
            refuse_broad([kind], looked, share=share)
        with open_ledger(ledger, key_file=pseudonym_key) as opened, opened.write() as tx:
            answer = submit(tx, wish, checked=confirm or looked is not None, again=again)
        images = None if looked is None else looked.images
        if as_json:
            facts = {"request": answer.request_id, "new": answer.new, "state": answer.state, "due_at": answer.due_at}
            print_json({**facts, "repeats": answer.repeats, "images": images})
            return
        what = "taken in" if answer.new else f"is known already, now sent {answer.repeats + 1} times"
        meant = "not looked up" if images is None else f"{images} images"
        print(f"request {answer.request_id}: {what}; {meant}; {answer.state}; due {answer.due_at[:10]}")
        if answer.state in FINAL:
            print("--again makes a new request of it")


def _order(line: str, wish: Submission) -> LookupOrder:
    from pipeline.config import resolve
    from pipeline.records import DeletionRequest, RequestBatch, Selector
    from pipeline.request_orders import LookupOrder

    request = DeletionRequest(request_id="r1", selector=Selector(kind=wish.kind, values=wish.values))  # type: ignore[arg-type]
    return LookupOrder(config=resolve(line), batch=RequestBatch(requests=(request,)))


def import_requests(
    file: Annotated[str, typer.Argument(metavar="FILE", help="CSV or Parquet: columns kind and value, or key; and others.")],
    line: Line = "",
    confirm: Confirm = False,
    share: Share = 0.05,
    look_up: Annotated[bool, typer.Option("--lookup", help="Look all values up in the index of the --line first.")] = False,
    ledger: LedgerUrl = "",
    pseudonym_key: KeyFile = "",
    as_json: AsJson = False,
) -> None:
    """Take in all requests of a file, or none of them where a row is faulty."""
    with answering():
        from launch.show import print_json
        from pipeline.ledger.importing import import_file
        from pipeline.ledger.refusals import refuse_broad, refuse_unknown
        from pipeline.ledger.store import open_ledger

        looked = None
        if look_up:
            from pipeline.config import resolve
            from pipeline.request_orders import LookupOrder

            if not line:
                raise ConfigError("--lookup: no --line whose index to look in", "name the run with --line")
            looked = _look_up(LookupOrder(config=resolve(line), file=file), to_stderr=as_json)
            if looked is None:
                raise StorageError(f"{line}: its source is not indexed yet", "run `unlearn index`, or leave --lookup out")
            refuse_unknown(looked, where=file)
            if not confirm:
                refuse_broad([], looked, share=share, where=file)
        with open_ledger(ledger, key_file=pseudonym_key) as opened, opened.write() as tx:
            done = import_file(tx, file, line=line, lines=line_name, checked=looked is not None, confirmed=confirm)
        if as_json:
            print_json(done)
            return
        print(f"{done.rows} rows: {done.new} new requests with {done.values} values, {done.repeats} known already")
        print(f"entry {done.entry} of the history tells of them together")
