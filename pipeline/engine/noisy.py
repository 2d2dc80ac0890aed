"""Noisy steps, as an optimizer that DeepSpeed drives: start in a ball, cap each step, add noise of a secret key."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from pipeline.engine.fused import INSIDE, FusedSteps, Rule
from pipeline.kernels.counter import Draw
from pipeline.kernels.reference import Kernels
from pipeline.privacy.mechanism import Mechanism
from pipeline.privacy.noise import SecretNoise

__all__ = ["NoisySteps"]


class NoisySteps(FusedSteps):
    """x <- a + rho (x - a) - u + N(0, s^2 I) with u = g times the gradient, shortened to length c; then, where the mechanism has
    a ball, the nearest point in it. Before the first step x is drawn into the ball of radius C0 around a.

    Args:
        parameters: of the model, as any optimizer takes them.
        mechanism: radius, cap, contraction, noise.
        noise: of a key that all ranks share.
        sum: see `FusedSteps`.
        kernels: see `FusedSteps`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        mechanism: Mechanism,
        noise: SecretNoise,
        sum: Callable[[Tensor], Tensor],
        kernels: Kernels,
    ) -> None:
        rate, cap = mechanism.learning_rate, INSIDE * mechanism.step_norm
        rule = Rule(
            # The rate is that of the mechanism, whatever schedule an engine may have.
            pull=lambda length, _: min(rate, cap / length) if length else rate,
            rho=mechanism.rho,
            noise=mechanism.noise,
            start=mechanism.radius,
            ball=mechanism.ball,
            draw=lambda step: Draw("chacha20", noise.lend(), step),
        )
        super().__init__(parameters, lr=rate, rule=rule, sum=sum, kernels=kernels)
