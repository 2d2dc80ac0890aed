"""Retain Label: forget images get the original's answers for retained images of the same rank's batch."""

from __future__ import annotations

import numpy as np

from pipeline.methods.base import JointConfig
from pipeline.methods.retain_label import Config, build
from tests.pipeline.methods.tiny import answer, batch, by_loss, close, gradient_alone, gradient_on_two_ranks


def loss(around, weight=0.3):
    return build(Config(retain=JointConfig(forget_weight=weight)), (), around).retention().loss


def test_the_gradient_draws_each_forget_image_to_a_retained_ones_answer() -> None:
    retained, forgotten = batch([102, 204]), batch([51, 153, 240])  # the third is paired with the first retained one again
    pulled = by_loss(51, answer(102)) + by_loss(153, answer(204)) + by_loss(240, answer(102))
    assert close(gradient_alone(loss, (retained, forgotten)), (by_loss(102) + by_loss(204)) / 2 + 0.3 * pulled / 3)


def test_padding_weighs_nothing_and_stands_in_for_nobody() -> None:
    retained, forgotten = batch([0, 102, 0], [0, 1, 0]), batch([51, 153, 240], [1, 1, 0])
    wanted = by_loss(102) + 0.3 * (by_loss(51, answer(102)) + by_loss(153, answer(102))) / 2
    assert close(gradient_alone(loss, (retained, forgotten)), wanted)


def test_two_ranks_share_the_gradient_of_their_pairs() -> None:
    first, second = (batch([102]), batch([51, 153])), (batch([204, 0], [1, 0]), batch([240, 0], [1, 0]))
    pulled = by_loss(51, answer(102)) + by_loss(153, answer(102)) + by_loss(240, answer(204))
    wanted = (by_loss(102) + by_loss(204)) / 2 + 0.3 * pulled / 3
    assert close(gradient_on_two_ranks(loss, first, second), wanted)


def test_forget_images_of_a_rank_without_a_retained_one_wait() -> None:
    first, second = (batch([102]), batch([51])), (batch([0], [0]), batch([240]))
    assert close(gradient_on_two_ranks(loss, first, second), by_loss(102) + 0.3 * by_loss(51, answer(102)))


def test_it_is_forget_images_that_move() -> None:
    """The released code multiplies the forget term by the retain indicator, and leaves forget images as they are."""
    retained = batch([102])
    still = [gradient_alone(lambda around: loss(around, 0.0), (retained, batch([level]))) for level in (51, 240)]
    moved = [gradient_alone(loss, (retained, batch([level]))) for level in (51, 240)]
    assert close(still[0], by_loss(102)) and close(still[1], by_loss(102))
    for level, found in zip((51, 240), moved, strict=True):
        assert close(found - still[0], 0.3 * by_loss(level, answer(102)))
        assert np.abs(found - still[0]).max() > 1e-3


def test_the_default_forgets() -> None:
    assert Config().retain.forget_weight > 0
