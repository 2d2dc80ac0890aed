"""The dry run: writes nothing, counts what it can, and names what it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.local import run_chain
from launch.plan import NOT_COMPUTED, Plan, lines, make_plan, stage_rows, unseen_images
from pipeline.config import RunConfig, read_batch, resolve, run_folder
from pipeline.errors import ConfigError, IntegrityError
from pipeline.records import RequestBatch

Small = tuple[RunConfig, RequestBatch]


def states(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.state for stage in plan.stages}


def test_before_the_first_run_the_data_is_not_computed(small: Small) -> None:
    plan = make_plan(*small)
    assert (plan.requests, plan.keys, plan.labels, plan.prefixes, plan.digests) == (1, 0, 1, 0, 0)
    assert set(states(plan).values()) == {"to run"}
    assert plan.data is None
    assert plan.stages[1].sample_gradients is None
    assert "not computed" in dict(lines(plan))["images and shards"]
    assert not Path(small[0].output).exists()


def test_after_a_run_data_and_costs_are_known(small: Small, finished: Path) -> None:
    plan = make_plan(*small)
    assert set(states(plan).values()) == {"up to date"}
    costs = {stage.name: stage.sample_gradients for stage in plan.stages}
    assert costs == {
        "shard": 0,
        "train": 600,
        "retrain": 360,
        "calibrate": None,
        "forget": 7,
        "retain": None,
        "evaluate": 0,
        "release": 0,
    }
    facts = dict(lines(plan))
    assert facts["forget"] == "40 images"
    assert facts["groups"] == "Trouser (class, 40 images)"
    assert facts["clean shards"] == "1, referenced where they lie"
    assert facts["rewrite"] == "1 shards, 6 bytes"


def test_stages_after_a_changed_one_are_to_run(finished: Path, run_file: str) -> None:
    config = resolve(run_file, ["method.retention=plain"])
    plan = make_plan(config, read_batch(config))
    assert [name for name, state in states(plan).items() if state == "up to date"] == ["shard", "train", "retrain"]


def test_given_weights_cost_nothing(finished: Path, run_file: str) -> None:
    config = resolve(run_file, [f"original={run_file}"])
    costs = {stage.name: stage.sample_gradients for stage in make_plan(config, read_batch(config)).stages}
    assert (costs["train"], costs["retrain"]) == (0, 360)


def test_a_stage_with_a_checkpoint_resumes(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRAIN", "crash")
    with pytest.raises(Exception, match="stage train"):
        run_chain(*small, say=lambda line: None)
    (Path(run_folder(*small)) / "checkpoints" / "train" / "last").mkdir(parents=True)
    assert states(make_plan(*small))["train"] == "resumes"


def test_a_folder_of_another_batch_is_refused(small: Small, finished: Path) -> None:
    manifest = finished / "manifest.json"
    content = manifest.read_text()
    manifest.write_text(content.replace('"batch_digest":"', '"batch_digest":"0'))
    with pytest.raises(ConfigError, match="belongs to another batch"):
        make_plan(*small)
    manifest.write_text(content.replace('"seed":0', '"sead":0'))
    with pytest.raises(IntegrityError, match="sead"):
        make_plan(*small)


def test_rows_and_states_are_those_of_the_stages(small: Small) -> None:
    plan = make_plan(*small)
    columns, rows = stage_rows(plan)
    assert columns[:4] == ["stage", "state", "ranks", "sample gradients"]
    assert [row[0] for row in rows] == [stage.name for stage in plan.stages]
    assert rows[1][3] == NOT_COMPUTED
    assert plan.state("train") == "to run"
    with pytest.raises(KeyError):
        plan.state("dance")


def test_unseen_images_are_known_after_the_first_stage(small: Small, finished: Path) -> None:
    assert unseen_images(str(finished / "nowhere")) is None
    assert unseen_images(str(finished)) is None  # this manifest has no such split
