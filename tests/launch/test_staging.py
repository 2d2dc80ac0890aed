"""A folder to make a release in leaves nothing behind, and is nobody else's while it is in use."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

import launch.staging as module
from launch.staging import staging
from pipeline.errors import StorageError

ROOT = Path(__file__).resolve().parents[2]


def test_it_is_beside_the_releases_and_goes_unless_it_is_renamed(tmp_path: Path) -> None:
    line = tmp_path / "a line"
    with staging(str(line)) as stage:
        assert stage.parent == line and stage.name.startswith(".") and os.stat(stage).st_mode & 0o777 == 0o755
        (stage / "file").write_text("x")
    assert list(line.iterdir()) == []
    with staging(str(line)) as stage:
        (stage / "file").write_text("x")
        stage.rename(line / "v1")
    assert (line / "v1" / "file").read_text() == "x" and [path.name for path in line.iterdir()] == ["v1"]


def test_for_other_storage_it_is_on_this_machine() -> None:
    with staging(f"memory://staging-{uuid.uuid4().hex}") as stage:
        assert stage.is_dir()
    assert not stage.exists()


def test_what_a_killed_process_left_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    program = "import os, sys\nfrom launch.staging import staging\nwith staging(sys.argv[1]):\n    os._exit(9)"
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False).returncode == 9
    (abandoned,) = tmp_path.iterdir()
    with staging(str(tmp_path)) as mine, staging(str(tmp_path)) as other:
        assert not abandoned.exists()
        assert sorted(tmp_path.iterdir()) == sorted([mine, other])


@pytest.mark.parametrize("moment", ["tempfile.mkdtemp", "os.open", "fcntl.flock"])
def test_taken_for_abandoned_before_it_is_locked_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """After it was made, after it was opened, and in vain after it was locked: another process removes what nobody holds."""
    where, name = moment.split(".")
    real, times = getattr(getattr(module, where), name), 0

    def and_then_another(*args: Any, **kwargs: Any) -> Any:
        nonlocal times
        found, times = real(*args, **kwargs), times + 1
        if times <= 2:
            program = "import sys\nfrom launch.staging import staging\nwith staging(sys.argv[1]):\n    pass"
            subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=True)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(f"launch.staging.{moment}", and_then_another)
        with staging(str(tmp_path)) as stage:
            assert list(tmp_path.iterdir()) == [stage]
    assert times >= (1 if moment == "fcntl.flock" else 3)


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"), staging(str(tmp_path / "file" / "line")):
        raise AssertionError
