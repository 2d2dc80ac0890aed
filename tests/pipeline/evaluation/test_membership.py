import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.base import Interval, Resampling
from pipeline.evaluation.membership import distance_from_chance, membership_auc, verdict

HOW = Resampling(seed=0, resamples=50, confidence=0.95)
values = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=25).map(np.array)


@settings(deadline=None)
@given(values, values)
def test_auc_counts_pairs_and_swaps_to_its_complement(forget, unseen):
    found = membership_auc(forget, unseen, HOW, "x").value
    lower = (forget[:, None] < unseen[None, :]).mean() + (forget[:, None] == unseen[None, :]).mean() / 2
    assert found == pytest.approx(lower)
    assert found == pytest.approx(1 - membership_auc(unseen, forget, HOW, "x").value)


def test_two_sided_verdicts():
    rng = np.random.default_rng(1)
    low, same, high = (rng.normal(shift, 1, 300) for shift in (-1, 0, 1))
    unseen = rng.normal(0, 1, 200)
    words = [verdict(membership_auc(forget, unseen, HOW, "x"), 300, 200) for forget in (low, same, high)]
    assert words == ["looks trained on", "indistinguishable at n=200", "more alien than unseen"]


@pytest.mark.parametrize(
    ("auc", "away"), [((0.9, 0.8, 0.95), (0.4, 0.3, 0.45)), ((0.1, 0.05, 0.2), (0.4, 0.3, 0.45)), ((0.5, 0.4, 0.7), (0, 0, 0.2))]
)
def test_both_directions_are_as_far_from_chance(auc, away):
    found = distance_from_chance(Interval(value=auc[0], low=auc[1], high=auc[2]))
    assert (found.value, found.low, found.high) == pytest.approx(away)
