import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.base import Resampling
from pipeline.evaluation.distance import detectable, ks_interval

stats = pytest.importorskip("scipy.stats")
values = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=40).map(np.array)


def ks_distance(first: np.ndarray, second: np.ndarray) -> float:
    """A second implementation: the largest gap between two distribution functions, in [0, 1]."""
    both = np.sort(np.concatenate([first, second]))
    below = [np.searchsorted(np.sort(side), both, side="right") / len(side) for side in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


@settings(deadline=None)
@given(values, values)
def test_distance_is_scipys_in_range_and_symmetric(first, second):
    found = ks_distance(first, second)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the p-value, which is not looked at
        assert found == pytest.approx(stats.ks_2samp(first, second).statistic)
    assert 0 <= found <= 1 and found == ks_distance(second, first)


@settings(deadline=None)
@given(values)
def test_equal_samples_are_at_distance_zero(sample):
    found = ks_interval(sample, sample.copy(), Resampling(seed=0, resamples=20, confidence=0.95), "x")
    assert ks_distance(sample, sample) == 0
    assert (found.value, found.low, found.high) == (0, 0, 0)


@settings(deadline=None, max_examples=30)
@given(values, st.integers(0, 100))
def test_interval_is_around_the_same_distance(sample, seed):
    other = np.random.default_rng(seed).permutation(sample) + 1.5
    found = ks_interval(sample, other, Resampling(seed=0, resamples=20, confidence=0.95), "x")
    assert found.value == pytest.approx(ks_distance(sample, other))


def test_samples_that_do_not_overlap_are_at_distance_one():
    assert ks_distance(np.array([1.0, 2.0]), np.array([3.0])) == 1


def test_detectable_shift_is_the_critical_value():
    assert detectable(1000) == pytest.approx(stats.kstwobign.isf(0.05) * (2 / 1000) ** 0.5, rel=1e-3)
    assert detectable(1) == 1
    assert detectable(4000) < detectable(1000)
