"""What holds for every task."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.data.tasks.base import Task
from pipeline.draws import draws_of_rows


def images(num: int = 6, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Random images, the first black and the second white."""
    made = torch.rand(num, channels, height, width, generator=torch.Generator().manual_seed(5))
    made[0], made[1] = 0, 1
    return made


def draws(num: int = 6, step: int = 0) -> Tensor:
    """Draws as a stream makes them."""
    return torch.from_numpy(draws_of_rows(np.arange(num), seed=3, step=step))


def check(task: Task, given: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes, kinds and range; outside the region nothing changes; each image is degraded as if it were alone."""
    chosen, before = draws(len(given)), given.clone()
    visible, region = task.degrade(given, chosen)
    assert torch.equal(given, before)
    assert visible.shape == given.shape
    assert (visible.dtype, visible.device) == (torch.float32, given.device)
    assert (region.shape, region.dtype) == ((len(given), 1, *given.shape[2:]), torch.bool)
    assert 0 <= float(visible.min()) <= float(visible.max()) <= 1
    outside = ~region.expand_as(given)
    assert torch.equal(visible[outside], given[outside])
    assert region.flatten(1).any(1).all()
    order = torch.tensor([3, 0, 5])
    for some in (order, torch.tensor([4]), torch.arange(len(given))):
        again = task.degrade(given[some], chosen[some])
        assert torch.equal(again[0], visible[some])
        assert torch.equal(again[1], region[some])
    return visible, region


def check_hidden(task: Task, given: Tensor) -> None:
    """What lies in the region changes neither what is visible nor the region."""
    visible, region = task.degrade(given, draws(len(given)))
    other = torch.where(region, 1 - given, given)
    again, same = task.degrade(other, draws(len(given)))
    assert torch.equal(again, visible)
    assert torch.equal(same, region)
