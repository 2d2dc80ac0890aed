"""What a certificate costs in noise, told before anything runs: at the size of usual models it is ruinous, and nobody should find
that out from a ruined model."""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.privacy.mechanism import CertifyConfig, mechanism_of

__all__ = ["noise_ratio", "refuse_price"]


def noise_ratio(config: CertifyConfig, dimension: int) -> float:
    """Norm of the noise in the last weights over C0, the largest norm of all that they may keep of the start.

    Args:
        config: of the certified phase.
        dimension: weights in the vector.
    """
    return mechanism_of(config).noise_norm(dimension) / config.radius


def refuse_price(config: CertifyConfig, dimension: int) -> None:
    """Raise ConfigError where the noise is more than `price_limit` times C0."""
    ratio = noise_ratio(config, dimension)
    if ratio <= config.price_limit:
        return
    message = (
        f"method.certify: at epsilon {config.epsilon:g} the noise on {dimension:,} weights would be {ratio:,.0f} times "
        f"as long as what they may keep of the model (radius {config.radius:g}), above price_limit {config.price_limit:g}"
    )
    cure = (
        "train fewer weights (trains: bottleneck, with a base), allow a larger epsilon, or confirm the price with "
        f"method.certify.price_limit={_above(ratio)}; `unlearn plan` shows it"
    )
    raise ConfigError(message, cure)


def _above(ratio: float) -> int:
    """A round number above it."""
    step = 10 ** max(0, len(str(int(ratio))) - 2)
    return (int(ratio) // step + 1) * step
