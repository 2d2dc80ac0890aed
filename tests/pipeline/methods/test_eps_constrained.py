"""The controllable framework: the weight of forgetting in each step, its two regimes, and the refusal of ZeRO 3."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.decode import decode
from pipeline.errors import ConfigError
from pipeline.methods.eps_constrained import Config, build
from tests.pipeline.methods.test_li_et_al import of_noise
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


def loss(around, control=0.5):
    return build(Config(control=control), (), around).retention().loss


def terms(level, draw):
    """Gradients of utility for a retained image of grey level 102, and of forgetting."""
    return by_features(102, features(102)), by_features(level, of_noise(level, 50, draw))


@pytest.mark.parametrize("control", [0.01, 0.5, 4.0])
def test_the_step_is_that_of_the_dynamic_barrier(control: float) -> None:
    utility, forgetting = terms(60, 5)
    weight = max(0.0, control - float(forgetting @ utility) / float(forgetting @ forgetting))
    found = gradient_alone(lambda around: loss(around, control), (batch([102]), batch([60], draws=[5], contrast=50)))
    assert close(found, utility + weight * forgetting)
    # Forgetting falls at least `control` times as fast as plain descent on it would make it, and no faster than it must.
    progress = float(found @ forgetting) / float(forgetting @ forgetting)
    assert progress >= control - 1e-4 and (weight == 0 or progress == pytest.approx(control, rel=1e-3))


def test_where_utility_forgets_enough_of_itself_forgetting_weighs_nothing() -> None:
    utility, forgetting = terms(60, 5)
    assert float(utility @ forgetting) > 0
    model = Tiny(*WEIGHTS)
    small = 0.5 * float(utility @ forgetting) / float(forgetting @ forgetting)
    found = loss(context(model), small)(model, (batch([102]), batch([60], draws=[5], contrast=50)))
    assert found.measures["weight"] == 0
    assert found.samples == 4  # both gradients, then their sum's


def test_padding_weighs_nothing_and_two_ranks_are_one() -> None:
    """The weight comes from whole gradients, so it is the same on every rank."""
    obeys_padding_and_ranks(loss)


def test_only_the_encoder_moves() -> None:
    model = Tiny(*WEIGHTS)
    method = build(Config(), (), context(model))
    assert tuple(method.retention().trains(model)) == (model.enc,)
    method.loss(model, (batch([102]), batch([51]))).total.backward()
    assert model.dec.weight.grad is None


def test_without_anything_to_forget_the_step_is_utilitys() -> None:
    found = gradient_alone(loss, (batch([102]), batch([0])))  # a black image has black noise, and features of 0
    assert close(found, by_features(102, features(102)))
    assert np.isfinite(found).all()


def test_partitioned_weights_are_refused() -> None:
    model = Tiny(*WEIGHTS)
    model.enc.weight.ds_id = 0  # what ZeRO 3 puts on a parameter
    with pytest.raises(ConfigError, match="eps_constrained needs whole gradients"):
        loss(context(model))(model, (batch([102]), batch([51])))


def test_a_weight_that_would_be_overruled_is_no_field() -> None:
    with pytest.raises(ConfigError, match=r"retain\.forget_weight: unknown field"):
        decode(Config, {"retain": {"forget_weight": 0.5}}, where="method")
