"""What a fork server must see of itself, and how what it forked ends; the rest is tested from the launcher's end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.forkserver import _unfit

LEAVING = """
import atexit, sys, threading, time
from pipeline.forkserver import _leave

class Costly:
    def __del__(self):
        print("taken apart")

def late():
    time.sleep(0.2)
    print("thread done")

kept = Costly()
atexit.register(print, "exit handler ran")
threading.Thread(target=late).start()
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("last words", file=sys.stderr, end="")
{closing}
_leave(3)
"""


def test_a_process_that_holds_a_cuda_device_must_not_fork(tmp_path: Path) -> None:
    assert not _unfit()
    (tmp_path / "0").symlink_to("/dev/null")
    (tmp_path / "5").symlink_to("/dev/nvidiactl")  # who only counts devices holds this
    assert not _unfit(tmp_path)
    (tmp_path / "6").symlink_to("/dev/nvidia-uvm")
    assert _unfit(tmp_path)


@pytest.mark.parametrize("closing", ["", "sys.stderr.close()"])
def test_a_process_leaves_as_python_does_and_takes_nothing_apart(closing: str) -> None:
    command = (sys.executable, "-c", LEAVING.format(closing=closing))
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3
    assert done.stdout.splitlines() == ["thread done", "exit handler ran"], "and neither is 'taken apart'"
    assert done.stderr == "last words"
