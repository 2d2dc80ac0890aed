"""Shapes, the loss and the sampler against written-out formulas, what may not leak, and refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.draws import draws_of_rows
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.base import paste
from pipeline.models.inpainting import Config, Inpainting, build
from tests.support.one_pass import assert_both_are_those_of_two_passes

TINY = Config(
    image_size=16,
    block_out_channels=(8, 16),
    layers_per_block=1,
    attention_levels=(1,),
    attention_head_dim=8,
    norm_num_groups=4,
    train_timesteps=1000,
    beta_start=1e-4,
    beta_end=0.02,
    sample_steps=4,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small lose more to the start of threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(**fields: Any) -> Inpainting:
    torch.manual_seed(0)
    return build(dataclasses.replace(TINY, **fields))


def case(num: int = 4, channels: int = 3, whole: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images = torch.rand(num, channels, 16, 16, generator=torch.Generator().manual_seed(1))
    region = torch.zeros(num, 1, 16, 16, dtype=torch.bool)
    region[:, :, 4:12, 4:12] = True
    if whole:
        region[:] = True
        return images.mean(1, keepdim=True).expand_as(images), images, region, draws(num)
    return images.masked_fill(region, 0.5), images, region, draws(num)


def draws(num: int, step: int = 0) -> Tensor:
    return torch.from_numpy(draws_of_rows(torch.arange(num).numpy(), seed=3, step=step))


@pytest.mark.parametrize("prediction", ["noise", "image", "velocity"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("whole", [False, True])
def test_shapes_ranges_and_known_pixels(prediction: Any, channels: Any, whole: bool) -> None:
    model = tiny(prediction=prediction, channels=channels)
    visible, images, region, numbers = case(channels=channels, whole=whole)
    losses, answer = model(visible, images, region, numbers), model.complete(visible, region, numbers)
    assert losses.shape == (4,)
    assert (losses >= 0).all()
    assert answer.shape == images.shape
    assert answer.dtype == torch.float32
    assert ((answer >= 0) & (answer <= 1)).all()
    assert torch.equal(paste(visible, answer, region), visible), "known pixels are put back"
    prediction_BCHW = model(visible, images, region, numbers, "prediction")
    assert prediction_BCHW.shape == images.shape
    assert model.random_prediction(prediction_BCHW, numbers).shape == images.shape
    assert model(visible, images, region, numbers, "features").shape == (4, 16 * 8 * 8)


class Recorder(torch.nn.Module):
    """Stands for the U-Net: keeps its inputs and answers by a function of them."""

    dtype = torch.float32

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.inputs, self.times = answer, [], []

    def forward(self, sample: Tensor, times: Tensor, return_dict: bool) -> tuple[Tensor]:
        self.inputs.append(sample)
        self.times.append(times)
        return (self.answer(sample, times),)


def alphas() -> Tensor:
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)


def test_input_and_loss_follow_the_formula() -> None:
    visible, images, region, numbers = case(64)
    model = tiny()
    model.unet = Recorder(lambda sample, times: torch.zeros_like(sample[:, :3]))  # type: ignore[assignment]
    losses = model(visible, images, region, numbers)
    (stacked,), (times,) = model.unet.inputs, model.unet.times
    noisy, shown, mask = stacked.split([3, 3, 1], dim=1)
    assert torch.equal(shown, 2 * visible - 1)
    assert torch.equal(mask, region.float())
    assert torch.equal(paste(torch.zeros_like(noisy), noisy, region), paste(torch.zeros_like(noisy), shown, region))
    alpha = alphas()[times].view(-1, 1, 1, 1)
    noise = (noisy - alpha.sqrt() * (2 * images - 1)) / (1 - alpha).sqrt()
    inside = noise[region.expand_as(noise)].view(64, -1)
    assert torch.allclose(losses, inside.square().mean(1), atol=1e-3), "the network said 0, so the loss is the noise's square"
    assert abs(float(inside.mean())) < 0.05
    assert abs(float(inside.std()) - 1) < 0.05
    assert len(set(times.tolist())) > 50
    assert 0 <= int(times.min()) < 100
    assert 900 < int(times.max()) < 1000


@pytest.mark.parametrize("prediction", ["noise", "image", "velocity"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_network_that_knows_the_image_has_no_loss_and_is_sampled_exactly(prediction: Any, whole: bool) -> None:
    visible, images, region, numbers = case(whole=whole)
    truth = 2 * images - 1

    def oracle(sample: Tensor, times: Tensor) -> Tensor:
        alpha = alphas()[times].view(-1, 1, 1, 1)
        noise = (sample[:, :3] - alpha.sqrt() * truth) / (1 - alpha).sqrt()
        return {"noise": noise, "image": truth, "velocity": alpha.sqrt() * noise - (1 - alpha).sqrt() * truth}[prediction]

    model = tiny(prediction=prediction, sample_steps=10)
    model.unet = Recorder(oracle)  # type: ignore[assignment]
    assert torch.allclose(model(visible, images, region, numbers), torch.zeros(4), atol=1e-6)
    assert torch.allclose(model.complete(visible, region, numbers), paste(images, visible, region), atol=1e-4)
    assert [int(t[0]) for t in model.unet.times[1:]] == list(range(999, 0, -100))


def test_a_sample_does_not_depend_on_those_beside_it() -> None:
    model = tiny()
    visible, images, region, numbers = case()
    for want in ("loss", "features", "prediction"):
        together = model(visible, images, region, numbers, want)
        alone = torch.cat(
            [model(visible[i : i + 1], images[i : i + 1], region[i : i + 1], numbers[i : i + 1], want) for i in range(4)]
        )
        assert torch.allclose(together, alone, atol=1e-5), want
    alone = torch.cat([model.complete(visible[i : i + 1], region[i : i + 1], numbers[i : i + 1]) for i in range(4)])
    assert torch.allclose(model.complete(visible, region, numbers), alone, atol=1e-4)


def test_all_randomness_is_a_function_of_the_draws() -> None:
    model = tiny()
    visible, images, region, numbers = case()
    losses, answer = model(visible, images, region, numbers), model.complete(visible, region, numbers)
    torch.manual_seed(99)
    assert torch.equal(losses, model(visible, images, region, numbers))
    assert torch.equal(answer, model.complete(visible, region, numbers))
    other = draws(4, step=1)
    assert not torch.equal(losses, model(visible, images, region, other))
    assert not torch.equal(answer, model.complete(visible, region, other))
    noise = model.random_prediction(model(visible, images, region, numbers, "prediction"), numbers)
    assert noise.min() < -1
    assert noise.max() > 1


def test_what_the_region_hides_and_what_lies_outside_do_not_leak() -> None:
    model = tiny()
    visible, images, region, numbers = case()
    outside = paste(images, 1 - images, region)
    for want in ("loss", "features", "prediction"):
        assert torch.equal(model(visible, images, region, numbers, want), model(visible, outside, region, numbers, want)), want
    changed = paste(1 - images, images, region)
    again = changed.masked_fill(region, 0.5)
    assert torch.equal(model.complete(visible, region, numbers), model.complete(again, region, numbers))


def test_features_are_what_the_middle_block_gives_in_a_whole_pass() -> None:
    model = tiny()
    seen: list[Tensor] = []
    model.unet.mid_block.register_forward_hook(lambda *call: seen.append(call[2]))  # type: ignore[union-attr]
    model(*case(), "prediction")
    features = model(*case(), "features")
    assert torch.equal(features, seen[0].flatten(1))
    features.sum().backward()
    inside = {id(p) for module in model.encoder() for p in module.parameters()}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in inside), name


def test_reset_reaches_every_weight_of_the_bottleneck() -> None:
    model = tiny()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for module in model.bottleneck():
        model.reset(module)
    inside = {id(p) for module in model.bottleneck() for p in module.parameters()}
    for name, weight in model.named_parameters():
        if id(weight) not in inside:
            assert torch.equal(weight, before[name]), name
        elif "norm" not in name:
            assert not torch.equal(weight, before[name]), name
            assert 0.5 < float(weight.detach().abs().mean() / before[name].detach().abs().mean()) < 2, name


def test_training_lowers_the_loss_and_leaves_no_other_trace() -> None:
    model = tiny(prediction="velocity")
    assert model.training_buffers == ()
    assert model.probe_draws >= 4
    assert not list(model.named_buffers())
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    tables = model._scheduler.alphas_cumprod.clone()
    visible, images, region, _ = case(8)
    images = images.mean((2, 3), keepdim=True).expand_as(images).round()  # plain colours
    visible = images.masked_fill(region, 0.5)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        loss = model(visible, images, region, draws(8, step)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert torch.equal(model._scheduler.alphas_cumprod, tables)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    found = []
    for saving in (False, True):
        model = tiny(activation_checkpointing=saving)
        model(*case()).mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*found, strict=True))


def test_bf16_keeps_the_schedule_exact() -> None:
    plain, cast = tiny(), tiny().bfloat16()
    assert cast._scheduler.alphas_cumprod.dtype == torch.float32
    losses = plain(*case())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = plain(*case())
    for other in (mixed, cast(*case())):
        assert other.dtype == torch.float32
        assert torch.allclose(other, losses, rtol=0.05)
    visible, _, region, numbers = case()
    assert cast.complete(visible, region, numbers).dtype == torch.float32


def test_built_on_meta_the_tables_are_real() -> None:
    with torch.device("meta"):
        model = tiny()
    assert all(parameter.is_meta for parameter in model.parameters())
    model.load_state_dict(tiny().state_dict(), assign=True)
    assert torch.equal(model(*case()), tiny()(*case()))


def test_export_and_folder_give_the_same_bits(tmp_path: Path) -> None:
    model = tiny()
    assert model.export(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "scheduler_config.json",
    ]
    config = dataclasses.replace(TINY, folder=str(tmp_path), block_out_channels=(99,))
    again = build(config)
    assert again.training
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    visible, images, region, numbers = case()
    assert torch.equal(model(visible, images, region, numbers), again(visible, images, region, numbers))
    assert torch.equal(model.complete(visible, region, numbers), again.complete(visible, region, numbers))
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in build(config).parameters())


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, folder=str(tmp_path))
    with pytest.raises(ConfigError, match="safetensors"):
        build(config)
    tiny().export(tmp_path)
    for fields, message in [
        ({"channels": 1}, "in_channels is 7, not 3"),
        ({"prediction": "image"}, "prediction_type is epsilon, not sample"),
        ({"train_timesteps": 2000}, "num_train_timesteps is 1000, not 2000"),
        ({"image_size": 15}, "image_size"),
    ]:
        with pytest.raises(ConfigError, match=message):
            build(dataclasses.replace(config, **fields))  # type: ignore[arg-type]
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    for fields, message in [
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
        ({"dropout": 0.1}, "dropout is 0.1"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "SkipDownBlock2D"),
    ]:
        path.write_text(json.dumps(settings | fields))
        with pytest.raises(ConfigError, match=message):
            build(config)
    path.write_text(json.dumps(settings | {"layers_per_block": 2}))
    with pytest.raises(CheckpointError, match="weights"):
        build(config)
    path.write_text(json.dumps(settings | {"block_out_channels": [8, 24]}))
    with pytest.raises(CheckpointError, match="weights"):
        build(config)
    path.write_text(json.dumps(settings))
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="weights"):
        build(config)
    weights.rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickled"):
        build(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 15}, "image_size"),
        ({"block_out_channels": ()}, "levels"),
        ({"block_out_channels": (8, 18)}, "norm_num_groups"),
        ({"attention_head_dim": 5}, "attention_head_dim"),
        ({"attention_levels": (2,)}, "attention_levels"),
        ({"sample_steps": 7}, "sample_steps"),
        ({"beta_end": 1.5}, "beta_end"),
    ],
)
def test_sizes_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**fields)


def test_one_pass_gives_loss_and_prediction() -> None:
    assert_both_are_those_of_two_passes(tiny(), case())
