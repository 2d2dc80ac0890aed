"""The C++ kernels compiled for this processor at first use, and kept in a folder named by all that the result depends on.

Several processes may build at once, on one file system or many: each writes a file of its own and renames it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["BuildError", "built"]

SOURCE = Path(__file__).with_name("cpu.cpp")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
"""No multiply-add is fused, so that results are those of the reference, bit for bit."""
NATIVE = ("-march=native", "-mprefer-vector-width=512")
PATIENCE_S = 300.0


class BuildError(Exception):
    """No library: why, in one line."""


def built(folder: str | None = None) -> Path:
    """The library, compiled if it is not there yet.

    Args:
        folder: where libraries are kept; None: below TORCH_EXTENSIONS_DIR, or torch's default for it.

    Raises:
        BuildError: no compiler, or one that refuses.
    """
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("no C++ compiler here")
    kept = Path(folder or os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    try:
        source = b"".join(path.read_bytes() for path in (SOURCE, *sorted(SOURCE.parent.glob("*.hpp"))))
        target = kept / "i2i-unlearn" / _name(source, compiler) / "kernels.so"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _compile(compiler, target)
    except OSError as fault:
        raise BuildError(str(fault)) from None
    return target


def _compile(compiler: str, target: Path) -> None:
    handle, own = tempfile.mkstemp(dir=target.parent, prefix="building-", suffix=".so")
    os.close(handle)
    try:
        for chosen in (NATIVE, NATIVE[:1], ()):  # not each compiler and processor knows these
            done = _run([compiler, *FLAGS, *chosen, str(SOURCE), "-o", own])
            if done.returncode == 0:
                os.chmod(own, 0o700)  # the linker keeps the temporary file's mode
                os.replace(own, target)
                return
        lines = done.stderr.strip().splitlines() or [f"{compiler} ended with {done.returncode}"]
        raise BuildError(lines[0])
    finally:
        Path(own).unlink(missing_ok=True)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} took longer than {PATIENCE_S:.0f} s") from None


def _name(source: bytes, compiler: str) -> str:
    """A digest of all that the library depends on: one for another processor would end in an illegal instruction."""
    version = _run([compiler, "--version"]).stdout
    info = Path("/proc/cpuinfo")
    able = (
        next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
        if info.exists()
        else ""
    )
    parts = (compiler, version, *FLAGS, *NATIVE, platform.machine(), platform.processor(), able)
    return hashlib.sha256(source + "\0".join(parts).encode()).hexdigest()[:24]
