"""What ranks send each other in a step, and how long that takes: latency and bandwidth of rings, and NCCL's trees.

A ring of N ranks: an all-reduce of n bytes sends 2 (N - 1) / N n from every rank in 2 (N - 1) hops; an all-gather and a
reduce-scatter half of that (Patarasuk & Yuan, Bandwidth optimal all-reduce algorithms, 2009).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pipeline.records import record

__all__ = ["Exchange", "Fabric", "Link", "exchanges", "fit_line", "fit_link", "seconds", "sent"]

Kind = Literal["all_reduce", "all_gather", "reduce_scatter"]
MOST_LIVE = 1_000_000_000
"""DeepSpeed keeps so many elements gathered under ZeRO 3 (stage3_max_live_parameters, stage3_max_reuse_distance)."""


@record
class Link:
    """Seconds a hop, and bytes a second one way."""

    latency: float
    bandwidth: float


@record
class Fabric:
    """How ranks are joined. `inside` a node a rank has its own link; `between` nodes all ranks of a node share one. None: not
    known. tree: of two algorithms the faster one is taken, as NCCL does; gloo has rings only."""

    per_node: int
    inside: Link | None
    between: Link | None
    tree: bool = False


@record
class Exchange:
    """One collective operation over all ranks: so many bytes, in so many pieces."""

    kind: Kind
    bytes: float
    pieces: int = 1
    in_backward: bool = True
    """Whether it belongs to the backward pass; otherwise to the optimizer's step."""


def exchanges(zero: int, precision: str, trained: int, *, paper: bool = False, gpu: bool = True) -> tuple[Exchange, ...]:
    """What a step exchanges, apart from sums of a few numbers.

    As DeepSpeed 0.19 does it on GPUs (counted by the calls it makes, see benchmarks/results/planner.md): ZeRO 1 and 2 all-reduce
    gradients in place of the reduce-scatter of the paper, which they have on a CPU (`pipeline.engine.flat`); ZeRO 3 gathers
    weights once a step while they fit in `MOST_LIVE`, the second time only above.

    Args:
        zero: stage 0 to 3.
        precision: the engine's.
        trained: parameters that move.
        gpu: under autocast DeepSpeed casts what it exchanges to bf16; on a CPU it is told not to (`pipeline.engine.backend`).
        paper: as the ZeRO paper (arXiv 1910.02054, section 7) has it: 2 n bytes for stages 0 to 2, and 3 n for stage 3.
    """
    cast = precision == "autocast" and gpu
    grad = 2 if precision == "bf16" or (cast and zero > 0) else 4
    weight = 2 if precision == "bf16" or (cast and zero == 3) else 4
    grads, weights = grad * trained, weight * trained
    step = {"in_backward": False}
    if zero == 0:
        return (Exchange(kind="all_reduce", bytes=grads),)
    if zero < 3:
        kind: Kind = "all_reduce" if gpu and not paper else "reduce_scatter"
        return Exchange(kind=kind, bytes=grads), Exchange(kind="all_gather", bytes=weights, **step)
    times = 2 if paper or trained > MOST_LIVE else 1
    return Exchange(kind="all_gather", bytes=times * weights, pieces=times), Exchange(kind="reduce_scatter", bytes=grads)


def sent(exchange: Exchange, ranks: int) -> float:
    """Bytes that each rank sends."""
    return (2 if exchange.kind == "all_reduce" else 1) * (ranks - 1) / ranks * exchange.bytes


def seconds(exchange: Exchange, ranks: int, fabric: Fabric) -> float | None:
    """Seconds of one exchange among so many ranks; None where a link on the way is not known."""
    if ranks == 1:
        return 0.0
    per_node = min(ranks, fabric.per_node)
    nodes = -(-ranks // per_node)
    links = [link for count, link in ((per_node, fabric.inside), (nodes, fabric.between)) if count > 1]
    known = [link for link in links if link is not None]
    if len(known) < len(links):
        return None
    # A ring crosses each node's border once, so its slowest link is a GPU's own, or what a node has as a whole.
    bandwidth = min(link.bandwidth for link in known)
    inside = fabric.inside.latency if fabric.inside is not None and per_node > 1 else 0.0
    between = fabric.between.latency if fabric.between is not None and nodes > 1 else 0.0
    # One hop each way across every node's border, as in NCCL's tuning model; the others are inside.
    outward = min(nodes, ranks - 1) if nodes > 1 else 0
    hops = (ranks - 1 - outward) * inside + outward * between
    if fabric.tree and exchange.kind == "all_reduce":
        hops = min(hops, (per_node - 1) * inside + math.ceil(math.log2(nodes)) * between)
    ways = 2 if exchange.kind == "all_reduce" else 1
    return sent(exchange, ranks) / bandwidth + exchange.pieces * ways * hops


def fit_line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Offset and slope of y over x by least squares of relative errors, so that small and large y count alike.

    Minimises the sum of ((a + b x) / y - 1) ** 2; needs two different x, and y above 0.
    """
    ones = sum(1 / y**2 for _, y in points)
    xs, xx = (sum(x**power / y**2 for x, y in points) for power in (1, 2))
    ys, xy = (sum(x**power / y for x, y in points) for power in (0, 1))
    determinant = ones * xx - xs**2
    return (ys * xx - xy * xs) / determinant, (ones * xy - xs * ys) / determinant


def fit_link(measured: Sequence[tuple[int, float]], ranks: int) -> Link | None:
    """Latency and bandwidth from all-reduces of several sizes, (bytes, seconds) each; None with fewer than eight, or where larger
    ones took no longer."""
    points = [(float(size), time) for size, time in measured if size > 0 and time > 0]
    if len(points) < 8 or ranks < 2:
        return None
    fixed, each = fit_line(points)
    if each <= 0:
        return None
    fixed = max(fixed, min(time for _, time in points) / 10)
    return Link(latency=fixed / (2 * (ranks - 1)), bandwidth=2 * (ranks - 1) / ranks / each)
