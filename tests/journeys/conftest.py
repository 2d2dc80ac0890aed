"""One undisturbed run on two ranks, shared by all journeys; tests that change files work on a copy."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.command import unlearn
from tests.support.runs import write_run_file


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished tiny run; its output folder is its parent, its run file beside that."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "a run"  # one for all workers
    place.mkdir(exist_ok=True)
    answer = place / "answer.json"
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not answer.exists():
            done = unlearn("run", str(write_run_file(place, method={"level": "calibrate"})), "--json")
            assert done.returncode == 0, done.stderr
            answer.write_text(done.stdout)
    return Path(json.loads(answer.read_text())["folder"])


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's whole output folder; returns the run folder in it."""
    shutil.copytree(finished.parent, tmp_path / "out")
    return tmp_path / "out" / finished.name
