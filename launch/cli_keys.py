"""The commands about keys: keys new, keys new-secret, keys destroy. What they need is imported inside them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from launch.answering import AsJson, KeyFile, LedgerUrl, answering
from launch.cli_release import given_ledger

__all__ = ["add_to"]

DEFAULT_SECRET = "unlearn-ledger.key"  # noqa: S105 as the name of a file


def add_to(app: typer.Typer) -> None:
    """Give the application these commands."""
    keys = typer.Typer(no_args_is_help=True, help="Make and destroy keys: to sign releases with, and for keyed digests.")
    keys.command("new")(new)
    keys.command("new-secret")(new_secret)
    keys.command("destroy")(destroy)
    app.add_typer(keys, name="keys")


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Path without an ending; NAME.key and NAME.pub are made.")],
    passphrase_file: Annotated[
        str, typer.Option("--passphrase-file", metavar="FILE", help="Encrypt the private key by it; or UNLEARN_PASSPHRASE.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Make a pair of keys to sign releases with; nothing is ever overwritten."""
    with answering():
        from launch.keys import passphrase
        from launch.show import print_json
        from pipeline.signing import make_keys

        secret = passphrase(passphrase_file)
        made = make_keys(name, passphrase=secret)
        if as_json:
            print_json({"key_id": made, "private": f"{name}.key", "public": f"{name}.pub", "encrypted": bool(secret)})
            return
        guard = "encrypted" if secret else "not encrypted: only its mode guards it"
        print(
            f"private key: {name}.key ({guard}); keep it where releases are made\npublic key: {name}.pub; hand it to who verifies"
        )
        print(f"key id: {made}")


def new_secret(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; by default beside the ledger.")] = "",
    ledger: LedgerUrl = "",
    pseudonym_key: KeyFile = "",
    as_json: AsJson = False,
) -> None:
    """Make a secret for keyed digests; with a ledger, one that it is kept with from now on."""
    with answering(), given_ledger(ledger, pseudonym_key) as book:
        from launch.keys import new_secret as make
        from launch.show import print_json

        place = file or (book.key_file if book else DEFAULT_SECRET)
        made = make(place)
        if book is not None:
            from pipeline.ledger.releases import record_new_secret

            with book.write() as tx:
                record_new_secret(tx, made)
        if as_json:
            print_json({"file": place, "secret": made, "ledger": book.name if book else None})
            return
        print(f"secret {made}: {place}; keep it apart from what is released, and no copy that you could not destroy")


def destroy(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The secret of keyed digests.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    ledger: LedgerUrl = "",
    as_json: AsJson = False,
) -> None:
    """Overwrite and remove a secret: what was digested with it tells nobody anything any more."""
    with answering(), given_ledger(ledger) as book:
        from launch.keys import destroy_secret
        from launch.show import print_json
        from pipeline.errors import ConfigError

        if not yes and not sys.stdin.isatty():
            raise ConfigError("keys destroy: nobody is there to ask", "add --yes")
        if not yes and not typer.confirm("Nobody can check a key against its digests any more. Destroy it?", err=as_json):
            print("nothing was touched", file=sys.stderr if as_json else sys.stdout)
            return
        was = destroy_secret(file)
        if book is not None:
            from pipeline.ledger.releases import record_destroyed

            with book.write() as tx:
                record_destroyed(tx, was)
        if as_json:
            print_json({"file": file, "secret": was, "ledger": book.name if book else None})
            return
        print(f"secret {was}: overwritten and removed{'; written down in the ledger' if book else ''}")
        print("copies elsewhere, backups and snapshots of the file system are yours to destroy")
