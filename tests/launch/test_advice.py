"""How many nodes are worth it, why not more, and the curve."""

from __future__ import annotations

import dataclasses

from launch.advice import CURVE_RANKS, WORTH, Bound, advise, bound_of, curve
from launch.estimate import Basis, StageEstimate, estimate
from launch.network import Fabric
from launch.work import StageWork
from pipeline.chain import CHAIN
from pipeline.config import resolve
from tests.support.planning import ANSWER, FACTS, RATES

TRAIN = next(spec for spec in CHAIN if spec.name == "train")
CONFIG = resolve("demo", [])
WORK = StageWork(facts=FACTS, steps=100, samples=4096, splits={"original": (409_600, 4096)})
WIDE = Bound(ranks=4096, by="the batch")


def at(nodes: int, per_node: int = 8, rates: object = RATES) -> StageEstimate:
    basis = Basis(config=CONFIG, answer=ANSWER, rates=rates)  # type: ignore[arg-type]
    return estimate(TRAIN, WORK, basis, nodes=nodes, per_node=per_node)


def test_the_last_doubling_that_is_worth_it_is_found() -> None:
    found = advise("train", at, WIDE, per_node=8, memory=None)
    assert found is not None
    time = {nodes: at(nodes).seconds or 0.0 for nodes in (found.nodes // 2, found.nodes, 2 * found.nodes)}
    assert time[found.nodes // 2] / time[found.nodes] >= WORTH
    assert time[found.nodes] / time[2 * found.nodes] < WORTH
    assert found.gain == time[found.nodes] / time[2 * found.nodes]
    assert (found.cheapest, found.least, found.known) == (1, 1, True)


def test_a_bound_ends_the_sweep() -> None:
    found = advise("train", at, Bound(ranks=16, by="stream.lanes"), per_node=8, memory=None)
    assert found is not None
    assert (found.nodes, found.gain) == (2, None)


def test_memory_is_judged_where_it_is_known() -> None:
    total = at(1).memory
    assert total is not None
    assert getattr(advise("train", at, WIDE, per_node=8, memory=total.total + 1), "least", 0) == 1
    assert getattr(advise("train", at, WIDE, per_node=8, memory=10.0), "least", 0) is None


def test_times_that_are_not_known_are_told_apart() -> None:
    inside = dataclasses.replace(RATES, fabric=Fabric(per_node=8, inside=RATES.fabric.inside, between=None))
    found = advise("train", lambda nodes: at(nodes, rates=inside), WIDE, per_node=8, memory=None)
    assert found is not None
    assert (found.nodes, found.known, found.gain) == (1, False, None)
    nothing = dataclasses.replace(RATES, flop_seconds=None)
    assert advise("train", lambda nodes: at(nodes, rates=nothing), WIDE, per_node=8, memory=None) is None


def test_the_bound_is_the_smaller_of_batch_and_lanes() -> None:
    assert bound_of(64, 32) == Bound(ranks=32, by="stream.lanes")
    assert bound_of(16, 32) == Bound(ranks=16, by="the batch")


def test_the_curve_fills_a_node_before_the_next() -> None:
    asked: list[tuple[int, int]] = []

    def noted(nodes: int, per_node: int) -> StageEstimate:
        asked.append((nodes, per_node))
        return at(nodes, per_node)

    series = curve("train", noted, WIDE, per_node=8)
    assert asked[:5] == [(1, 1), (1, 2), (1, 4), (1, 8), (2, 8)]
    assert [x for x, _ in series.points] == list(map(float, CURVE_RANKS))
    assert series.points[0][1] == (at(1, 1).seconds or 0) / 3600
    assert series.allowed == 4096
