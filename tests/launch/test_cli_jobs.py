"""`unlearn submit`, `status` and `cancel` as commands: what they print, their JSON, and their exit codes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import typer.testing

from launch.cli import app
from tests.launch.fake_slurm import FakeSlurm
from tests.launch.test_submit import STAGES


def unlearn(*words: str) -> typer.testing.Result:
    result = typer.testing.CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def test_submit_says_what_it_sent_and_where_to_look(run_file: str, slurm: FakeSlurm) -> None:
    done = unlearn("submit", run_file, "--cluster", "two_nodes")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[:2] == ["shard: job 100", "train: job 101, afterok:100"]
    assert "train      101  PENDING         0  Dependency  none" in done.stdout
    folder = lines[-1].removeprefix("follow it with: unlearn status ")
    assert lines[-3:-1] == [f"job files: {folder}/jobs", f"logs: {folder}/logs"]
    again = unlearn("submit", run_file, "--cluster", "two_nodes")
    assert again.exit_code == 0
    assert again.stdout.startswith("nothing sent: jobs 100, 101, 102, 103, 104, 105, 106, 107 are queued or running already\n")
    assert len(slurm.files()) == len(STAGES)


def test_json_is_one_line_with_all_of_it(run_file: str, slurm: FakeSlurm) -> None:
    done = unlearn("submit", run_file, "--json")
    facts = json.loads(done.stdout)
    assert list(facts["sent"]) == [job["stage"] for job in facts["jobs"]] == list(STAGES)
    assert facts["active"] == {} and facts["up_to_date"] == []
    found = json.loads(unlearn("status", facts["folder"], "--json").stdout)
    assert found["jobs"] == facts["jobs"]
    gone = json.loads(unlearn("cancel", facts["folder"], "--json").stdout)
    assert gone == {"folder": facts["folder"], "cancelled": facts["sent"]}


def test_a_dry_run_shows_files_and_commands_and_writes_nothing(
    run_file: str, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "team")
    before = sorted(Path(run_file).parent.rglob("*"))
    shown = unlearn("submit", run_file, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert sorted(Path(run_file).parent.rglob("*")) == before and not slurm.files()
    assert "# SBATCH_ACCOUNT is set in this environment, and goes before what the files say." in shown.stdout
    commands = [shlex.split(line) for line in shown.stdout.splitlines() if line.startswith("sbatch ")]
    assert commands[1][2:4] == ["--dependency=afterok:shard", "--kill-on-invalid-dep=yes"]
    facts = json.loads(unlearn("submit", run_file, "--dry-run", "--json").stdout)
    assert [job["command"] for job in facts["jobs"]] == commands
    unlearn("submit", run_file)
    for job in facts["jobs"]:
        assert Path(job["file"]).read_text() == job["text"]
        assert f"# {job['file']}\n{job['text']}" in shown.stdout
    slurm.set("100", "COMPLETED")
    assert "# Nothing would be sent." not in unlearn("submit", run_file, "--dry-run").stdout


def test_a_finished_run_has_nothing_to_send(finished: Path, run_file: str, slurm: FakeSlurm) -> None:
    assert unlearn("submit", run_file).stdout == "nothing to do: all 8 stages are up to date\n"
    assert "# Nothing would be sent." in unlearn("submit", run_file, "--dry-run").stdout
    assert not slurm.files()


def test_status_and_cancel_say_what_they_found(run_file: str, slurm: FakeSlurm) -> None:
    folder = json.loads(unlearn("submit", run_file, "--json").stdout)["folder"]
    slurm.set("100", "FAILED", code="3:0")
    for job in range(101, 108):
        slurm.set(str(job), "CANCELLED", reason="DependencyNeverSatisfied")
    told = unlearn("status", folder).stdout.splitlines()
    assert told[1].split() == ["shard", "100", "FAILED", "0", "exit", "code", "3", "none"]
    assert told[-1] == f"shard: see {folder}/logs/slurm-shard.log"
    assert unlearn("cancel", folder).stdout == "nothing to cancel: no job is queued or running\n"
    unlearn("submit", run_file)
    assert unlearn("cancel", folder).stdout.splitlines()[0] == "shard: job 108 cancelled"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["submit", "RUN", "--cluster", "h10"], 2, "no cluster is called 'h10'"),
        (["submit", "RUN", "train.epochs=many"], 2, "train.epochs"),
        (["status", "nowhere"], 2, "no run folder"),
        (["cancel", "nowhere"], 2, "no run folder"),
    ],
)
def test_wrong_use_has_one_message(run_file: str, slurm: FakeSlurm, words: list[str], code: int, message: str) -> None:
    done = unlearn(*(run_file if word == "RUN" else word for word in words))
    assert done.exit_code == code, done.output
    assert done.stderr.startswith("error: ") and message in done.stderr and "\n  cure: " in done.stderr


def test_slurms_refusal_is_quoted(run_file: str, slurm: FakeSlurm) -> None:
    slurm.refuse["02-train.sbatch"] = "invalid partition specified: nowhere"
    done = unlearn("submit", run_file)
    assert done.exit_code == 2
    assert "sbatch: error: invalid partition specified: nowhere; jobs 100, sent before it, were cancelled" in done.stderr
