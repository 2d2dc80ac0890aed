"""`unlearn compare` with fake workers: seeds side by side, what is up to date, methods that fail, verify and plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer.testing

from launch import acts, local
from launch.cli import app
from launch.compare import Comparison, command, compare_methods
from launch.plan import make_plan
from launch.torchrun import JobSpec
from launch.verify import verify
from pipeline import errors
from pipeline.config import read_batch, resolve
from pipeline.errors import CheckpointError, DataError
from pipeline.orders import Budget
from tests.launch import fake_worker

METHODS = """
methods:
  guarded: {component: decouple}
  plain: {component: decouple, retention: plain}
  idle: {component: decouple, calibration: null, forget: null, retain: null}
"""


def unlearn(*words: str) -> typer.testing.Result:
    result = typer.testing.CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fake workers as calls: a comparison has dozens of them."""
    errors_file = tmp_path / "error.json"
    monkeypatch.setenv("UNLEARN_ERROR_FILE", str(errors_file))

    def call(job: JobSpec, **_: object) -> None:
        try:
            fake_worker.main(*job.argv[-2:])
        except SystemExit:
            fault = json.loads(errors_file.read_text())
            raise getattr(errors, fault["kind"])(fault["message"], fault["cure"]) from None

    monkeypatch.setattr(local, "run_worker", call)
    monkeypatch.setattr(acts, "run_worker", call)


@pytest.fixture
def methods_file(run_file: str) -> str:
    """The small run with three methods: two that do all phases, one that does none."""
    with open(run_file, "a") as stream:
        stream.write(METHODS)
    return run_file


def compared(file: str, seeds: int = 1, said: list[str] | None = None, *overrides: str, cost: float = 0.2) -> Comparison:
    config = resolve(file, [*overrides], compare=[])
    say = said.append if said is not None else lambda line: None
    return compare_methods(config, read_batch(config), seeds=seeds, budget=Budget(cost=cost), say=say)


def runs(file: str) -> list[Path]:
    return sorted(path for path in (Path(file).parent / "runs").iterdir() if (path / "config.yaml").exists())


def test_each_seed_is_a_run_and_the_second_call_runs_nothing(methods_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first = compared(methods_file, 2, said, "seed=5")
    assert [path.name.rpartition("-")[0] for path in runs(methods_file)] == ["small-compare-s5", "small-compare-s6"]
    assert [resolve(str(path / "config.yaml")).seed for path in runs(methods_file)] == [5, 6]
    assert "seed 5: forget.plain: plain: phase 1: gradient ascent on forget shards" in said
    names = [
        "shard",
        "train",
        "retrain",
        *(f"{stage}.{m}" for m in ("guarded", "plain") for stage in ("calibrate", "forget", "retain")),
    ]
    assert first.ran == (*(f"{seed}/{name}" for seed in (5, 6) for name in (*names, "evaluate")), "comparison")
    assert Path(first.page).exists() and Path(first.folder).name.startswith("small-compare-")
    for folder in runs(methods_file):
        found = verify(str(folder))
        assert (found.faults, found.receipts) == ((), 10)

    monkeypatch.setenv("FAKE_CHECK", "crash")
    monkeypatch.setenv("FAKE_COMPARE", "crash")
    again = compared(methods_file, 2, None, "seed=5")
    assert (again.ran, again.current, again.facts) == ((), first.ran[:-1], first.facts)


def test_only_what_changed_runs_again(methods_file: str) -> None:
    compared(methods_file)
    assert compared(methods_file, 1, None, "methods.plain.retain.share=0.5").ran == (
        *("0/calibrate.plain", "0/forget.plain", "0/retain.plain", "0/evaluate"),
        "comparison",
    )
    assert compared(methods_file, cost=0.5).ran[-1:] == ("comparison",)
    fewer = compared(methods_file, 1, None, "methods=[guarded, idle]")
    assert fewer.ran == ("0/evaluate", "comparison"), "a method less is another evaluation"
    assert verify(str(runs(methods_file)[0])).faults == (), "receipts of a method that was left out are no fault"
    fewest = compared(methods_file, 1, None, "methods=[guarded]")
    assert fewest.ran == ("0/evaluate", "comparison"), "a method without a stage counts, too"


@pytest.mark.parametrize(("stage", "how"), [("forget.plain", "diverged"), ("evaluate", "diverged plain model: ")])
def test_a_method_that_fails_is_left_out_with_its_reason(
    methods_file: str, monkeypatch: pytest.MonkeyPatch, stage: str, how: str
) -> None:
    monkeypatch.setenv(f"FAKE_{stage.upper()}", how)
    said: list[str] = []
    first = compared(methods_file, 1, said)
    (row,) = first.facts["table"]["rows"]
    assert row[0] == "0 plain" and row[1].startswith(f"{stage}: ") and "answers with NaN" in row[1]
    assert any("plain: failed, the others go on" in line for line in said)
    (folder,) = runs(methods_file)
    assert list(resolve(str(folder / "config.yaml")).methods) == ["guarded", "idle"]
    assert verify(str(folder)).faults == ()
    said.clear()
    again = compared(methods_file, 1, said)
    assert again.ran == () and again.facts == first.facts
    assert any("left out, it failed before" in line and "failure.json to try again" in line for line in said)
    monkeypatch.delenv(f"FAKE_{stage.upper()}", raising=False)
    (folder / "methods" / "plain" / "failure.json").unlink()
    assert compared(methods_file).facts["table"]["rows"] == []


def test_a_changed_field_gives_a_failed_method_another_chance(methods_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_RETAIN.PLAIN", "diverged")
    compared(methods_file)
    monkeypatch.delenv("FAKE_RETAIN.PLAIN")
    again = compared(methods_file, 1, None, "methods.plain.retain.learning_rate=1e-5")
    assert "0/retain.plain" in again.ran and again.facts["table"]["rows"] == []


def test_all_methods_failed_or_a_shared_fault_end_the_command(methods_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FORGET.PLAIN", "diverged")
    with pytest.raises(CheckpointError, match=r"every method failed: plain: forget\.plain: answers with NaN"):
        compared(methods_file, 1, None, "methods=[plain]")
    monkeypatch.setenv("FAKE_FORGET.PLAIN", "data-error")
    with pytest.raises(DataError):
        compared(methods_file, 1, None, "methods=[plain]", "seed=1")
    monkeypatch.setenv("FAKE_TRAIN", "diverged")
    with pytest.raises(CheckpointError, match=r"^answers with NaN"):
        compared(methods_file, 1, None, "seed=2")


def test_the_command_prints_a_table_markdown_or_json(methods_file: str) -> None:
    words = ("compare", methods_file, "--methods", "guarded, plain")
    first = unlearn(*words)
    assert first.exit_code == 0, first.output
    assert "seed 0: train: the original model" in first.stdout and "of 1 seeds\nmethods: guarded, plain" in first.stdout
    assert first.stdout.splitlines()[-1].endswith("/compare.html")
    again = unlearn(*words)
    assert again.stdout.startswith("nothing to do: all 10 stages are up to date\n")
    answer = json.loads(unlearn(*words, "--json").stdout)
    assert answer["ran"] == [] and Path(answer["report"]).exists() and answer["table"]["columns"] == ["method", "why"]
    text = unlearn(*words, "--markdown").stdout
    assert text.startswith(
        f"`unlearn compare '{methods_file}' --methods 'guarded, plain' --seeds 1`\n\n| method | why |\n| --- | --- |"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "plan"], "no method is called 'plan'"),
        (["--methods", ","], "--methods: no name"),
        (["methods.a/b.component=decouple"], "'a/b' cannot be a folder's name"),
        (["methods.retrained.component=decouple"], "'retrained' is the name of another model"),
        (["methods=3"], "methods: neither a list of names nor a mapping"),
        (["methods.plain.component=decuple"], "no method is called 'decuple'"),
    ],
)
def test_wrong_use_is_one_message(methods_file: str, words: list[str], message: str) -> None:
    result = unlearn("compare", methods_file, *words)
    assert result.exit_code == 2 and message in result.stderr and "  cure: " in result.stderr
    assert not (Path(methods_file).parent / "runs").exists()


def test_run_and_plan_take_the_runs_own_method_alone(methods_file: str) -> None:
    assert "forget: phase 1" in unlearn("run", methods_file).stdout
    stages = json.loads(unlearn("plan", methods_file, "--json").stdout)["stages"]
    assert [stage["name"] for stage in stages][3:5] == ["calibrate", "forget"]


def test_a_plan_of_several_methods_knows_their_checkpoints(methods_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FORGET.PLAIN", "crash")
    with pytest.raises(RuntimeError, match="a bug"):
        compared(methods_file)
    (folder,) = runs(methods_file)
    (folder / "methods/plain/checkpoints/forget/last").mkdir(parents=True)
    config = resolve(str(folder / "config.yaml"))
    states = {stage.name: stage.state for stage in make_plan(config, read_batch(resolve(methods_file))).stages}
    assert (states["calibrate.plain"], states["forget.plain"], states["retain.plain"]) == ("up to date", "resumes", "to run")


def test_the_command_line_is_told_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("demo", ["a=b c"], "x,y", 3, Budget()) == "unlearn compare demo --methods x,y --seeds 3 'a=b c'"
    told = command("demo", [], "", 1, Budget(cost=0.5, loss=0.1))
    assert told == "unlearn compare demo --seeds 1 --cost-budget 0.5 --loss-budget 0.1"
