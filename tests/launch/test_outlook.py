"""What a plan looks ahead to: which cluster and ranks, what is asked of workers, what is made of it. Workers are stand-ins."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from launch import outlook
from launch.cli import app
from launch.outlook import Outlook, Wish, look_ahead, parted
from launch.plan import Plan, make_plan
from launch.torchrun import JobSpec, Resources
from pipeline.chain import StageSpec
from pipeline.config import RunConfig, read_batch, resolve
from pipeline.decode import canonical
from pipeline.errors import ConfigError
from pipeline.orders import MeasureAnswer, PictureAnswer
from pipeline.records import RequestBatch
from tests.support.planning import ANSWER, FACTS, MACHINE

RETAIN = dataclasses.replace(FACTS, phase="retain", reads=("retain",), batch_sizes=(64,), share=0.5)
FORGET = dataclasses.replace(FACTS, phase="forget", reads=("forget",), batch_sizes=(16,), passes=2)
FULL = dataclasses.replace(ANSWER, phases=(FACTS, FORGET, RETAIN), calibration={"shadow_share": 0.0, "samples": 10})
Small = tuple[RunConfig, RequestBatch]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Orders by act."""
    orders: dict[str, Any] = {}

    def carry_out(act: str, order: Any, answer: type[Any], *, to_stderr: bool = False) -> Any:
        orders[act] = order
        if answer is MeasureAnswer:
            return FULL
        assert answer is PictureAnswer
        return PictureAnswer(file=order.file)

    def run_worker(job: JobSpec, **how: Any) -> None:
        file = Path(job.argv[-1])
        orders["probe"] = json.loads(file.read_text())
        file.with_name("answer.json").write_bytes(canonical(MACHINE))

    def stage_job(spec: StageSpec, file: str, machine: Resources) -> JobSpec:
        orders["probe machine"] = machine
        return JobSpec(argv=(spec.name, file), env={})

    monkeypatch.setattr(outlook.torchrun, "stage_job", stage_job)
    monkeypatch.setattr(outlook, "carry_out", carry_out)
    monkeypatch.setattr(outlook, "run_worker", run_worker)
    return orders


def look(small: Small, plan: Plan | None = None, **wish: Any) -> Outlook:
    return look_ahead(*small, plan or make_plan(*small), Wish(**wish))


def test_a_device_of_the_table_needs_no_probe(small: Small, asked: dict[str, Any]) -> None:
    found = look(small, cluster="h100", nodes=2)
    assert "probe" not in asked
    assert asked["measure"].groups == ("class",)
    assert (found.nodes, found.per_node, found.device, found.machine) == (2, 8, "h100", None)
    # Nothing is indexed: a step is known, the number of steps is not.
    train = next(item for item in found.stages if item.stage == "train")
    assert (train.steps, train.seconds) == (None, None)
    assert train.step_seconds is not None
    assert (found.seconds, found.advice) == (None, ())


def test_this_machine_is_probed_with_the_ranks_of_a_node(run_file: str, asked: dict[str, Any]) -> None:
    config = resolve(run_file, ["launch.ranks=2", "train.batch_size=64"])
    found = look((config, read_batch(config)), nodes=1)
    assert asked["probe"]["samples"] == [8, 16, 32]
    assert asked["probe"]["sample_bytes"] == 0  # nothing is indexed
    assert asked["probe machine"].ranks == 2
    assert found.machine == MACHINE
    assert found.answer.process_bytes == 300_000_000, "of a stage that is forked"


def test_a_single_sample_a_rank_is_probed_beside_two(run_file: str, asked: dict[str, Any]) -> None:
    config = resolve(run_file, ["train.batch_size=2", "launch.ranks=2"])
    look((config, read_batch(config)), nodes=1)
    assert asked["probe"]["samples"] == [1, 2]


def test_a_finished_run_tells_how_much_there_is(run_file: str, finished: Path, asked: dict[str, Any]) -> None:
    config = resolve(run_file, ["train.batch_size=10"])
    small = config, read_batch(config)
    plan = make_plan(*small)
    assert plan.data is not None
    found = look(small, plan, cluster="h100", nodes=1, fields={"node": {"price_per_hour": 10.0}})
    assert [item.stage for item in found.stages] == ["train", "retrain", "calibrate", "forget", "retain", "evaluate", "release"]
    train = found.stages[0]
    assert train.steps == config.train.epochs * 10
    assert found.seconds is not None
    assert found.node_hours is not None
    assert (found.price, found.missing) == (10.0, ("saving",))
    assert {item.stage for item in found.advice} == {"train", "retrain", "forget", "retain"}


def test_a_curve_is_ordered_from_1_to_4096(run_file: str, finished: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    config = resolve(run_file, ["train.batch_size=10"])
    found = look((config, read_batch(config)), cluster="h100", curve=str(tmp_path / "curve.png"))
    order = asked["picture"]
    assert found.curve == order.file == str(tmp_path / "curve.png")
    assert order.unit == "GPUs"
    assert {series.name for series in order.hours} == {"train", "retrain", "forget", "retain"}
    assert [count for count, _ in order.hours[0].points][::12] == [1.0, 4096.0]
    assert order.cost_unit == "node-hours of these stages"


def test_gpus_that_are_neither_here_nor_named_are_refused(small: Small, asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="8 GPUs a node, and this machine has 0") as fault:
        look(small, gpus=8)
    assert "node.device=h100" in fault.value.cure
    assert "a100" in fault.value.cure
    with pytest.raises(ConfigError, match="h100 without GPUs"):
        look(small, fields={"node": {"device": "h100"}})
    with pytest.raises(ConfigError, match="not a PNG"):
        look(small, cluster="h100", curve="curve.jpg")
    assert look(small, gpus=8, fields={"node": {"device": "a100"}}).per_node == 8


def test_fields_of_the_cluster_stand_among_those_of_the_run() -> None:
    own, fields = parted(["train.epochs=2", "node.device=h100", "stages.forget.nodes=1", "node.cpus=8"])
    assert own == ["train.epochs=2"]
    assert fields == {"node": {"device": "h100", "cpus": 8}, "stages": {"forget": {"nodes": 1}}}
    assert parted(None) == ([], {})


def command(*words: str) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(app, list(words))


def test_the_command_adds_estimates_to_the_plan(run_file: str, finished: Path, asked: dict[str, Any]) -> None:
    words = ["plan", run_file, "train.batch_size=10", "--cluster", "h100", "--nodes", "2"]
    told = command(*words)
    assert told.exit_code == 0, told.output
    assert "computed with:     h100 by the device table" in told.stdout
    assert "train: up to 1" in told.stdout
    answer = json.loads(command(*words, "--json").stdout)
    assert answer["schema"] == "plan/2"
    assert answer["outlook"]["stages"][0]["nodes"] == 2


def test_without_its_options_the_command_measures_nothing(run_file: str, asked: dict[str, Any]) -> None:
    assert "outlook" not in json.loads(command("plan", run_file, "--json").stdout)
    assert not asked


def test_the_command_refuses_unknown_devices_in_one_message(run_file: str, asked: dict[str, Any]) -> None:
    refused = command("plan", run_file, "--gpus", "8", "node.device=h101")
    assert refused.exit_code == 2
    assert "did you mean 'h100'" in refused.output
    assert not asked
