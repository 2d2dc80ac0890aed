"""Open files: right bytes from many threads, and few files open."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from pathlib import Path

import pytest

from pipeline.data import files
from pipeline.data.files import OpenFiles


def _descriptors(folder: Path) -> int:
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += str(folder) in os.readlink(f"/proc/self/fd/{name}")
    return count


def test_threads_read_the_right_file_while_others_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FILES_OPEN", 3)
    for number in range(20):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 1000)
    opened, most = OpenFiles(), 0
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        tasks = [(number * 7) % 20 for number in range(2000)]
        for number, data in zip(tasks, pool.map(lambda n: opened.read(str(tmp_path / str(n)), 990, 20), tasks), strict=True):
            assert data == bytes([number]) * 10
            most = max(most, _descriptors(tmp_path) if number == 7 else 0)
    assert 0 < most <= 3 + 4
    opened.close()
    assert _descriptors(tmp_path) == 0


def test_announcing_a_missing_file_leaves_the_fault_to_the_read(tmp_path: Path) -> None:
    opened = OpenFiles()
    opened.announce(str(tmp_path / "none"), 0, 10)
    with pytest.raises(FileNotFoundError):
        opened.read(str(tmp_path / "none"), 0, 10)
    opened.close()
