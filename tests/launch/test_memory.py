"""Memory of a rank: the ZeRO paper's arithmetic for what is partitioned, and laws for the rest."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from launch.memory import Layout, Memory, Reading, Slack, forked_bytes, memory_of, states
from pipeline.orders import Linear
from tests.support.planning import FACTS, MACHINE

NO_IMAGES = Reading(cache=0.0, ahead=0.0)


def at(zero: int, ranks: int, precision: str = "fp32", **more: object) -> Memory:
    given = {"samples": 4.0, "reading": NO_IMAGES, "process": 0.0, "gpu": False, **more}
    return memory_of(FACTS, Layout(zero=zero, precision=precision, ranks=ranks), **given)  # type: ignore[arg-type]


def test_states_in_bf16_are_the_papers() -> None:
    # Bytes a parameter on 4 ranks: 4 + 12, 4 + 12/4, 2 + 14/4 and 16/4 (section 5 of arXiv 1910.02054).
    for zero, expected in enumerate((16.0, 7.0, 5.5, 4.0)):
        held = states(FACTS, Layout(zero=zero, precision="bf16", ranks=4))
        assert sum(held.values()) == pytest.approx(expected * FACTS.trained)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
def test_a_higher_stage_never_holds_more_states_on_several_ranks(precision: str) -> None:
    for ranks in (4, 64):
        sums = [sum(states(FACTS, Layout(zero=zero, precision=precision, ranks=ranks)).values()) for zero in range(4)]
        assert sums == sorted(sums, reverse=True)


def test_more_ranks_never_need_more() -> None:
    for zero, precision, gpu in itertools.product(range(4), ("fp32", "bf16", "autocast"), (False, True)):
        totals = [at(zero, ranks, precision, gpu=gpu).total for ranks in (2, 4, 16, 64)]
        assert totals == sorted(totals, reverse=True)


def test_stage_0_in_fp32_by_hand() -> None:
    # Weights 4, moments 8, gradients' blocks 4; at the end two copies of the weights to publish, 8: 24 bytes a parameter.
    memory = at(0, 1, samples=0.0)
    assert (memory.moment, memory.total) == ("weights", 24 * FACTS.parameters)


def test_the_largest_moment_is_named() -> None:
    assert at(1, 1, samples=1000.0).moment == "backward"
    assert at(1, 1, looking=1e10).moment == "looking"
    assert at(1, 2, samples=0.0).moment == "weights"
    assert at(1, 2, "bf16", samples=0.0, publishing=False).moment == "update"
    assert at(1, 2, samples=0.0, publishing=False).moment == "backward", "the update takes nothing more"
    assert at(3, 2, samples=0.0, publishing=False).moment == "backward"


@pytest.mark.parametrize(
    ("precision", "moment", "bytes_each"),
    [("fp32", "backward", (4 + 0 + 4) + 4 + 4), ("bf16", "update", (2 + 2 + 4) + 2 + 2 + 6)],
)
def test_on_a_cpu_stages_1_and_2_by_hand(precision: str, moment: str, bytes_each: float) -> None:
    # Weights, masters and moments of two ranks; gradients; in bf16 this rank's gradients in fp32; freed blocks.
    for zero in (1, 2):
        memory = at(zero, 2, precision, samples=0.0, publishing=False)
        assert (memory.moment, memory.total) == (moment, bytes_each * FACTS.trained)


def test_parts_beside_the_model_are_added() -> None:
    plain = at(1, 2, samples=1000.0).total
    full = at(1, 2, samples=1000.0, reading=Reading(cache=10.0, ahead=20.0), process=100.0, slack=Slack(extra=7.0)).total
    assert full == plain + 137, "in steps"
    doubled = at(1, 2, samples=1000.0, slack=Slack(factor=2.0))
    assert doubled.total - plain == FACTS.activations.at(1000.0)


@pytest.mark.parametrize(("zero", "start", "later"), [(0, 4, 12), (1, 6, 10), (2, 6, 10), (3, 2, 6)])
def test_a_copy_for_checkpoints_is_held_beside_all_else(zero: int, start: int, later: int) -> None:
    # Two ranks in fp32: masters and, once there are any, moments, over the ranks from stage 1 on; weights 4, unless they are
    # partitioned themselves.
    alone = at(zero, 2, samples=1000.0, publishing=False).total
    for copies, bytes_each in (("start", start), ("all", later)):
        assert at(zero, 2, samples=1000.0, publishing=False, copies=copies).total - alone == pytest.approx(
            bytes_each * FACTS.trained
        )
        assert "copy for checkpoints" not in at(zero, 2, gpu=True, copies=copies).parts


def test_a_companion_is_held_whole_by_every_rank() -> None:
    layout = Layout(zero=3, precision="bf16", ranks=64)
    with_one = dataclasses.replace(FACTS, companions=1)
    alone, both = (
        memory_of(facts, layout, samples=1, reading=NO_IMAGES, process=0, gpu=True).total for facts in (FACTS, with_one)
    )
    assert both - alone == 4 * FACTS.parameters


def test_on_a_gpu_the_bucket_is_a_part_of_the_model_at_stage_3_and_as_large_as_the_model_before() -> None:
    memory = at(2, 8, "bf16", gpu=True)
    assert memory.parts["buckets"] == 2 * FACTS.trained + 2 * FACTS.trained
    assert at(3, 8, "bf16", gpu=True).parts["buckets"] == 2 * 2 * 2 * max(FACTS.largest, FACTS.trained // 4)
    assert "process" not in memory.parts


def test_what_steps_take_beyond_the_parts_is_not_added_to_a_look_at_losses() -> None:
    # The look was measured as a whole, so it is the peak only where it takes more than steps with all that was found in them.
    given = {"samples": 1.0, "looking": 1e9, "publishing": False}
    assert at(1, 2, **given).total == at(1, 2, slack=Slack(extra=1e6), **given).total
    assert at(1, 2, slack=Slack(extra=2e9), **given).moment != "looking"


def test_a_forked_stage_counts_the_files_that_it_looks_at_itself() -> None:
    here = dataclasses.replace(MACHINE, process_bytes=500, mapped_bytes=240)
    assert forked_bytes(here) == pytest.approx(500 - 160)
    assert forked_bytes(dataclasses.replace(here, mapped_bytes=0)) == 500


def test_weights_are_read_into_blocks_that_activations_use_again() -> None:
    layout = Layout(zero=1, precision="fp32", ranks=2)

    def total(phase: str, samples: float) -> float:
        facts = dataclasses.replace(FACTS, phase=phase, activations=Linear(fixed=0.0, each=1e6))
        return memory_of(facts, layout, samples=samples, reading=NO_IMAGES, process=0.0, gpu=False, publishing=False).total

    read = 4 * FACTS.parameters
    assert total("retain", 1000.0) == total("train", 1000.0), "there is room in 1 GB of activations"
    assert total("retain", 0.0) - total("train", 0.0) == read
