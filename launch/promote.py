"""Let an alias name another release, forward or back, but never unseen to one that may hold deleted data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from launch.gate import Approval
from launch.released import Candidate, Released, holds
from pipeline.aliases import Change, change, changes, in_force, named_batches, point
from pipeline.errors import ConfigError, GateFailed
from pipeline.records import record

if TYPE_CHECKING:
    from pipeline.ledger.store import Ledger

__all__ = ["Promotion", "move", "passed_on", "refuse_held"]

SHOWN = 5


@record
class Promotion:
    """What became of an alias. `held`: digests of released batches whose images the release may hold, with a person's leave;
    `taken_back`: batches of the ledger that wait again because of it."""

    alias: str
    version: str
    number: int
    did: Literal["promoted", "rolled back", "unchanged", "passed on"]
    held: tuple[str, ...] = ()
    taken_back: tuple[str, ...] = ()


def passed_on(line: str, alias: str, version: str) -> Promotion | None:
    """What stands, where the alias named this release once and names another now: a release sent again does not turn it back."""
    known = changes(line, alias)
    if not known or known[-1].version == version or version not in [item.version for item in known]:
        return None
    point(line, alias)
    return Promotion(alias=alias, version=known[-1].version, number=known[-1].number, did="passed on")


def refuse_held(
    line: str, alias: str, target: Released | Candidate, *, approval: Approval | None, ledger: Ledger | None = None
) -> tuple[str, ...]:
    """The digests of batches whose images a release may hold, of those that an alias has named or the ledger knows as released.

    Args:
        line: folder of the model line.
        alias: that is to name it.
        target: the release.
        approval: of a person, who lets it pass.
        ledger: whose released batches count, too.

    Raises:
        GateFailed: there are such batches, and nobody let them pass.
    """
    held = holds(target, named_batches(line) | _released(ledger, line, target))
    if held and approval is None:
        some = ", ".join(digest[:8] for digest in held[:SHOWN]) + (", ..." if len(held) > SHOWN else "")
        message = f"alias {alias}: {target.version} may hold images of {len(held)} released batches ({some})"
        cure = "choose a release that unlearned them, or let a person answer for it: --approve NAME --reason TEXT"
        raise GateFailed(message, cure)
    return held


def move(
    line: str,
    alias: str,
    target: Released,
    *,
    act: Literal["promoted", "rolled back"],
    by: str,
    now: str,
    approval: Approval | None = None,
    ledger: Ledger | None = None,
) -> Promotion:
    """Let an alias name a release.

    Args:
        line: folder of the model line.
        alias: its name.
        target: the release.
        act: what it is called in the history.
        by, now: who acts, and when (UTC, ISO 8601).
        approval: of a person, for a release that may hold deleted data.
        ledger: whose released batches count, beside those that an alias has named, and in which the change is written down; the
            release must be in it.

    Raises:
        GateFailed: the release may hold deleted data, and nobody let it pass.
        StorageError: another host changed the alias at the same time.
    """
    before = in_force(line, alias)
    if before is not None and before.version == target.version:
        point(line, alias)
        _record(ledger, line, alias, before)
        return Promotion(alias=alias, version=target.version, number=before.number, did="unchanged")
    held = refuse_held(line, alias, target, approval=approval, ledger=ledger)
    if ledger is not None:
        _refuse_unknown(ledger, target)
    needed = approval if held else None
    told: dict[str, object] = {"act": act, "approved": needed is not None, "at": now}
    told |= {"by": needed.approver if needed else by, "reason": needed.reason if needed else ""}
    told |= {"version": target.version, "batch": target.batch, "weights": target.weights, "statement": target.statement}
    made = change(line, alias, before=before, **told)
    taken_back = _record(ledger, line, alias, made, held)
    return Promotion(alias=alias, version=target.version, number=made.number, did=act, held=held, taken_back=taken_back)


def _name(line: str) -> str:
    return line.rstrip("/").rsplit("/", 1)[-1]


def _released(ledger: Ledger | None, line: str, target: Released | Candidate) -> set[str]:
    if ledger is None:
        return set()
    from pipeline.ledger.releases import line_of, released_batches

    with ledger.read() as tx:
        return released_batches(tx, line_of(tx, target.weights, _name(line), batch_digest=target.batch))


def _refuse_unknown(ledger: Ledger, target: Released) -> None:
    """Before the alias moves: the ledger must know the model that it is to name."""
    from pipeline.ledger.releases import known_model

    with ledger.read() as tx:
        if not known_model(tx, target.weights):
            message = f"{target.version}: not in the ledger {ledger.name}"
            raise ConfigError(message, "send its run again: unlearn release RUN --ledger URL; nothing is published twice")


def _record(ledger: Ledger | None, line: str, alias: str, made: Change, held: tuple[str, ...] = ()) -> tuple[str, ...]:
    if ledger is None:
        return ()
    from pipeline.ledger.releases import record_alias, take_back

    with ledger.write() as tx:
        record_alias(
            tx,
            _name(line),
            alias,
            number=made.number,
            model_id=made.weights,
            version=made.version,
            act=made.act,
            by=made.by,
            reason=made.reason,
            approved=made.approved,
        )
        return tuple(take_back(tx, held, reason=f"{alias} names {made.version}")) if held else ()
