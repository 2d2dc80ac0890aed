"""`unlearn rollback`: let an alias name another release of its line, if that holds no deleted data and is intact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launch.gate import Approval
from launch.promote import Promotion, move
from launch.released import line_folder, named, releases
from launch.verify_bundle import verify_release
from pipeline.aliases import in_force, names
from pipeline.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey

    from pipeline.ledger.store import Ledger

__all__ = ["roll_back"]


def roll_back(
    to: str,
    line_name: str,
    alias: str,
    version: str,
    *,
    by: str,
    now: str,
    trusted: tuple[SSlibKey, ...] = (),
    approval: Approval | None = None,
    ledger: Ledger | None = None,
) -> Promotion:
    """Let an alias name another release of its line.

    Args:
        to: folder or URI below which model lines lie.
        line_name: the model line.
        alias: which.
        version: the release that it is to name.
        by, now: who acts, and when (UTC, ISO 8601).
        trusted: public keys of which one must have signed each release; empty: signatures are not checked.
        approval: of a person, for a release that may hold deleted data.
        ledger: whose released batches count, too, and in which the change is written down.

    Raises:
        ConfigError: no such alias or release.
        GateFailed: the release may hold deleted data, and nobody let it pass.
        IntegrityError: the release is not what its statement says.
        StorageError: another host changed the alias at the same time.
    """
    line = line_folder(to, line_name)
    known = releases(line, trusted)
    target = named(known, version, line_name)
    if in_force(line, alias) is None:
        raise ConfigError(f"alias {alias}: not known in {line_name}", f"its aliases: {', '.join(names(line)) or 'none'}")
    signer = next((key for key in trusted if key.keyid in target.key_ids), None)
    found = verify_release(target.folder, signer)
    if found.faults:
        lead = f"alias {alias}: not moved, for {version} does not verify"
        raise IntegrityError("\n  ".join([lead, *found.faults]), "restore the release, or choose another one")
    return move(line, alias, target, act="rolled back", by=by, now=now, approval=approval, ledger=ledger)
