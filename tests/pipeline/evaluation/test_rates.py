import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.evaluation.rates import difference_of_rates

stats = pytest.importorskip("scipy.stats")


def hits(both: int, first: int, second: int, none: int) -> tuple[np.ndarray, np.ndarray]:
    kinds = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [both, first, second, none], axis=0).astype(bool)
    return kinds[:, 0], kinds[:, 1]


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Newcombe 1998, table II, method 10.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((54, 0, 0, 0), -0.0664, 0.0664),
    ],
)
def test_interval_is_the_published_one(table, low, high):
    found = difference_of_rates(*hits(*table), 0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-4)


counts = st.integers(0, 30)


@settings(deadline=None)
@given(counts, counts, counts, counts, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@example(both=0, first=0, second=3, none=0, confidence=0.5)
@example(both=0, first=7, second=0, none=0, confidence=0.9)
def test_exchange_turns_it_and_it_holds_its_value(both, first, second, none, confidence):
    if both + first + second + none == 0:
        return
    one, other = hits(both, first, second, none)
    there, back = difference_of_rates(one, other, confidence), difference_of_rates(other, one, confidence)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.low <= there.value <= there.high and there.value == pytest.approx(one.mean() - other.mean())
    wider = difference_of_rates(one, other, (1 + confidence) / 2)
    assert -1 <= wider.low <= there.low and there.high <= wider.high <= 1


@settings(deadline=None)
@given(counts, counts, counts, counts)
def test_zero_is_left_out_only_where_the_exact_test_rejects(both, first, second, none):
    if first + second == 0:
        return
    found = difference_of_rates(*hits(both, first, second, none), 0.95)
    if not found.low <= 0 <= found.high:
        assert stats.binomtest(first, first + second).pvalue <= 0.05
