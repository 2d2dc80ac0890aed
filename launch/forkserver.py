"""The launcher's end of `pipeline.forkserver`: a process that forks the chain's stages, so that each starts at once.

Linux only, because adopting a process needs a child subreaper; elsewhere, and where the server refuses, stages are started as
processes of their own, which takes longer and gives the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from launch.torchrun import JobSpec, Resources, loading_environment
from pipeline import component
from pipeline.chain import StageSpec
from pipeline.config import RunConfig
from pipeline.errors import Preempted

__all__ = ["Adopted", "ForkServer", "serving"]

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.02
ENGINE = (
    *("torch.distributed.run", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.runtime.zero.stage3"),
    "torch.utils.tensorboard",
)
"""What a rank of a stage loads sooner or later, some of it only when its optimizer is made."""


class Adopted:
    """A child that another process has forked for us; as `subprocess.Popen`, as far as we use it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; negative for a signal's number.

        Raises:
            subprocess.TimeoutExpired: it has not ended after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG if deadline else 0)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif deadline and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            else:
                time.sleep(POLL_SECONDS)
        return self._code


class ForkServer:
    """A server that loads modules, and forks meanwhile.

    Args:
        modules: in the order in which they are needed.
        env: its environment.
    """

    def __init__(self, modules: Sequence[str], env: dict[str, str]) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        prctl = ctypes.CDLL(None).prctl
        with theirs:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "pipeline.forkserver", str(theirs.fileno()), *modules),
                env=env,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 - no thread of ours is alive
            )

    def start(self, job: JobSpec, *, stdin: int, stdout: int, stderr: int) -> Adopted | None:
        """Fork the process that `job` describes; it becomes a child of ours, who must be a child subreaper.

        Args:
            job: of the pipeline, or of torchrun around it.
            stdin: descriptor of its standard input; `stdout`, `stderr` likewise.

        Returns:
            None where the server does not fork: it must be started otherwise.

        Raises:
            Preempted: the server ended, and may have forked or not.
        """
        if job.argv[:2] != (sys.executable, "-m") or "pipeline" not in job.argv:
            return None  # none of those that it knows
        order = json.dumps({"argv": job.argv, "env": dict(job.env), "parent": os.getpid()}).encode()
        try:
            socket.send_fds(self._channel, [order], [stdin, stdout, stderr])
        except OSError:
            return None
        try:
            answer = self._channel.recv(64)
        except OSError:
            answer = b""
        if not answer:
            raise Preempted("the process that starts stages ended", "run the same command again; it goes on where it stopped")
        return Adopted(int(answer)) if int(answer) else None

    def close(self) -> None:
        """End the server; what it has forked goes on."""
        self._channel.close()
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def serving(config: RunConfig, stages: Sequence[StageSpec], machine: Resources) -> Iterator[ForkServer | None]:
    """A server for these stages of a run while the body runs; None where it would gain nothing."""
    if sys.platform != "linux" or not any(spec.distributed for spec in stages):
        yield None
        return
    # First what the check of the configuration needs, then in the order of the chain.
    model = component.module_name("model", config.model["component"])
    method = component.module_name("method", config.method["component"])
    own = dict.fromkeys(f"pipeline.stages.{spec.module}" for spec in stages)
    modules = (
        "torch",
        "pipeline.__main__",
        model,
        "pipeline.engine.distributed",
        *ENGINE,
        *own,
        method,
        "torch.utils.tensorboard",
    )
    server = ForkServer(modules, loading_environment(machine, compiles=config.engine.compile))
    try:
        yield server
    finally:
        server.close()
