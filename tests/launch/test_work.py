"""Steps and images of every stage, against the formulas of the stages themselves."""

from __future__ import annotations

import dataclasses

import pytest

from launch.work import FLOOR_IMAGES, PROBE_IMAGES, Counts, StageWork, reads, retrain_steps, unknown_work, work_of
from pipeline.chain import CHAIN, StageSpec
from pipeline.config import RunConfig, resolve
from pipeline.orders import MeasureAnswer
from pipeline.stages import forget
from tests.support.planning import ANSWER, FACTS

COUNTS = Counts(forget=100, retain=1000, groups=1, unseen=300)
FORGET = dataclasses.replace(FACTS, phase="forget", reads=("forget",), batch_sizes=(64,), passes=2, probe_steps=3, leveled=True)
RETAIN = dataclasses.replace(FACTS, phase="retain", reads=("retain", "forget"), batch_sizes=(96, 32), share=0.1)
METHOD = dataclasses.replace(
    ANSWER,
    phases=(FACTS, dataclasses.replace(FACTS, phase="calibrate"), FORGET, RETAIN),
    calibration={"shadow_share": 0.1, "samples": 50},
)


def spec(name: str) -> StageSpec:
    return next(item for item in CHAIN if item.name == name)


@pytest.fixture
def config() -> RunConfig:
    return resolve("demo", ["train.epochs=3", "train.batch_size=64"])


def work(name: str, config: RunConfig, answer: MeasureAnswer = METHOD) -> StageWork:
    return work_of(spec(name), config, answer, COUNTS)


def test_training_takes_whole_passes(config: RunConfig) -> None:
    assert (work("train", config).steps, work("train", config).samples) == (3 * 18, 64)  # 1,100 images in batches of 64
    assert work("retrain", config).steps == retrain_steps(config, COUNTS) == 3 * 16
    assert not work("train", config).at_most


def test_given_weights_are_not_trained(config: RunConfig) -> None:
    given = dataclasses.replace(config, original="weights.safetensors", reference="none")
    assert work("train", given) == work("retrain", given) == StageWork()


def test_a_batch_is_at_most_the_split(config: RunConfig) -> None:
    few = work_of(spec("train"), config, METHOD, Counts(forget=10, retain=20, groups=1))
    assert (few.steps, few.samples) == (3, 30)


def test_phase_1_is_bounded_by_its_passes(config: RunConfig) -> None:
    found = work("forget", config)
    assert (found.steps, found.samples, found.at_most) == (2 * 2, 64, True)
    # A look at some of 300 unseen images after 3 steps, and at all 100 forget images after each of 2 passes.
    assert found.measured == 1 * FLOOR_IMAGES + 2 * 100
    assert found.look == FLOOR_IMAGES < 300


def test_the_looks_of_phase_1_are_as_large_as_its_stage_says() -> None:
    assert (FLOOR_IMAGES, PROBE_IMAGES) == (forget.FLOOR_IMAGES, forget.PROBE_IMAGES)


def test_phase_2_is_a_share_of_retrainings_samples(config: RunConfig) -> None:
    found = work("retain", config)
    assert (found.steps, found.samples) == (round(0.1 * 48 * 64 / 128), 128)
    assert found.splits == {"retain": (1000, 96), "forget": (100, 32)}


def test_calibration_measures_and_may_train_a_shadow(config: RunConfig) -> None:
    found = work("calibrate", config)
    assert (found.steps, found.samples) == (round(0.1 * 48), 64)
    assert found.measured == 2 * (50 + 100)
    bare = dataclasses.replace(METHOD, phases=(FACTS, FORGET, RETAIN), calibration={"shadow_share": 0.0, "samples": 50})
    assert (work("calibrate", config, bare).facts, work("calibrate", config, bare).measured) == (None, 150)


def test_evaluation_completes_images_by_every_model(config: RunConfig) -> None:
    found = work("evaluate", config)
    assert found.models == 3
    assert found.completed == 3 * (100 + 300 + 1000 + 300)
    assert work("evaluate", dataclasses.replace(config, reference="none")).models == 2


def test_without_data_a_step_is_known_and_their_number_is_not(config: RunConfig) -> None:
    for name, samples in (("train", 64), ("calibrate", 64), ("forget", 64), ("retain", 128)):
        found = unknown_work(spec(name), config, METHOD)
        assert (found.steps, found.samples) == (None, samples)
    given = dataclasses.replace(config, original="weights.safetensors")
    assert unknown_work(spec("train"), given, METHOD).facts is None
    assert unknown_work(spec("evaluate"), config, METHOD).facts is None


def test_what_is_kept_decoded_is_decoded_once_a_rank() -> None:
    passes = StageWork(facts=FACTS, steps=40, samples=25, splits={"original": (100, 25)})  # 10 passes over 100 images
    room = {"image_bytes": 10, "cache_bytes": 1000}
    assert reads(passes, **room, ranks=1) == pytest.approx(100)
    assert reads(passes, **room, ranks=2) == pytest.approx(200 * (1 - 0.5**10))
    assert reads(passes, image_bytes=10, cache_bytes=0, ranks=2) == pytest.approx(1000)
    half = reads(passes, image_bytes=10, cache_bytes=500, ranks=1)
    assert half == pytest.approx(50 + 500)
    assert reads(StageWork(), **room, ranks=1) == 0
