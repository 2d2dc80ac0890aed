"""Lower bounds on epsilon from attacks: one audited run with canaries, or error rates over many runs.

A bound can refute a claimed (epsilon, delta); it never proves one, and 0 means that the attack showed nothing. The games
compare runs with and without an image. A mechanism that is only known to be (epsilon, delta)-close to one common reference
makes two runs (2 epsilon, (1 + e^epsilon) delta)-close: halve the bound before comparing it with such an epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import special

from pipeline.errors import ConfigError

__all__ = ["one_run_epsilon", "one_run_p_value", "power", "rates_epsilon"]

# No count of guesses below 10^9 refutes an epsilon above 24 at any usual confidence, so the search may end here.
LARGEST = 40.0
HALVINGS = 50


def one_run_epsilon(*, canaries: int, guesses: int, right: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that one audited run refutes (Steinke, Nasr & Jagielski, Privacy Auditing with One (1) Training
    Run, 2023).

    Each canary was in or out of the run by its own fair coin, and the auditor guesses coins from the result. How many
    guesses to make must be fixed before the coins are looked at: the best of several numbers of guesses is no bound.

    Args:
        canaries: m, coins that were tossed, at least 1.
        guesses: r, coins that were guessed; the auditor abstains from the others. 0 to `canaries`.
        right: v, guesses that were right. 0 to `guesses`.
        delta: of the claim, in [0, 1).
        confidence: in (0, 1). A true epsilon is exceeded in at most 1 - confidence of all audits.

    Returns:
        Epsilon of at least 0, the exact bound less at most 1e-12; 0 where not even epsilon = 0 is refuted.

    Raises:
        ConfigError: delta or confidence outside its range.
        ValueError: counts that do not fit each other.
    """
    _check(delta, confidence)
    p_value = _p_values(canaries, guesses, right, delta)
    if p_value(0.0) >= 1 - confidence:
        return 0.0
    low, high = 0.0, LARGEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle) < 1 - confidence else (low, middle)
    return low


def one_run_p_value(*, epsilon: float, canaries: int, guesses: int, right: int, delta: float) -> float:
    """How likely at least `right` right guesses are, at most, if the run is (epsilon, delta)-private; in [0, 1].

    P[B >= v] + 2 m delta max_{1 <= i <= v} P[v - i <= B < v] / i, at most 1, where B is binomial with r tries and the chance
    e^epsilon / (1 + e^epsilon) (Steinke, Nasr & Jagielski 2023, their result for approximate privacy). It grows with epsilon.

    Args:
        epsilon: at least 0. For the others and for errors see `one_run_epsilon`.
    """
    _check(delta)
    if not epsilon >= 0:
        raise ConfigError(f"audit: epsilon {epsilon} is below 0", "give an epsilon of at least 0")
    return _p_values(canaries, guesses, right, delta)(epsilon)


def power(*, epsilon: float, canaries: int, guesses: int, delta: float, confidence: float = 0.95) -> float | None:
    """The smallest share of right guesses at which the one-run audit would refute (epsilon, delta), before it runs.

    Args:
        epsilon: the claim, at least 0. For the others and for errors see `one_run_epsilon`.

    Returns:
        v / r in (0.5, 1]: with v right guesses `one_run_epsilon` exceeds `epsilon`, with v - 1 it does not. None: not even
        r right guesses would refute the claim, so the audit cannot.
    """
    _check(delta, confidence)

    def refuted(right: int) -> bool:
        p_value = one_run_p_value(epsilon=epsilon, canaries=canaries, guesses=guesses, right=right, delta=delta)
        return p_value < 1 - confidence

    if not refuted(guesses):
        return None
    low, high = 0, guesses  # `low` is not refuted, since no right guess at all has the p-value 1; `high` is.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high / guesses


def rates_epsilon(
    *,
    false_positives: int,
    negatives: int,
    false_negatives: int,
    positives: int,
    delta: float,
    confidence: float = 0.95,
    attacks: int = 1,
) -> float:
    """The epsilon that an attack's error rates refute: the larger of log((1 - delta - a) / b) and log((1 - delta - b) / a), where
    a and b are the upper ends of Clopper-Pearson intervals for the rates of false positives and of false negatives.

    Both logarithms follow from Kairouz, Oh & Viswanath, The Composition Theorem for Differential Privacy, 2015, theorem 2.1:
    a + e^epsilon b >= 1 - delta for the true rates, and with the rates swapped. They use the same two upper ends, so each end
    has the confidence 1 - (1 - confidence) / 2: by Bonferroni both hold together, and the larger logarithm may be taken.

    The intervals need trials that are independent: each trial its own run, of which one image is judged. Images that are judged
    in one and the same run are not; for these the count of right guesses and `one_run_epsilon` give a bound that holds.

    Args:
        false_positives: trials without the image that the attack takes for trials with it. 0 to `negatives`.
        negatives: trials without the image, at least 1.
        false_negatives: trials with the image that the attack takes for trials without it. 0 to `positives`.
        positives: trials with the image, at least 1.
        delta: of the claim, in [0, 1).
        confidence: in (0, 1). A true epsilon is exceeded in at most 1 - confidence of all audits.
        attacks: how many attacks were judged on trials such as these, of which the largest bound is reported; the error is
            split over all their intervals. 2 for an attack that is tried in both directions, low and high errors. 1 where
            attack, direction and threshold were fixed beforehand or on other trials.

    Returns:
        Epsilon of at least 0; 0 where nothing is refuted.

    Raises:
        ConfigError: delta or confidence outside its range.
        ValueError: counts that do not fit each other, or less than one attack.
    """
    _check(delta, confidence)
    for wrong, trials in ((false_positives, negatives), (false_negatives, positives)):
        if not (0 <= wrong <= trials and trials >= 1):
            raise ValueError(f"{wrong} errors in {trials} trials")
    if attacks < 1:
        raise ValueError(f"{attacks} attacks")
    level = (1 - confidence) / (2 * attacks)
    a, b = _upper(false_positives, negatives, level), _upper(false_negatives, positives, level)
    shown = max((1 - delta - a) / b, (1 - delta - b) / a)
    return math.log(shown) if shown > 1 else 0.0


def _upper(errors: int, trials: int, level: float) -> float:
    """Upper end of the one-sided interval of a rate: the rate at which so few errors have the probability `level`
    (Clopper & Pearson 1934)."""
    return 1.0 if errors == trials else float(special.betainccinv(errors + 1, trials - errors, level))


def _p_values(canaries: int, guesses: int, right: int, delta: float) -> Callable[[float], float]:
    """`one_run_p_value` as a function of epsilon; what does not depend on epsilon is computed once."""
    if not (0 <= right <= guesses <= canaries and canaries >= 1):
        raise ValueError(f"{right} right of {guesses} guesses about {canaries} canaries")
    # The places v - 1, v - 2, ..., 0, so that the first i of them are the window v - i <= B < v.
    places = np.arange(right - 1, -1, -1, dtype=np.float64)
    log_ways = special.gammaln(guesses + 1) - special.gammaln(places + 1) - special.gammaln(guesses - places + 1)
    lengths = np.arange(1, right + 1)

    def p_value(epsilon: float) -> float:
        if right == 0:
            return 1.0
        # From the chance to be wrong, because the chance to be right rounds to 1 long before its complement does to 0.
        tail = float(special.betaincc(guesses - right + 1, right, special.expit(-epsilon)))
        if delta == 0:
            return tail
        log_right, log_wrong = -np.logaddexp(0, -epsilon), -np.logaddexp(0, epsilon)
        masses = np.exp(log_ways + places * log_right + (guesses - places) * log_wrong)
        return min(1.0, tail + 2 * canaries * delta * float((np.cumsum(masses) / lengths).max()))

    return p_value


def _check(delta: float, confidence: float = 0.5) -> None:
    if not 0 <= delta < 1:
        raise ConfigError(f"audit: delta {delta} is not in [0, 1)", "give a delta far below 1 / number of images, such as 1e-5")
    if not 0 < confidence < 1:
        raise ConfigError(f"audit: confidence {confidence} is not in (0, 1)", "give a confidence such as 0.95")
