"""What a certified phase is asked to do, and the mechanism that follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from pipeline.config import NotNegativeFloat, Positive, PositiveFloat
from pipeline.decode import decode
from pipeline.errors import ConfigError
from pipeline.privacy.accountant import AGREEMENT
from pipeline.privacy.gaussian import mu_of, noise_for, noise_norm, projected_epsilon
from pipeline.records import record

__all__ = ["CertifyConfig", "Mechanism", "certify_config", "mechanism_of"]


@record
class CertifyConfig:
    """The certified phase between ascent and retention: noisy steps on retained images alone."""

    mechanism: Literal["noisy_retain", "projected"] = "noisy_retain"
    """noisy_retain: capped steps with noise; projected: each of them is followed by a projection onto a ball (small models)."""
    epsilon: Annotated[float, Gt(0), Le(1000)] = 8.0
    """Target; the noise follows from it. Of `projected`: what is reached is computed from `noise` and `steps`."""
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-5
    """Probability with which the promise may fail; below one over the number of training images."""
    radius: PositiveFloat = 1.0
    """C0: the vector of weights starts at most so far from the anchor."""
    anchor: Literal["initial", "zero", "base"] = "initial"
    """Centre of all balls: the random weights of seed and phase, zero, or the weights of `base`. None of them saw a forget
    image; for `base` the operator declares it."""
    trains: Literal["all", "bottleneck"] = "all"
    """What the vector holds: all weights, or those of the model's bottleneck. Then all others are those of `base`."""
    base: str = ""
    """URI of safetensors weights that are declared free of forget images (see `declared`, field base)."""
    steps: Positive = 20
    """T."""
    learning_rate: PositiveFloat = 0.05
    """g: a step is g times the gradient of the mean loss over the batch, capped."""
    step_norm: PositiveFloat = 0.05
    """c: no step is longer."""
    decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """g lambda: share by which a step draws the weights to the anchor; rho = 1 - decay."""
    noise: NotNegativeFloat = 0.0
    """s, a weight and step; 0: the least that `epsilon` needs (of `projected` it must be given)."""
    ball: PositiveFloat = 1.0
    """C1 of `projected`: radius of the ball after each step."""
    batch_size: Positive = 128
    """Global batch of retained images."""
    price_limit: PositiveFloat = 10.0
    """The run starts only if the noise's norm over `radius` is at most this."""
    declared: Mapping[Literal["A6", "A9", "A10", "base"], str] = dataclasses.field(default_factory=dict)
    """Who vouches for what no program sees, each by name: A6: no retained image looks like a forgotten one, where the index did
    not look (`shards.near_bits: null`); A9: requests do not depend on published models; A10: the model from before the deletion
    is not available any more; base: those weights never saw a forget image."""


@record
class Mechanism:
    """The numbers of a certified phase; see `pipeline.privacy.gaussian`."""

    kind: Literal["noisy_retain", "projected"]
    radius: float
    step_norm: float
    rho: float
    noise: float
    steps: int
    learning_rate: float
    ball: float | None

    def mu(self, steps: int) -> float:
        """Standard deviations between the last iterates after so many steps."""
        return mu_of(radius=self.radius, step=self.step_norm, noise=self.noise, steps=steps, rho=self.rho)

    def projected_epsilon(self, delta: float, steps: int) -> float:
        """Epsilon of `projected` after so many steps."""
        assert self.ball is not None
        given = {"radius": self.radius, "ball": self.ball, "step": self.step_norm, "noise": self.noise}
        return projected_epsilon(delta=delta, steps=steps, **given)

    def noise_norm(self, dimension: int) -> float:
        """Norm of the noise in the last weights, root mean square; of `projected` at most the ball's diameter."""
        found = noise_norm(noise=self.noise, steps=self.steps, dimension=dimension, rho=self.rho)
        return found if self.ball is None else min(found, 2 * self.ball)


def certify_config(value: object) -> CertifyConfig | None:
    """The settings that a method's `certify` means: None, False and off ask for none, a mechanism's name for its defaults.

    Raises:
        ConfigError: a mapping that is none of settings.
    """
    if isinstance(value, CertifyConfig):
        return value
    if isinstance(value, Mapping):
        return decode(CertifyConfig, value, where="method.certify")
    if value in ("noisy_retain", "projected"):
        return CertifyConfig(mechanism=value)
    return None


def mechanism_of(config: CertifyConfig, *, where: str = "method.certify") -> Mechanism:
    """The mechanism of a decoded configuration.

    Raises:
        ConfigError: fields that cannot work together.
    """
    projected, rho = config.mechanism == "projected", 1.0 - config.decay
    if projected and not config.noise:
        raise ConfigError(f"{where}.noise: projected steps take the noise as it is given", f"set {where}.noise=0.5, for example")
    if not config.base and (config.anchor == "base" or config.trains != "all"):
        wanted = "anchor: base" if config.anchor == "base" else f"trains: {config.trains}"
        raise ConfigError(f"{where}: {wanted} without base", f"set {where}.base to weights that never saw a forget image")
    # A little less, so that the accountant's figure is not above what was asked for either.
    epsilon = config.epsilon * (1 - AGREEMENT)
    noise = config.noise or noise_for(
        epsilon=epsilon, delta=config.delta, radius=config.radius, step=config.step_norm, steps=config.steps, rho=rho
    )
    return Mechanism(
        kind=config.mechanism,
        radius=config.radius,
        step_norm=config.step_norm,
        rho=rho,
        noise=noise,
        steps=config.steps,
        learning_rate=config.learning_rate,
        ball=config.ball if projected else None,
    )
