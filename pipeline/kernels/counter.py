"""Normal numbers by counter: a function of key, step and place alone, on any device, however the vector is cut.

Bits come from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), whose key of 64 bits is no
secret to keep, or from ChaCha20 (RFC 8439), with counter and nonce as `pipeline.privacy.noise` has them. Two numbers are made by
Box and Muller's transform of 53 bits (Philox: 40 of them) for the radius and 32 (24) for the angle, so that the tail reaches 8.6
(7.4) standard deviations.

The logarithm, sine and cosine are the polynomials of Moshier's Cephes, evaluated in fp32 by single multiplications and additions
in a fixed order: each implementation gives the same bits, which libraries of mathematics would not.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

__all__ = ["COSINE", "GROUP", "LANES", "LOGARITHM", "SINE", "Draw", "normal"]

LOW = 0xFFFFFFFF
LANES = 16
GROUP = 4 * LANES
"""Places that sixteen counters of Philox fill: the first number of each, the second, and so on, which keeps vectors in order."""
LOGARITHM = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
"""ln(1 + z) = z - z^2/2 + z^3 P(z)."""
SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


@dataclasses.dataclass(frozen=True, slots=True)
class Draw:
    """Which numbers. cipher: of the bits · key: 8 bytes for philox, 32 for chacha20; never printed · step: below 2^64"""

    cipher: Literal["philox", "chacha20"]
    key: bytes | bytearray = dataclasses.field(repr=False)
    step: int


def normal(draw: Draw, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Numbers of places `start` to `start + count`, N(0, 1), fp32 [count]."""
    if not count:
        return torch.empty(0, device=device)
    wide = 8 if draw.cipher == "chacha20" else GROUP
    first, last = start // wide, -(-(start + count) // wide)
    key = [int.from_bytes(draw.key[place : place + 4], "little") for place in range(0, len(draw.key), 4)]
    step = (draw.step & LOW, draw.step >> 32)
    if draw.cipher == "chacha20":
        counter = torch.arange(first, last, device=device)
        words = _chacha(counter, step, key)
        pairs = [_pair(words[n], words[n + 1] >> 11, words[n + 2]) for n in range(0, 16, 4)]
        numbers = torch.stack([number for pair in pairs for number in pair], dim=1)  # [blocks, 8]
    else:
        counter = torch.arange(first * LANES, last * LANES, device=device)
        words = _philox(counter, step, key)
        pairs = [_pair(words[n], (words[n + 1] & 0xFF) << 13, words[n + 1] & 0xFFFFFF00) for n in (0, 2)]
        numbers = torch.stack([number.view(-1, LANES) for pair in pairs for number in pair], dim=1)  # [groups, 4, 16]
    begin = start - first * wide
    return numbers.flatten()[begin : begin + count]


def _philox(counter: Tensor, step: tuple[int, int], key: list[int]) -> list[Tensor]:
    """Four words of 32 bits a counter, int64 each."""
    a, b = counter & LOW, counter >> 32 & LOW
    c, d = (torch.full_like(counter, word) for word in step)
    k, m = key
    for _ in range(10):
        # The product wraps as one of unsigned numbers does, so its upper half is right once the sign is masked.
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) & LOW ^ b ^ k, q & LOW, (p >> 32) & LOW ^ d ^ m, p & LOW
        k, m = (k + 0x9E3779B9) & LOW, (m + 0xBB67AE85) & LOW
    return [a, b, c, d]


def _chacha(block: Tensor, step: tuple[int, int], key: list[int]) -> list[Tensor]:
    """Sixteen words of 32 bits a block, int64 each."""
    head = [*(0x61707865, 0x3320646E, 0x79622D32, 0x6B206574), *key]
    start = [torch.full_like(block, word) for word in head] + [block & LOW, block >> 32]
    start += [torch.full_like(block, word) for word in step]
    x = list(start)
    for _ in range(10):
        for shift in (0, 1):  # columns, then diagonals
            for n in range(4):
                places = [n, 4 + (n + shift) % 4, 8 + (n + 2 * shift) % 4, 12 + (n + 3 * shift) % 4]
                _quarter(x, *places)
    return [(word + first) & LOW for word, first in zip(x, start, strict=True)]


def _quarter(x: list[Tensor], a: int, b: int, c: int, d: int) -> None:
    for left, right, turned, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        x[left] = (x[left] + x[right]) & LOW
        mixed = x[turned] ^ x[left]
        x[turned] = (mixed << by | mixed >> (32 - by)) & LOW


def _pair(high: Tensor, low: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Two normal numbers, fp32, of 32 + 21 bits for the radius and 32 for the angle, int64."""
    # What is small, of u and 1 - u, keeps all its bits: a radius near zero is as exact as a large one.
    near = high >= 1 << 31
    flip = torch.where(near, LOW, 0)
    x = ((high ^ flip).float() * 2.0**21 + (((low ^ flip) & 0x1FFFFF).float() + 0.5)) * 2.0**-53
    u = torch.where(near, 1.0 - x, x)
    bits = u.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23  # so that the mantissa lies between the roots of 1/2 and 2
    mantissa = (bits - (exponent << 23)).view(torch.float32)
    z = torch.where(near & (exponent == 0), -x, mantissa - 1.0)
    e, z2 = exponent.float(), z * z
    y = z * LOGARITHM[0] + LOGARITHM[1]
    for factor in LOGARITHM[2:]:
        y = y * z + factor
    y = y * z * z2
    y = y + e * -2.12194440e-4
    y = y - z2 * 0.5
    # torch's fp32 root on the CPU is not always the nearest number; that of fp64 rounds to it.
    radius = (-(z + y + e * 0.693359375)).double().sqrt().float()
    # An angle is a quarter and t within pi/4 of its middle: sqrt(2) cos = cos t - sin t there, sqrt(2) sin = cos t + sin t.
    turned = ((angle << 2) & LOW) - (1 << 31)
    t = turned.float() * (2.0**-32 * (math.pi / 2))
    t2 = t * t
    s = t2 * SINE[0] + SINE[1]
    s = s * t2 + SINE[2]
    s = s * t2 * t + t
    c = t2 * COSINE[0] + COSINE[1]
    c = c * t2 + COSINE[2]
    c = c * t2 * t2 - t2 * 0.5 + 1.0
    less, more, quarter = radius * (c - s), radius * (c + s), angle >> 30
    odd = (quarter & 1) == 1
    first, second = torch.where(odd, more, less), torch.where(odd, less, more)
    return torch.where(((quarter + 1) & 2) == 2, -first, first), torch.where((quarter & 2) == 2, -second, second)
