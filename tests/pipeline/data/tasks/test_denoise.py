"""Gaussian noise of the configured size, a function of the draw alone."""

from __future__ import annotations

import pytest
import torch

from pipeline.data.tasks.denoise import Config, build
from pipeline.decode import decode
from pipeline.errors import ConfigError
from tests.pipeline.data.tasks import laws


def test_the_laws_hold_and_all_is_judged() -> None:
    for shape in ((3, 32, 32), (1, 8, 20)):
        _, region = laws.check(build(Config(sigma=0.5)), laws.images(6, *shape))
        assert region.all()


def test_the_noise_has_the_configured_size() -> None:
    given = torch.full((64, 3, 32, 32), 0.5)
    noise = build(Config(sigma=0.1)).degrade(given, laws.draws(64))[0] - given
    assert abs(float(noise.mean())) < 0.001
    assert abs(float(noise.std()) - 0.1) < 0.001


def test_other_draws_give_other_noise_and_samples_do_not_share_it() -> None:
    given = torch.full((2, 1, 32, 32), 0.5)
    task = build(Config())
    visible, later = (task.degrade(given, laws.draws(2, step))[0] for step in (0, 1))
    assert not torch.equal(visible, later)
    assert not torch.equal(visible[0], visible[1])


@pytest.mark.parametrize("sigma", [0, -0.1, 1.5, float("nan")])
def test_values_that_cannot_work_are_refused(sigma: float) -> None:
    with pytest.raises(ConfigError, match="task: sigma: "):
        decode(Config, {"sigma": sigma}, where="task")
