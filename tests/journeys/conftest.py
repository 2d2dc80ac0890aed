"""One undisturbed run on two ranks, shared by all journeys; tests that change files work on a copy."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.command import unlearn
from tests.support.distributed import run_distributed
from tests.support.runs import prepare, run_stages


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
            # Both phases and what follows are the command's; starting each stage before them costs a quarter of a minute.
            run = prepare(place, method={"level": "calibrate"}, launch={"threads": 1})
            run_distributed(run_stages, 2, run, "shard", "train", "retrain", "calibrate")
            done = unlearn("run", str(place / "run.yaml"), "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["ran"] == ["forget", "retain", "evaluate", "release"]
            answer.write_text(done.stdout)
    return Path(json.loads(answer.read_text())["folder"])


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's whole output folder; returns the run folder in it."""
    shutil.copytree(finished.parent, tmp_path / "out")
    return tmp_path / "out" / finished.name
