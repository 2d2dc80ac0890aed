"""Servers as children of the test process: on free ports of the loopback address, ended by their own pid, never left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

HOST = "127.0.0.1"
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
"""Loaded here: a child between fork and exec must load nothing."""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody accepts connections on a port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def _die_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def server(
    command: Sequence[str], log: Path, ready: Callable[[], bool], *, seconds: float = 60, env: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run a server in the foreground while the body runs; yields its pid.

    Args:
        log: takes what it says; its end is shown where the server does not come up.
        ready: asked until it is true.
        seconds: how long it may take to be ready.
        env: added to this process's environment.
    """
    with log.open("wb") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            preexec_fn=_die_with_parent,
        )
    try:
        end = time.monotonic() + seconds
        while not ready():
            if child.poll() is not None or time.monotonic() > end:
                how = f"ended with {child.returncode}" if child.returncode is not None else f"not ready after {seconds:g} s"
                raise RuntimeError(f"{command[0]}: {how}\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
