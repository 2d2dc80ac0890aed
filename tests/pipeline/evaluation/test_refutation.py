"""What the canary audit is for: it refutes a certificate that compares the wrong pair, and leaves a sound one alone.

The model is a mean: training on points gives their mean, and each canary is a point of its own direction, so one coordinate of
the weights says how much of a canary is in them. Half of the canaries, by fair coins, are trained on and then requested.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.evaluation.planted_scores import canary_scores
from pipeline.findings import Finding
from pipeline.privacy.gaussian import tight_delta
from pipeline.privacy.mechanism import CertifyConfig, Mechanism, mechanism_of

Floats = NDArray[np.float64]
CANARIES, KEPT = 500, 500
EPSILON, DELTA = 1.0, 1e-5
STEPS, RATE, CLIP = 5, 0.02, 1.0
MOVED = STEPS * RATE * CLIP


@dataclasses.dataclass(frozen=True)
class World:
    """Canaries, which of them were heads, retained points, and the weights trained on heads and retained points."""

    points: Floats
    heads: NDArray[np.bool_]
    kept: Floats
    weights: Floats

    def audit(self, weights: Floats) -> Finding:
        """Guess the coins from the losses of all canaries."""
        losses = np.square(weights - self.points).sum(axis=1)
        found = canary_scores(
            losses[self.heads], losses[~self.heads], group="planted", subject="unlearned", delta=DELTA, confidence=0.95
        )
        return found.findings[0]


def world(rng: np.random.Generator) -> World:
    """A trained canary weighs 1 in the mean."""
    heads = rng.random(CANARIES) < 0.5
    num = int(heads.sum()) + KEPT
    points, kept = num * np.eye(CANARIES), rng.normal(size=(KEPT, CANARIES))
    return World(points, heads, kept, np.concatenate([points[heads], kept]).mean(axis=0))


def capped(vector: Floats, norm: float) -> Floats:
    return vector * min(1.0, norm / float(np.linalg.norm(vector)))


def ascended(made: World) -> Floats:
    """A few clipped steps up the loss of the canaries to forget."""
    weights = made.weights
    for _ in range(STEPS):
        weights = weights + RATE * capped(weights - made.points[made.heads].mean(axis=0), CLIP)
    return weights


def noisy_retain_steps(made: World, start: Floats, how: Mechanism, rng: np.random.Generator) -> Floats:
    """Clip, then capped steps on retained points alone, each with noise."""
    weights = capped(start, how.radius)
    for _ in range(how.steps):
        update = capped(how.learning_rate * (weights - made.kept.mean(axis=0)), how.step_norm)
        weights = how.rho * weights - update + rng.normal(0, how.noise, CANARIES)
    return weights


def sound(epsilon: float) -> Mechanism:
    return mechanism_of(CertifyConfig(epsilon=epsilon, delta=DELTA, radius=20.0, step_norm=1.0, steps=10))


def test_noise_by_the_displacement_of_the_ascent_is_refuted() -> None:
    """Ascent moves the weights at most steps x rate x clip, and noise for that hides whether it took place. It does not hide
    whether the canaries were trained on, which is what was promised."""
    noise = MOVED * math.sqrt(2 * math.log(1.25 / DELTA)) / EPSILON
    assert tight_delta(MOVED / noise, EPSILON) <= DELTA  # so the original and the unlearned model are as close as was said
    for seed in range(5):
        rng = np.random.default_rng(seed)
        made = world(rng)
        moved = ascended(made)
        assert np.linalg.norm(moved - made.weights) <= MOVED * (1 + 1e-12)
        found = made.audit(moved + rng.normal(0, noise, CANARIES))
        assert found.says == "still there" and found.epsilon_low is not None and found.epsilon_low > 1.5 * EPSILON


def test_noisy_steps_on_retained_points_are_not_refuted_more_often_than_the_error_allows() -> None:
    how, refuted = sound(EPSILON), 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        made = world(rng)
        found = made.audit(noisy_retain_steps(made, ascended(made), how, rng))
        assert found.epsilon_low is not None
        refuted += found.epsilon_low > EPSILON
    assert refuted <= 6  # 2 are expected where the error is fully used, and more than 6 have the chance 0.003


@pytest.mark.parametrize("seed", range(3))
def test_the_same_steps_with_too_little_noise_are_refuted(seed: int) -> None:
    """So the audit could have refuted the sound ones."""
    rng = np.random.default_rng(seed)
    made = world(rng)
    weak = sound(EPSILON)
    weak = dataclasses.replace(weak, noise=weak.noise / 1000)
    found = made.audit(noisy_retain_steps(made, ascended(made), weak, rng))
    assert found.epsilon_low is not None and found.epsilon_low > EPSILON


def test_a_model_that_never_saw_the_canaries_is_not_told_apart() -> None:
    flagged = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        made = world(rng)
        flagged += made.audit(made.kept.mean(axis=0) + rng.normal(0, 0.01, CANARIES)).says != "not told apart"
    assert flagged <= 5
