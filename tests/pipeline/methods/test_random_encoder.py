"""Random Encoder: features of forget images become noise of the original's mean and deviation; the decoder stays."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.draws import normal
from pipeline.methods.base import JointConfig
from pipeline.methods.random_encoder import Config, build
from tests.pipeline.methods.tiny import (
    WEIGHTS,
    Tiny,
    batch,
    by_features,
    close,
    context,
    features,
    gradient_alone,
    obeys_padding_and_ranks,
)


def loss(around, weight=0.3):
    return build(Config(retain=JointConfig(forget_weight=weight)), (), around).retention().loss


def noise(levels, draws):
    """Noise of the mean and deviation of all the original's features of these images, by the samples' draws."""
    known = np.array([features(level) for level in levels])
    return known.mean() + known.std() * normal(torch.tensor(draws), 2, purpose=92).numpy()


def test_the_gradient_holds_retained_features_and_draws_forget_ones_to_noise() -> None:
    levels, draws = [51, 153], [5, 9]
    kept = (by_features(102, features(102)) + by_features(204, features(204))) / 2
    lost = sum(by_features(level, aim) for level, aim in zip(levels, noise(levels, draws), strict=True)) / 2
    assert close(gradient_alone(loss, (batch([102, 204]), batch(levels, draws=draws))), kept + 0.3 * lost)


def test_padding_weighs_nothing_and_two_ranks_are_one() -> None:
    """The noise's mean and deviation are those of the whole batch, on every rank and without padding."""
    obeys_padding_and_ranks(loss)


def test_only_the_encoder_moves() -> None:
    model = Tiny(*WEIGHTS)
    method = build(Config(), (), context(model))
    assert tuple(method.retention().trains(model)) == (model.enc,)
    method.loss(model, (batch([102]), batch([51]))).total.backward()
    assert model.dec.weight.grad is None


def test_it_is_forget_images_that_move() -> None:
    """The released code multiplies the forget term by the retain indicator, and leaves forget images as they are."""
    still = [gradient_alone(lambda around: loss(around, 0.0), (batch([102]), batch([level]))) for level in (51, 240)]
    moved = gradient_alone(loss, (batch([102]), batch([240], draws=[5])))
    assert close(still[0], by_features(102, features(102))) and close(still[1], still[0])
    assert close(moved - still[0], 0.3 * by_features(240, noise([240], [5])[0]))
    assert np.abs(moved - still[0]).max() > 1e-3


def test_noise_is_not_seeded_from_the_clock() -> None:
    one, again, other = (gradient_alone(loss, (batch([102]), batch([51], draws=[draw]))) for draw in (5, 5, 6))
    assert (one == again).all()
    assert not close(one, other)


def test_the_default_forgets() -> None:
    assert Config().retain.forget_weight > 0
