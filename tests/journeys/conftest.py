"""One undisturbed run on two ranks, shared by all journeys; tests that change files work on a copy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.command import unlearn
from tests.support.runs import write_run_file


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished tiny run; its output folder is its parent, its run file beside that."""
    place = tmp_path_factory.mktemp("a run")
    done = unlearn("run", str(write_run_file(place, method={"level": "calibrate"})), "--json")
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["folder"])


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's whole output folder; returns the run folder in it."""
    shutil.copytree(finished.parent, tmp_path / "out")
    return tmp_path / "out" / finished.name
