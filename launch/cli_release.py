"""The commands about releases: release, rollback, retire. What they need is imported inside them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.answering import AsJson, KeyFile, LedgerUrl, answering

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey

    from launch.promote import Promotion
    from launch.retention import Item
    from pipeline.ledger.store import Ledger

__all__ = ["add_to", "item_line", "promotion_lines"]

DEFAULT_FILE = "unlearn-ledger.sqlite"
To = Annotated[str, typer.Option("--to", metavar="URI", help="Folder or URI below which the model lines' releases lie.")]
Line = Annotated[str, typer.Option("--line", help="The model line; by default the run's name.")]
Trust = Annotated[
    list[str] | None,
    typer.Option("--trust", metavar="PUB", help="Public key that earlier releases may be signed with; repeatable."),
]
Keys = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="PUB", help="Public key that releases must be signed with; repeatable. Without: not checked."),
]
Approve = Annotated[
    str, typer.Option("--approve", metavar="NAME", help="Who lets pass what a rule does not; it is written down.")
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; needed with --approve.")]


def add_to(app: typer.Typer) -> None:
    """Give the application these commands."""
    app.command()(release)
    app.command("releases")(list_releases)
    app.command()(rollback)
    app.command()(retire)


@contextlib.contextmanager
def given_ledger(url: str, pseudonym_key: str = "") -> Iterator[Ledger | None]:
    """The ledger that was named, or the one in the current folder; None: there is neither."""
    if not url and not Path(DEFAULT_FILE).exists():
        yield None
        return
    from pipeline.ledger.store import open_ledger

    with open_ledger(url, create=False, key_file=pseudonym_key) as ledger:
        yield ledger


def _now() -> str:
    import datetime

    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def _by(ledger: Ledger | None) -> str:
    if ledger is not None:
        return ledger.actor
    from pipeline.ledger.store import default_actor

    return default_actor()


def _keys(files: list[str] | None) -> tuple[SSlibKey, ...]:
    from pipeline.signing import read_public

    return tuple(read_public(file) for file in files or ())


def release(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, a run's name, or digits of its batch digest.")],
    to: To,
    key: Annotated[str, typer.Option("--key", metavar="FILE", help="Private key to sign with; see `unlearn keys new`.")],
    line: Line = "",
    alias: Annotated[
        str, typer.Option("--alias", metavar="NAME", help="Let this name, e.g. production, mean it from now on.")
    ] = "",
    secret: Annotated[
        str, typer.Option("--secret", metavar="FILE", help="Secret of the keyed digests; by default the ledger's pseudonym key.")
    ] = "",
    old_secret: Annotated[
        list[str] | None, typer.Option("--old-secret", metavar="FILE", help="Secret of earlier releases' digests; repeatable.")
    ] = None,
    passphrase_file: Annotated[
        str, typer.Option("--passphrase-file", metavar="FILE", help="Passphrase of the key; or UNLEARN_PASSPHRASE.")
    ] = "",
    keep_days: Annotated[
        int, typer.Option("--keep-days", min=-1, help="Keep checkpoints that hold deleted data so long, until `unlearn retire`.")
    ] = -1,
    approve: Approve = "",
    reason: Reason = "",
    trust: Trust = None,
    ledger: LedgerUrl = "",
    pseudonym_key: KeyFile = "",
    out: Annotated[str, typer.Option("--out", help="Folder below which runs lie.")] = "runs",
    as_json: AsJson = False,
) -> None:
    """Publish a finished run whose verdict passed: weights, card, report and receipts, signed, whole or not at all."""
    with answering(), given_ledger(ledger, pseudonym_key) as book:
        from launch.acts import find_run
        from launch.gate import approval
        from launch.keys import passphrase, read_secret
        from launch.release import Wish
        from launch.release import release as publish
        from launch.retention import keep, kept
        from launch.show import print_json
        from pipeline.decode import plain
        from pipeline.signing import read_private

        now, folder, known_secret = _now(), find_run(run, out), read_secret(secret) if secret else None
        if known_secret is None and book is not None:
            with book.read() as tx:
                known_secret = tx.secret
        wish = Wish(
            to=to,
            key=read_private(key, passphrase=passphrase(passphrase_file)),
            by=_by(book),
            now=now,
            line=line,
            alias=alias,
            secret=known_secret,
            old_secrets=tuple(read_secret(file) for file in old_secret or ()),
            approval=approval(approve, reason, now),
            trusted=_keys(trust),
        )
        done = publish(folder, wish, ledger=book)
        items: list[Item] = []
        if keep_days >= 0:
            keep(done.line, done.release, folder, days=keep_days, now=now, ledger=book)
            items = kept(done.line, done.known)
        if as_json:
            facts = {"new": done.new, "approved": done.approved, "promotion": done.promotion, "kept": items}
            print_json({**plain(done.release), **facts})
            return
        print(f"{'released' if done.new else 'released already, nothing to do'}: {done.release.folder}")
        print(f"signed by {', '.join(done.release.key_ids)}")
        print(f"keyed digests of the forgotten keys: {done.release.forgotten_words}")
        for text in [*promotion_lines(done.promotion), *map(item_line, items)]:
            print(text)


def promotion_lines(promotion: Promotion | None) -> list[str]:
    """What became of an alias, for people."""
    if promotion is None:
        return []
    said = {
        "promoted": f"names {promotion.version} from now on",
        "rolled back": f"rolled back: names {promotion.version} from now on",
        "unchanged": f"names {promotion.version} already",
        "passed on": f"has passed on to {promotion.version} since, and stays there",
    }
    lines = [f"alias {promotion.alias}: {said[promotion.did]} (change {promotion.number})"]
    if promotion.held:
        lines.append(f"it may hold images of {len(promotion.held)} released batches; the approval is written down")
    if promotion.taken_back:
        lines.append(f"these batches' requests wait again: {', '.join(promotion.taken_back)}")
    return lines


def item_line(item: Item) -> str:
    """One thing that still holds deleted data, for people."""
    what = "checkpoints" if item.kind == "checkpoints" else "an earlier release's weights"
    named = f", named by alias {item.alias}" if item.alias else ""
    return f"still holds deleted data, kept until {item.kept_until}: {item.folder}: {len(item.files)} files, {what}{named}"


def list_releases(
    to: To,
    line: Annotated[str, typer.Option("--line", help="The model line.")],
    key: Keys = None,
    as_json: AsJson = False,
) -> None:
    """List a line's releases: when, what names them, and whether they may hold images that an alias's release unlearned."""
    with answering():
        from launch.released import holds, line_folder, releases
        from launch.show import print_json, print_table
        from pipeline.aliases import in_force, named_batches, names
        from pipeline.decode import plain

        folder = line_folder(to, line)
        known = sorted(releases(folder, _keys(key)).values(), key=lambda item: item.released_at)
        relied_on = named_batches(folder)
        pointed = {name: last.version for name in names(folder) if (last := in_force(folder, name)) is not None}
        rows = [(item, [name for name in pointed if pointed[name] == item.version], holds(item, relied_on)) for item in known]
        if as_json:
            print_json([{**plain(item), "aliases": aliases, "holds": held} for item, aliases, held in rows])
            return
        told = [
            [
                item.version,
                item.released_at[:16],
                item.verdict,
                str(item.requests),
                ", ".join(aliases) or "-",
                f"{len(held)} batches",
            ]
            for item, aliases, held in rows
        ]
        print_table(["release", "at", "verdict", "requests", "aliases", "may hold deleted images of"], told)


def rollback(
    to: To,
    line: Annotated[str, typer.Option("--line", help="The model line.")],
    alias: Annotated[str, typer.Option("--alias", metavar="NAME", help="The alias to move.")],
    version: Annotated[str, typer.Option("--version", help="The release that it is to name.")],
    key: Keys = None,
    approve: Approve = "",
    reason: Reason = "",
    ledger: LedgerUrl = "",
    pseudonym_key: KeyFile = "",
    as_json: AsJson = False,
) -> None:
    """Let an alias name another release, if that is intact and holds no deleted data."""
    with answering(), given_ledger(ledger, pseudonym_key) as book:
        from launch.gate import approval
        from launch.rollback import roll_back
        from launch.show import print_json

        now = _now()
        given, leave = _keys(key), approval(approve, reason, now)
        done = roll_back(to, line, alias, version, by=_by(book), now=now, trusted=given, approval=leave, ledger=book)
        if as_json:
            print_json(done)
            return
        for text in promotion_lines(done):
            print(text)


def retire(
    to: To,
    line: Annotated[str, typer.Option("--line", help="The model line.")],
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Print what still holds deleted data, and its date; remove nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    key: Keys = None,
    ledger: LedgerUrl = "",
    pseudonym_key: KeyFile = "",
    as_json: AsJson = False,
) -> None:
    """Remove checkpoints and earlier weights that hold deleted data and are kept no longer."""
    with answering(), given_ledger(ledger, pseudonym_key) as book:
        from launch.released import line_folder, releases
        from launch.retention import kept
        from launch.retention import retire as remove
        from launch.show import print_json
        from pipeline.errors import ConfigError, GateFailed

        folder, now, speech = line_folder(to, line), _now(), sys.stderr if as_json else sys.stdout
        known = releases(folder, _keys(key))
        items = kept(folder, known)
        due = [item for item in items if item.kept_until <= now[:10] and not item.alias]
        if dry or not (due or any(item.kept_until <= now[:10] for item in items)):
            if as_json:
                print_json({"kept": items, "removed": []})
                return
            for text in map(item_line, items):
                print(text)
            print(f"{len(due)} of {len(items)} are due; nothing was removed")
            return
        for text in map(item_line, due):
            print(text, file=speech)
        if due and not yes and not sys.stdin.isatty():
            raise ConfigError("retire: nobody is there to ask", "add --yes")
        if due and not yes and not typer.confirm("Remove them for good?", err=as_json):
            print("nothing was touched", file=speech)
            return
        gone, stay = remove(folder, known, by=_by(book), now=now, ledger=book)
        if as_json:
            print_json({"kept": stay, "removed": gone})
        else:
            print(f"removed: {sum(len(item.files) for item in gone)} files of {len(gone)} places")
        if stay:
            lines = [f"{item.folder}: named by alias {item.alias}" for item in stay]
            raise GateFailed("\n  ".join(["due, and not removed", *lines]), "let the alias name another release, then run again")
