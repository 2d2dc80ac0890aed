"""Which states requests and batches go through, and who may follow whom.

A request: received (not yet looked up) or queued, batched, running, evaluated, released. One that failed is queued again, or held
until a person decides. A released one is queued again where the release is rolled back to a model that holds its images.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.errors import UnlearnError

__all__ = ["BATCH_MOVES", "FINAL", "REQUEST_MOVES", "ForbiddenMove", "refuse_move", "sources"]

REQUEST_MOVES: Mapping[str, frozenset[str]] = {
    "received": frozenset({"queued", "batched", "withdrawn", "refused"}),
    "queued": frozenset({"batched", "held", "withdrawn", "refused"}),
    "batched": frozenset({"running", "queued", "held", "withdrawn"}),
    "running": frozenset({"evaluated", "failed", "held"}),
    "evaluated": frozenset({"released", "failed", "held"}),
    "failed": frozenset({"batched", "queued", "held"}),
    "held": frozenset({"batched", "queued", "refused"}),
    "released": frozenset({"queued"}),
    "withdrawn": frozenset(),
    "refused": frozenset(),
}
FINAL = ("released", "withdrawn", "refused")
"""States of a request that is no longer open."""

BATCH_MOVES: Mapping[str, frozenset[str]] = {
    "closed": frozenset({"running", "held", "withdrawn"}),
    "running": frozenset({"evaluated", "failed", "held"}),
    "evaluated": frozenset({"released", "failed", "held"}),
    "failed": frozenset({"closed", "held", "moved_on"}),
    "held": frozenset({"closed", "moved_on"}),
    "released": frozenset({"rolled_back"}),
    "moved_on": frozenset(),
    "rolled_back": frozenset(),
    "withdrawn": frozenset(),
}


class ForbiddenMove(UnlearnError):
    """A state that cannot follow the present one."""


def refuse_move(what: str, name: str, before: str, after: str) -> None:
    """Raise ForbiddenMove unless a request or batch in the state `before` may become `after`."""
    moves = REQUEST_MOVES if what == "request" else BATCH_MOVES
    if after not in moves[before]:
        may = ", ".join(sorted(moves[before])) or "nothing"
        raise ForbiddenMove(f"{what} {name}: is {before} and cannot become {after}", f"what may follow: {may}")


def sources(moves: Mapping[str, frozenset[str]], after: str) -> tuple[str, ...]:
    """The states that `after` may follow."""
    return tuple(before for before, afters in moves.items() if after in afters)
