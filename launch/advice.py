"""Which numbers of nodes make sense, and the curve from one rank to thousands.

The rule: going up in doublings, a stage may have as many nodes as still make it at least 1.3 times as fast as half of them. The
bounds: a rank needs a sample of every batch, and a lane of the sample order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from launch.estimate import StageEstimate
from pipeline.orders import Series
from pipeline.records import record

__all__ = ["CURVE_RANKS", "WORTH", "Advice", "Bound", "advise", "bound_of", "curve"]

WORTH = 1.3
"""A doubling of nodes should make a stage so much faster."""
CURVE_RANKS = tuple(1 << power for power in range(13))
"""1 to 4,096."""


@record
class Bound:
    """Most ranks of a stage, and by which setting."""

    ranks: int
    by: str


@record
class Advice:
    """What to give a stage.

    nodes: as many as are worth it · gain: how much faster twice as many would make it, None where they are more than the bound ·
    known: whether the times of all numbers of nodes are known · cheapest: nodes that cost the fewest node-hours · least: fewest
    nodes on which it fits in memory, None where it does on none
    """

    stage: str
    nodes: int
    gain: float | None
    known: bool
    bound: Bound
    cheapest: int
    least: int | None


def bound_of(batch: int, lanes: int) -> Bound:
    """Most ranks for a global batch of so many samples, and so many lanes."""
    return Bound(ranks=lanes, by="stream.lanes") if lanes <= batch else Bound(ranks=batch, by="the batch")


def advise(stage: str, at: Callable[[int], StageEstimate], bound: Bound, *, per_node: int, memory: float | None) -> Advice | None:
    """Sweep doublings of nodes.

    Args:
        stage: its name.
        at: the stage's estimate for a number of nodes.
        bound: of its ranks.
        per_node: ranks of a node.
        memory: bytes that a rank may have; None: not known, and not judged.

    Returns:
        None where not even one node's time is known.
    """
    counts = [1]
    while 2 * counts[-1] * per_node <= bound.ranks:
        counts.append(2 * counts[-1])
    found = {nodes: at(nodes) for nodes in counts}
    known = [nodes for nodes in counts if found[nodes].seconds is not None]
    if not known:
        return None
    worth, gain = known[0], None
    for nodes in known[1:]:
        gain = (found[nodes // 2].seconds or 0.0) / (found[nodes].seconds or 1.0)
        if gain < WORTH:
            break
        worth, gain = nodes, None
    fits = [nodes for nodes in counts if memory is None or _bytes(found[nodes]) <= memory]
    cheapest = min(known, key=lambda nodes: found[nodes].node_hours or 0.0)
    every = len(known) == len(counts)
    return Advice(
        stage=stage, nodes=worth, gain=gain, known=every, bound=bound, cheapest=cheapest, least=fits[0] if fits else None
    )


def _bytes(estimate: StageEstimate) -> float:
    return estimate.memory.total if estimate.memory else 0.0


def curve(
    stage: str, at: Callable[[int, int], StageEstimate], bound: Bound, *, per_node: int, ranks: Sequence[int] = CURVE_RANKS
) -> Series:
    """Hours of a stage by its number of ranks; a node is filled before the next one is begun. Numbers whose time is not known are
    left out.

    Args:
        stage: its name.
        at: the stage's estimate for nodes, and ranks on each.
        bound: of its ranks.
        per_node: ranks that a node has room for.
        ranks: numbers to look at.
    """
    points = []
    for count in ranks:
        seconds = at(-(-count // per_node), min(count, per_node)).seconds
        if seconds is not None:
            points.append((float(count), seconds / 3600))
    return Series(name=stage, points=tuple(points), allowed=float(bound.ranks))
