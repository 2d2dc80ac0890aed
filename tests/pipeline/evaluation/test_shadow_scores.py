"""Laws of the attack with shadow runs: sign, exchange, what a common shift of all images does, level and reach of the bound."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.decode import canonical
from pipeline.errors import ConfigError
from pipeline.evaluation.shadow_scores import largest_epsilon, shadow_scores, shadows_needed
from pipeline.findings import Found

stats = pytest.importorskip("scipy.stats")
RUNS, IMAGES = 12, 30


def errors(rng, shift=0.0, *, runs=RUNS, images=IMAGES, spread=0.1):
    """Errors of images of different difficulty in several models, moved by a factor e^shift; and those of models that are not."""
    hard = rng.normal(0, 1, images)
    one, other = (np.exp(hard + spread * rng.normal(size=(runs, images)) + move) for move in (shift, 0.0))
    return one, other


def judge(forgot, never, kept=None, **more) -> Found:
    return shadow_scores(forgot, never, kept=kept, **{"group": "g", "subject": "unlearned", "delta": 1e-5, **more})


@pytest.mark.parametrize(("shift", "says"), [(-0.2, "still there"), (0.2, "over-forgotten")])
def test_models_that_differ_are_told_apart_from_both_sides(shift, says):
    finding = judge(*errors(np.random.default_rng(0), shift)).findings[0]
    assert finding.says == says and finding.value == pytest.approx(shift, abs=0.05) and finding.low < finding.value < finding.high
    assert finding.epsilon_low == pytest.approx(largest_epsilon(RUNS - 1, 1e-5, 0.95))
    assert "take 12 of 12 models for trained on, and 0 of 12 retrained ones (images pooled: AUC 0.9" in finding.note
    assert f"11 shadows can show epsilon {finding.epsilon_low:.2f}" in finding.note


def test_exchange_turns_the_sign_and_keeps_the_bound():
    forgot, never = errors(np.random.default_rng(1), 0.05)
    there, back = judge(forgot, never).findings[0], judge(never, forgot).findings[0]
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.epsilon_low == back.epsilon_low


def test_interval_is_students_over_runs_and_not_over_images():
    forgot, never = errors(np.random.default_rng(2))
    forgot = forgot * np.exp(np.random.default_rng(3).normal(0, 1, (RUNS, 1)))  # runs differ far more than images do
    gaps = np.log(forgot / never).mean(axis=1)
    expected = stats.ttest_1samp(gaps, 0).confidence_interval(0.9)
    finding = judge(forgot, never, confidence=0.9).findings[0]
    assert (finding.low, finding.high) == pytest.approx((expected.low, expected.high))
    assert finding.says == "not told apart"


def test_a_difference_that_unseen_kept_images_have_too_says_nothing_of_the_forgotten_ones():
    rng = np.random.default_rng(4)
    alike = judge(*errors(rng, 0.2), kept=errors(rng, 0.2)).findings[0]
    assert alike.says == "not told apart" and alike.kept_low is not None and alike.kept_low > 0.1
    assert judge(*errors(rng, 0.5), kept=errors(rng, 0.2)).findings[0].says == "over-forgotten"
    # The bound is about weights, and those are told apart, by whatever images.
    assert alike.epsilon_low is not None and alike.epsilon_low > 0


def test_the_ratios_see_a_difference_that_the_mean_does_not():
    """Half of the images better known, half more alien."""
    forgot, never = errors(np.random.default_rng(5))
    forgot = forgot * np.exp(np.where(np.arange(IMAGES) % 2, 0.3, -0.3))
    finding = judge(forgot, never).findings[0]
    assert finding.says == "not told apart" and finding.epsilon_low is not None and finding.epsilon_low > 0.5


def test_alike_models_are_refuted_far_less_often_than_the_error_allows():
    rng, refuted, flagged = np.random.default_rng(6), 0, 0
    for _ in range(150):
        forgot, never = errors(rng, runs=9, images=4)
        common = np.exp(rng.normal(0, 0.2, (2, 9, 1)))  # a model's images go up and down together
        finding = judge(forgot * common[0], never * common[1]).findings[0]
        refuted, flagged = refuted + ((finding.epsilon_low or 0) > 0), flagged + (finding.says != "not told apart")
    assert refuted <= stats.binom.isf(1e-3, 150, 0.02)
    assert stats.binom.ppf(1e-4, 150, 0.05) <= flagged <= stats.binom.isf(1e-4, 150, 0.05)


def test_models_that_are_the_same_show_nothing():
    never = errors(np.random.default_rng(7))[1]
    finding = judge(never, never).findings[0]
    assert (finding.value, finding.says, finding.epsilon_low) == (0.0, "not told apart", 0.0)


def test_few_shadows_say_what_they_cannot_show():
    assert shadows_needed(1e-5, 0.95) == 6
    assert largest_epsilon(5, 1e-5, 0.95) == 0 < largest_epsilon(6, 1e-5, 0.95) < largest_epsilon(60, 1e-5, 0.95)
    for delta, confidence in ((0.0, 0.5), (0.1, 0.9), (0.5, 0.99)):
        num = shadows_needed(delta, confidence)
        assert largest_epsilon(num, delta, confidence) > 0 and (num == 2 or not largest_epsilon(num - 1, delta, confidence))
    finding = judge(*errors(np.random.default_rng(8), -1.0, runs=5)).findings[0]
    assert finding.epsilon_low == 0 and "4 shadows can show no epsilon, it takes 6" in finding.note
    assert finding.says == "still there"
    with pytest.raises(ConfigError, match="at least 2"):
        judge(*errors(np.random.default_rng(8), runs=2))


def test_series_hold_the_pooled_ratios_and_draws_around_zero():
    found = judge(*errors(np.random.default_rng(9), -0.2))
    series = found.series[0]
    assert len(series.own) == len(series.other) == RUNS * IMAGES and np.mean(series.own) > 0 > np.mean(series.other)
    assert abs(np.mean(series.null)) < 0.02 and series.observed == found.findings[0].value and canonical(found)
    many = judge(*errors(np.random.default_rng(9), -0.2, images=200)).series[0]
    assert len(many.own) == 1000 and np.mean(many.own) == pytest.approx(np.mean(series.own), rel=0.3)
