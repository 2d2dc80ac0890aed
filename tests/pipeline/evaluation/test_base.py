import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.base import BLOCK, Resampling, auc_of_counts, figure, ks_of_counts, missing

HOW = Resampling(seed=3, resamples=60, confidence=0.9)
values = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=30).map(np.array)


@settings(deadline=None, max_examples=40)
@given(values, values)
def test_every_interval_holds_its_value(first, second):
    paired = first[: len(second)], second[: len(first)]
    intervals = [
        HOW.mean(first, "m"),
        HOW.paired(*paired, ks_of_counts, "k"),
        HOW.unpaired(first, second, auc_of_counts, "a"),
        HOW.ratio(paired[0] + 1, paired[1] + 1, "r"),
    ]
    for interval in intervals:
        assert interval.low <= interval.value <= interval.high


def test_mean_interval_is_that_of_theory():
    sample = np.random.default_rng(0).normal(5, 2, 400)
    found = Resampling(seed=0, resamples=4000, confidence=0.95).mean(sample, "x")
    half = 1.96 * sample.std() / 20
    assert found.value == pytest.approx(sample.mean())
    assert found.low == pytest.approx(sample.mean() - half, abs=0.03)
    assert found.high == pytest.approx(sample.mean() + half, abs=0.03)


@settings(deadline=None, max_examples=30)
@given(values, values)
def test_swapping_moves_from_one_mean_to_the_other_and_equal_values_not_at_all(first, second):
    first, second = first[: len(second)], second[: len(first)]
    one, other = HOW.swapped(first, second, "s", draws=50)
    assert one + other == pytest.approx(np.full(50, first.mean() + second.mean()))
    assert HOW.swapped(first, first, "s", draws=50)[0] == pytest.approx(np.full(50, first.mean()))


def test_swapped_differences_spread_as_theory_says():
    generator = np.random.default_rng(1)
    first, second = generator.normal(5, 2, (2, 300))
    one, other = HOW.swapped(first, second, "s", draws=4000)
    spread = np.sqrt(((first - second) ** 2).sum()) / 300
    assert (one - other).mean() == pytest.approx(0, abs=4 * spread / np.sqrt(4000))
    assert (one - other).std() == pytest.approx(spread, rel=0.05)
    assert (HOW.swapped(first, second, "s", draws=9)[0] != HOW.swapped(first, second, "t", draws=9)[0]).any()


def test_same_seed_and_label_give_the_same_interval_and_others_do_not():
    sample = np.random.default_rng(0).normal(0, 1, 50)
    assert HOW.mean(sample, "x") == HOW.mean(sample, "x")
    assert HOW.mean(sample, "x") != HOW.mean(sample, "y")
    assert HOW.mean(sample, "x") != Resampling(seed=4, resamples=60, confidence=0.9).mean(sample, "x")


def test_resamples_are_all_drawn_when_they_need_several_blocks(monkeypatch):
    monkeypatch.setattr("pipeline.evaluation.base.BLOCK", 100)
    assert BLOCK > 100
    blocks = list(HOW._counts("x", 10, 5))
    assert sum(len(first) for first, _ in blocks) == 60
    assert all((first.sum(axis=1) == 10).all() and (second.sum(axis=1) == 5).all() for first, second in blocks)


def test_figure_and_missing():
    made = figure("error", "retain", "", HOW.mean(np.ones(4), "x"), samples=4, better="lower")
    assert (made.value, made.low, made.high, made.samples, made.better) == (1.0, 1.0, 1.0, 4, "lower")
    none = missing("ks", "forget", "g", "no retrained model")
    assert none.value is None and none.note == "not computed: no retrained model"
