"""Laws of the shadow's bracket and of the label-matched weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.levels import held_out_weights, shadow_bracket

losses = st.floats(1e-4, 10.0)


@given(losses, losses, losses)
def test_the_level_lies_in_its_bracket_and_is_its_geometric_middle(forget: float, retain: float, original: float) -> None:
    low, level, high = shadow_bracket(forget, retain, original)
    assert low <= level * (1 + 1e-12)
    assert level <= high * (1 + 1e-12)
    assert level == pytest.approx((low * high) ** 0.5)


def test_a_shadow_as_good_as_the_original_is_believed() -> None:
    assert shadow_bracket(0.05, 0.02, 0.02) == pytest.approx((0.05, 0.05, 0.05))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_weights_give_the_forget_images_label_mix(held_out: list[int], forget: list[int]) -> None:
    weights = held_out_weights(np.array(held_out), np.array(forget))
    shared = [label for label in forget if label in held_out]
    assert weights.sum() == pytest.approx(1.0 if shared else 0.0)
    for label in set(shared):
        share = weights[np.array(held_out) == label].sum()
        assert share == pytest.approx(shared.count(label) / len(shared))
