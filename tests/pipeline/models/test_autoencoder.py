"""Shapes, the loss against its formula, and refusals."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.autoencoder import Config, build
from tests.support.one_pass import assert_both_are_those_of_two_passes


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (32, 1), (64, 3)])
def test_any_power_of_two_and_both_colours(size: int, channels: int) -> None:
    torch.manual_seed(0)
    model = build(Config(image_size=size, channels=channels, width=8, latent=16))
    images = torch.rand(3, channels, size, size)
    region = torch.zeros(3, 1, size, size, dtype=torch.bool)
    region[:, :, 2:6, 2:6] = True
    visible = images.masked_fill(region, 0.5)
    draws = torch.arange(3)
    losses, answer = model(visible, images, region, draws), model.complete(visible, region, draws)
    assert losses.shape == (3,)
    assert answer.shape == images.shape
    assert torch.equal(torch.where(region, images, answer), images), "known pixels are put back"
    expected = ((answer - images)[region.expand_as(images)] ** 2).reshape(3, -1).mean(1)
    assert torch.allclose(losses, expected, atol=1e-6)


def test_no_buffer_carries_training_data() -> None:
    model = build(Config())
    assert not list(model.named_buffers())
    assert model.training_buffers == ()
    assert len(model.bottleneck()) == 2


@pytest.mark.parametrize("config", [Config(image_size=28), Config(image_size=4), Config(width=12), Config(latent=0)])
def test_sizes_that_cannot_work_are_refused(config: Config) -> None:
    with pytest.raises(ConfigError, match="model"):
        build(config)


def test_one_pass_gives_loss_and_prediction() -> None:
    torch.manual_seed(0)
    region = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    region[:, :, 2:6, 2:6] = True
    views = (torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8), region, torch.arange(3))
    assert_both_are_those_of_two_passes(build(Config(image_size=8, width=8, latent=16)), views)


def test_channels_last_changes_speed_not_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for laid_out in (True, False):
        if not laid_out:
            monkeypatch.setattr("pipeline.models.autoencoder._laid_out", lambda images: images)
        torch.manual_seed(0)
        model = build(Config(image_size=16, channels=3, width=8, latent=16))
        images, region = torch.rand(3, 3, 16, 16), torch.zeros(3, 1, 16, 16, dtype=torch.bool)
        region[:, :, 4:12, 4:12] = True
        seen: list[bool] = []
        model.down[0].register_forward_hook(
            lambda module, given, out, seen=seen: seen.append(out.is_contiguous(memory_format=torch.channels_last))
        )
        losses, answer = model(images.masked_fill(region, 0.5), images, region, torch.arange(3), "both")
        losses.sum().backward()
        assert seen == [laid_out]
        found.append([losses, answer, *(weight.grad for weight in model.parameters())])
    for mine, plain in zip(*found, strict=True):
        assert torch.allclose(mine, plain, rtol=1e-4, atol=1e-6)
