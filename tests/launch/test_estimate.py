"""Estimates: one small case by hand, and the laws that any case obeys."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from launch.estimate import PARTS, Basis, StageEstimate, checkpoint_bytes, estimate, step_parts
from launch.memory import Layout
from launch.network import Fabric
from launch.work import StageWork
from pipeline.chain import CHAIN
from pipeline.config import resolve
from tests.support.planning import ANSWER, FACTS, RATES

CONFIG = resolve("demo", ["engine.zero_stage=1", "engine.checkpoint_steps=50"])
TRAIN, SHARD, EVALUATE = (next(spec for spec in CHAIN if spec.name == name) for name in ("train", "shard", "evaluate"))
WORK = StageWork(facts=FACTS, steps=100, samples=4096, splits={"original": (409_600, 4096)})
BASIS = Basis(config=CONFIG, answer=ANSWER, rates=RATES)


def at(nodes: int, per_node: int = 8, basis: Basis = BASIS, work: StageWork = WORK) -> StageEstimate:
    return estimate(TRAIN, work, basis, nodes=nodes, per_node=per_node)


def test_a_step_by_hand() -> None:
    # 512 samples of 1 GFLOP at 1 TFLOP/s; 1e6 / 8 parameters at 1 ns; all-reduce of 4 MB, 2 * 7/8 * 4 MB at 100 GB/s and 14 hops
    # of 1 us; all-gather, half of it; and three sums of 64 bytes.
    parts = step_parts(WORK, RATES, Layout(zero=1, precision="fp32", ranks=8), samples=512)
    assert parts["compute"] == pytest.approx(0.512)
    assert parts["update"] == pytest.approx(1.25e-4)
    assert parts["network"] == pytest.approx(70e-6 + 14e-6 + 35e-6 + 7e-6 + 3 * 14e-6, rel=1e-3)
    assert parts["loading"] == 0.0


def test_a_stage_by_hand() -> None:
    found = at(1)
    steps = 100 * (0.512 + 1.25e-4 + 168e-6)
    saving = (3 * 16e6 + 4e6) * 1e-9
    assert found.seconds == pytest.approx(5.0 + steps + saving, rel=1e-3)
    assert found.node_hours == pytest.approx((found.seconds or 0) / 3600)
    assert (found.bottleneck, found.samples, found.missing) == ("compute", 512.0, ())
    assert found.sent_step == pytest.approx(7e6 + 3.5e6)
    assert found.sent_total == pytest.approx(100 * 8 * 10.5e6)


def test_time_falls_and_then_flattens_with_nodes() -> None:
    times = [at(nodes).seconds or 0.0 for nodes in (1, 2, 4, 8, 16, 32, 64)]
    assert times == sorted(times, reverse=True)
    gains = [before / after for before, after in itertools.pairwise(times)]
    assert gains == sorted(gains, reverse=True)
    assert 1.0 <= gains[-1] < 1.3 < gains[0] <= 2.0


def test_one_rank_has_no_network_and_nothing_is_negative() -> None:
    assert at(1, 1).parts["network"] == 0.0
    assert at(1, 1).sent_step == 0.0
    for nodes, per_node in ((1, 1), (1, 8), (64, 8), (512, 8)):
        found = at(nodes, per_node)
        assert all(value is not None and value >= 0 for value in found.parts.values())
        assert min(found.checkpoint_bytes, found.weights_bytes, found.memory.total if found.memory else 0) >= 0


def test_more_passes_through_the_model_cost_what_was_measured() -> None:
    slow = dataclasses.replace(RATES, call_seconds=0.3)
    layout = Layout(zero=1, precision="fp32", ranks=8)
    twice = dataclasses.replace(WORK, facts=dataclasses.replace(FACTS, calls=2, quiet_calls=1))
    one, two = (step_parts(work, slow, layout, samples=512)["compute"] or 0.0 for work in (WORK, twice))
    assert two - one == pytest.approx(0.3 * (1 + 1 / 3))


def test_a_gpu_loads_beside_its_work_and_a_processor_does_not() -> None:
    layout = Layout(zero=1, precision="fp32", ranks=8)
    on_cpu = dataclasses.replace(RATES, gpu=False)
    assert step_parts(WORK, RATES, layout, samples=512, decoded=512)["loading"] == 0.0
    assert step_parts(WORK, on_cpu, layout, samples=512, decoded=512)["loading"] == pytest.approx(512e-6)
    slow = dataclasses.replace(RATES, decode_seconds=2e-3)
    parts = step_parts(WORK, slow, layout, samples=512, decoded=512)
    assert sum(value or 0 for value in parts.values()) == pytest.approx(1.024)


def test_what_is_not_known_is_named_and_not_replaced() -> None:
    unknown = dataclasses.replace(RATES, checkpoint_seconds=None, decode_seconds=None)
    found = at(1, basis=dataclasses.replace(BASIS, rates=unknown))
    assert set(found.missing) == {"saving", "loading"}
    assert found.seconds == pytest.approx(5.0 + 100 * 0.512, rel=0.01)
    no_link = dataclasses.replace(RATES, fabric=Fabric(per_node=8, inside=None, between=None))
    found = at(2, basis=dataclasses.replace(BASIS, rates=no_link))
    assert (found.seconds, found.node_hours, found.step_seconds, found.bottleneck) == (None, None, None, "")


def test_steps_that_are_not_known_leave_the_step() -> None:
    found = at(1, work=dataclasses.replace(WORK, steps=None, splits=None))
    assert found.seconds is None
    assert found.step_seconds == pytest.approx(0.512, rel=0.01)
    assert found.memory is not None


def test_other_stages() -> None:
    shard = estimate(SHARD, StageWork(), BASIS, nodes=1, per_node=8)
    assert (shard.ranks, shard.seconds, shard.missing) == (1, None, PARTS)
    idle = at(1, work=StageWork())
    assert (idle.seconds, idle.bottleneck) == (0.0, "")
    answers = estimate(EVALUATE, StageWork(completed=3000, models=3), BASIS, nodes=1, per_node=8)
    assert answers.parts["looking"] == pytest.approx(3000 * 6e8 * 1e-12 / 8)
    assert answers.memory is not None
    assert answers.memory.parts["models"] == 12e6


def test_checkpoints_by_stage() -> None:
    # Bytes a parameter of all ranks together: weights 4 or 2, masters 4, moments 8.
    assert [checkpoint_bytes(10, 10, zero, "fp32") for zero in range(4)] == [120, 160, 160, 120]
    assert [checkpoint_bytes(10, 10, zero, "bf16") for zero in range(4)] == [140, 140, 140, 120]


@pytest.mark.parametrize(
    ("phase", "steps", "probes", "passes", "background", "copied"),
    [
        ("train", 50, 0, 1, True, "start"),  # the checkpoint that is due then comes after the last step
        ("train", 51, 0, 1, True, "all"),
        ("train", None, 0, 1, True, "all"),  # who knows
        ("forget", 40, 0, 1, True, "start"),
        ("forget", 40, 0, 2, True, "all"),  # after the first pass
        ("forget", 40, 8, 1, True, "all"),  # after a look at kept images
        ("train", 51, 0, 1, False, "nothing"),
    ],
)
def test_a_short_phase_copies_its_start_alone(
    phase: str, steps: int | None, probes: int, passes: int, background: bool, copied: str
) -> None:
    config = resolve("demo", ["engine.checkpoint_steps=50", f"engine.background_saves={str(background).lower()}"])
    rates = dataclasses.replace(RATES, gpu=False)
    work = dataclasses.replace(
        WORK, facts=dataclasses.replace(FACTS, phase=phase, probe_steps=probes, passes=passes), steps=steps
    )
    memory = at(1, 1, dataclasses.replace(BASIS, config=config, rates=rates), work).memory
    assert memory is not None
    moments, rest = 8 * FACTS.trained, 4 * FACTS.trained + 4 * FACTS.parameters
    expected = {"nothing": 0, "start": rest, "all": rest + moments}[copied]
    found = memory.parts.get("copy for checkpoints", 0)
    assert found == pytest.approx(expected)
