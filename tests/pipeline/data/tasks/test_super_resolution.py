"""Averages at a fraction of the resolution, brought back to the image's size."""

from __future__ import annotations

import pytest
import torch

from pipeline.data.tasks.super_resolution import Config, build
from pipeline.decode import decode
from pipeline.errors import ConfigError
from tests.pipeline.data.tasks import laws


@pytest.mark.parametrize("upsample", ["nearest", "bicubic"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 20)])
def test_the_laws_hold_and_all_is_judged(upsample: str, shape: tuple[int, int, int]) -> None:
    task = build(decode(Config, {"factor": 4, "upsample": upsample}, where="task"))
    visible, region = laws.check(task, laws.images(6, *shape))
    assert region.all()
    assert (visible[0] == 0).all()
    torch.testing.assert_close(visible[1], torch.ones(shape))


def test_nearest_shows_flat_squares_of_the_mean() -> None:
    given = laws.images()
    visible, _ = build(Config(factor=8)).degrade(given, laws.draws())
    for top, left in ((0, 0), (8, 16), (24, 24)):
        square = (..., slice(top, top + 8), slice(left, left + 8))
        torch.testing.assert_close(visible[square], given[square].mean((2, 3), keepdim=True).expand_as(visible[square]))


def test_details_within_a_square_do_not_show() -> None:
    given = laws.images()
    turned = given.view(6, 3, 8, 4, 8, 4).flip(3, 5).reshape(given.shape)
    for upsample in ("nearest", "bicubic"):
        task = build(decode(Config, {"factor": 4, "upsample": upsample}, where="task"))
        torch.testing.assert_close(task.degrade(turned, laws.draws())[0], task.degrade(given, laws.draws())[0])


def test_a_factor_that_does_not_fit_is_refused_with_the_cure() -> None:
    with pytest.raises(ConfigError, match="32 x 32 pixels do not fall into squares of 5") as caught:
        build(Config(factor=5)).degrade(laws.images(), laws.draws())
    assert "task.factor" in caught.value.cure


@pytest.mark.parametrize("wrong", [{"factor": 1}, {"upsample": "lanczos"}])
def test_values_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"task: {next(iter(wrong))}: "):
        decode(Config, wrong, where="task")
