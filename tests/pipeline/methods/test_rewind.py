"""Rewinding: the plain loss on retained images, from a start that the stage finds."""

from __future__ import annotations

import pytest

from pipeline.component import decode_config
from pipeline.errors import ConfigError
from pipeline.methods.rewind import Config, RewindingConfig, build
from tests.pipeline.methods.tiny import WEIGHTS, Tiny, batch, by_loss, close, context, gradient_alone, obeys_padding_and_ranks


def loss(around):
    return build(Config(), (), around).retention().loss


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    assert close(gradient_alone(loss, batch([102, 204])), (by_loss(102) + by_loss(204)) / 2)


def test_padding_weighs_nothing_and_two_ranks_are_one() -> None:
    obeys_padding_and_ranks(loss, pairs=False)


def test_it_reads_retained_images_alone_and_trains_as_training_does() -> None:
    around = context(Tiny(*WEIGHTS))
    plan = build(Config(), (), around).retention()
    assert (plan.start, plan.as_training, plan.latest, plan.reads) == ("rewind", True, None, ("retain",))
    assert build(Config(retain=RewindingConfig(latest=0)), (), around).retention().latest == 0


def test_only_what_nothing_measures_can_be_declared() -> None:
    with pytest.raises(ConfigError, match="declared"):
        decode_config("method", {"component": "rewind", "declared": {"copies": "J. Doe"}})
