"""The jobs of a comparison and of an index: what each runs, what it waits for, and that nothing is sent twice."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.testing
import yaml

from launch import queue
from launch.arrays import intend_comparison, intend_index
from launch.cli import app
from launch.cluster import read_cluster
from launch.sending import Script
from launch.submit import Intent
from pipeline.config import read_batch, resolve
from pipeline.errors import ConfigError
from tests.launch.fake_slurm import FakeSlurm


@pytest.fixture(autouse=True)
def slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm()
    monkeypatch.setattr(queue, "_client", fake)
    monkeypatch.setattr(queue, "require", lambda: None)
    return fake


def unlearn(*words: str) -> typer.testing.Result:
    result = typer.testing.CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def command(script: Script) -> list[str]:
    """The words after `python -P -m launch`; the task's number as `$SLURM_ARRAY_TASK_ID`."""
    line = next(line for line in script.text.splitlines() if " -P -m launch " in line)
    return shlex.split(line)[4:]


def comparison(run_file: str, *overrides: str, **over: Any) -> Intent:
    config = resolve(run_file, [*overrides], compare=["decouple", "salun"])
    asked = {"methods": "decouple,salun", "seeds": 3, "cluster": read_cluster("h100"), **over}
    return intend_comparison(run_file, overrides, config=config, batch=read_batch(config), **asked)


def indexing(**over: Any) -> Intent:
    words = {"output": "out", "on_error": "quarantine", "max_quarantined": 7, "tasks": 3, "cluster": read_cluster("h100"), **over}
    return intend_index("s3://b/{0..9}.tar", ["classes=[x, y]"], **words)


def test_a_comparison_packs_the_source_first_and_draws_last(run_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(run_file).parent)
    config = resolve("small.yaml", ["seed=5"])
    seen = comparison("small.yaml", "seed=5")
    source, seeds, last = seen.wanted
    assert command(source)[:4] == ["index", "fashion_mnist", "--out", config.output]
    fields = {word.partition("=")[0]: yaml.safe_load(word.partition("=")[2]) for word in command(source)[9:]}
    assert command(source)[8] == "--"
    assert {"component": "fashion_mnist", **fields} == dict(config.source)
    words = ["compare", run_file, "--methods", "decouple,salun", "--seeds", "3"]
    assert command(seeds) == [*words, "--only-seed", "$SLURM_ARRAY_TASK_ID", "--", "seed=5"]
    assert command(last) == [*words, "--", "seed=5"]
    assert "#SBATCH --array=0-2\n" in seeds.text and "--array" not in last.text + source.text
    assert "--gpus-per-node=8" in seeds.text and "--gpus-per-node=8" in last.text and "--gpus" not in source.text
    assert "#SBATCH --nodes=1\n" in seeds.text
    assert [script.needs for script in seen.wanted] == [(), ("source",), ("seeds",)]
    assert Path(seen.site.home).parent == Path(config.output) and "small-compare-" in seen.site.name
    assert seeds.log == f"{seen.site.logs}/slurm-seeds-*.log"


def test_a_packaged_run_keeps_its_name() -> None:
    assert command(comparison("demo", methods="").wanted[1])[:2] == ["compare", "demo"]
    assert "--methods" not in command(comparison("demo", methods="").wanted[1])


def test_an_index_is_cut_into_tasks_and_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts, last = indexing().wanted
    given = ["index", "s3://b/{0..9}.tar", "--out", f"{tmp_path}/out", "--on-error", "quarantine", "--max-quarantined", "7"]
    assert command(parts) == [*given, "--task", "$SLURM_ARRAY_TASK_ID/3", "--", "classes=[x, y]"]
    assert command(last) == [*given, "--", "classes=[x, y]"]
    assert "--gpus" not in parts.text and f"#SBATCH --chdir={os.getcwd()}\n" in parts.text
    assert indexing(tasks=4).site.name != indexing().site.name == indexing().site.name
    bucket = indexing(output="memory://b/out").site
    assert bucket.home == f"memory://b/out/{bucket.name}" and bucket.scripts == f"{tmp_path}/jobs-{bucket.name}"
    with pytest.raises(ConfigError, match="no source is called 'nowhere'"):
        intend_index("nowhere", [], output="x", on_error="stop", max_quarantined=0, tasks=2, cluster=read_cluster(), strict=False)


def test_the_commands_send_what_is_missing(run_file: str, slurm: FakeSlurm, tmp_path: Path) -> None:
    for words in (
        ["submit", run_file, "--compare", "--methods", "decouple,salun", "--seeds", "2"],
        ["submit-index", "s3://b/{0..9}.tar", "--tasks", "3", "--out", str(tmp_path / "out")],
    ):
        slurm.commands.clear()
        shown = json.loads(unlearn(*words, "--dry-run", "--json").stdout)
        assert not slurm.files()
        first = json.loads(unlearn(*words, "--json").stdout)
        names = list(first["sent"])
        assert names in (["source", "seeds", "comparison"], ["parts", "index"])
        assert [Path(job["file"]).read_text() for job in shown["jobs"]] == [job["text"] for job in shown["jobs"]]
        again = json.loads(unlearn(*words, "--json").stdout)
        assert (again["sent"], again["active"]) == ({}, first["sent"])
        jobs = list(first["sent"].values())
        slurm.set(jobs[0], "COMPLETED")
        assert json.loads(unlearn(*words, "--json").stdout)["sent"] == {}, "what lies before a queued job is done"
        slurm.set(jobs[-1], "CANCELLED")
        states = {job["stage"]: job["state"] for job in json.loads(unlearn("status", first["folder"], "--json").stdout)["jobs"]}
        assert states[names[0]] == "COMPLETED" and states[names[-1]] == "CANCELLED"
        third = json.loads(unlearn(*words, "--json").stdout)["sent"]
        assert list(third) == (["comparison"] if "seeds" in names else ["parts", "index"])
        assert unlearn("cancel", first["folder"]).stdout.splitlines()[-1].startswith(f"{names[-1]}: job ")


def test_seeds_without_a_comparison_are_refused(run_file: str) -> None:
    for words in (["--seeds", "2"], ["--methods", "salun"]):
        done = unlearn("submit", run_file, *words)
        assert done.exit_code == 2 and "cure: add --compare" in done.stderr
