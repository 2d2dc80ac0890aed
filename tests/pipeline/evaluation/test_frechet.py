import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.distributed import group
from pipeline.evaluation.frechet import BLOCKS, Moments, _student, frechet_distance, frechet_interval, refusal
from tests.support.distributed import run_distributed


def two_sets(num=60, width=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, width)), rng.normal(size=(num + 10, width)) @ rng.normal(size=(width, width)) + 1


def with_moments(mean, deviations):
    """Four points a dimension, whose mean and covariance are exactly these."""
    width = len(mean)
    points = np.concatenate([np.eye(width), -np.eye(width)]) * np.sqrt((2 * width - 1) / 2)
    return Moments.of(points * deviations + mean)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 4), min_size=3, max_size=3), st.lists(st.floats(0, 4), min_size=3, max_size=3))
def test_diagonal_gaussians_have_the_closed_form(one, two):
    means = np.array([0.0, 1.0, 2.0]), np.array([2.0, 0.0, 2.0])
    found = frechet_distance(with_moments(means[0], np.array(one)), with_moments(means[1], np.array(two)))
    wanted = np.square(means[0] - means[1]).sum() + np.square(np.array(one) - np.array(two)).sum()
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6)


class Flat(torch.nn.Module):
    """Images [N, F, 1, 1] that are their own features."""

    num_features = 5

    def forward(self, images):
        return images.flatten(1)


def test_torchmetrics_gives_the_same():
    from torchmetrics.image.fid import FrechetInceptionDistance

    first, second = two_sets()
    other = FrechetInceptionDistance(feature=Flat()).set_dtype(torch.float64)
    for values, real in ((first, True), (second, False)):
        other.update(torch.from_numpy(values)[:, :, None, None], real=real)
    assert frechet_distance(Moments.of(first), Moments.of(second)) == pytest.approx(float(other.compute()), rel=1e-5)


def test_fewer_images_than_features_give_a_real_distance():
    first, second = two_sets(num=6, width=30)
    here, there = Moments.of(first), Moments.of(second)
    assert frechet_distance(here, there) == pytest.approx(frechet_distance(there, here), rel=1e-6)
    assert frechet_distance(here, here) == pytest.approx(0, abs=1e-6)


def test_moments_add_and_part():
    first, second = two_sets()
    whole = Moments.of(np.concatenate([first, second]))
    for found in (Moments.of(first) + Moments.of(second), whole + Moments.of(first[:0])):
        assert found.count == whole.count
        np.testing.assert_allclose(found.covariance, whole.covariance, rtol=1e-12)
    np.testing.assert_allclose((whole - Moments.of(second)).covariance, np.cov(first.T), rtol=1e-9)


def distance_of_ranks():
    ranks = group()
    parts = ranks.gather([Moments.of(np.float32(values[ranks.rank :: ranks.world_size])) for values in two_sets()])
    if not parts:  # only the first rank is told
        return None
    return frechet_distance(*(sum(side[1:], start=side[0]) for side in zip(*parts, strict=True)))


@pytest.mark.distributed
def test_two_ranks_give_the_number_of_one():
    one = frechet_distance(*(Moments.of(np.float32(values)) for values in two_sets()))
    assert run_distributed(distance_of_ranks, 2)[0] == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("paired", [True, False])
def test_interval_is_around_the_distance_and_covers_what_chance_does(paired):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        first = rng.normal(size=(400, 3))
        second = (first + 1 if paired else rng.normal(size=(400, 3)) + 1) + 0.1 * rng.normal(size=(400, 3))
        found.append(frechet_interval(first, second, paired=paired, confidence=0.95))
    assert all(each.low <= each.value <= each.high for each in found)
    truth = 3 + 3 * (np.sqrt(1.01) - 1) ** 2
    assert sum(each.low <= truth <= each.high for each in found) >= 52  # of 60; 57 expected


def test_refusal_begins_below_the_limit():
    assert refusal(2048) == "" and "2047 images" in refusal(2047) and "KID" in refusal(2047)


def test_students_quantile():
    stats = pytest.importorskip("scipy.stats")
    for confidence in (0.8, 0.95, 0.99):
        assert _student(confidence, BLOCKS - 1) == pytest.approx(stats.t.ppf((1 + confidence) / 2, BLOCKS - 1), rel=0.01)
