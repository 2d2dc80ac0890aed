"""Laws of the interval over trainings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.base import exact_rate
from pipeline.evaluation.trainings import LEAST, beside_trainings


@pytest.mark.parametrize("count", [LEAST, 5, 9])
def test_one_more_training_is_told_apart_at_the_nominal_rate(count: int) -> None:
    drawn = np.random.default_rng(count).normal(0.3, 0.07, size=(4000, count + 1))
    found = [beside_trainings(row[0], row[1:], 0.95) for row in drawn]
    rate = exact_rate(sum(not item.low <= 0 <= item.high for item in found), len(found), 0.999)
    assert rate.low <= 0.05 <= rate.high


def test_a_figure_far_from_all_trainings_is_told_apart_on_its_own_side() -> None:
    others = [0.10, 0.12, 0.09, 0.11, 0.13]
    assert beside_trainings(-0.5, others, 0.95).high < 0 < beside_trainings(0.8, others, 0.95).low


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(-5, 5), st.floats(-3, 3))
def test_moving_all_figures_together_moves_nothing(others: list[float], value: float, by: float) -> None:
    before = beside_trainings(value, others, 0.9)
    after = beside_trainings(value + by, [item + by for item in others], 0.9)
    assert before.low <= before.value <= before.high
    assert [after.low, after.value, after.high] == pytest.approx([before.low, before.value, before.high], abs=1e-9)


def test_one_training_has_no_spread() -> None:
    with pytest.raises(ValueError, match="1 trainings"):
        beside_trainings(0.0, [1.0], 0.95)
