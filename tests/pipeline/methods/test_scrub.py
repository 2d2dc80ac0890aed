"""SCRUB: up from the teacher on forget images, down to it on retained ones, and a first step that leads away from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.methods.scrub import Config, ObeyConfig, build
from tests.pipeline.methods.tiny import (
    ORIGINAL,
    WEIGHTS,
    Tiny,
    answer,
    batch,
    by_loss,
    close,
    context,
    gradient,
    gradient_alone,
    obeys_padding_and_ranks,
)


def disobey(around):
    return build(Config(), (), around).forgetting().loss


def obey(around, weight=0.4):
    return build(Config(retain=ObeyConfig(teacher_weight=weight)), (), around).retention().loss


def test_phase_1_ascends_on_the_distance_to_the_teacher() -> None:
    wanted = -(by_loss(51, answer(51)) + by_loss(153, answer(153))) / 2
    assert close(gradient_alone(disobey, batch([51, 153])), wanted)


def test_phase_1_measures_the_distance_itself() -> None:
    model = Tiny(*WEIGHTS)
    found = disobey(context(model))(model, batch([51]))
    assert found.measures["distance"] == pytest.approx((answer(51, WEIGHTS) - answer(51)) ** 2, rel=1e-4)
    assert float(found.total.detach()) < 0 and found.samples == 1


def test_phase_2_descends_on_the_loss_and_on_the_distance_to_the_teacher() -> None:
    wanted = (by_loss(102) + 0.4 * by_loss(102, answer(102)) + by_loss(204) + 0.4 * by_loss(204, answer(204))) / 2
    assert close(gradient_alone(obey, batch([102, 204])), wanted)
    assert close(gradient_alone(lambda around: obey(around, 0.0), batch([102])), by_loss(102))


def test_padding_weighs_nothing_and_two_ranks_are_one() -> None:
    obeys_padding_and_ranks(disobey, pairs=False)
    obeys_padding_and_ranks(obey, pairs=False)


def test_phases_read_their_own_images_alone_and_move_all_weights() -> None:
    method = build(Config(), (), context(Tiny(*WEIGHTS)))
    first, second = method.forgetting(), method.retention()
    assert (first.reads, first.passes, first.decay, first.trains) == (("forget",), 1, False, None)
    assert (second.reads, second.passes, second.trains) == (("retain",), None, None)


def test_phase_1_sets_out_beside_the_teacher_where_the_distance_has_a_slope() -> None:
    """The student starts as its teacher's copy, where the distance is least and its gradient exactly zero."""
    model = Tiny(*ORIGINAL)
    plan = build(Config(), (), context(model)).forgetting()
    assert not gradient(plan.loss(model, batch([51, 153])), model).any()
    assert plan.prepare is not None
    assert plan.prepare(model, iter(())) == 0
    shaken = np.concatenate([parameter.detach().numpy() for parameter in model.parameters()])
    assert (shaken != np.array(ORIGINAL, np.float32)).all()
    assert np.allclose(shaken, ORIGINAL, rtol=0.01)
    assert np.abs(gradient(plan.loss(model, batch([51, 153])), model)).max() > 0
    again = Tiny(*ORIGINAL)
    plan.prepare(again, iter(()))  # and the same on every rank
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
