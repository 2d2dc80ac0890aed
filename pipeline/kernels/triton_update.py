"""The passes of `reference.py` for a GPU, in Triton; under TRITON_INTERPRET=1 they run anywhere, slowly.

Multiply-adds are not fused and roots are rounded to nearest, so that noise has the bits of the reference. Each program writes its
own sums, which are added afterwards: no atomic, so the same call gives the same bits.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.kernels.counter import GROUP, Draw
from pipeline.kernels.triton_patch import narrow, patch_errors, patch_slopes

__all__ = ["Triton"]

BLOCK = 65536 if os.environ.get("TRITON_INTERPRET") == "1" else 4096
"""Places of a program, a multiple of GROUP; an interpreted program costs as much whatever its size."""
SIXTEEN: Any = tl.constexpr(16)
UNIT: Any = tl.constexpr(2.0**-53)
TURN: Any = tl.constexpr(2.0**-32 * (math.pi / 2))


@triton.jit
def _pair(high, low, angle):
    """Two normal numbers of words uint32; see `counter.py`."""
    near = high >= 0x80000000
    flip = tl.where(near, 0xFFFFFFFF, 0).to(tl.uint32)
    wide = (high ^ flip).to(tl.int32, bitcast=True).to(tl.float32) * 2097152.0
    x = (wide + (((low ^ flip) & 0x1FFFFF).to(tl.int32, bitcast=True).to(tl.float32) + 0.5)) * UNIT
    u = tl.where(near, 1.0 - x, x)
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    z = tl.where(near & (exponent == 0), -x, mantissa - 1.0)
    e = exponent.to(tl.float32)
    z2 = z * z
    y = z * 7.0376836292e-2 + -1.1514610310e-1
    y = y * z + 1.1676998740e-1
    y = y * z + -1.2420140846e-1
    y = y * z + 1.4249322787e-1
    y = y * z + -1.6668057665e-1
    y = y * z + 2.0000714765e-1
    y = y * z + -2.4999993993e-1
    y = y * z + 3.3333331174e-1
    y = y * z * z2
    y = y + e * -2.12194440e-4
    y = y - z2 * 0.5
    radius = tl.sqrt_rn(-(z + y + e * 0.693359375))
    t = ((angle << 2) ^ 0x80000000).to(tl.int32, bitcast=True).to(tl.float32) * TURN
    t2 = t * t
    s = t2 * -1.9515295891e-4 + 8.3321608736e-3
    s = s * t2 + -1.6666654611e-1
    s = s * t2 * t + t
    c = t2 * 2.443315711809948e-5 + -1.388731625493765e-3
    c = c * t2 + 4.166664568298827e-2
    c = c * t2 * t2 - t2 * 0.5 + 1.0
    less = radius * (c - s)
    more = radius * (c + s)
    quarter = angle >> 30
    odd = (quarter & 1) == 1
    first = tl.where(odd, more, less)
    second = tl.where(odd, less, more)
    return tl.where(((quarter + 1) & 2) == 2, -first, first), tl.where((quarter & 2) == 2, -second, second)


@triton.jit
def _philox(low, high, words):
    """Four words of each counter."""
    k = tl.load(words).to(tl.uint32)
    m = tl.load(words + 1).to(tl.uint32)
    a = low
    b = high
    c = tl.load(words + 8).to(tl.uint32) + tl.zeros_like(low)
    d = tl.load(words + 9).to(tl.uint32) + tl.zeros_like(low)
    one = tl.full(low.shape, 0xD2511F53, tl.uint32)
    other = tl.full(low.shape, 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(10):
        p = tl.umulhi(a, one)
        q = tl.umulhi(c, other)
        b, d, a, c = c * other, a * one, q ^ b ^ k, p ^ d ^ m
        k = (k + 0x9E3779B9).to(tl.uint32)
        m = (m + 0xBB67AE85).to(tl.uint32)
    return a, b, c, d


@triton.jit
def _turn(x, by: tl.constexpr):
    return (x << by) | (x >> (32 - by))


@triton.jit
def _quarter(a, b, c, d):
    a = a + b
    d = _turn(d ^ a, 16)
    c = c + d
    b = _turn(b ^ c, 12)
    a = a + b
    d = _turn(d ^ a, 8)
    c = c + d
    b = _turn(b ^ c, 7)
    return a, b, c, d


@triton.jit
def _word(words, place: tl.constexpr, like):
    return tl.load(words + place).to(tl.uint32) + tl.zeros_like(like)


@triton.jit
def _chacha(low, high, words):
    """The twelve words of each block that numbers are made of; see `counter.py`."""
    x0 = tl.full(low.shape, 0x61707865, tl.uint32)
    x1 = tl.full(low.shape, 0x3320646E, tl.uint32)
    x2 = tl.full(low.shape, 0x79622D32, tl.uint32)
    x3 = tl.full(low.shape, 0x6B206574, tl.uint32)
    x4, x5, x6, x7 = _word(words, 0, low), _word(words, 1, low), _word(words, 2, low), _word(words, 3, low)
    x8, x9, x10, x11 = _word(words, 4, low), _word(words, 5, low), _word(words, 6, low), _word(words, 7, low)
    x12, x13, x14, x15 = low, high, _word(words, 8, low), _word(words, 9, low)
    for _ in range(10):
        x0, x4, x8, x12 = _quarter(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter(x3, x4, x9, x14)
    x0 += 0x61707865
    x1 += 0x3320646E
    x2 += 0x79622D32
    x4 += _word(words, 0, low)
    x5 += _word(words, 1, low)
    x6 += _word(words, 2, low)
    x8 += _word(words, 4, low)
    x9 += _word(words, 5, low)
    x10 += _word(words, 6, low)
    x12 += low
    x13 += high
    x14 += _word(words, 8, low)
    return x0, x1, x2, x4, x5, x6, x8, x9, x10, x12, x13, x14


@triton.jit
def _one(p, g, a, q, first, start, count, rho, pull, scale, number, sums, KEEP: tl.constexpr, NOISE: tl.constexpr):
    """Move the places `first` of the vector; the three sums with theirs."""
    place = first - start
    here = (place >= 0) & (place < count)
    was = tl.load(p + place, here, 0.0)
    centre = tl.load(a + place, here, 0.0) if a is not None else was * 0.0
    if KEEP:
        drawn = was
    elif a is not None:
        drawn = centre + rho * (was - centre)
    else:
        drawn = rho * was
    target = drawn + pull * tl.load(g + place, here, 0.0).to(tl.float32) if g is not None else drawn
    written = target + scale * number if NOISE else target
    tl.store(p + place, written, here)
    if q is not None:
        tl.store(q + place, narrow(written), here)
    moved = tl.where(here, target - drawn, 0.0).to(tl.float64)
    made = tl.where(here, written - target, 0.0).to(tl.float64)
    apart = tl.where(here, written - centre if a is not None else written, 0.0).to(tl.float64)
    x, y, z = sums
    return x + tl.sum(moved * moved), y + tl.sum(made * made), z + tl.sum(apart * apart)


@triton.jit
def _move(p, g, a, q, out, words, start, count, rho, pull, scale, KEEP: tl.constexpr, CIPHER: tl.constexpr, BLOCK: tl.constexpr):
    base = (start // BLOCK + tl.program_id(0)).to(tl.int64) * BLOCK
    zero = tl.zeros((), tl.float64)
    t = (zero, zero, zero)
    if CIPHER == 0:
        t = _one(p, g, a, q, base + tl.arange(0, BLOCK), start, count, rho, pull, scale, 0.0, t, KEEP, False)
    elif CIPHER == 1:
        counter = base // 4 + tl.arange(0, BLOCK // 4)
        w0, w1, w2, w3 = _philox((counter & 0xFFFFFFFF).to(tl.uint32), (counter >> 32).to(tl.uint32), words)
        first = counter // SIXTEEN * (4 * SIXTEEN) + counter % SIXTEEN
        n0, n1 = _pair(w0, (w1 & 0xFF) << 13, w1 & 0xFFFFFF00)
        t = _one(p, g, a, q, first, start, count, rho, pull, scale, n0, t, KEEP, True)
        t = _one(p, g, a, q, first + SIXTEEN, start, count, rho, pull, scale, n1, t, KEEP, True)
        n2, n3 = _pair(w2, (w3 & 0xFF) << 13, w3 & 0xFFFFFF00)
        t = _one(p, g, a, q, first + 2 * SIXTEEN, start, count, rho, pull, scale, n2, t, KEEP, True)
        t = _one(p, g, a, q, first + 3 * SIXTEEN, start, count, rho, pull, scale, n3, t, KEEP, True)
    else:
        block = base // 8 + tl.arange(0, BLOCK // 8)
        first = block * 8
        w0, w1, w2, w4, w5, w6, w8, w9, w10, w12, w13, w14 = _chacha(
            (block & 0xFFFFFFFF).to(tl.uint32), (block >> 32).to(tl.uint32), words
        )
        n0, n1 = _pair(w0, w1 >> 11, w2)
        t = _one(p, g, a, q, first, start, count, rho, pull, scale, n0, t, KEEP, True)
        t = _one(p, g, a, q, first + 1, start, count, rho, pull, scale, n1, t, KEEP, True)
        n2, n3 = _pair(w4, w5 >> 11, w6)
        t = _one(p, g, a, q, first + 2, start, count, rho, pull, scale, n2, t, KEEP, True)
        t = _one(p, g, a, q, first + 3, start, count, rho, pull, scale, n3, t, KEEP, True)
        n4, n5 = _pair(w8, w9 >> 11, w10)
        t = _one(p, g, a, q, first + 4, start, count, rho, pull, scale, n4, t, KEEP, True)
        t = _one(p, g, a, q, first + 5, start, count, rho, pull, scale, n5, t, KEEP, True)
        n6, n7 = _pair(w12, w13 >> 11, w14)
        t = _one(p, g, a, q, first + 6, start, count, rho, pull, scale, n6, t, KEEP, True)
        t = _one(p, g, a, q, first + 7, start, count, rho, pull, scale, n7, t, KEEP, True)
    x, y, z = t
    sums = out + 3 * tl.program_id(0)
    tl.store(sums, x)
    tl.store(sums + 1, y)
    tl.store(sums + 2, z)


@triton.jit
def _square(g, out, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(g + place, place < count, 0.0).to(tl.float64)
    tl.store(out + tl.program_id(0), tl.sum(value * value))


@triton.jit
def _project(p, a, q, out, count, factor, DRAW: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = place < count
    was = tl.load(p + place, here, 0.0)
    centre = tl.load(a + place, here, 0.0) if a is not None else was * 0.0
    if DRAW:
        was = centre + factor * (was - centre)
        tl.store(p + place, was, here)
    if q is not None:
        tl.store(q + place, narrow(was), here)
    apart = (was - centre).to(tl.float64)
    tl.store(out + tl.program_id(0), tl.sum(apart * apart))


class Triton:
    """`Kernels` on a GPU."""

    name = "triton"

    def square(self, gradient: Tensor, *, start: int) -> Tensor:
        """See `Kernels.square`."""
        out = _sums(gradient, _programs(0, len(gradient)), 1)
        if len(out):
            _square[(len(out),)](gradient, out, len(gradient), BLOCK=BLOCK)
        return out.sum()

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
        out, count = _sums(weights, _programs(start, len(weights)), 3), len(weights)
        cipher = {"": 0, "philox": 1, "chacha20": 2}[draw.cipher if draw else ""]
        numbers = (start, count, float(rho), float(pull), float(scale))
        if len(out):
            options: Any = {"KEEP": rho == 1.0, "CIPHER": cipher, "BLOCK": BLOCK, "enable_fp_fusion": False}
            _move[(len(out),)](weights, gradient, anchor, copy, out, _words(draw, weights), *numbers, **options)
        return out.sum(0)

    def project(
        self, weights: Tensor, *, start: int, anchor: Tensor | None = None, copy: Tensor | None = None, factor: float = 1.0
    ) -> Tensor:
        """See `Kernels.project`."""
        out = _sums(weights, _programs(0, len(weights)), 1)
        if len(out):
            options: Any = {"DRAW": factor != 1.0, "BLOCK": BLOCK, "enable_fp_fusion": False}
            _project[(len(out),)](weights, anchor, copy, out, len(weights), float(factor), **options)
        return out.sum()

    def patch_errors(self, prediction: Tensor, target: Tensor, hidden: Tensor, *, weight: Tensor | None, normal: bool) -> Tensor:
        """See `Kernels.patch_errors`."""
        return patch_errors(prediction, target, hidden, weight, normal)

    def patch_slopes(
        self, prediction: Tensor, target: Tensor, hidden: Tensor, factors: Tensor, *, weight: Tensor | None, normal: bool
    ) -> Tensor:
        """See `Kernels.patch_slopes`."""
        return patch_slopes(prediction, target, hidden, factors, weight, normal)


def _programs(start: int, count: int) -> int:
    """Blocks of the vector that a part of it touches, so that programs begin with a group."""
    assert BLOCK % GROUP == 0
    return -(-(start + count) // BLOCK) - start // BLOCK if count else 0


def _sums(like: Tensor, programs: int, width: int) -> Tensor:
    return torch.zeros((programs, width) if width > 1 else (programs,), dtype=torch.float64, device=like.device)


def _words(draw: Draw | None, like: Tensor) -> Tensor:
    """Eight words of the key and two of the step, in memory: as numbers in the call they would compile it anew."""
    if draw is None:
        return torch.zeros(10, dtype=torch.int64, device=like.device)
    key = [int.from_bytes(draw.key[place : place + 4], "little") for place in range(0, len(draw.key), 4)]
    return torch.tensor([*key, *[0] * (8 - len(key)), draw.step & 0xFFFFFFFF, draw.step >> 32], device=like.device)
