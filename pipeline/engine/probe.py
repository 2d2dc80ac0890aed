"""Losses of chosen samples without training on them, split over ranks and the same on every rank."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.data.stream import ImageReader, to_tensor
from pipeline.data.tasks.base import Task
from pipeline.draws import draws_of_rows
from pipeline.engine.distributed import ProcessGroup
from pipeline.engine.watchdog import beat

__all__ = ["sample_losses"]

PROBE_SEED = 0x9A0BE


def sample_losses(
    model: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    reader: ImageReader,
    rows: np.ndarray,
    *,
    task: Task,
    group: ProcessGroup,
    batch_size: int = 256,
    draws: int = 1,
) -> np.ndarray:
    """Training losses of the samples at positions `rows`, each the mean over `draws` draws, fp64 [len(rows)].

    The draws are functions of the position alone, so every model is probed with the same masks and the same noise.

    Every rank makes the same number of forward passes, because under ZeRO 3 each one is a collective.
    """
    share = -(-len(rows) // group.world_size)
    mine = rows[group.rank * share : (group.rank + 1) * share]
    padded = np.concatenate([mine, np.repeat(rows[:1], share - len(mine))])
    parts = []
    with torch.no_grad():
        for start in range(0, share, batch_size):
            positions = padded[start : start + batch_size]
            images = to_tensor(reader.fetch(positions), group.device)
            total = torch.zeros(len(positions), dtype=torch.float64)
            for number in range(draws):
                drawn = torch.from_numpy(draws_of_rows(positions, PROBE_SEED, number)).to(group.device)
                visible, region = task.degrade(images, drawn)
                total += model(visible, images, region, drawn).double().cpu()
            parts.append((total / draws).numpy())
            beat()
    local = np.concatenate(parts)[: len(mine)] if parts else np.empty(0)
    return np.concatenate(group.gather(local)) if len(rows) else np.empty(0)
