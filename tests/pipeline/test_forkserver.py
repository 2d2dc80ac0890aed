"""What a fork server must see of itself; what it forks is tested from the launcher's end."""

from __future__ import annotations

from pathlib import Path

from pipeline.forkserver import _unfit


def test_a_process_that_holds_a_cuda_device_must_not_fork(tmp_path: Path) -> None:
    assert not _unfit()
    (tmp_path / "0").symlink_to("/dev/null")
    (tmp_path / "5").symlink_to("/dev/nvidiactl")  # who only counts devices holds this
    assert not _unfit(tmp_path)
    (tmp_path / "6").symlink_to("/dev/nvidia-uvm")
    assert _unfit(tmp_path)
