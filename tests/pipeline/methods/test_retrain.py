"""Retraining: the plain loss from random weights, with the run's own training settings."""

from __future__ import annotations

from pipeline.methods.retrain import Config, build
from tests.pipeline.methods.tiny import WEIGHTS, Tiny, batch, by_loss, close, context, gradient_alone, obeys_padding_and_ranks


def loss(around):
    return build(Config(), (), around).retention().loss


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    assert close(gradient_alone(loss, batch([102, 204])), (by_loss(102) + by_loss(204)) / 2)


def test_padding_weighs_nothing_and_two_ranks_are_one() -> None:
    obeys_padding_and_ranks(loss, pairs=False)


def test_it_starts_at_random_weights_and_reads_retained_images_alone() -> None:
    plan = build(Config(), (), context(Tiny(*WEIGHTS))).retention()
    assert (plan.start, plan.as_training, plan.share, plan.reads) == ("random", True, 1.0, ("retain",))
