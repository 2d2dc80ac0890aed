"""The command that checks what was published. What it needs is imported inside it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from launch.answering import AsJson, answering

if TYPE_CHECKING:
    from launch.verify_bundle import ReleaseFindings

__all__ = ["add_to", "release_lines"]


def add_to(app: typer.Typer) -> None:
    """Give the application this command."""
    app.command()(verify)


def verify(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A run folder, as `unlearn run` printed it, or a release.")],
    key: Annotated[
        str, typer.Option("--key", metavar="PUB", help="Public key that a release must be signed with; without: not trusted.")
    ] = "",
    secret: Annotated[
        str, typer.Option("--secret", metavar="FILE", help="Secret of a release's keyed digests, for --image-key.")
    ] = "",
    image_key: Annotated[
        str,
        typer.Option("--image-key", metavar="K|-", help="Say whether a release forgot this image; -: read from standard input."),
    ] = "",
    ledger: Annotated[
        str, typer.Option("--ledger", metavar="URL", help="Also hold this ledger's history against the end that a release names.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check offline that a run folder is what its receipts say, or a release what its signed statement says."""
    with answering():
        from launch.verify_bundle import is_release
        from pipeline.errors import ConfigError

        if is_release(folder):
            _verify_release(folder, key, secret, image_key, ledger, as_json)
            return
        if key or secret or image_key or ledger:
            raise ConfigError(f"{folder}: not a release", "--key, --secret, --image-key and --ledger are about releases")
        _verify_run(folder, as_json)


def _verify_run(folder: str, as_json: bool) -> None:
    from launch.show import print_json
    from launch.verify import verify as examine

    found = examine(folder)
    if as_json:
        print_json(found)
    _refuse_faults(found.folder, found.faults, "restore what is named, or run the chain again")
    if not as_json:
        elsewhere = f"; {found.remote} shards on other storage not fetched" if found.remote else ""
        gone = f"; {found.erased} versions of files were erased, and are gone" if found.erased else ""
        kept = f"; {found.retired} files were retired, and are gone" if found.retired else ""
        print(f"{found.receipts} receipts, {found.files} files, {found.shards} shards checked{elsewhere}{gone}{kept}")
        print("receipts and digests intact; unsigned")


def _refuse_faults(folder: str, faults: tuple[str, ...], cure: str) -> None:
    from pipeline.errors import IntegrityError

    if faults:
        lead = f"{folder}: {len(faults)} faults" if len(faults) > 1 else folder
        raise IntegrityError("\n  ".join([lead, *faults]), cure)


def _verify_release(folder: str, key: str, secret: str, image_key: str, ledger: str, as_json: bool) -> None:
    import sys

    from launch.keys import read_secret
    from launch.show import print_json
    from launch.verify_bundle import answer_about_key, verify_release
    from pipeline.decode import plain
    from pipeline.errors import ConfigError
    from pipeline.signing import read_public

    if bool(secret) != bool(image_key):
        raise ConfigError("--secret and --image-key: one without the other", "give both, or none")
    found = verify_release(folder, read_public(key) if key else None)
    if ledger and not found.faults:
        found = dataclasses.replace(found, faults=_against_ledger(folder, ledger))
    cure = "get the release again from its owner; do not use these weights"
    if not image_key:
        if as_json:
            print_json(found)
        _refuse_faults(found.folder, found.faults, cure)
    else:
        _refuse_faults(found.folder, found.faults, cure)
        wanted = sys.stdin.readline().rstrip("\r\n") if image_key == "-" else image_key
        answer = answer_about_key(folder, read_secret(secret), wanted)
        if as_json:
            print_json({**plain(found), "forgotten": answer})
        else:
            print(f"this image is {'among the forgotten' if answer else 'not among the forgotten'} of this release")
    if not as_json:
        for line in release_lines(found):
            print(line)


def _against_ledger(folder: str, url: str) -> tuple[str, ...]:
    from launch.verify_bundle import ledger_fault
    from pipeline.ledger.store import open_ledger

    with open_ledger(url, create=False) as opened:
        fault = ledger_fault(folder, opened)
    return (fault,) if fault else ()


def release_lines(found: ReleaseFindings) -> list[str]:
    """What `unlearn verify` says of an intact release."""
    by = ", ".join(found.signed_by)
    signed = f"signed by {by}: trusted" if found.trusted else f"signed by {by}, key not given: not trusted"
    return [
        f"{found.files} files, {found.receipts} receipts checked; statement, report and receipts agree",
        signed,
        f"signature of the weights: {found.weights_signature}",
        f"what may be claimed: {found.words}",
    ]
