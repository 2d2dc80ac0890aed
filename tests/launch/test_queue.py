"""What Slurm's clients answer, as the real ones of 22.05 do, and how it is read."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch import queue
from launch.queue import SlurmJob, ask, cancel, mine, require, send
from pipeline.errors import ConfigError, StorageError
from tests.launch.fake_slurm import FACTS

TASKS = """\
JobId=5 ArrayJobId=5 ArrayTaskId={first} JobName=a JobState={states[0]} Reason=Resources Requeue=1 Restarts=0 ExitCode=0:0
JobId=8 ArrayJobId=5 ArrayTaskId=2 JobName=a JobState={states[1]} Reason=None Requeue=1 Restarts=2 ExitCode=0:0
JobId=7 ArrayJobId=5 ArrayTaskId=1 JobName=a JobState={states[2]} Reason=None Requeue=1 Restarts=1 ExitCode=3:0
"""


def answer(monkeypatch: pytest.MonkeyPatch, **said: tuple[int, str, str]) -> list[list[str]]:
    """Let each client answer with a code, an output and an error; returns the commands."""
    commands: list[list[str]] = []

    def client(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        commands.append([*words])
        code, out, err = said[words[0]]
        return subprocess.CompletedProcess(words, code, out, err)

    monkeypatch.setattr(queue, "_client", client)
    return commands


@pytest.mark.parametrize("out", ["123\n", "123;lab\n"])
def test_the_number_of_a_job(monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    answer(monkeypatch, sbatch=(0, out, ""))
    assert send(["sbatch", "x"]) == "123"


def test_slurms_own_words_when_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "sbatch: error: invalid partition specified: nowhere\nsbatch: error: Batch job submission failed\n"
    answer(monkeypatch, sbatch=(1, "", said))
    with pytest.raises(queue.Refused) as caught:
        send(["sbatch", "/x/02-train.sbatch"])
    assert caught.value.message.startswith("/x/02-train.sbatch: sbatch: error: invalid partition specified: nowhere; sbatch: ")
    assert caught.value.exit_code == 2 and caught.value.cure


@pytest.mark.parametrize(
    ("facts", "state", "reason"),
    [
        ({}, "RUNNING", ""),
        ({"reason": "BeginTime"}, "PENDING", "BeginTime"),
        ({"reason": "Nodes_are_DOWN,_x"}, "PENDING", "Nodes are DOWN, x"),
        ({"reason": "NonZeroExitCode", "code": "3:0"}, "FAILED", "exit code 3"),
        ({"reason": "X", "code": "0:9"}, "FAILED", "signal 9"),
        ({"reason": "BeginTime"}, "CANCELLED", ""),
        ({"reason": "DependencyNeverSatisfied"}, "CANCELLED", "DependencyNeverSatisfied"),
        ({"reason": "TimeLimit", "code": "0:15"}, "TIMEOUT", "TimeLimit"),
        ({"reason": "Resources"}, "COMPLETED", ""),
    ],
)
def test_what_is_said_of_a_job(monkeypatch: pytest.MonkeyPatch, facts: dict[str, str], state: str, reason: str) -> None:
    given = {"job": "7", "reason": "None", "restarts": "3", "code": "0:0", "file": "/a b/ JobState=DONE x", **facts}
    commands = answer(monkeypatch, scontrol=(0, FACTS.format(state=state, **given), ""))
    found = ask(["7", "7"])
    assert found == {"7": SlurmJob(job="7", state=state, reason=reason, restarts=3)}
    assert commands == [["scontrol", "show", "job", "-o", "7"]]
    assert found["7"].active == (state in ("RUNNING", "PENDING"))


@pytest.mark.parametrize(
    ("states", "state", "reason"),
    [
        (("PENDING", "RUNNING", "RUNNING"), "RUNNING", "2 of 3 tasks"),
        (("PENDING", "COMPLETED", "FAILED"), "PENDING", "1 of 3 tasks: Resources"),
        (("COMPLETED", "COMPLETED", "FAILED"), "FAILED", "1 of 3 tasks: exit code 3"),
        (("COMPLETED", "COMPLETED", "COMPLETED"), "COMPLETED", "3 of 3 tasks"),
    ],
)
def test_an_array_has_the_state_of_the_tasks_to_look_at(
    monkeypatch: pytest.MonkeyPatch, states: tuple[str, ...], state: str, reason: str
) -> None:
    answer(monkeypatch, scontrol=(0, TASKS.format(first="0", states=states), ""))
    found = ask(["5"])["5"]
    assert (found.job, found.state, found.reason, found.restarts) == ("5", state, reason, 3)


def test_what_slurm_has_forgotten_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, scontrol=(1, "", "slurm_load_jobs error: Invalid job id specified"))
    assert ask(["7"]) == {}


def test_squeue_is_asked_where_scontrol_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, scontrol=(1, "", "not for you"), squeue=(0, "7 PENDING Nodes are DOWN\n8_1 RUNNING None\n", ""))
    assert ask(["7"])["7"] == SlurmJob(job="7", state="RUNNING", reason="1 of 2 tasks")
    answer(monkeypatch, scontrol=(1, "", "not for you"), squeue=(1, "", "slurm_load_jobs error: Invalid job id specified"))
    assert ask(["7"]) == {}


def test_a_controller_that_is_away_has_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, scontrol=(1, "", "Unable to contact slurm controller\n"), squeue=(1, "", "x"), scancel=(1, "", "x"))
    with pytest.raises(StorageError, match="Slurm does not answer: Unable to contact slurm controller"):
        ask(["7"])
    with pytest.raises(StorageError, match="Slurm does not answer"):
        mine(["/x"])
    with pytest.raises(StorageError, match="scancel 7: x"):
        cancel(["7"])
    cancel([])


def test_my_jobs_by_their_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, squeue=(0, "5 /a b/01-x.sbatch\n7 /a b/02-y.sbatch\n9 (null)\n", ""))
    assert mine(["/a b/02-y.sbatch", "/a b/03-z.sbatch"]) == {"/a b/02-y.sbatch": "7"}


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_without_slurm_the_cure_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for act in (require, lambda: send(["sbatch", "x"])):
        with pytest.raises(ConfigError, match="sbatch: not found") as caught:
            act()
        assert "login node" in caught.value.cure


def test_a_client_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "scontrol", "exec sleep 20")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(queue, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(StorageError, match=r"no answer from Slurm in 0\.2 s"):
        ask(["7"])


def test_the_environment_does_not_change_the_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor does a job from within which another is sent hand on its own size."""
    program(tmp_path, "sbatch", f"env >'{tmp_path}/env'; echo 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    given = {"SQUEUE_FORMAT": "%i", "SLURM_CONF": "/x/slurm.conf", "SLURM_NTASKS": "9", "SBATCH_ACCOUNT": "team"}
    for name, text in given.items():
        monkeypatch.setenv(name, text)

    def seen() -> set[str]:
        send(["sbatch", "x"])
        return {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()} & set(given)

    assert seen() == {"SLURM_CONF", "SLURM_NTASKS", "SBATCH_ACCOUNT"}
    monkeypatch.setenv("SLURM_JOB_ID", "4")
    assert seen() == {"SLURM_CONF", "SBATCH_ACCOUNT"}
