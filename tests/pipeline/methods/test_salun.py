"""SalUn: the mask by hand, and that what it clears never moves, over steps of the real optimizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.methods.base import JointConfig, LossContext
from pipeline.methods.salun import Config, build
from pipeline.models import autoencoder
from tests.pipeline.methods.tiny import (
    ALONE,
    TASK,
    WEIGHTS,
    Tiny,
    batch,
    by_loss,
    close,
    context,
    gradient,
    gradient_alone,
    obeys_padding_and_ranks,
)


def loss(around):
    return build(Config(retain=JointConfig(forget_weight=0.3)), (), around).retention().loss


def test_the_loss_is_that_of_noisy_labels() -> None:
    wanted = by_loss(102) + 0.3 * by_loss(51, 5 / 7)
    assert close(gradient_alone(loss, (batch([102]), batch([51], draws=[5]))), wanted)


def test_padding_weighs_nothing_and_two_ranks_are_one() -> None:
    obeys_padding_and_ranks(loss)


def test_the_mask_keeps_the_weights_in_which_the_forget_loss_is_steepest() -> None:
    steepness = np.abs(by_loss(51) + (by_loss(153) + by_loss(240)) / 2)  # of two batches' means
    assert steepness[0] == steepness[1] > steepness[2]
    model = Tiny(*WEIGHTS)
    method = build(Config(salient_share=2 / 3), (), context(model))
    assert method.saliency(model, iter([batch([51]), batch([153, 240, 9], [1, 1, 0])])) == 3
    pair = (batch([102]), batch([51], draws=[5]))
    found, whole = gradient(method.retention().loss(model, pair), model), by_loss(102) + by_loss(51, 5 / 7)
    assert close(found, whole * [1, 1, 0])


def test_a_weight_that_the_forget_loss_does_not_feel_is_not_salient() -> None:
    model = Tiny(0.9, -0.9, 1.3)  # a0 + a1 = 0: the decoder's weight has no gradient
    method = build(Config(salient_share=1.0), (), context(model))
    method.saliency(model, iter([batch([51])]))
    model.load_state_dict(Tiny(*WEIGHTS).state_dict())
    found = gradient(method.retention().loss(model, (batch([102]), batch([51], draws=[5]))), model)
    assert close(found, (by_loss(102) + by_loss(51, 5 / 7)) * [1, 1, 0])


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_weights_outside_the_mask_keep_every_bit_over_many_steps(share: float) -> None:
    torch.manual_seed(0)
    model = autoencoder.build(autoencoder.Config(image_size=8, width=8, latent=16))
    around = LossContext(task=TASK, device=torch.device("cpu"), world_size=1, sum=ALONE, shape=lambda: model)
    method = build(Config(salient_share=share), (), around)
    forgotten, retained = batch([51, 153, 240], contrast=9), batch([102, 204], contrast=15)
    method.saliency(model, iter([forgotten]))
    before = torch.cat([parameter.detach().clone().flatten() for parameter in model.parameters()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(8):
        optimizer.zero_grad()
        method.retention().loss(model, (retained, forgotten)).total.backward()
        optimizer.step()
    moved = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]) != before
    assert 0 < int(moved.sum()) <= round(share * len(before))
    assert int(moved.sum()) > 0.9 * share * len(before)  # and those inside do move
