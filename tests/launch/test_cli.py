"""The command: answers, exit codes, one message for a user's error, JSON where a program reads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.testing

from launch.cli import app

ROOT = Path(__file__).resolve().parents[2]


def unlearn(*words: str) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(app, list(words))


def test_run_prints_stages_table_and_report_and_then_does_nothing(run_file: str) -> None:
    first = unlearn("run", run_file)
    assert first.exit_code == 0, first.output
    assert "forget: phase 1: gradient ascent on forget shards" in first.stdout
    again = unlearn("run", run_file)
    assert again.exit_code == 0
    assert again.stdout.startswith("nothing to do: all 8 stages are up to date\n")
    table = "\n".join(again.stdout.splitlines()[1:])
    assert first.stdout.endswith(table + "\n")
    assert "0.03125 [0.03, 0.0325]" in table
    assert "not computed" in table
    assert "forgotten: yes" in table
    assert table.splitlines()[-1].endswith("/report.html")


def test_run_answers_in_json(run_file: str) -> None:
    result = unlearn("run", run_file, "--json")
    answer = json.loads(result.stdout)
    assert answer["ran"][0] == "shard"
    assert answer["headline"] == ["forgotten: yes"]
    assert Path(answer["report"]).exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["engine.zero_stag=2"], 2, "engine.zero_stag: unknown field (did you mean 'zero_stage'?"),
        (["train.epochs=many"], 2, "train.epochs"),
        (["model=autoencodr"], 2, "no model is called 'autoencodr'"),
        (["nonsense"], 2, "not of the form key=value"),
        (["requests=[]"], 2, "no requests"),
        (["requests=/nowhere.csv"], 3, "/nowhere.csv: not found"),
        (["output=pipe:x"], 2, "not a plain storage address"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check", "plan"])
def test_bad_input_gives_one_message_and_no_file(run_file: str, command: str, words: list[str], code: int, message: str) -> None:
    before = sorted(Path(run_file).parent.rglob("*"))
    result = unlearn(command, run_file, *words)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "\n  cure: " in result.stderr
    assert "Traceback" not in result.output
    assert sorted(Path(run_file).parent.rglob("*")) == before


@pytest.mark.parametrize(("how", "code"), [("data-error", 3), ("kill", 75), ("crash", 1)])
def test_a_failing_stage_gives_its_exit_code(run_file: str, monkeypatch: pytest.MonkeyPatch, how: str, code: int) -> None:
    monkeypatch.setenv("FAKE_TRAIN", how)
    result = unlearn("run", run_file)
    assert result.exit_code == code
    assert ("Traceback" in result.stderr) == (how == "crash")
    assert "error: " in result.stderr


def test_an_error_of_the_verdict_is_four(run_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from launch import local
    from pipeline.errors import GateFailed

    def fail(*words: object, **more: object) -> None:
        raise GateFailed("the forget class is still known")

    monkeypatch.setattr(local, "run_worker", fail)
    assert unlearn("run", run_file).exit_code == 4


def test_a_bug_of_the_launcher_keeps_its_traceback(run_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from launch import local

    monkeypatch.setattr(local, "chain_for", None)
    result = unlearn("run", run_file)
    assert result.exit_code == 1
    assert isinstance(result.exception, TypeError)


def test_check_touches_nothing(run_file: str) -> None:
    before = sorted(Path(run_file).parent.rglob("*"))
    result = unlearn("check", run_file)
    assert (result.exit_code, result.stdout.split(";")[0]) == (0, "ok: run small, 1 requests")
    assert sorted(Path(run_file).parent.rglob("*")) == before


def test_list_names_the_parts() -> None:
    lines = unlearn("list").stdout.splitlines()
    assert lines[0].split() == ["kind", "name", "what", "it", "is"]
    assert any(line.split()[:2] == ["task", "center_crop"] for line in lines)
    parts = json.loads(unlearn("list", "--json").stdout)
    assert set(parts) == {"model", "method", "source", "task", "run"}
    assert "demo" in parts["run"]


def test_plan_is_plain_when_piped(run_file: str) -> None:
    result = unlearn("plan", run_file)
    assert result.exit_code == 0, result.output
    assert result.stdout.isascii()
    assert "not computed" in result.stdout
    assert json.loads(unlearn("plan", run_file, "--json").stdout)["schema"] == "plan/2"


def test_verify_names_the_fault_and_ends_with_three(finished: Path) -> None:
    good = unlearn("verify", str(finished))
    assert (good.exit_code, good.stdout.splitlines()[-1]) == (0, "receipts and digests intact; unsigned")
    (finished / "weights" / "train.bin").write_bytes(b"other")
    (finished / "report.html").unlink()
    bad = unlearn("verify", str(finished))
    assert bad.exit_code == 3
    assert "2 faults\n  stage train:" in bad.stderr
    answer = unlearn("verify", str(finished), "--json")
    assert answer.exit_code == 3
    assert len(json.loads(answer.stdout)["faults"]) == 2


def test_wrong_use_is_two_and_the_version_is_told() -> None:
    assert unlearn("no-such-command").exit_code == 2
    assert unlearn("run").exit_code == 2
    assert unlearn("--version").stdout.startswith("unlearn ")


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "stopped by SIGTERM")]
)
def test_a_stopped_command_says_so_in_one_message(run_file: str, number: signal.Signals, code: int, word: str) -> None:
    """A real process: `unlearn run` with a stage that sleeps, stopped from outside, then run again."""
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "import pytest\nfrom tests.launch import conftest\n"
        "conftest.use_fake_workers(pytest.MonkeyPatch())\n"
        "from launch.cli import main\nmain()"
    )
    argv = [sys.executable, "-c", program, "run", run_file]
    env = {**os.environ, "FAKE_TRAIN": "sleep"}
    process = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("sleeping"):
            worker = int(line.split()[1])
            break
    process.send_signal(number)
    _, said = process.communicate(timeout=100)
    assert process.returncode == code
    assert word in said
    assert "Traceback" not in said
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{worker}").exists()
    env.pop("FAKE_TRAIN")
    assert subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, check=False).returncode == 0
