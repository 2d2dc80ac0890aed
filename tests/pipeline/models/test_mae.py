"""Laws of the masked autoencoder: what is hidden, what the loss is, what must not matter; then folders and refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder

from pipeline import component
from pipeline.config import packaged_section
from pipeline.errors import CheckpointError, ConfigError
from pipeline.kernels.attention import ATTENTION
from pipeline.models.mae import Config, MaskedAutoencoder, build
from tests.support.one_pass import assert_both_are_those_of_two_passes

SMALL = {"image_size": 16, "patch_size": 4, "width": 32, "layers": 3, "heads": 2}
TINY = Config(**SMALL, decoder_width=16, decoder_layers=2, decoder_heads=2)  # type: ignore[arg-type]
MODES = ("task", "random")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on tensors this small wait for each other, on a busy machine for seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _model(mask: str = "task", **changes: Any) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return build(dataclasses.replace(TINY, mask=mask, **changes))


def _views(num: int = 4, channels: int = 3, size: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Visible, target, region and draws; the region is not aligned to patches: 6 x 6 pixels that touch 2 x 2 of them."""
    images = torch.rand(num, channels, size, size, generator=torch.Generator().manual_seed(1))
    region = torch.zeros(num, 1, size, size, dtype=torch.bool)
    region[:, :, 5:11, 5:11] = True
    return images.masked_fill(region, 0.5), images, region, torch.arange(100, 100 + num)


@pytest.mark.parametrize("mask", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_types_of_all_that_is_wanted(mask: str, channels: int) -> None:
    model = _model(mask, channels=channels, mean=(0.5,), std=(0.25,))
    views = _views(channels=channels)
    tokens = 1 + (12 if mask == "task" else 4)
    for want, shape in (("loss", (4,)), ("features", (4, tokens, 32)), ("prediction", (4, channels, 16, 16))):
        found = model(*views, want)
        assert (found.shape, found.dtype) == (shape, torch.float32), want
    visible, _, region, draws = views
    answer = model.complete(visible, region, draws)
    assert (answer.shape, answer.dtype) == (visible.shape, torch.float32)
    assert torch.equal(answer, answer.clamp(0, 1))
    assert torch.equal(torch.where(region, visible, answer), visible), "known pixels are put back"


@pytest.mark.parametrize("mask", MODES)
def test_the_loss_is_the_squared_error_of_judged_pixels_in_0_to_1(mask: str) -> None:
    model, views = _model(mask), _views()
    _, images, region, draws = views
    judged = model.judged(region, draws).expand_as(images)
    squared = (model(*views, "prediction") - images) ** 2
    assert torch.equal(judged[:, :1], region if mask == "task" else model.hidden(region, draws))
    expected = torch.stack([squared[n][judged[n]].mean() for n in range(4)])
    assert torch.allclose(model(*views), expected, rtol=1e-5)
    same = model.distance(model(*views, "prediction"), images, model.judged(region, draws))
    assert torch.allclose(same, expected, rtol=1e-5), "a distance from the truth is the loss"


def test_the_prediction_is_the_librarys_in_pixels() -> None:
    """Against ViTMAEForPreTraining's own forward pass and mask, on images normalised by hand."""
    model, (visible, images, region, draws) = _model("random"), _views()
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    ranks, kept = model._ranks(region, draws, "random")
    model.net.config.mask_ratio = 0.75
    theirs: Any = model.net((images - mean) / std, noise=ranks)
    assert kept == 4
    expected = model.net.unpatchify(theirs.logits) * std + mean
    assert torch.allclose(model(visible, images, region, draws, "prediction"), expected, atol=1e-6)
    shown = model.net.unpatchify(theirs.mask[..., None].expand(-1, -1, 48)).bool()
    assert torch.equal(shown[:, :1], model.hidden(region, draws))


@pytest.mark.parametrize("mask", MODES)
def test_hidden_pixels_never_reach_the_network(mask: str) -> None:
    model, (visible, images, region, draws) = _model(mask), _views()
    hidden = model.hidden(region, draws)
    shown = visible if mask == "task" else images
    noisy = torch.where(hidden, torch.rand_like(shown), shown)
    found = [model(each, each, region, draws, "prediction") for each in (shown, noisy)]
    assert torch.equal(*found)
    brighter = torch.where(hidden, shown, shown + 0.1)
    assert not torch.allclose(model(brighter, brighter, region, draws, "prediction"), found[0]), "visible pixels do"
    area = torch.zeros_like(region)
    area[:, :, 4:12, 4:12] = True  # the four patches that the region touches
    noise = torch.where(area, torch.rand_like(visible), visible)
    answers = [model.complete(each, region, draws)[region.expand_as(visible)] for each in (visible, noise)]
    assert torch.equal(*answers), "completion hides the task's patches, however the model was trained"


@pytest.mark.parametrize("mask", MODES)
def test_a_sample_alone_has_the_loss_it_has_in_a_batch(mask: str) -> None:
    model, views = _model(mask), _views()
    together = model(*views)
    alone = torch.cat([model(*(view[n : n + 1] for view in views)) for n in range(4)])
    assert torch.allclose(together, alone, rtol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(model(*(view[order] for view in views)), together[order], rtol=1e-5)
    assert torch.equal(model(*views), together)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75, 0.9])
def test_a_random_mask_hides_its_share_by_the_draws_alone(share: float) -> None:
    model, (_, _, region, draws) = _model("random", hidden_share=share), _views()
    hidden = model.hidden(region, draws)
    assert (hidden.flatten(1).sum(1) == (16 - int(16 * (1 - share))) * 16).all()
    assert torch.equal(hidden, model.hidden(~region, draws)), "not by the task"
    assert torch.equal(hidden, _model("random", hidden_share=share, shadow_resets="all").hidden(region, draws))
    assert not torch.equal(hidden, model.hidden(region, draws + 1))
    many = model.hidden(region[:1].expand(2000, -1, -1, -1), torch.arange(2000)).float().mean(0)
    assert (many - hidden.float().mean()).abs().max() < 0.06, "each patch is hidden as often"


def test_regions_of_different_sizes_hide_as_many_patches_and_are_judged_alone() -> None:
    model, (_, images, region, draws) = _model(), _views(2)
    region[1] = False
    region[1, :, :2, :2] = True
    visible = images.masked_fill(region, 0.5)
    hidden = model.hidden(region, draws)
    assert (hidden.flatten(1).sum(1) == 4 * 16).all()
    assert hidden[region].all()
    squared = (model(visible, images, region, draws, "prediction") - images) ** 2
    expected = squared[1][:, :2, :2].mean()
    assert torch.allclose(model(visible, images, region, draws)[1], expected, rtol=1e-5)
    assert not torch.equal(hidden[1], model.hidden(region, draws + 7)[1]), "further patches are a matter of the draws"


def test_patches_have_places_and_special_tokens_are_not_zero() -> None:
    """Transformers 5.23 leaves all four at zero."""
    model = _model()
    embeddings, decoder = model.net.vit.embeddings, model.net.decoder
    for table in (embeddings.position_embeddings, decoder.decoder_pos_embed):
        assert not table.requires_grad
        assert len(table[0].unique(dim=0)) == 17, "no two places alike"
    right = ViTMAEDecoder(decoder.config, 16)
    assert torch.allclose(decoder.decoder_pos_embed, right.decoder_pos_embed, atol=1e-6)
    for token in (embeddings.cls_token, decoder.mask_token):
        assert 0.01 < token.std() < 0.04
    assert 0.1 < embeddings.patch_embeddings.projection.weight.std() < 0.2, "xavier: (2 / (48 + 32)) ** 0.5 = 0.158"
    assert {layer.attention.config._attn_implementation for layer in (*model.net.vit.layers, *decoder.decoder_layers)} == {
        ATTENTION
    }


def test_activation_checkpointing_gives_equal_gradients() -> None:
    gradients = []
    for active in (False, True):
        model = _model("random", activation_checkpointing=active).train()
        assert any(getattr(part, "gradient_checkpointing", False) for part in model.modules()) == active
        model(*_views()).mean().backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("mask", MODES)
def test_bf16_autocast_is_within_two_percent(mask: str) -> None:
    model, views = _model(mask), _views()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(*views)
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, model(*views), rtol=0.02)
    assert model.bfloat16()(*views).dtype == torch.float32


def test_training_lowers_the_loss_and_touches_no_buffer() -> None:
    model, views = _model(width=64, decoder_width=32), _views(2)
    assert not list(model.named_buffers())
    assert model.training_buffers == ()
    tables = [model.net.vit.embeddings.position_embeddings.clone(), model.net.decoder.decoder_pos_embed.clone()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = model(*views).mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    assert torch.equal(model.net.vit.embeddings.position_embeddings, tables[0])
    assert torch.equal(model.net.decoder.decoder_pos_embed, tables[1])


LAYERS = ("vit.embeddings", "vit.layers.0", "vit.layers.1", "vit.layers.2", "vit.layernorm", "decoder")
RESETS = {"decoder": LAYERS[-1:], "late": LAYERS[2:], "encoder": LAYERS[:-1], "all": LAYERS}


@pytest.mark.parametrize("which", RESETS)
def test_a_shadow_resets_what_it_names_as_a_fresh_model_is(which: str) -> None:
    model, fresh = _model(shadow_resets=which), _model()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(float(weight.requires_grad))
    for module in model.bottleneck():
        model.reset(module)
    start = {name: weight.detach() for name, weight in fresh.net.named_parameters()}
    for name, weight in model.net.named_parameters():
        if not weight.requires_grad:
            assert torch.equal(weight, start[name]), "tables stay"
        elif name.startswith(RESETS[which]):
            assert float(weight.detach().std()) == pytest.approx(float(start[name].std()), rel=0.35, abs=1e-6), name
            assert float(weight.detach().mean()) == pytest.approx(float(start[name].mean()), abs=0.05), name
        else:
            assert torch.equal(weight, start[name] + 1), name


def test_export_and_folder_are_a_round_trip(tmp_path: Path) -> None:
    model, views = _model("random"), _views()
    before = model(*views, "prediction")
    model.complete(views[0], views[2], views[3])  # leaves another number of visible patches behind
    assert model.export(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.bin"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["mask_ratio"] == 0.75
    again = build(Config(folder=str(tmp_path / "out")))
    assert torch.equal(again(*views, "prediction"), before)
    assert torch.equal(again.complete(views[0], views[2], views[3]), model.complete(views[0], views[2], views[3]))
    assert (again.image_size, again.channels, again.patch_size) == (16, 3, 4)
    with torch.device("meta"):
        assert build(Config(folder=str(tmp_path / "out"))).image_size == 16


@pytest.mark.parametrize(("name", "millions"), [("mae", 112), ("mae_large", 330), ("mae_huge", 657), ("mae_small", 0.315)])
def test_packaged_sizes_build_without_memory(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = component.build("model", packaged_section("model", name, "test"))
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("whole", [True, False])
def test_a_task_that_leaves_no_patch_visible_is_refused(whole: bool) -> None:
    model, (visible, images, region, draws) = _model("random"), _views()
    region[0] = True
    if not whole:
        region[0, :, 1::2] = False  # a few pixels of every patch are as bad
    with pytest.raises(ConfigError, match=r"every patch(?s:.*)autoencoder"):
        model.complete(visible, region, draws)
    with pytest.raises(ConfigError, match="every patch"):
        _model("task")(visible, images, region, draws)
    with pytest.raises(ConfigError, match="every patch"):
        model.admit(region)


SIZES = [({"image_size": 18}, "image_size"), ({"image_size": 4}, "image_size"), ({"width": 30}, "width"), ({"heads": 5}, "width")]
SIZES += [({"decoder_heads": 3}, "decoder_width"), ({"hidden_share": 0.99}, "hidden_share"), ({"channels": 1}, "mean")]


@pytest.mark.parametrize(("changes", "field"), [*SIZES, ({"std": (0.2, 0.0, 0.2)}, "std")])
def test_sizes_that_cannot_work_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{field}"):
        build(dataclasses.replace(TINY, **changes))


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hf download"):
        build(Config(folder="facebook/vit-mae-base"))
    _model().export(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for change, error, message in (
        ({"norm_pix_loss": True}, ConfigError, "norm_pix_loss: false"),
        ({"model_type": "vit"}, ConfigError, "type vit"),
        ({"num_hidden_layers": 4}, CheckpointError, "missing"),
        ({"hidden_size": 64}, CheckpointError, r"model\.folder"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**written, **change}))
        with pytest.raises(error, match=message):
            build(Config(folder=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps(written))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.folder"):
        build(Config(folder=str(tmp_path)))
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickles"):
        build(Config(folder=str(tmp_path)))


@pytest.mark.parametrize("mask", MODES)
def test_one_pass_gives_loss_and_prediction(mask: str) -> None:
    assert_both_are_those_of_two_passes(_model(mask), _views())
