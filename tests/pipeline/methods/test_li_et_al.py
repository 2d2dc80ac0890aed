"""Li et al.: features of forget images become the original's features of Gaussian images; the decoder stays."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.draws import normal
from pipeline.methods.base import JointConfig
from pipeline.methods.li_et_al import Config, build
from tests.pipeline.methods.tiny import (
    ORIGINAL,
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


def of_noise(level, contrast, draw):
    """The original's features of the Gaussian image that has mean and deviation of an image; its centre is hidden too."""
    pixels = (level + contrast * (np.indices((8, 8)).sum(0) % 2 * 2 - 1)) / 255
    image = pixels.mean() + pixels.std(ddof=1) * normal(torch.tensor([draw]), 64, purpose=93).numpy().reshape(8, 8)
    image = image.clip(0, 1)
    image[2:6, 2:6] = 0
    return [a * image.mean() for a in ORIGINAL[:2]]


def test_the_gradient_holds_retained_features_and_draws_forget_ones_to_those_of_noise() -> None:
    forgotten = batch([60, 150], draws=[5, 9], contrast=50)
    kept = (by_features(102, features(102)) + by_features(204, features(204))) / 2
    lost = (by_features(60, of_noise(60, 50, 5)) + by_features(150, of_noise(150, 50, 9))) / 2
    assert close(gradient_alone(loss, (batch([102, 204]), forgotten)), kept + 0.3 * lost)


def test_padding_weighs_nothing_and_two_ranks_are_one() -> None:
    obeys_padding_and_ranks(loss)


def test_only_the_encoder_moves() -> None:
    model = Tiny(*WEIGHTS)
    method = build(Config(), (), context(model))
    assert tuple(method.retention().trains(model)) == (model.enc,)
    method.loss(model, (batch([102]), batch([51]))).total.backward()
    assert model.dec.weight.grad is None


def test_the_forget_weight_is_not_0_by_default() -> None:
    """The released code's default is 0.0, with which nothing is forgotten."""
    assert Config().retain.forget_weight == 0.2


def test_forget_images_count_through_the_forget_term_alone() -> None:
    still = [gradient_alone(lambda around: loss(around, 0.0), (batch([102]), batch([level]))) for level in (51, 240)]
    assert close(still[0], by_features(102, features(102))) and close(still[1], still[0])


def test_noise_is_not_seeded_from_the_clock() -> None:
    one, again, other = (gradient_alone(loss, (batch([102]), batch([60], draws=[draw], contrast=50))) for draw in (5, 5, 6))
    assert (one == again).all()
    assert not close(one, other)
