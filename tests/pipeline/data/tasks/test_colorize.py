"""The luma in all channels, and no colour left."""

from __future__ import annotations

import pytest
import torch

from pipeline.data.tasks.colorize import Config, build
from pipeline.errors import ConfigError
from tests.pipeline.data.tasks import laws


def test_the_model_sees_the_luma_and_all_is_judged() -> None:
    given = laws.images()
    visible, region = laws.check(build(Config()), given)
    assert region.all()
    luma = (given * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    for channel in range(3):
        torch.testing.assert_close(visible[:, channel], luma)
        assert torch.equal(visible[:, channel], visible[:, 0])


def test_colours_of_one_luma_look_alike() -> None:
    one = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    other = torch.tensor([0.0, 0.299 / 0.587, 0.0]).view(1, 3, 1, 1)
    seen = [build(Config()).degrade(color, laws.draws(1))[0] for color in (one, other)]
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_without_colour_are_refused_with_the_cure(channels: int) -> None:
    with pytest.raises(ConfigError, match=f"images of {channels} channel") as caught:
        build(Config()).degrade(laws.images(channels=channels), laws.draws())
    assert "model.channels=3" in caught.value.cure
