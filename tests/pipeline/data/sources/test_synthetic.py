"""The drawn source: deterministic, and its classes look different."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.images import decode_image
from pipeline.data.sources.synthetic import Config, build
from pipeline.errors import ConfigError


def test_equal_configurations_give_equal_images_and_other_seeds_others() -> None:
    one, two, other = (list(build(Config(samples=9, seed=seed)).training()) for seed in (1, 1, 2))
    assert one == two and one != other
    assert build(Config(seed=1)).identity() != build(Config(seed=2)).identity()


def test_training_and_unseen_images_differ() -> None:
    source = build(Config(samples=20, unseen_samples=20))
    assert not {item.image for item in source.training()} & {item.image for item in source.unseen()}
    assert [item.key for item in source.unseen()][:2] == ["test-000000", "test-000001"]


@pytest.mark.parametrize("channels", [1, 3])
def test_classes_look_different(channels: int) -> None:
    source = build(Config(samples=80, classes_count=2, size=16, channels=channels))
    images = [
        decode_image(item.image, size=16, channels=channels, fit="crop", max_pixels=10**6, where=item.key).astype(float)
        for item in source.training()
    ]
    means = [np.mean(images[label::2], axis=0) for label in (0, 1)]
    assert np.abs(means[0] - means[1]).max() > 20


def test_counts_that_cannot_work_are_refused() -> None:
    for bad in (Config(samples=0), Config(channels=2), Config(size=0)):
        with pytest.raises(ConfigError):
            build(bad)
