import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.evaluation.epsilon_bound import one_run_epsilon, one_run_p_value, power, rates_epsilon

stats = pytest.importorskip("scipy.stats")
deltas = st.sampled_from([0.0, 1e-9, 1e-5, 1e-3, 0.1])
epsilons = st.floats(0, 8)


@st.composite
def counts(draw):
    canaries = draw(st.integers(1, 200))
    guesses = draw(st.integers(0, canaries))
    return canaries, guesses, draw(st.integers(0, guesses))


def exact_p_value(odds: int, canaries: int, guesses: int, right: int, delta: Fraction) -> Fraction:
    """The formula in fractions, window by window; `odds` is e^epsilon."""
    chance = Fraction(odds, odds + 1)
    mass = [math.comb(guesses, k) * chance**k * (1 - chance) ** (guesses - k) for k in range(guesses + 1)]
    windows = [sum(mass[max(0, right - i) : right]) / i for i in range(1, canaries + 1)]
    return min(Fraction(1), sum(mass[right:]) + 2 * canaries * delta * max(windows))


# Laws of the p-value and of the bound from one run.


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 50), st.integers(1, 30), st.data(), st.sampled_from([Fraction(0), Fraction(1, 1000), Fraction(1, 10)]))
def test_p_value_is_the_formula_in_exact_fractions(odds, canaries, data, delta):
    guesses = data.draw(st.integers(0, canaries))
    right = data.draw(st.integers(0, guesses))
    found = one_run_p_value(epsilon=math.log(odds), canaries=canaries, guesses=guesses, right=right, delta=float(delta))
    assert found == pytest.approx(float(exact_p_value(odds, canaries, guesses, right, delta)), rel=1e-9)


@pytest.mark.parametrize(("right", "epsilon"), [(700, 0.2), (700, 0.8), (999, 4.0), (1000, 6.0), (1000, 30.0)])
def test_the_largest_window_is_that_of_a_loop_over_binomial_tails(right, epsilon):
    b = stats.binom(1000, 1 / (1 + math.exp(-epsilon)))
    windows = [(b.cdf(right - 1) - b.cdf(right - i - 1)) / i for i in range(1, right + 1)]
    expected = b.sf(right - 1) + 2 * 2000 * 1e-4 * max(windows)
    found = one_run_p_value(epsilon=epsilon, canaries=2000, guesses=1000, right=right, delta=1e-4)
    assert found == pytest.approx(min(1, expected), rel=1e-8)


@settings(deadline=None, max_examples=200)
@given(counts(), deltas, st.lists(epsilons, min_size=2, max_size=8).map(sorted))
def test_p_value_grows_with_epsilon(count, delta, grid):
    """On this the bisection rests; it isn't obvious, because the windows' part alone falls again."""
    canaries, guesses, right = count
    found = [one_run_p_value(epsilon=e, canaries=canaries, guesses=guesses, right=right, delta=delta) for e in grid]
    assert (np.diff(found) >= -1e-12).all()


@settings(deadline=None)
@given(counts(), deltas, st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_bound_is_where_the_p_value_crosses_the_level(count, delta, confidence):
    canaries, guesses, right = count
    given_ = {"canaries": canaries, "guesses": guesses, "right": right, "delta": delta}
    found = one_run_epsilon(**given_, confidence=confidence)
    if found:
        assert one_run_p_value(epsilon=found, **given_) < 1 - confidence
    assert one_run_p_value(epsilon=found + 1e-9, **given_) >= 1 - confidence - 1e-9


@settings(deadline=None)
@given(st.integers(1, 60), st.data(), deltas)
def test_more_right_guesses_never_lower_the_bound(canaries, data, delta):
    guesses = data.draw(st.integers(1, canaries))
    found = [one_run_epsilon(canaries=canaries, guesses=guesses, right=v, delta=delta) for v in range(guesses + 1)]
    assert (np.diff(found) >= -1e-9).all() and found[0] == 0


@settings(deadline=None)
@given(counts(), st.lists(deltas, min_size=2, max_size=4).map(sorted))
def test_a_larger_delta_never_raises_the_bound(count, grid):
    canaries, guesses, right = count
    found = [one_run_epsilon(canaries=canaries, guesses=guesses, right=right, delta=delta) for delta in grid]
    assert (np.diff(found) <= 0).all()


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 4.0])
@pytest.mark.parametrize(("guesses", "delta"), [(20, 0.0), (200, 0.0), (200, 1e-3), (200, 0.02)])
def test_a_true_epsilon_is_exceeded_in_at_most_five_percent_of_audits(epsilon, guesses, delta):
    """Exact, not simulated: each coin is published with probability delta, else it goes through randomised response."""
    chance = delta + (1 - delta) / (1 + math.exp(-epsilon))
    right = np.arange(guesses + 1)
    found = [one_run_epsilon(canaries=guesses, guesses=guesses, right=int(v), delta=delta) for v in right]
    assert stats.binom.pmf(right, guesses, chance)[np.array(found) > epsilon].sum() <= 0.05


def test_the_error_rate_is_used_up_where_there_is_no_delta():
    """The test above would pass with a bound of 0; this one fails if the bound is much below what can be shown."""
    right = np.arange(1001)
    found = np.array([one_run_epsilon(canaries=1000, guesses=1000, right=int(v), delta=0) for v in right])
    assert stats.binom.pmf(right, 1000, 1 / (1 + math.exp(-1)))[found > 1].sum() > 0.035


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_simulated_audits_that_guess_the_clearest_canaries_only(epsilon):
    """Coin plus Laplace noise of scale 1 / epsilon is epsilon-private; the auditor guesses the 30 most extreme of 150."""
    rng, audits, guesses = np.random.default_rng(0), 2000, 30
    coins = rng.integers(0, 2, (audits, 150))
    seen = coins + rng.laplace(0, 1 / epsilon, coins.shape) - 0.5
    picked = np.argsort(-abs(seen), axis=1)[:, :guesses]
    right = (np.take_along_axis(seen, picked, 1) > 0) == np.take_along_axis(coins, picked, 1)
    bound = np.array([one_run_epsilon(canaries=150, guesses=guesses, right=v, delta=0) for v in range(guesses + 1)])
    exceeded = int((bound[right.sum(axis=1)] > epsilon).sum())
    assert 0 < exceeded <= stats.binom.isf(1e-4, audits, 0.05)


# Power.


@settings(deadline=None)
@given(st.integers(1, 100), st.data(), deltas, st.floats(0, 4))
def test_power_is_the_least_share_at_which_the_bound_exceeds_the_claim(canaries, data, delta, epsilon):
    guesses = data.draw(st.integers(0, canaries))
    share = power(epsilon=epsilon, canaries=canaries, guesses=guesses, delta=delta)
    p = [
        one_run_p_value(epsilon=epsilon, canaries=canaries, guesses=guesses, right=v, delta=delta) < 0.05
        for v in range(guesses + 1)
    ]
    assert share == (p.index(True) / guesses if any(p) else None)


def test_power_of_planned_audits():
    assert power(epsilon=0.29, canaries=1000, guesses=1000, delta=1e-5) == pytest.approx(0.6, abs=0.003)
    assert power(epsilon=3.4, canaries=100, guesses=100, delta=1e-5) == 1
    assert power(epsilon=3.6, canaries=100, guesses=100, delta=1e-5) is None
    assert power(epsilon=1, canaries=1000, guesses=1000, delta=1e-5) < power(epsilon=1, canaries=100, guesses=100, delta=1e-5)


# Error rates over many runs.

tries = st.integers(1, 300)


@settings(deadline=None)
@given(tries, tries, st.data(), deltas, st.integers(1, 5))
def test_rates_bound_is_the_larger_logarithm_and_mirrors(negatives, positives, data, delta, attacks):
    fp, fn = data.draw(st.integers(0, negatives)), data.draw(st.integers(0, positives))
    level = 0.05 / (2 * attacks)
    fpr, fnr = (
        1.0 if wrong == trials else stats.binomtest(wrong, trials).proportion_ci(1 - 2 * level, method="exact").high
        for wrong, trials in ((fp, negatives), (fn, positives))
    )
    ratios = [(1 - delta - fpr) / fnr, (1 - delta - fnr) / fpr]
    expected = max([0.0] + [math.log(ratio) for ratio in ratios if ratio > 0])
    found, mirrored = (
        rates_epsilon(false_positives=a[0], negatives=a[1], false_negatives=b[0], positives=b[1], delta=delta, attacks=attacks)
        for a, b in (((fp, negatives), (fn, positives)), ((fn, positives), (fp, negatives)))
    )
    assert found == pytest.approx(expected, abs=1e-7) and found == mirrored


@settings(deadline=None)
@given(tries, tries, st.data())
def test_errors_delta_and_more_attacks_never_raise_the_rates_bound(negatives, positives, data):
    base = {
        "false_positives": data.draw(st.integers(0, negatives - 1)),
        "negatives": negatives,
        "false_negatives": data.draw(st.integers(0, positives - 1)),
        "positives": positives,
        "delta": data.draw(st.floats(0, 0.5)),
        "attacks": data.draw(st.integers(1, 5)),
    }
    found = rates_epsilon(**base)
    for name, step in (("false_positives", 1), ("false_negatives", 1), ("delta", 0.1), ("attacks", 1)):
        assert rates_epsilon(**{**base, name: base[name] + step}) <= found + 1e-12, name


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_true_epsilon_is_seldom_exceeded_by_rates(epsilon):
    """Randomised response, 64 trials a side; both rates' distributions are known, so the error is exact."""
    wrong = np.arange(65)
    chance = stats.binom.pmf(wrong, 64, 1 / (1 + math.exp(epsilon)))
    exceeded = sum(
        chance[a] * chance[b]
        for a in wrong
        for b in wrong
        if rates_epsilon(false_positives=int(a), negatives=64, false_negatives=int(b), positives=64, delta=0) > epsilon
    )
    assert exceeded <= 0.05


# Reference values: claims-and-audits.md, section 4.


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "expected"),
    [(1000, 1000, 1000, 5.78), (1000, 1000, 600, 0.30), (1000, 100, 90, 1.63), (100, 100, 100, 3.49)],
)
def test_reference_values_of_one_run(canaries, guesses, right, expected):
    found = one_run_epsilon(canaries=canaries, guesses=guesses, right=right, delta=1e-5)
    assert found == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(("trials", "expected"), [(32, 2.10), (128, 3.53), (512, 4.93)])
def test_perfect_separation_of_few_models_shows_little(trials, expected):
    found = rates_epsilon(false_positives=0, negatives=trials, false_negatives=0, positives=trials, delta=1e-5)
    assert found == pytest.approx(expected, abs=0.005)


def test_nothing_is_shown_by_chance_by_errors_or_by_no_guess():
    assert one_run_epsilon(canaries=100, guesses=100, right=50, delta=0) == 0
    assert one_run_epsilon(canaries=100, guesses=0, right=0, delta=0) == 0
    assert one_run_epsilon(canaries=100, guesses=4, right=4, delta=0) == 0  # 1 of 16 audits has this without any leak
    assert rates_epsilon(false_positives=50, negatives=100, false_negatives=50, positives=100, delta=0) == 0
    assert rates_epsilon(false_positives=100, negatives=100, false_negatives=0, positives=100, delta=0) == 0


def test_a_hundred_thousand_canaries_take_less_than_two_seconds():
    started = time.process_time()
    found = one_run_epsilon(canaries=100_000, guesses=100_000, right=90_000, delta=1e-6)
    assert time.process_time() - started < 2
    assert 2.15 < found < math.log(9)


def test_wrong_use_is_refused():
    good = {"canaries": 10, "guesses": 8, "right": 5, "delta": 0.0}
    for wrong in ({"right": 9}, {"guesses": 11}, {"right": -1}, {"canaries": 0, "guesses": 0, "right": 0}):
        with pytest.raises(ValueError):
            one_run_epsilon(**{**good, **wrong})
    rates = {"false_positives": 1, "negatives": 2, "false_negatives": 1, "positives": 2, "delta": 0.0}
    for wrong in ({"false_positives": 3}, {"positives": 0, "false_negatives": 0}, {"attacks": 0}):
        with pytest.raises(ValueError):
            rates_epsilon(**{**rates, **wrong})
    for wrong in ({"delta": -1e-9}, {"delta": 1.0}, {"delta": math.nan}, {"confidence": 1.0}, {"confidence": 0.0}):
        with pytest.raises(ConfigError):
            one_run_epsilon(**{**good, **wrong})
        with pytest.raises(ConfigError):
            rates_epsilon(**{**rates, **wrong})
    with pytest.raises(ConfigError):
        one_run_p_value(epsilon=-1, **good)
