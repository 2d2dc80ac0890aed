"""Hidden patches: their number is exact, their places a function of the draw alone."""

from __future__ import annotations

import pytest
import torch

from pipeline.data.tasks.random_patches import Config, build
from pipeline.decode import decode
from pipeline.errors import ConfigError
from tests.pipeline.data.tasks import laws


@pytest.mark.parametrize(
    ("share", "patch", "hidden"), [(0.25, 4, 16), (0.5, 8, 8), (0.0001, 16, 1), (0.9999, 16, 3), (0.3, 4, 19)]
)
def test_the_same_number_of_whole_patches_is_hidden_in_every_image(share: float, patch: int, hidden: int) -> None:
    given = laws.images()
    task = build(Config(hidden_share=share, patch=patch, fill=0.25))
    visible, region = laws.check(task, given)
    laws.check_hidden(task, given)
    cells = region.view(len(given), 32 // patch, patch, 32 // patch, patch).permute(0, 1, 3, 2, 4).flatten(3)
    assert torch.equal(cells.all(3), cells.any(3))
    assert (cells.all(3).flatten(1).sum(1) == hidden).all()
    assert (visible[region.expand_as(given)] == 0.25).all()


def test_other_draws_hide_other_patches_and_every_patch_is_hidden_as_often() -> None:
    task, given = build(Config(hidden_share=0.25, patch=8)), torch.zeros(4000, 1, 32, 32)
    _, region = task.degrade(given, laws.draws(4000))
    _, later = task.degrade(given, laws.draws(4000, step=1))
    assert not torch.equal(region, later)
    assert len(torch.unique(region.flatten(1), dim=0)) > 1000
    often = region[:, 0, ::8, ::8].float().mean(0)
    assert float((often - 0.25).abs().max()) < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_images_need_not_be_square() -> None:
    _, region = laws.check(build(Config(hidden_share=0.5, patch=4)), laws.images(channels=1, height=8, width=20))
    assert (region.flatten(1).sum(1) == 5 * 16).all()


@pytest.mark.parametrize("patch", [5, 32, 64])
def test_patches_that_do_not_fit_are_refused_with_the_cure(patch: int) -> None:
    with pytest.raises(ConfigError, match=f"32 x 32 pixels do not fall into patches of {patch} x {patch}") as caught:
        build(Config(patch=patch)).degrade(laws.images(), laws.draws())
    assert "task.patch" in caught.value.cure


@pytest.mark.parametrize("wrong", [{"hidden_share": 0}, {"hidden_share": 1.0}, {"patch": 0}, {"fill": 1.5}])
def test_values_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"task: {next(iter(wrong))}: "):
        decode(Config, wrong, where="task")
