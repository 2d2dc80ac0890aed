import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.evaluation.base import auc_of_counts, pool
from pipeline.evaluation.likelihood_ratio import LEAST_ERROR, likelihood_ratios, roc

stats = pytest.importorskip("scipy.stats")


def game(rng, *, num=400, models=16, shift=-1.0, spread=1.0):
    """Log errors whose means differ by image much more than membership moves them; returns errors and the target's members."""
    base, members = rng.normal(-4, 3, num), rng.permutation(num) % 2 == 0
    had = np.array([rng.permutation(num) % 2 == 0 for _ in range(models)])
    errors = np.exp(base + shift * had + spread * rng.normal(size=(models, num)))
    target = np.exp(base + shift * members + spread * rng.normal(size=num))
    return np.where(had, errors, np.nan), np.where(had, np.nan, errors), target, members


def auc(scores, members):
    one, other = scores[~members], scores[members]
    ones = (np.ones((1, len(one)), dtype=np.int64), np.ones((1, len(other)), dtype=np.int64))
    return float(auc_of_counts(*ones, pool(one, other))[0])


scored = st.lists(st.tuples(st.integers(-5, 5).map(float), st.booleans()), min_size=4, max_size=60).filter(
    lambda pairs: 2 <= sum(member for _, member in pairs) <= len(pairs) - 2
)


def arrays(pairs):
    return np.array([score for score, _ in pairs]), np.array([member for _, member in pairs])


# Likelihood ratios.


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(4, 12), st.sampled_from([2, 3, 5, 100]))
def test_ratios_are_those_of_the_definition(seed, models, few):
    rng = np.random.default_rng(seed)
    inside, outside, target, _ = game(rng, num=7, models=models)
    inside[:2], outside[:2] = (np.exp(rng.normal(-4, 1, (2, 7))) for _ in range(2))
    expected = np.zeros(7)
    for side, sign in ((inside, 1), (outside, -1)):
        logs = [np.log(column[~np.isnan(column)]) for column in side.T]
        single = np.array([log.std(ddof=1) for log in logs])
        pooled = math.sqrt(sum(log.var() * len(log) for log in logs) / sum(len(log) - 1 for log in logs))
        std = single if min(map(len, logs)) >= few else np.full(7, pooled)
        for image, log in enumerate(logs):
            expected[image] += sign * stats.norm.logpdf(np.log(target[image]), log.mean(), std[image])
    assert likelihood_ratios(inside, outside, target, few=few) == pytest.approx(expected)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_ratios_change_sign_with_the_sides_and_not_with_the_scale_of_an_image(seed):
    rng = np.random.default_rng(seed)
    inside, outside, target, _ = game(rng, num=20)
    found = likelihood_ratios(inside, outside, target)
    assert likelihood_ratios(outside, inside, target) == pytest.approx(-found)
    scale = np.exp(rng.normal(size=20))
    assert likelihood_ratios(inside * scale, outside * scale, target * scale) == pytest.approx(found, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_ratios_find_members_from_both_sides_where_plain_errors_hardly_do(shift):
    """A forgotten image may have too low or too high an error: its shadow models show which."""
    inside, outside, target, members = game(np.random.default_rng(0), shift=shift, spread=0.5)
    assert auc(likelihood_ratios(inside, outside, target), members) > 0.85
    assert abs(auc(np.log(target), members) - 0.5) < 0.2


def test_a_variance_for_all_is_better_with_few_models_and_worse_with_many():
    rng = np.random.default_rng(1)
    few = game(rng, num=2000, models=6)
    few[0][:2], few[1][:2] = (np.where(np.isnan(few[side][:2]), few[side][2:4], few[side][:2]) for side in (0, 1))
    kept = [((~np.isnan(few[side])).sum(axis=0) >= 2) for side in (0, 1)]
    ok = kept[0] & kept[1]
    few = tuple(part[..., ok] for part in few)
    assert auc(likelihood_ratios(*few[:3]), few[3]) > auc(likelihood_ratios(*few[:3], few=2), few[3]) + 0.02
    many = game(rng, num=500, models=200, spread=np.exp(rng.normal(0, 1.5, 500)))
    assert auc(likelihood_ratios(*many[:3]), many[3]) > auc(likelihood_ratios(*many[:3], few=1000), many[3]) + 0.02


def test_exact_answers_and_models_that_agree_give_finite_ratios():
    inside, outside = np.full((3, 4), 0.5), np.full((3, 4), 0.25)
    target = np.array([0.5, 0.25, 0.0, LEAST_ERROR])
    found = likelihood_ratios(inside, outside, target)
    assert np.isfinite(found).all() and found[0] > 0 > found[1] and found[2] == found[3]


# The attack by threshold.


# The curve.


@settings(deadline=None)
@given(scored)
def test_curve_holds_the_best_rates_at_each_false_positive_rate_above_zero(pairs):
    scores, members = arrays(pairs)
    fpr, tpr = roc(scores, members)
    assert (np.diff(fpr) > 0).all() and (np.diff(tpr) >= 0).all() and fpr[0] > 0 and tpr[0] > 0
    assert (fpr[-1], tpr[-1]) == (1, 1)
    points = [((scores[~members] >= t).mean(), (scores[members] >= t).mean()) for t in np.unique(scores)]
    best = {}
    for x, y in points:
        best[x] = max(best.get(x, 0), y)
    assert {x: y for x, y in best.items() if x > 0 and y > 0} == pytest.approx(dict(zip(fpr, tpr, strict=True)))


def test_curve_of_perfect_scores_begins_at_the_lowest_rate_that_can_be_told():
    fpr, tpr = roc(np.array([3.0, 4.0, 1.0, 2.0]), np.array([True, True, False, False]))
    assert fpr.tolist() == [0.5, 1] and tpr.tolist() == [1, 1]


# Wrong use.


def test_wrong_use_is_refused():
    inside, outside, target, members = game(np.random.default_rng(5), num=10)
    inside[0], outside[0] = 0.1, 0.1
    empty = inside.copy()
    empty[:, 3] = np.nan
    with pytest.raises(ConfigError, match=r"1 images have no shadow model inside \(first: \[3\]\)"):
        likelihood_ratios(empty, outside, target)
    with pytest.raises(ConfigError, match="no image has two shadow models outside"):
        likelihood_ratios(inside, outside[:1], target)
    for wrong in (inside[0], inside[:, :5], -inside, inside * np.inf):
        with pytest.raises(ValueError):
            likelihood_ratios(wrong, outside, target)
    for wrong in (np.where(members, np.nan, target), target[:5], -target):
        with pytest.raises(ValueError):
            likelihood_ratios(inside, outside, wrong)
    with pytest.raises(ValueError):
        likelihood_ratios(inside, outside, target, few=1)
    for truth in (np.zeros(10, dtype=bool), np.ones(10, dtype=bool)):
        with pytest.raises(ConfigError):
            roc(target, truth)
    for scores, truth in ((target[:5], members), (target, members.astype(int)), (target * np.nan, members)):
        with pytest.raises(ValueError):
            roc(scores, truth)
