import numpy as np
import pytest
import torch

from pipeline.evaluation import kid
from pipeline.evaluation.base import Resampling
from pipeline.evaluation.kid import kid_interval

HOW = Resampling(seed=0, resamples=200, confidence=0.95)


def sets(num=12, other=9, width=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, width)), rng.normal(size=(other, width)) + 0.5


def kernel(a, b):
    return (a @ b / len(a) + 1) ** 3


def naive(first, second, paired):
    own = [kernel(a, b) for i, a in enumerate(first) for j, b in enumerate(first) if i != j]
    other = [kernel(a, b) for i, a in enumerate(second) for j, b in enumerate(second) if i != j]
    mixed = [kernel(a, b) for i, a in enumerate(first) for j, b in enumerate(second) if not paired or i != j]
    return np.mean(own) + np.mean(other) - 2 * np.mean(mixed)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("strip", [1, 30, 10**6])
@pytest.mark.parametrize("kept", [0, 10**6])
def test_value_is_that_of_the_double_loop_in_strips_of_any_height(paired, strip, kept, monkeypatch):
    monkeypatch.setattr(kid, "STRIP", strip)
    monkeypatch.setattr(kid, "KEPT", kept)
    first, second = sets(other=12) if paired else sets()
    found = kid_interval(first, second, HOW, "x", paired=paired)
    assert found.value == pytest.approx(naive(first, second, paired))
    monkeypatch.undo()
    assert found.high == pytest.approx(kid_interval(first, second, HOW, "x", paired=paired).high)


def test_a_resample_is_the_estimate_over_pairs_of_different_images():
    first, second = sets(other=12)
    counts = np.array([[2, 1, 0, 3] + [1] * 8])
    joint = kid.Pairs((first, first, 1.0), (second, second, 1.0), (first, second, -1.0), (second, first, -1.0))
    picks = np.repeat(np.arange(12), counts[0])
    pairs = [(i, j) for i in picks for j in picks if i != j]
    wanted = np.mean(
        [
            kernel(first[i], first[j]) + kernel(second[i], second[j]) - kernel(first[i], second[j]) - kernel(second[i], first[j])
            for i, j in pairs
        ]
    )
    assert joint.within(counts)[0] == pytest.approx(wanted)


class Flat(torch.nn.Module):
    """Images [N, F, 1, 1] that are their own features."""

    num_features = 4

    def forward(self, images):
        return images.flatten(1)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`:UserWarning")
def test_torchmetrics_gives_the_same():
    from torchmetrics.image.kid import KernelInceptionDistance

    first, second = sets(num=40, other=40)
    other = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=40)
    for values, real in ((first, True), (second, False)):
        other.update(torch.from_numpy(values)[:, :, None, None], real=real)
    assert kid_interval(first, second, HOW, "x", paired=False).value == pytest.approx(float(other.compute()[0]), rel=1e-5)


def test_equal_sets_of_the_same_images_are_at_distance_zero():
    first, _ = sets()
    found = kid_interval(first, first.copy(), HOW, "x", paired=True)
    assert (found.value, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-12)


@pytest.mark.parametrize("paired", [True, False])
def test_unbiased_and_covered(paired):
    """Sets of one distribution, that go together or not: 0 on average, and 0 is nearly always in the interval."""
    rng = np.random.default_rng(1)
    found, apart = [], []
    for turn in range(80):
        shared = rng.normal(size=(30, 3)) * paired
        first, second = (shared + 0.3 * rng.normal(size=(30, 3)) for _ in range(2))
        found.append(kid_interval(first, second, HOW, f"{turn}", paired=paired))
        apart.append(naive(first, second, False))
    values = np.array([each.value for each in found])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(80)
    assert sum(each.low <= 0 <= each.high for each in found) >= 74
    if paired:  # what leaving the mixed terms of an image with itself in would give
        assert np.mean(apart) < -3 * np.std(apart) / np.sqrt(80)


def test_a_shift_that_is_there_is_found():
    first, second = sets(num=200, other=200)
    found = kid_interval(first, second, HOW, "x", paired=False)
    assert 0 < found.low < found.value < found.high
