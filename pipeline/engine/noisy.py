"""Noisy steps on fp32 masters, as an optimizer that DeepSpeed drives: start in a ball, cap each step, add noise of a secret key.

Every length is that of the whole vector, over the partitions of all ranks, in fp64, and is measured on what was written, not on
what was meant. Noise comes after all that could scale it: added to gradients it would shrink with the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.engine.layout import Piece
from pipeline.privacy.mechanism import Mechanism
from pipeline.privacy.noise import SecretNoise

__all__ = ["NoisySteps"]

INSIDE = 1 - 1e-5
"""Lengths are brought to so much of their bound, so that rounding to fp32 does not carry them over it."""


class NoisySteps(torch.optim.Optimizer):
    """x <- a + rho (x - a) - u + N(0, s^2 I) with u = g times the gradient, shortened to length c; then, where the mechanism has
    a ball, the nearest point in it. Before the first step x is drawn into the ball of radius C0 around a.

    Args:
        parameters: of the model, as any optimizer takes them.
        mechanism: radius, cap, contraction, noise.
        noise: of a key that all ranks share.
        sum: element-wise over ranks, fp64, the same bits on each.

    Until `arm` was called a step does nothing: DeepSpeed takes one while it is set up.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, mechanism: Mechanism, noise: SecretNoise, sum: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(parameters, {"lr": mechanism.learning_rate})
        self._rule, self._noise, self._sum = mechanism, noise, sum
        self._pieces: Sequence[Piece] | None = None
        self._anchors: list[Tensor] = []
        self._counts = True
        self.tally: dict[str, float] = {}
        """Measured so far, over all ranks. steps · dimension: places of the vector · start_norm: distance of the start from the
        anchor · step_norm: longest step, noise apart · noise_low, noise_high: least and largest mean square of a step's noise, in
        s^2 · ball_norm: largest distance from the anchor after a projection"""

    def arm(self, pieces: Sequence[Piece], anchor: Mapping[str, Tensor] | None, *, counts: bool) -> None:
        """Begin to take steps.

        Args:
            pieces: of this rank, see `pipeline.engine.layout`.
            anchor: a, whole tensors by name; None: zero.
            counts: whether this rank's pieces count in sums; where all ranks hold the same, those of one do.
        """
        self._pieces, self._counts = pieces, counts
        for piece in pieces:
            # No moments are kept, but DeepSpeed's checkpoints for another number of ranks know no optimizer without Adam's.
            zeros = {name: torch.zeros_like(piece.owner) for name in ("exp_avg", "exp_avg_sq")}
            self.state.setdefault(piece.owner, {"step": torch.tensor(0.0), **zeros})
        self._anchors = [_part(anchor[piece.name], piece) if anchor else torch.zeros_like(piece.master) for piece in pieces]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; every rank must call.

        Raises:
            FloatingPointError: a gradient is not finite; nothing was moved.
        """
        if self._pieces is None:
            return
        rule, done = self._rule, int(self.tally.get("steps", 0))
        steps = [self._wished(piece) for piece in self._pieces]
        (length,) = self._lengths(steps)
        if not math.isfinite(length):
            raise FloatingPointError(f"step {done}: the gradient has no finite length; no weight was moved")
        if not done:
            self.tally["start_norm"] = self._draw_in(rule.radius)
        short = min(1.0, INSIDE * rule.step_norm / length) if length else 1.0
        moved, made = [], []
        for piece, anchor, step in zip(self._pieces, self._anchors, steps, strict=True):
            drawn = anchor + rule.rho * (piece.master - anchor)
            target = drawn - short * step
            numbers = self._noise.normal(done, piece.start, len(piece.master))
            piece.master.copy_(target + rule.noise * torch.from_numpy(numbers).to(target))
            moved.append(drawn - target)
            made.append(piece.master - target)
        self._measure(moved, made)
        if rule.ball is not None:
            self.tally["ball_norm"] = max(self.tally.get("ball_norm", 0.0), self._draw_in(rule.ball))

    def _wished(self, piece: Piece) -> Tensor:
        gradient = piece.gradient()
        if gradient is None:
            return torch.zeros_like(piece.master)
        return self._rule.learning_rate * gradient.to(piece.master)

    def _measure(self, moved: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        length, noise = self._lengths(moved, made)
        (places,) = self._lengths([torch.ones_like(part) for part in made])
        dimension, found = round(places**2), self.tally
        mean = noise**2 / (max(1, dimension) * self._rule.noise**2) if self._rule.noise else 0.0
        self.tally = {
            **found,
            "steps": found.get("steps", 0.0) + 1,
            "dimension": float(dimension),
            "step_norm": max(found.get("step_norm", 0.0), length),
            "noise_low": min(found.get("noise_low", mean), mean),
            "noise_high": max(found.get("noise_high", mean), mean),
        }

    def _lengths(self, *vectors: Sequence[Tensor]) -> list[float]:
        """Norms of vectors that lie in pieces on all ranks."""
        squares = [sum((float(part.double().square().sum()) for part in parts), 0.0) for parts in vectors]
        total = self._sum(torch.tensor(squares if self._counts else [0.0] * len(squares), dtype=torch.float64))
        return [math.sqrt(max(0.0, value)) if math.isfinite(value) else math.inf for value in total.tolist()]

    def _draw_in(self, radius: float) -> float:
        """Draw the vector into the ball around the anchor; its distance from there afterwards."""
        assert self._pieces is not None
        pairs = list(zip(self._pieces, self._anchors, strict=True))
        (distance,) = self._lengths([piece.master - anchor for piece, anchor in pairs])
        if distance <= radius:
            return distance
        for piece, anchor in pairs:
            piece.master.copy_(anchor + (INSIDE * radius / distance) * (piece.master - anchor))
        (distance,) = self._lengths([piece.master - anchor for piece, anchor in pairs])
        return distance


def _part(whole: Tensor, piece: Piece) -> Tensor:
    return whole.detach().flatten()[piece.offset :][: len(piece.master)].to(piece.master, copy=True)
