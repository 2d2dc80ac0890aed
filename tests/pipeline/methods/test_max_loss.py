"""Max Loss: retain loss minus alpha times forget loss."""

from __future__ import annotations

import pytest

from pipeline.methods.base import JointConfig
from pipeline.methods.max_loss import Config, build
from tests.pipeline.methods.tiny import WEIGHTS, Tiny, batch, by_loss, close, context, gradient_alone, obeys_padding_and_ranks


def loss(around, weight=0.3):
    return build(Config(retain=JointConfig(forget_weight=weight)), (), around).retention().loss


def test_the_gradient_descends_on_retained_and_ascends_on_forget_images() -> None:
    wanted = (by_loss(102) + by_loss(204)) / 2 - 0.3 * by_loss(51)
    assert close(gradient_alone(loss, (batch([102, 204]), batch([51]))), wanted)


def test_padding_weighs_nothing_and_two_ranks_are_one() -> None:
    obeys_padding_and_ranks(loss)


def test_measures_are_losses_and_not_their_negatives() -> None:
    model = Tiny(*WEIGHTS)
    found = loss(context(model))(model, (batch([102, 204]), batch([255])))
    assert found.measures["forget_loss"] == pytest.approx((1.3 * 0.7 * 0.75 - 1) ** 2, rel=1e-4)
    assert found.samples == 3


def test_a_forget_image_moves_nothing_where_its_weight_is_0() -> None:
    retained = batch([102, 204])
    found = [gradient_alone(lambda around: loss(around, 0.0), (retained, batch([level]))) for level in (51, 255)]
    assert close(found[0], found[1])
