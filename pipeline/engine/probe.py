"""Losses of chosen samples without training on them, split over ranks and the same on every rank."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.data.stream import ImageReader, to_tensor
from pipeline.data.tasks.base import Task
from pipeline.engine.distributed import ProcessGroup

__all__ = ["sample_losses"]


def sample_losses(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    reader: ImageReader,
    rows: np.ndarray,
    *,
    task: Task,
    group: ProcessGroup,
    batch_size: int = 256,
) -> np.ndarray:
    """Training losses of the samples at positions `rows`, fp64 [len(rows)].

    Every rank makes the same number of forward passes, because under ZeRO 3 each one is a collective.
    """
    share = -(-len(rows) // group.world_size)
    mine = rows[group.rank * share : (group.rank + 1) * share]
    padded = np.concatenate([mine, np.repeat(rows[:1], share - len(mine))])
    parts = []
    with torch.no_grad():
        for start in range(0, share, batch_size):
            images = to_tensor(reader.fetch(padded[start : start + batch_size]), group.device)
            visible, region = task.degrade(images)
            parts.append(model(visible, images, region).double().cpu().numpy())
    local = np.concatenate(parts)[: len(mine)] if parts else np.empty(0)
    return np.concatenate(group.gather(local)) if len(rows) else np.empty(0)
