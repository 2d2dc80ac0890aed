"""Two nodes on one machine: network namespaces that see each other over a cable, and nothing else. Needs root.

Names do not resolve between them and their loopback is their own, as on a cluster; the disk is shared, as on a cluster.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.support.command import UNLEARN, environment

ADDRESSES = ("10.77.0.1", "10.77.0.2")


def missing() -> str:
    """Why there can be no nodes here; empty where there can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and iproute2: two network namespaces"
    probe = f"i2i{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"needs network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=False)
    return ""


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[str, str]]:
    """Names of two namespaces joined by a cable; they are gone afterwards, with all that runs in them."""
    mark = uuid.uuid4().hex[:6]
    names, ends = (f"i2i{mark}a", f"i2i{mark}b"), (f"v{mark}a", f"v{mark}b")
    steps = [["netns", "add", name] for name in names]
    steps.append(["link", "add", ends[0], "type", "veth", "peer", "name", ends[1]])
    for name, end, address in zip(names, ends, ADDRESSES, strict=True):
        steps += [["link", "set", end, "netns", name], ["-n", name, "addr", "add", f"{address}/24", "dev", end]]
        steps += [["-n", name, "link", "set", end, "up"], ["-n", name, "link", "set", "lo", "up"]]
    try:
        for step in steps:
            subprocess.run(["ip", *step], check=True)
        yield names
    finally:
        for name in names:
            kill_node(name)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def kill_node(name: str) -> None:
    """SIGKILL to everything that runs on a node, as when its power goes: the command, its agent, its ranks."""
    for _ in range(100):
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout.split()
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)
    raise RuntimeError(f"{name}: {found} cannot be killed")


class Node:
    """`unlearn ARGUMENTS` at work on a node."""

    def __init__(self, name: str, *arguments: str, log: Path) -> None:
        self.name, self.log = name, log
        with log.open("ab") as stream:
            command = ["ip", "netns", "exec", name, *UNLEARN, *arguments]
            self.process = subprocess.Popen(command, env=environment(), stdout=stream, stderr=stream)

    def wait(self, seconds: float) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def words(self) -> str:
        """All that it said."""
        return self.log.read_text(errors="replace")

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    child.kill()
            self.process.kill()
        self.process.wait()
