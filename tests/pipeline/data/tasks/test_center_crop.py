"""The hidden square: share, place, fill."""

from __future__ import annotations

import pytest
import torch

from pipeline.data.tasks.center_crop import Config, build
from pipeline.decode import decode
from pipeline.errors import ConfigError


@pytest.mark.parametrize(("share", "side"), [(0.25, 16), (0.0625, 8), (0.5625, 24), (0.0001, 1)])
def test_a_centred_square_of_the_share_is_filled(share: float, side: int) -> None:
    images = torch.rand(2, 3, 32, 32)
    visible, region = build(Config(hidden_share=share, fill=0.25)).degrade(images, torch.zeros(len(images), dtype=torch.int64))
    assert region.shape == (2, 1, 32, 32)
    assert int(region[0].sum()) == side * side
    rows = torch.nonzero(region[0, 0].any(1)).flatten()
    assert (int(rows[0]), int(rows[-1]) + 1) == ((32 - side) // 2, (32 - side) // 2 + side)
    inside = region.expand_as(images)
    assert torch.equal(visible[~inside], images[~inside])
    assert (visible[inside] == 0.25).all()


@pytest.mark.parametrize("wrong", [{"hidden_share": 0}, {"hidden_share": 1.0}, {"fill": 1.5}])
def test_values_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"task: {next(iter(wrong))}: "):
        decode(Config, wrong, where="task")
