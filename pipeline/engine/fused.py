"""Steps of our own on fp32 masters, as optimizers that DeepSpeed drives at any stage: one kernel call moves a whole partition.

Every length is that of the whole vector, over the partitions of all ranks, in fp64, and is measured on what was written, not on
what was meant. Noise comes after all that could scale it: added to gradients it would shrink with the learning rate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.engine.layout import Piece, Run, runs_of
from pipeline.kernels.counter import Draw
from pipeline.kernels.reference import Kernels

__all__ = ["INSIDE", "FusedAscent", "FusedSteps", "Lent", "Rule"]

INSIDE = 1 - 1e-5
"""Lengths are brought to so much of their bound, so that rounding to fp32 does not carry them over it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """x <- a + rho (x - a) - k g + N(0, noise^2 I), then the nearest point in the ball around a.

    pull: k of the gradient's length and the learning rate · start: radius of the ball that x is drawn into before the first step,
    ball: after each; None: none · draw: the noise of a step
    """

    pull: Callable[[float, float], float]
    rho: float = 1.0
    noise: float = 0.0
    start: float | None = None
    ball: float | None = None
    draw: Callable[[int], Draw | None] = lambda step: None


class Lent(NamedTuple):
    """What a step works on beside an owner's masters, laid out as they are.

    gradient: fp32 or bf16; None: there is none · copy: bf16, will be the rounded masters; None: nobody wants them rounded
    """

    gradient: Tensor | None
    copy: Tensor | None = None


class FusedSteps(torch.optim.Optimizer):
    """Steps by a rule.

    Args:
        parameters: of the model, as any optimizer takes them.
        lr: learning rate at first; the engine sets that of each step.
        rule: how they move.
        sum: element-wise over ranks, fp64, the same bits on each.
        kernels: what computes.

    Until `arm` was called a step does nothing: DeepSpeed takes one while it is set up.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        rule: Rule,
        sum: Callable[[Tensor], Tensor],
        kernels: Kernels,
    ) -> None:
        super().__init__(parameters, {"lr": lr})
        self._rule, self._sum, self._kernels = rule, sum, kernels
        self._runs: list[Run] | None = None
        self._owners: list[Tensor] = []
        self._anchors: list[Tensor | None] = []
        self._counts = True
        self._bound = False  # whether the ball did in the last step
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
        self._runs, self._counts = runs_of(pieces), counts
        self._owners = list(dict.fromkeys(piece.owner for piece in pieces))
        self._anchors = [
            torch.cat([_part(anchor[piece.name], piece) for piece in run.pieces]) if anchor else None for run in self._runs
        ]

    @contextlib.contextmanager
    def moments(self, *, written: bool) -> Iterator[None]:
        """Have Adam's moments, all zero, while the body runs: DeepSpeed's checkpoints know no optimizer without them.

        Args:
            written: DeepSpeed writes into them, so they take 8 bytes a weight; otherwise they take none.
        """
        for owner in self._owners:
            zero = owner.new_zeros(())
            zeros = {name: torch.zeros_like(owner) if written else zero.expand_as(owner) for name in ("exp_avg", "exp_avg_sq")}
            self.state[owner] = {"step": torch.tensor(0.0), **zeros}
        try:
            yield
        finally:
            self.state.clear()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step by the owners' own gradients; see `take`."""
        self.take({owner: Lent(owner.grad) for owner in self._owners})

    @torch.no_grad()
    def take(self, lent: Mapping[Tensor, Lent], factor: float = 1.0) -> None:
        """One step; every rank must call.

        Args:
            lent: by owner.
            factor: the gradient is so many times what is lent.

        Raises:
            FloatingPointError: a gradient is not finite; nothing was moved.
        """
        if self._runs is None:
            return
        rule, done = self._rule, int(self.tally.get("steps", 0))
        gradients = [_readable(run, lent[run.owner].gradient) for run in self._runs]
        pairs = zip(self._runs, gradients, strict=True)
        (square,) = self._total(1, (self._kernels.square(g, start=run.start)[None] for run, g in pairs if g is not None))
        if not math.isfinite(square):
            raise FloatingPointError(f"step {done}: the gradient has no finite length; no weight was moved")
        if not done and rule.start is not None:
            self.tally["start_norm"] = self._draw_in(rule.start)
        draw = rule.draw(done) if rule.noise else None
        numbers: dict[str, Any] = {"rho": rule.rho, "scale": rule.noise, "draw": draw, "apart": rule.ball is not None}
        numbers["pull"] = -factor * rule.pull(factor * math.sqrt(square), float(self.param_groups[0]["lr"]))
        centred = rule.rho != 1.0 or rule.ball is not None  # without either the anchor does not matter, and is not read
        copies = [None if (copy := lent[run.owner].copy) is None else run.part(copy) for run in self._runs]
        # A ball that bound mostly binds again, and the pass that draws into it writes the copies.
        ahead = [None] * len(copies) if self._bound else copies
        moved, made, apart = self._total(
            3,
            (
                self._kernels.move(run.master, g, start=run.start, anchor=anchor if centred else None, copy=copy, **numbers)
                for run, g, anchor, copy in zip(self._runs, gradients, self._anchors, ahead, strict=True)
            ),
        )
        self._measure(math.sqrt(moved), made)
        if rule.ball is not None:
            distance, late = math.sqrt(apart), self._bound
            self._bound = distance > rule.ball
            if self._bound:
                distance = self._project(INSIDE * rule.ball / distance, copies)
            elif late:
                self._project(1.0, copies)
            self.tally["ball_norm"] = max(self.tally.get("ball_norm", 0.0), distance)

    def _measure(self, length: float, made: float) -> None:
        found = self.tally
        if "dimension" not in found:
            assert self._runs is not None
            (places,) = self._total(1, (torch.tensor([float(len(run.master))]) for run in self._runs))
            found = {**found, "dimension": places}
        mean = made / (max(1.0, found["dimension"]) * self._rule.noise**2) if self._rule.noise else 0.0
        self.tally = {
            **found,
            "steps": found.get("steps", 0.0) + 1,
            "step_norm": max(found.get("step_norm", 0.0), length),
            "noise_low": min(found.get("noise_low", mean), mean),
            "noise_high": max(found.get("noise_high", mean), mean),
        }

    def _draw_in(self, radius: float) -> float:
        """Draw the vector into the ball around the anchor; its distance afterwards."""
        distance = self._project(1.0)
        return self._project(INSIDE * radius / distance) if distance > radius else distance

    def _project(self, factor: float, copies: Sequence[Tensor | None] | None = None) -> float:
        assert self._runs is not None
        rows = zip(self._runs, self._anchors, copies or [None] * len(self._runs), strict=True)
        project = self._kernels.project
        parts = (project(run.master, start=run.start, anchor=a, copy=copy, factor=factor)[None] for run, a, copy in rows)
        (square,) = self._total(1, parts)
        return math.sqrt(square)

    def _total(self, width: int, parts: Iterable[Tensor]) -> list[float]:
        """Sum of fp64 vectors of `width` over the runs of all ranks."""
        own, nothing = [part.double() for part in parts], torch.zeros(width, dtype=torch.float64)
        found: list[float] = self._sum(torch.stack(own).sum(0).cpu() if own and self._counts else nothing).tolist()
        return found


class FusedAscent(FusedSteps):
    """Plain steps of clipped length: x <- x - lr min(1, C / |g|) g, with noise and a ball around the original where asked for.

    The descent on a negated loss: theta + eta clip(grad L) (arXiv 2502.04260, gradient ascent). It has no moments, so a step
    depends on nothing but weights and gradient.

    Args:
        parameters: of the model.
        lr: learning rate eta at first.
        clip: C, largest length of the gradient of the whole vector.
        noise: standard deviation of a step's Gaussian noise on each weight.
        ball: largest distance from the anchor; None: any.
        key: 8 bytes that with step and place give the noise. A function of the run's seed, so that a resumed run is the same:
            what can be drawn again protects nothing.
        sum: see `FusedSteps`.
        kernels: see `FusedSteps`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        clip: float,
        noise: float = 0.0,
        ball: float | None = None,
        key: bytes,
        sum: Callable[[Tensor], Tensor],
        kernels: Kernels,
    ) -> None:
        rule = Rule(
            pull=lambda length, rate: rate * min(1.0, clip / length) if length else rate,
            noise=noise,
            ball=ball,
            draw=lambda step: Draw("philox", key, step),
        )
        super().__init__(parameters, lr=lr, rule=rule, sum=sum, kernels=kernels)


def _readable(run: Run, whole: Tensor | None) -> Tensor | None:
    if whole is None:
        return None
    part = run.part(whole)
    return part if part.dtype in (torch.float32, torch.bfloat16) else part.float()


def _part(whole: Tensor, piece: Piece) -> Tensor:
    return whole.detach().flatten()[piece.offset :][: len(piece.master)].to(piece.master, copy=True)
