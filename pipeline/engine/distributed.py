"""The process group: who am I, how many are we, sums and gathers. Set up by accelerate's process state.

accelerate is used for process state and gathering only: its DeepSpeed plugin falls back to DDP without a word on a
machine without GPU, so `pipeline.engine.backend` calls DeepSpeed itself.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from pipeline.engine.watchdog import beat

__all__ = ["ProcessGroup", "group", "join_group", "leave_group"]

_CURRENT: ProcessGroup | None = None


class ProcessGroup:
    """This process's place in its group."""

    def __init__(self, state: PartialState) -> None:
        self.rank, self.world_size = int(state.process_index), int(state.num_processes)
        self.device: torch.device = state.device
        self.leaving = False
        """Set by a pre-emption signal; the loop saves and leaves at the next step."""
        self._marked: float | None = None
        self._busy = 0.0

    def mark(self) -> float:
        """The monotonic clock; this rank's own work counts from here to its next sum, where it waits for the others."""
        self._marked = time.monotonic()
        return self._marked

    def busy(self) -> list[float]:
        """Seconds of own work of each rank since the last call, in rank order; every rank must call."""
        mine = torch.zeros(self.world_size, dtype=torch.float64)
        mine[self.rank], self._busy = self._busy, 0.0
        return [float(seconds) for seconds in self.sum(mine)]

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks, fp64, the same bits on every rank."""
        if self._marked is not None:
            self._busy, self._marked = self._busy + time.monotonic() - self._marked, None
        values = values.detach().to(self.device, torch.float64)
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        beat()
        return values.cpu()

    def gather(self, item: Any) -> list[Any]:
        """Every rank's picklable item, in rank order, on every rank."""
        found = list(gather_object([item])) if self.world_size > 1 else [item]
        beat()
        return found

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            torch.distributed.barrier()
        beat()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handler for pre-emption signals."""
        self.leaving = True


def join_group(*, timeout_seconds: int = 600) -> ProcessGroup:
    """Join the group that torchrun's environment describes (alone without one): gloo on CPU, NCCL on GPUs.

    SIGTERM and SIGUSR1 then ask for a clean leave.
    """
    global _CURRENT
    on_cpu = not torch.cuda.is_available()
    options: dict[str, Any] = {}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # alone, accelerate takes no options
        options = {"timeout": timedelta(seconds=timeout_seconds), **({"backend": "gloo"} if on_cpu else {})}
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
