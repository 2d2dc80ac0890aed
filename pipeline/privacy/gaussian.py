"""(epsilon, delta) of noisy steps, as formulas; nothing here trusts a run.

Two runs start anywhere in a ball of radius C0, one of them at weights that saw the forget images and one at weights that did
not, and take T steps

    x_{t+1} = a + rho (x_t - a) - u_t + N(0, s^2 I),    ||u_t|| <= c,    0 < rho <= 1.

By shifted divergences (Feldman, Mironov, Talwar & Thakurta 2018, arXiv 1808.06651; for unlearning Koloskova et al., ICML 2025,
arXiv 2506.06985) the last iterates are mu-Gaussian apart in every Renyi order:

    D_alpha <= alpha mu^2 / 2,    mu = B / sqrt(V),    B = 2 C0 rho^T + 2 c sum_{k<T} rho^k,    V = s^2 sum_{k<T} rho^(2k).

Nothing is asked of the loss, of the steps beyond their length, or of the number of forgotten images.
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = [
    "contraction",
    "epsilon_of",
    "mu_of",
    "noise_for",
    "noise_norm",
    "projected_delta",
    "projected_epsilon",
    "projected_steps",
    "tight_delta",
    "tight_epsilon",
]

LARGEST = 1e9
"""Epsilons beyond this are not looked for: they promise nothing."""


def _powers(rho: float, steps: int, power: int = 1) -> float:
    """sum_{k<steps} rho^(power k)."""
    ratio = rho**power
    if ratio == 1.0:
        return float(steps)
    # expm1 keeps the digits that 1 - ratio^steps would lose near 1.
    return math.expm1(steps * math.log(ratio)) / math.expm1(math.log(ratio)) if ratio else float(steps > 0)


def mu_of(*, radius: float, step: float, noise: float, steps: int, rho: float = 1.0) -> float:
    """mu of the mechanism above: how many standard deviations apart the last iterates are at most.

    Args:
        radius: C0, of the ball in which a run starts.
        step: c, largest norm of an update.
        noise: s, standard deviation a weight and step.
        steps: T.
        rho: contraction towards the anchor, in (0, 1].

    Returns:
        inf where no noise was added: such a run has no guarantee.
    """
    if steps <= 0 or noise <= 0:
        return math.inf
    apart = 2 * radius * math.exp(steps * math.log(rho)) + 2 * step * _powers(rho, steps)
    return apart / (noise * math.sqrt(_powers(rho, steps, 2)))


def epsilon_of(mu: float, delta: float) -> float:
    """Epsilon at `delta` of a mechanism with D_alpha <= alpha mu^2 / 2 for all alpha > 1, by the conversion of Canonne, Kamath &
    Steinke (2020, arXiv 2004.00010, proposition 12):

        epsilon = min_alpha  alpha mu^2 / 2 + log((alpha - 1) / alpha) - (log delta + log alpha) / (alpha - 1).

    Returns:
        A number >= 0; inf for mu = inf.
    """
    if mu == 0:
        return 0.0
    if not math.isfinite(mu):
        return math.inf

    def at(log_excess: float) -> float:
        alpha = 1 + math.exp(log_excess)
        return alpha * mu * mu / 2 + math.log((alpha - 1) / alpha) - (math.log(delta) + math.log(alpha)) / (alpha - 1)

    return max(0.0, _lowest(at, -30.0, 30.0))


def _lowest(function: object, low: float, high: float) -> float:
    """Least value of a function that falls and then rises: a coarse look, then thirds."""
    points = [low + (high - low) * number / 600 for number in range(601)]
    best = min(range(601), key=lambda number: function(points[number]))  # type: ignore[operator]
    low, high = points[max(0, best - 1)], points[min(600, best + 1)]
    for _ in range(60):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if function(left) < function(right):  # type: ignore[operator]
            high = right
        else:
            low = left
    return float(function((low + high) / 2))  # type: ignore[operator]


def _upper(value: float) -> float:
    """Upper tail of the standard normal distribution."""
    return 0.5 * math.erfc(value / math.sqrt(2))


def tight_delta(mu: float, epsilon: float) -> float:
    """delta at `epsilon` of two normal distributions mu apart (Balle & Wang 2018, arXiv 1805.06530, theorem 8). A bound on the
    mechanism only if its trade-off is a Gaussian's, which is known for contractions (Bok, Su & Altschuler 2024) and not claimed
    here: for checks, never for a certificate."""
    if mu == 0:
        return 0.0
    return max(0.0, _upper(epsilon / mu - mu / 2) - math.exp(min(epsilon, 700.0)) * _upper(epsilon / mu + mu / 2))


def tight_epsilon(mu: float, delta: float) -> float:
    """Least epsilon at which `tight_delta` is at most delta, to 1e-9 from above; inf beyond `LARGEST`. It is that of two normal
    distributions mu standard deviations apart: exact for two models that both got such noise, and for nothing else."""
    return _least_epsilon(lambda epsilon: tight_delta(mu, epsilon) <= delta) if math.isfinite(mu) else math.inf


def noise_for(*, epsilon: float, delta: float, radius: float, step: float, steps: int, rho: float = 1.0) -> float:
    """Least noise s at which `epsilon_of` is at most epsilon; to a relative 1e-12, never below."""
    unit = mu_of(radius=radius, step=step, noise=1.0, steps=steps, rho=rho)
    low, high = 1e-9, 1e9  # of mu, which is unit / s
    while high / low > 1 + 1e-13:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if epsilon_of(middle, delta) <= epsilon else (low, middle)
    return unit / low * (1 + 1e-13)


def noise_norm(*, noise: float, steps: int, dimension: int, rho: float = 1.0) -> float:
    """Root mean square of the norm of all noise that the last weights carry, s sqrt(d sum rho^2k)."""
    return noise * math.sqrt(dimension * _powers(rho, steps, 2))


def contraction(epsilon: float, radius: float) -> float:
    """theta(epsilon, r) = Q(epsilon / r - r / 2) - e^epsilon Q(epsilon / r + r / 2): delta of normal distributions r apart, r in
    standard deviations (Balle, Barthe, Gaboardi & Geumlek 2019, arXiv 1905.12264)."""
    if radius <= 0:
        return 0.0
    if epsilon > 700:  # e^epsilon is no number any more; the second term is below the first, so this is an upper bound
        return _upper(epsilon / radius - radius / 2)
    return max(0.0, _upper(epsilon / radius - radius / 2) - math.exp(epsilon) * _upper(epsilon / radius + radius / 2))


def _amplified(epsilon: float, delta: float) -> float:
    """log(1 + (e^epsilon - 1) / delta)."""
    return epsilon - math.log(delta) if epsilon > 500 else math.log1p(math.expm1(epsilon) / delta)


def projected_delta(*, epsilon: float, radius: float, ball: float, step: float, noise: float, steps: int) -> float:
    """delta at `epsilon` when every noisy step is followed by a projection onto a ball of radius `ball` (Koloskova et al. 2025,
    model clipping):

        delta_1 = theta(epsilon, 2 (C0 + c) / s),
        delta_{t+1} = delta_t theta(log(1 + (e^epsilon - 1) / delta_t), 2 (C1 + c) / s).

    The projection comes after the noise, so the first step starts in the ball of radius C0 and all later ones in that of C1.
    """
    if steps <= 0 or noise <= 0:
        return 1.0
    delta = contraction(epsilon, 2 * (radius + step) / noise)
    later = 2 * (ball + step) / noise
    for _ in range(steps - 1):
        if delta <= 0:
            return 0.0
        delta *= contraction(_amplified(epsilon, delta), later)
    return delta


def projected_steps(
    *, epsilon: float, delta: float, radius: float, ball: float, step: float, noise: float, most: int = 1_000_000
) -> int | None:
    """Fewest steps after which `projected_delta` is at most delta; None if `most` do not suffice."""
    found = contraction(epsilon, 2 * (radius + step) / noise)
    for done in range(1, most + 1):
        if found <= delta:
            return done
        found *= contraction(_amplified(epsilon, found), 2 * (ball + step) / noise)
    return None


def projected_epsilon(*, delta: float, radius: float, ball: float, step: float, noise: float, steps: int) -> float:
    """Least epsilon at which `projected_delta` is at most delta, to 1e-9 from above; inf beyond `LARGEST`."""
    given = {"radius": radius, "ball": ball, "step": step, "noise": noise, "steps": steps}

    def enough(epsilon: float) -> bool:
        return projected_delta(epsilon=epsilon, **given) <= delta  # type: ignore[arg-type]

    return _least_epsilon(enough)


def _least_epsilon(enough: Callable[[float], bool]) -> float:
    """Least epsilon that is enough, to 1e-9 from above; inf beyond `LARGEST`."""
    if enough(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, 2 * high
        if high > LARGEST:
            return math.inf
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
        if high - low < 1e-9 * max(1.0, high):
            break
    return high
