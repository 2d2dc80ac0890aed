"""The fused update in plain torch: the truth that other implementations are compared with, and the way without a compiler.

One flat vector of fp32 weights p, or a part of it, is moved by

    t = a + rho (p - a) + k g,    w = t + s n,    and where |w - a| > R:    p' = a + R / |w - a| (w - a)

with gradient g, anchor a (zero where there is none), n ~ N(0, I) by counter, and k = +-lr min(1, C / |g|).

Three passes, each of which returns sums in fp64 that ranks add up. `square` reads g alone and tells a gradient that is not finite
before anything has moved; `move` makes noise once, writes w, and measures what it wrote; `project` follows only where the ball
binds. So a step reads and writes 16 bytes a weight (20 with an anchor), and 12 more where the ball binds; a bf16 copy takes 2, as
the last of them writes it. A form of two passes
through inner products would take 28 always, and make the noise twice: half of the time at 1.3 ns a number and 0.1 ns a byte and
core. It would also know |w - a| of what was meant, where a certificate needs that of what was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from pipeline.kernels.counter import Draw, normal

__all__ = ["Kernels", "Reference"]

PIECE = 1 << 16
"""Places moved at once, so that temporaries do not grow with the vector."""


class Kernels(Protocol):
    """An implementation. Vectors are contiguous, one-dimensional, of equal length and on one device; `start` is the place of
    their first element in the vector of all ranks."""

    @property
    def name(self) -> str:
        """As the configuration names it."""
        ...

    def square(self, gradient: Tensor, *, start: int) -> Tensor:
        """|g|^2 of fp32 or bf16 [n], fp64 []; not finite exactly where an element is not."""
        ...

    def move(
        self,
        weights: Tensor,
        gradient: Tensor | None,
        *,
        start: int,
        anchor: Tensor | None = None,
        copy: Tensor | None = None,
        rho: float = 1.0,
        pull: float = 0.0,
        scale: float = 0.0,
        draw: Draw | None = None,
        apart: bool = True,
    ) -> Tensor:
        """Write w over the weights.

        Args:
            weights: p, fp32 [n]; written.
            gradient: g, fp32 or bf16 [n]; None: zero.
            start: see the class.
            anchor: a, fp32 [n].
            copy: bf16 [n]; written: w to nearest, ties to even.
            rho: 1 keeps p exactly, whatever the anchor.
            pull: k.
            scale: s.
            draw: which noise; None: none.
            apart: whether |w - a|^2 is wanted. Where it is not, it may be NaN.

        Returns:
            |t - a - rho (p - a)|^2, |w - t|^2 and |w - a|^2 of what was written, fp64 [3].
        """
        ...

    def project(
        self, weights: Tensor, *, start: int, anchor: Tensor | None = None, copy: Tensor | None = None, factor: float = 1.0
    ) -> Tensor:
        """Write a + factor (w - a) over the weights w, fp32 [n]; at 1 they stay. They go to `copy`, bf16 [n], in any case.

        Returns:
            |w - a|^2 then, fp64 [].
        """
        ...

    def patch_errors(self, prediction: Tensor, target: Tensor, hidden: Tensor, *, weight: Tensor | None, normal: bool) -> Tensor:
        """Mean over a patch of weight (prediction - target)^2, summed in fp32; see `patch_loss.patch_loss`.

        Args:
            prediction: fp32 or bf16 [N, D].
            target: fp32 [N, D].
            hidden: bool [N]; other patches have an error of 0.
            weight: fp32 [D]; None: 1.
            normal: of targets with mean 0 and variance 1 in each patch.

        Returns:
            fp32 [N].
        """
        ...

    def patch_slopes(
        self, prediction: Tensor, target: Tensor, hidden: Tensor, factors: Tensor, *, weight: Tensor | None, normal: bool
    ) -> Tensor:
        """factors weight (prediction - target) of hidden patches, 0 of others; factors: fp32 [N]; in the prediction's type."""
        ...


class Reference:
    """`Kernels` on any device."""

    name = "reference"

    def square(self, gradient: Tensor, *, start: int) -> Tensor:
        """See `Kernels.square`."""
        total = torch.zeros((), dtype=torch.float64, device=gradient.device)
        for part in _parts(len(gradient)):
            total += gradient[part].double().square().sum()
        return total

    def move(
        self,
        weights: Tensor,
        gradient: Tensor | None,
        *,
        start: int,
        anchor: Tensor | None = None,
        copy: Tensor | None = None,
        rho: float = 1.0,
        pull: float = 0.0,
        scale: float = 0.0,
        draw: Draw | None = None,
        apart: bool = True,
    ) -> Tensor:
        """See `Kernels.move`."""
        sums = torch.zeros(3, dtype=torch.float64, device=weights.device)
        for part in _parts(len(weights)):
            p, a = weights[part], 0.0 if anchor is None else anchor[part]
            drawn = p.clone() if rho == 1.0 else a + rho * (p - a)
            target = drawn if gradient is None else drawn + pull * gradient[part].float()
            written = target
            if draw is not None:
                written = target + scale * normal(draw, start + part.start, len(p), p.device)
            for place, length in enumerate((target - drawn, written - target, *([written - a] if apart else []))):
                sums[place] += length.double().square().sum()
            p.copy_(written)
            if copy is not None:
                copy[part].copy_(written)
        if not apart:
            sums[2] = torch.nan
        return sums

    def project(
        self, weights: Tensor, *, start: int, anchor: Tensor | None = None, copy: Tensor | None = None, factor: float = 1.0
    ) -> Tensor:
        """See `Kernels.project`."""
        total = torch.zeros((), dtype=torch.float64, device=weights.device)
        for part in _parts(len(weights)):
            p, a = weights[part], 0.0 if anchor is None else anchor[part]
            if factor != 1.0:
                p.copy_(a + factor * (p - a))
            if copy is not None:
                copy[part].copy_(p)
            total += (p - a).double().square().sum()
        return total

    def patch_errors(self, prediction: Tensor, target: Tensor, hidden: Tensor, *, weight: Tensor | None, normal: bool) -> Tensor:
        """See `Kernels.patch_errors`."""
        squares = (prediction.float() - _normalised(target, normal)).square()
        return (squares if weight is None else squares * weight).mean(1) * hidden

    def patch_slopes(
        self, prediction: Tensor, target: Tensor, hidden: Tensor, factors: Tensor, *, weight: Tensor | None, normal: bool
    ) -> Tensor:
        """See `Kernels.patch_slopes`."""
        apart = (prediction.float() - _normalised(target, normal)) * (factors * hidden)[:, None]
        return (apart if weight is None else apart * weight).to(prediction.dtype)


def _normalised(target: Tensor, normal: bool) -> Tensor:
    """Each patch with mean 0 and variance 1, as MAE has it (arXiv 2111.06377, the released code's norm_pix_loss)."""
    if not normal:
        return target
    return (target - target.mean(1, keepdim=True)) / (target.var(1, keepdim=True) + 1e-6).sqrt()


def _parts(count: int) -> Iterator[slice]:
    for begin in range(0, count, PIECE):
        yield slice(begin, min(begin + PIECE, count))
