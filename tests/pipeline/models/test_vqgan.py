"""Laws of the masked-token model: what its loss is, what it may see, how it decodes, what it saves and refuses."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data.tasks.center_crop import CenterCrop
from pipeline.data.tasks.center_crop import Config as TaskConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.vqgan import VQGAN, Config, build
from tests.support.one_pass import assert_both_are_those_of_two_passes

TINY = Config(
    image_size=16,
    channels=1,
    block_out_channels=(8, 16, 16),
    layers_per_block=1,
    latent_channels=4,
    codebook=16,
    width=32,
    layers=2,
    heads=2,
    decode_steps=3,
)


def tiny(**changes: object) -> VQGAN:
    torch.manual_seed(0)
    return build(dataclasses.replace(TINY, **changes))  # type: ignore[arg-type]


def views(num: int = 4, channels: int = 1, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Visible and true images, a region that touches the four codes in the middle, and draws."""
    images = torch.rand(num, channels, 16, 16, generator=torch.Generator().manual_seed(seed))
    region = torch.zeros(num, 1, 16, 16, dtype=torch.bool)
    region[:, :, 5:11, 5:11] = True
    return images.masked_fill(region, 0.5), images, region, torch.arange(num) * 7 + 3


@pytest.mark.parametrize("mask", ["task", "random"])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_known_pixels(mask: str, channels: int) -> None:
    model = tiny(mask=mask, channels=channels)
    visible, images, region, draws = views(channels=channels)
    loss = model(visible, images, region, draws)
    assert loss.shape == (4,)
    assert loss.dtype == torch.float32
    assert (loss >= 0).all()
    assert model(visible, images, region, draws, "features").shape == (4, 16, 32)
    prediction = model(visible, images, region, draws, "prediction")
    assert prediction.shape == (4, 16, 16)
    assert torch.allclose(prediction.exp().sum(-1), torch.ones(4, 16))
    answer = model.complete(visible, region, draws)
    assert torch.equal(torch.where(region, visible, answer), visible), "known pixels are put back"
    assert answer.min() >= 0
    assert answer.max() <= 1


@pytest.mark.parametrize("mask", ["task", "random"])
def test_a_sample_does_not_depend_on_its_batch(mask: str) -> None:
    model = tiny(mask=mask)
    whole = views()
    for want in ("loss", "features", "prediction"):
        together = model(*whole, want)
        for row in range(4):
            alone = model(*(part[row : row + 1] for part in whole), want)
            assert torch.allclose(alone[0], together[row], atol=1e-5)
    visible, _, region, draws = whole
    together = model.complete(visible, region, draws)
    assert torch.allclose(model.complete(visible[2:3], region[2:3], draws[2:3])[0], together[2], atol=1e-5)
    assert torch.equal(model(*whole), model(*whole)), "all randomness comes from the draws"
    assert not torch.equal(model(*whole), model(*whole[:3], whole[3] + 1))


def test_the_loss_is_the_written_out_formula() -> None:
    model = tiny(commitment=0.5, spread=0.25)
    visible, images, region, draws = (part[:1] for part in views())
    codebook = model.tokenizer.quantize.embedding.weight
    latents = model.tokenizer.encode(images * 2 - 1).latents[0].flatten(1).T
    seen = model.tokenizer.encode(visible * 2 - 1).latents[0].flatten(1).T
    gaps = (latents[:, None] - codebook[None]).square().sum(-1)
    codes, middle = gaps.argmin(1), [5, 6, 9, 10]
    hidden = model._hidden(model._touched(region), draws)[0]
    assert 1 <= hidden.sum() <= 4
    assert set(hidden.nonzero().flatten().tolist()) <= set(middle)
    tokens = (seen[:, None] - codebook[None]).square().sum(-1).argmin(1)
    tokens[middle] = codes[middle]
    tokens[hidden] = 16
    types = torch.zeros(16, dtype=torch.long)
    types[middle] = 1
    logits = model.transformer(input_ids=tokens[None], position_ids=torch.arange(16)[None], token_type_ids=types[None]).logits
    expected = functional.cross_entropy(logits[0, hidden, :16], codes[hidden])
    vectors = codebook[codes]
    rebuilt = model.tokenizer.decode(vectors.T.reshape(1, 4, 4, 4), force_not_quantize=True).sample
    expected = expected + ((rebuilt + 1) / 2 - images).square().mean() + 1.5 * (latents - vectors).square().mean()
    expected = expected + 0.25 * (codebook - latents[gaps.argmin(0)]).square().mean()
    torch.testing.assert_close(model(visible, images, region, draws), expected[None])


def test_random_masks_hide_at_least_half_of_all_codes() -> None:
    _, _, region, _ = views(1)
    model = tiny(mask="random")
    draws = torch.arange(2000)
    shares = model._hidden(model._touched(region).expand(2000, -1), draws).float().mean(1)
    assert shares.min() >= 0.5
    # Mean of N(0.55, 0.25) within [0.5, 1], rounded up to sixteenths.
    assert shares.mean().item() == pytest.approx(0.70 + 1 / 32, abs=0.02)


def test_hidden_pixels_reach_neither_the_answer_nor_what_is_predicted_of_them() -> None:
    model = tiny(mask="random", temperature=2.0)
    visible, images, region, draws = views()
    other = torch.where(region, 1 - images, images)
    outside = ~model._touched(region)[0]
    true, changed = (model._latents(part, moves=False)[:, outside] for part in (images, other))
    assert (true - changed).abs().max() > 1e-3, "codes of the true image would tell, even outside the region"
    task = CenterCrop(TaskConfig(hidden_share=0.14))
    (seen, hidden), (again, _) = task.degrade(images, draws), task.degrade(other, draws)
    assert torch.equal(hidden, region)
    assert torch.equal(model.complete(seen, region, draws), model.complete(again, region, draws))
    model._hidden = lambda touched, draws: touched  # type: ignore[method-assign]
    for want in ("features", "prediction"):
        assert torch.equal(model(visible, images, region, draws, want), model(visible, other, region, draws, want))


def test_decoding_is_a_function_of_the_draws_where_it_is_warm_and_of_nothing_where_it_is_cold() -> None:
    visible, _, region, draws = views()
    cold, warm = tiny(), tiny(temperature=4.0)
    assert torch.equal(cold.complete(visible, region, draws), cold.complete(visible, region, draws + 1))
    assert torch.equal(warm.complete(visible, region, draws), warm.complete(visible, region, draws))
    assert not torch.equal(warm.complete(visible, region, draws), warm.complete(visible, region, draws + 1))


def test_distance_is_a_divergence_over_the_region() -> None:
    model = tiny()
    visible, images, region, draws = views()
    prediction = model(visible, images, region, draws, "prediction").detach()
    other = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(model.distance(prediction, prediction, region), torch.zeros(4), atol=1e-6)
    found, theirs = model.distance(prediction, other, region), other.softmax(-1)
    assert (found > 0).all()
    cross = -(theirs * prediction).sum(-1) - torch.distributions.Categorical(logits=other).entropy()
    torch.testing.assert_close(found, cross[:, [5, 6, 9, 10]].mean(1))
    noise = model.random_prediction(prediction, draws)
    assert torch.allclose(noise.exp().sum(-1), torch.ones(4, 16), atol=1e-5)
    assert noise.exp().amax(-1).min() > 0.99
    assert len(noise.argmax(-1).unique()) > 8
    assert not torch.equal(noise, model.random_prediction(prediction, draws + 1))


@pytest.mark.parametrize("mask", ["task", "random"])
def test_what_training_judges_are_the_cells_of_the_codes_that_the_loss_reads(mask: str) -> None:
    """The loss's gradient by the log-probabilities is there where the distance over the judged pixels has one, and only there."""
    model, given = tiny(mask=mask), views()
    loss, prediction = model(*given, "both")
    (read,) = torch.autograd.grad(loss.sum(), prediction, retain_graph=True)
    judged = model.judged(given[2], given[3])
    assert (judged.shape, judged.dtype) == (given[2].shape, torch.bool)
    other = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(5))
    (compared,) = torch.autograd.grad(model.distance(prediction, other, judged).sum(), prediction)
    assert torch.equal(read.abs().sum(-1) > 0, compared.abs().sum(-1) > 0)


def test_unlearning_leaves_the_tokenizer_alone() -> None:
    model = tiny()
    batch = views()
    before = model(*batch)
    before.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.tokenizer.quantize.parameters() if p.requires_grad)
    model.zero_grad(set_to_none=True)
    model.prepare_unlearning()
    after = model(*batch)
    assert (after < before).all(), "cross-entropy alone"
    after.sum().backward()
    assert all(parameter.grad is None for parameter in model.tokenizer.parameters())
    assert all(p.grad is not None for p in model.transformer.parameters() if p.requires_grad)


def test_a_short_training_lowers_the_loss_and_no_buffer_takes_part() -> None:
    model = tiny()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = views()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    first = model(*batch).mean().item()
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(*batch).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * first
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, buffers[name])}
    assert changed <= set(model.training_buffers)


def test_reset_gives_the_last_layers_fresh_weights_and_no_other() -> None:
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for part in model.bottleneck():
        model.reset(part)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all("encoder.layer.0." in name for name in moved), "of two layers the first"
    model.reset(model.transformer.lm_head)
    assert model.transformer.lm_head.decoder.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.transformer.roberta_prelayernorm.embeddings.position_embeddings.weight.std().item() > 0.01


def test_autocast_and_bfloat16_weights() -> None:
    batch = views()
    model = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(*batch)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert model.bfloat16()(*batch).dtype == torch.float32
    assert model.complete(batch[0], batch[2], batch[3]).dtype == torch.float32


def test_recomputed_activations_give_the_same_gradients() -> None:
    plain, saving = tiny(), tiny(activation_checkpointing=True)
    for model in (plain.train(), saving.train()):
        model(*views()).sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.allclose(one.grad, other.grad, atol=1e-5)


def test_export_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    model = tiny()
    assert model.export(tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".bin", ".pt", ".pkl")]
    again = tiny(folder=str(tmp_path), train_tokenizer=False)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert not any(parameter.requires_grad for parameter in again.tokenizer.parameters())
    visible, _, region, draws = views()
    assert torch.equal(again.complete(visible, region, draws), model.complete(visible, region, draws))
    with torch.device("meta"):
        shape = tiny(folder=str(tmp_path))
        fresh = tiny()
    for built in (shape, fresh):
        assert {name: t.shape for name, t in built.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
        assert all(parameter.is_meta for parameter in built.parameters())


def test_a_faulty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lacks config\.json"):
        tiny(folder=str(tmp_path))
    tiny().export(tmp_path)
    for changes in ({"image_size": 32}, {"channels": 3}):
        with pytest.raises(ConfigError, match="folder"):
            tiny(folder=str(tmp_path), **changes)
    weights = tmp_path / "transformer" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="does not load"):
        tiny(folder=str(tmp_path))
    weights.write_bytes(content)
    sizes = tmp_path / "transformer" / "config.json"
    sizes.write_text(json.dumps(json.loads(sizes.read_text()) | {"model_type": "bert"}))
    with pytest.raises(ConfigError, match="not of a"):
        tiny(folder=str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 18},
        {"image_size": 4},
        {"width": 33},
        {"train_tokenizer": False},
    ],
)
def test_sizes_that_cannot_work_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"model\."):
        tiny(**changes)


def test_a_region_that_touches_every_code_is_refused() -> None:
    model = tiny()
    visible, images, region, draws = views()
    region[2] = True
    with pytest.raises(ConfigError, match="all 16 codes"):
        model(visible, images, region, draws)
    with pytest.raises(ConfigError, match="inpainting"):
        model.complete(visible, region, draws)
    with pytest.raises(ConfigError, match="all 16 codes"):
        model.admit(region)


def test_an_untrained_model_is_as_surprised_as_chance() -> None:
    model = tiny(codebook=256)
    model.prepare_unlearning()
    assert model(*views()).mean().item() == pytest.approx(math.log(256), abs=0.3)


def test_one_pass_gives_loss_and_prediction() -> None:
    assert_both_are_those_of_two_passes(tiny(), views())
