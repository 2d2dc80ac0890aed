"""The process group: who am I, how many are we, sums and gathers. Set up by accelerate's process state.

accelerate is used for process state and gathering only: its DeepSpeed plugin falls back to DDP without a word on a
machine without GPU, so `pipeline.engine.backend` calls DeepSpeed itself.
"""

from __future__ import annotations

import os
import re
import signal
import time
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed
import torch.distributed.distributed_c10d
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from pipeline.engine.watchdog import beat

__all__ = ["ProcessGroup", "group", "join_group", "leave_group", "lost_peers"]

ORPHAN_SECONDS = 30
"""How long a rank whose agent died may take to save its state: as long as an agent would leave it."""
GONE = re.compile(
    r"timed? ?out|connection (closed|reset|refused)|(read|write) error|not connected|broken pipe|connectFullMesh"
    r"|remote process exited|ncclRemoteError|communicator was aborted",
    flags=re.IGNORECASE,
)
"""What gloo and NCCL say of a peer that is gone or silent. Sizes that differ between ranks are another matter, and a bug."""

_CURRENT: ProcessGroup | None = None


class ProcessGroup:
    """This process's place in its group."""

    def __init__(self, state: PartialState) -> None:
        self.rank, self.world_size = int(state.process_index), int(state.num_processes)
        self.device: torch.device = state.device
        self.leaving = False
        """Set by a pre-emption signal; the loop saves and leaves at the next step."""
        self._parent = os.getppid()
        self._marked: float | None = None
        self._busy = torch.zeros(2, dtype=torch.float64)

    def mark(self) -> float:
        """The monotonic clock; this rank's own work counts from here to its next sum, where it waits for the others."""
        self._marked = time.monotonic()
        return self._marked

    def fed(self) -> None:
        """The work's input is there. Under ZeRO 3 ranks wait for each other inside the forward pass, so it counts apart."""
        if self._marked is not None:
            self._busy[0] += time.monotonic() - self._marked

    def busy(self) -> list[tuple[float, float]]:
        """Seconds of each rank since the last call, in rank order: of waiting for input, and of all own work; every rank must
        call."""
        mine = torch.zeros(self.world_size, 2, dtype=torch.float64)
        mine[self.rank] = self._busy
        self._busy = torch.zeros(2, dtype=torch.float64)
        return [(float(fed), float(all_)) for fed, all_ in self.sum(mine)]

    def _meet(self) -> None:
        """The moment before this rank waits for the others. (Their time limit runs from here, the watchdog's as well.)"""
        beat()
        if self._marked is not None:
            if self.device.type == "cuda" and self.world_size > 1:
                torch.cuda.synchronize(self.device)  # what the device still computes is own work
            self._busy[1] += time.monotonic() - self._marked
            self._marked = None

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks, fp64, the same bits on every rank."""
        self._meet()
        values = values.detach().to(self.device, torch.float64)
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        found = values.cpu()
        beat()
        return found

    def gather(self, item: Any) -> list[Any]:
        """Every rank's picklable item, in rank order, on every rank."""
        self._meet()
        found = list(gather_object([item])) if self.world_size > 1 else [item]
        beat()
        return found

    def barrier(self) -> None:
        """Wait for all ranks."""
        self._meet()
        if self.world_size > 1:
            torch.distributed.barrier()
        beat()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handler for pre-emption signals; one of them comes from the kernel when the agent dies."""
        self.leaving = True
        if os.getppid() != self._parent:
            signal.alarm(ORPHAN_SECONDS)  # a stage that never looks must not go on for nobody


def join_group(*, timeout_seconds: int = 600) -> ProcessGroup:
    """Join the group that torchrun's environment describes (alone without one): gloo on CPU, NCCL on GPUs.

    SIGTERM and SIGUSR1 then ask for a clean leave.
    """
    global _CURRENT
    on_cpu = not torch.cuda.is_available()
    options: dict[str, Any] = {}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # alone, accelerate takes no options
        limit = timedelta(seconds=timeout_seconds)
        options = {"timeout": limit, **({"backend": "gloo"} if on_cpu else {})}
        # Groups that DeepSpeed makes of its own name no limit, and would wait half an hour.
        torch.distributed.distributed_c10d.default_pg_timeout = limit
        torch.distributed.distributed_c10d.default_pg_nccl_timeout = limit
    state = PartialState(cpu=on_cpu, **options)
    _CURRENT = ProcessGroup(state)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _CURRENT.on_signal)
    return _CURRENT


def group() -> ProcessGroup:
    """The group joined before; joins one of the environment's size otherwise."""
    return _CURRENT or join_group()


def leave_group() -> None:
    """Leave the group; safe to call twice."""
    global _CURRENT
    _CURRENT = None
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    PartialState._reset_state()


def lost_peers(fault: BaseException) -> bool:
    """Whether an exception says that other ranks are gone or silent, which is no fault of this one."""
    if isinstance(fault, torch.distributed.DistStoreError | torch.distributed.DistNetworkError):
        return True
    words = str(fault)
    collective = isinstance(fault, torch.distributed.DistBackendError) or (isinstance(fault, RuntimeError) and "gloo" in words)
    return collective and GONE.search(words) is not None
