"""The ledger of training: sealed, found beside weights, and the way back that it proves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.config import resolve
from pipeline.data.slices import Slicing, slice_of
from pipeline.errors import ConfigError, IntegrityError
from pipeline.findings import TrainedSlice, TrainingOrder
from pipeline.records import FileRef, PhaseOutcome
from pipeline.stages.ledger import adopt, order_file, read_order, refuse_unknown, rewind_point, settings_of, write_order
from pipeline.storage import hash_file, publish_bytes
from tests.pipeline.data.test_slices import SEEDS, SHARDS, samples


def ledger(sets: list[tuple[int, str]], *, seed: int = 5, weights: str = "original", last: str = "") -> TrainingOrder:
    """A finished training in as many slices as there are sets."""
    trained = []
    for number, (count, digest) in enumerate(sets, start=1):
        place = weights if number == len(sets) else f"{weights}/slice-{number}"
        outcome = PhaseOutcome(
            phase="train", reason="budget", steps=3, samples=count, sample_gradients=count, seconds=1.0, parameters=7
        )
        ref = FileRef(
            uri=f"checkpoints/{place}/model.safetensors", sha256=last if number == len(sets) else f"{number:064x}", bytes=4
        )
        trained.append(TrainedSlice(samples=count, set_digest=digest, seed=number, outcome=outcome, weights=ref))
    return TrainingOrder(
        weights=weights,
        split="original",
        slices=len(sets),
        seed=seed,
        settings="ab" * 32,
        inputs=(),
        kept=0,
        trained=tuple(trained),
        mark="cd" * 32,
    )


@settings(deadline=None, max_examples=50)
@given(SHARDS, SEEDS, st.integers(1, 5), st.data())
def test_the_way_back_ends_before_the_first_forgotten_sample(
    shards: list[list[str]], seed: int, slices: int, data: st.DataObject
):
    keys = [key for shard in shards for key in shard]
    gone = set(data.draw(st.lists(st.sampled_from(keys), unique=True)))
    left = [kept for shard in shards if (kept := [key for key in shard if key not in gone])]
    order = ledger([*Slicing(samples(shards), seed=seed, slices=slices).sets], seed=seed)
    sets = Slicing(samples(left), seed=seed, slices=slices).sets
    kept = rewind_point(order, sets)
    same = [n for n, (item, found) in enumerate(zip(order.trained, sets, strict=True), 1) if item.set_digest == found.digest]
    assert kept == max(same, default=0)
    assert kept == min((slice_of(key, seed=seed, slices=slices) for key in gone), default=slices + 1) - 1


def test_a_set_that_fits_again_later_proves_nothing() -> None:
    order = ledger([(1, "a"), (2, "b"), (3, "c")])
    assert rewind_point(order, [(1, "a"), (2, "x"), (3, "c")]) == 1
    assert rewind_point(order, [(1, "a"), (1, "b"), (3, "c")]) == 1, "the number counts as well"


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
@example(place=0, bit=0)
def test_any_changed_byte_is_refused(tmp_path: Path, place: int, bit: int) -> None:
    order = ledger([(1, "a"), (2, "b")])
    write_order(str(tmp_path), order)
    file = tmp_path / order_file("original")
    assert read_order(str(file)) == order
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1 << bit
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match="order"):
        read_order(str(file))


def run_folder(folder: Path) -> tuple[str, TrainingOrder]:
    """A run folder with weights and their ledger; returns the URI of the weights."""
    weights = str(folder / "checkpoints/original/model.safetensors")
    ref = publish_bytes(weights, b"weights")
    order = ledger([(1, "a"), (2, "b")], last=ref.sha256)
    write_order(str(folder), order)
    return weights, order


def test_the_ledger_beside_given_weights_is_taken_over(tmp_path: Path) -> None:
    weights, order = run_folder(tmp_path / "out" / "first-1")
    inside, outside = str(tmp_path / "out"), str(tmp_path / "elsewhere")
    found = adopt(weights, home=f"{inside}/second-2", output=inside, weights="original")
    assert found is not None and found.trained[0].weights.uri == "../first-1/checkpoints/original/slice-1/model.safetensors"
    assert [item.set_digest for item in found.trained] == ["a", "b"]
    found = adopt(weights, home=f"{outside}/second-2", output=outside, weights="original")
    assert found is not None and found.trained[1].weights.uri == weights and found.seed == order.seed


def test_released_weights_have_the_ledger_of_the_unlearned_ones(tmp_path: Path) -> None:
    ref = publish_bytes(str(tmp_path / "weights/model.safetensors"), b"released")
    write_order(str(tmp_path), ledger([(1, "a")], weights="unlearned", last=ref.sha256))
    found = adopt(f"{tmp_path}/weights/model.safetensors", home=str(tmp_path / "x"), output=str(tmp_path), weights="original")
    assert found is not None and found.weights == "original"


def test_no_ledger_is_none_and_that_of_other_weights_is_refused(tmp_path: Path) -> None:
    weights, _ = run_folder(tmp_path)
    alone = publish_bytes(str(tmp_path / "model.safetensors"), b"x")
    where = {"home": str(tmp_path / "x"), "output": str(tmp_path), "weights": "original"}
    assert adopt(str(tmp_path / "model.safetensors"), **where) is None
    assert adopt(str(tmp_path / "checkpoints/other/model.safetensors"), **where) is None
    Path(weights).write_bytes(b"others")
    assert hash_file(weights).sha256 != alone.sha256
    with pytest.raises(IntegrityError, match="the order of other weights"):
        adopt(weights, **where)


def test_going_back_needs_a_ledger_of_the_same_slices() -> None:
    config = resolve("demo", ["train.slices=2", "method=rewind"])
    with pytest.raises(ConfigError, match=r"no order ledger beside .*: rewinding cannot be proved") as fault:
        refuse_unknown(None, dataclasses.replace(config, original="s3://bucket/weights.safetensors"))
    assert "method=retrain" in fault.value.cure
    with pytest.raises(ConfigError, match=r"train\.slices: 2, and the original was trained in 3") as fault:
        refuse_unknown(ledger([(1, "a"), (2, "b"), (3, "c")]), config)
    assert "train.slices=3" in fault.value.cure
    order = ledger([(1, "a"), (2, "b")])
    assert refuse_unknown(order, config) is order


def test_the_engine_is_no_setting_of_training_and_the_learning_rate_is() -> None:
    plain = settings_of(resolve("demo"))
    assert settings_of(resolve("demo", ["engine.zero_stage=2", "method=rewind"])) == plain
    assert settings_of(resolve("demo", ["train.learning_rate=0.01"])) != plain
