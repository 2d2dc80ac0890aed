"""Libraries are compiled once, below any name, by any number of processes, and for this processor alone."""

from __future__ import annotations

import concurrent.futures
import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.kernels import build
from pipeline.kernels.build import BuildError, built

compiles = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source = tmp_path / "a source.cpp"
    source.write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(build, "SOURCE", source)
    return source


@compiles
def test_a_library_is_built_once_below_a_name_with_spaces(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept libraries"
    first = built(str(folder))
    assert ctypes.CDLL(str(first)).answer() == 42
    made = first.stat().st_mtime_ns
    assert built(str(folder)) == first and first.stat().st_mtime_ns == made
    small.write_text('extern "C" int answer() { return 43; }\n')
    assert built(str(folder)) != first


@compiles
def test_several_may_build_at_once_and_leave_one_file(small: Path, tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(built, [str(tmp_path / "kept")] * 4))
    assert len(set(paths)) == 1
    assert [path.name for path in paths[0].parent.iterdir()] == ["kernels.so"]


@compiles
def test_flags_that_the_compiler_does_not_know_are_left_out(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "NATIVE", ("-march=native", "-mno-such-flag"))
    assert ctypes.CDLL(str(built(str(tmp_path / "kept")))).answer() == 42


@compiles
def test_a_fault_is_one_line_and_leaves_nothing(small: Path, tmp_path: Path) -> None:
    small.write_text("this is no C++\n")
    with pytest.raises(BuildError, match="error") as caught:
        built(str(tmp_path / "kept"))
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]


def test_no_compiler_and_a_slow_one_are_said(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("c++", 1.0)

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/c++")
    monkeypatch.setattr(subprocess, "run", late)
    with pytest.raises(BuildError, match="longer than"):
        built(str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BuildError, match="no C\\+\\+ compiler"):
        built(str(tmp_path))
