"""Noisy Label: forget images are drawn towards what a model that knows nothing would say, a function of their draws."""

from __future__ import annotations

from pipeline.methods.base import JointConfig
from pipeline.methods.noisy_label import Config, build
from tests.pipeline.methods.tiny import batch, by_loss, close, gradient_alone, obeys_padding_and_ranks


def loss(around, weight=0.3):
    return build(Config(retain=JointConfig(forget_weight=weight)), (), around).retention().loss


def test_the_gradient_draws_each_forget_image_to_its_own_noise() -> None:
    retained, forgotten = batch([102, 204]), batch([51, 153], draws=[5, 9])
    wanted = (by_loss(102) + by_loss(204)) / 2 + 0.3 * (by_loss(51, 5 / 7) + by_loss(153, 2 / 7)) / 2
    assert close(gradient_alone(loss, (retained, forgotten)), wanted)


def test_padding_weighs_nothing_and_two_ranks_are_one() -> None:
    obeys_padding_and_ranks(loss)


def test_noise_is_not_seeded_from_the_clock() -> None:
    """The released code seeds from the clock at every step; here equal draws give equal noise, other draws other noise."""
    one, again, other = (gradient_alone(loss, (batch([102]), batch([51], draws=[draw]))) for draw in (5, 5, 6))
    assert (one == again).all()
    assert not close(one, other)


def test_a_forget_image_moves_nothing_where_its_weight_is_0() -> None:
    found = [gradient_alone(lambda around: loss(around, 0.0), (batch([102]), batch([level]))) for level in (51, 255)]
    assert close(found[0], found[1])


def test_the_default_forgets() -> None:
    assert Config().retain.forget_weight > 0
