"""A named failure becomes one message with its cure and its exit code; a bug keeps its words."""

from __future__ import annotations

import pytest
import typer

from launch.answering import answering, complain
from launch.worker import WorkerError
from pipeline.errors import ConfigError, DataError, GateFailed, Preempted, UnlearnError


@pytest.mark.parametrize("kind", [ConfigError, DataError, GateFailed, Preempted, UnlearnError])
def test_a_named_failure_is_one_message(kind: type[UnlearnError], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, answering():
        raise kind("shard 7: truncated", "restore it")
    assert ended.value.exit_code == kind.exit_code
    assert capsys.readouterr().err == "error: shard 7: truncated\n  cure: restore it\n"


def test_a_bug_of_ours_shows_the_worker_s_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, answering():
        raise WorkerError("stage train: ended with code 1", "ValueError: ours")
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "ValueError: ours\nerror: stage train: ended with code 1\n"


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, answering():
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    assert "run the same command again" in capsys.readouterr().err


def test_complaints_come_after_what_was_said(capfd: pytest.CaptureFixture[str]) -> None:
    print("said")
    complain("complained")
    assert capfd.readouterr() == ("said\n", "complained\n")
