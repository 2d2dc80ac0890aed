"""Laws of the formulas, and an attack on the worst case that comes near the bound and never beats it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.privacy.gaussian import (
    contraction,
    epsilon_of,
    mu_of,
    noise_for,
    noise_norm,
    projected_delta,
    projected_epsilon,
    projected_steps,
    tight_delta,
    tight_epsilon,
)

POSITIVE = st.floats(min_value=1e-3, max_value=1e3)
STEPS = st.integers(min_value=1, max_value=2000)
RHO = st.one_of(st.just(1.0), st.floats(min_value=0.01, max_value=1.0))


@given(POSITIVE, POSITIVE, POSITIVE, STEPS, RHO)
def test_mu_is_the_sum_written_out(radius: float, step: float, noise: float, steps: int, rho: float) -> None:
    powers = [rho**k for k in range(steps)]
    apart = 2 * radius * rho**steps + 2 * step * math.fsum(powers)
    wanted = apart / (noise * math.sqrt(math.fsum(power**2 for power in powers)))
    assert mu_of(radius=radius, step=step, noise=noise, steps=steps, rho=rho) == pytest.approx(wanted, rel=1e-6)


@given(POSITIVE, POSITIVE, POSITIVE, STEPS)
def test_a_contraction_that_fades_is_none(radius: float, step: float, noise: float, steps: int) -> None:
    near = mu_of(radius=radius, step=step, noise=noise, steps=steps, rho=1 - 1e-12)
    assert near == pytest.approx(mu_of(radius=radius, step=step, noise=noise, steps=steps), rel=1e-6)


@pytest.mark.parametrize(("steps", "noise"), [(0, 1.0), (3, 0.0)])
def test_no_step_or_no_noise_gives_no_guarantee(steps: int, noise: float) -> None:
    mu = mu_of(radius=1.0, step=0.1, noise=noise, steps=steps)
    assert math.isinf(mu) and math.isinf(epsilon_of(mu, 1e-5))
    assert projected_delta(epsilon=100.0, radius=1.0, ball=1.0, step=0.1, noise=noise, steps=steps) == 1.0


@given(POSITIVE, POSITIVE, POSITIVE, STEPS, RHO, st.floats(min_value=1.0, max_value=10.0))
def test_more_noise_never_raises_epsilon(radius: float, step: float, noise: float, steps: int, rho: float, more: float) -> None:
    few, many = (mu_of(radius=radius, step=step, noise=s, steps=steps, rho=rho) for s in (noise, noise * more))
    assert many <= few
    assert epsilon_of(many, 1e-5) <= epsilon_of(few, 1e-5) * (1 + 1e-9)


@given(st.floats(min_value=0.01, max_value=50), st.floats(min_value=1e-9, max_value=0.1), POSITIVE, POSITIVE, STEPS, RHO)
@settings(max_examples=30, deadline=None)
def test_noise_for_a_target_reaches_it_and_is_the_least(
    epsilon: float, delta: float, radius: float, step: float, steps: int, rho: float
) -> None:
    given = {"radius": radius, "step": step, "steps": steps, "rho": rho}
    noise = noise_for(epsilon=epsilon, delta=delta, **given)
    assert epsilon_of(mu_of(noise=noise, **given), delta) <= epsilon
    assert epsilon_of(mu_of(noise=0.99 * noise, **given), delta) > epsilon


@pytest.mark.parametrize(("half", "epsilon"), [(0.1, 1.91), (1.0, 7.08)])
def test_known_conversions(half: float, epsilon: float) -> None:
    """At delta = 1e-5, of (mu^2 / 2)-zCDP."""
    assert epsilon_of(math.sqrt(2 * half), 1e-5) == pytest.approx(epsilon, abs=0.01)


@given(st.floats(min_value=0.05, max_value=20), st.floats(min_value=1e-9, max_value=0.05))
def test_the_conversion_is_an_upper_bound_of_the_tight_one(mu: float, delta: float) -> None:
    assert tight_delta(mu, epsilon_of(mu, delta)) <= delta * (1 + 1e-6)


def test_the_price_of_a_large_model() -> None:
    """A hundred million weights at epsilon 8: noise some 25,000 times the radius."""
    noise = noise_for(epsilon=8.0, delta=1e-5, radius=1.0, step=0.01, steps=100)
    assert 24_000 < noise_norm(noise=noise, steps=100, dimension=112_000_000) < 28_000


@pytest.mark.parametrize(("noise", "steps"), [(0.5, 42), (0.3, 2076)])
def test_projected_steps_that_a_target_takes(noise: float, steps: int) -> None:
    given = {"radius": 1.0, "ball": 1.0, "step": 0.01, "noise": noise}
    assert projected_steps(epsilon=1.0, delta=1e-5, **given) == steps
    assert projected_delta(epsilon=1.0, steps=steps, **given) <= 1e-5 < projected_delta(epsilon=1.0, steps=steps - 1, **given)
    assert projected_epsilon(delta=1e-5, steps=steps, **given) <= 1.0


@given(st.floats(min_value=0.0, max_value=20), st.floats(min_value=0.01, max_value=20))
def test_contraction_is_a_share_that_falls_with_epsilon(epsilon: float, radius: float) -> None:
    assert 0 <= contraction(epsilon + 0.5, radius) <= contraction(epsilon, radius) + 1e-15 <= 1 + 1e-15
    assert contraction(0.0, radius) == pytest.approx(2 * stats.norm.cdf(radius / 2) - 1, abs=1e-12)


def last_iterates(sign: float, runs: int, *, radius: float, step: float, noise: float, steps: int, rho: float) -> np.ndarray:
    """The worst case in one dimension: one run starts at one end and is pushed outwards, the other at the other end."""
    made = np.random.default_rng(int(sign) + 5)
    x = np.full(runs, sign * radius)
    for _ in range(steps):
        x = rho * x + sign * step + made.normal(0, noise, runs)
    return x


@pytest.mark.parametrize("rho", [1.0, 0.8])
def test_an_attack_on_the_worst_case_comes_near_the_bound_and_never_beats_it(rho: float) -> None:
    runs, delta = 2_000_000, 1e-2
    given = {"radius": 1.0, "step": 0.2, "noise": 1.0, "steps": 12, "rho": rho}
    mu, upper = mu_of(**given), epsilon_of(mu_of(**given), delta)
    ours, theirs = (last_iterates(sign, runs, **given) for sign in (1.0, -1.0))
    assert (ours.mean() - theirs.mean()) / ours.std() == pytest.approx(mu, rel=0.01)
    # The likelihood ratio is monotone, so thresholds are the best attacks there are.
    best = 0.0
    for threshold in np.linspace(-4, 6, 201):
        true, false = int((ours > threshold).sum()), int((theirs > threshold).sum())
        low = stats.beta.ppf(0.005, true, runs - true + 1) if true else 0.0
        high = stats.beta.ppf(0.995, false + 1, runs - false) if false < runs else 1.0
        if low > delta and high > 0:
            best = max(best, math.log((low - delta) / high))
    assert best <= upper
    assert best > 0.6 * upper, (best, upper)


@given(st.floats(min_value=0.01, max_value=40), st.floats(min_value=1e-9, max_value=0.1))
@settings(max_examples=30, deadline=None)
def test_tight_epsilon_is_the_least_that_keeps_delta(mu: float, delta: float) -> None:
    epsilon = tight_epsilon(mu, delta)
    assert tight_delta(mu, epsilon) <= delta
    assert epsilon == 0 or tight_delta(mu, epsilon * (1 - 1e-6) - 1e-9) > delta
    assert epsilon <= epsilon_of(mu, delta) + 1e-6  # a Gaussian's own trade-off is never above its Renyi bound


def test_models_that_did_not_move_are_as_close_as_can_be_and_those_without_noise_are_not() -> None:
    assert tight_epsilon(0.0, 1e-5) == 0.0
    assert math.isinf(tight_epsilon(math.inf, 1e-5))
