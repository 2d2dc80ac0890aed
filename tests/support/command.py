"""The `unlearn` command as users start it: a process, its exit code, what it said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

UNLEARN = [sys.executable, "-m", "launch"]


def environment(**more: str) -> dict[str, str]:
    """This process's environment with no terminal."""
    return {**os.environ, "COLUMNS": "200", **more}


def unlearn(*arguments: str, cwd: Path | None = None, timeout: float = 500.0) -> subprocess.CompletedProcess[str]:
    """Run `unlearn ARGUMENTS` to its end."""
    return subprocess.run(
        [*UNLEARN, *arguments], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
