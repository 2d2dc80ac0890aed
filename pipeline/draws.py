"""Random numbers by counter: each is a function of a sample's draw and a place, on any device and at any world size.

A *draw* is an int64 that a stream gives each sample at each step. Masks, noise and timesteps are made from it, so they do
not depend on which rank holds the sample, which samples stand beside it, or what was drawn before; a resumed run draws the
same. The hash is the finaliser of SplitMix64 (Steele, Lea & Flood, Fast splittable pseudorandom number generators, 2014).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["draws_of_rows", "normal", "uniform"]

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mixed(state: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 arithmetic wraps, and the shifts are made logical by masks."""
    state = (state ^ ((state >> 30) & ((1 << 34) - 1))) * _signed(_FIRST)
    state = (state ^ ((state >> 27) & ((1 << 37) - 1))) * _signed(_SECOND)
    return state ^ ((state >> 31) & ((1 << 33) - 1))


def _bits(draws_B: Tensor, num: int, purpose: int) -> Tensor:
    base = _mixed(draws_B.long() + _signed(_GOLDEN * (purpose + 1)))
    places = torch.arange(1, num + 1, device=draws_B.device, dtype=torch.int64) * _signed(_GOLDEN)
    return _mixed(base[:, None] + places)


def uniform(draws_B: Tensor, num: int, purpose: int = 0) -> Tensor:
    """Uniform numbers, fp32 [B, num] in [0, 1), multiples of 2**-24.

    Args:
        draws_B: int64 [B].
        num: numbers a sample.
        purpose: another purpose gives numbers independent of these.
    """
    return ((_bits(draws_B, num, purpose) >> 40) & 0xFFFFFF).float() * 2.0**-24


def normal(draws_B: Tensor, num: int, purpose: int = 0) -> Tensor:
    """Standard normal numbers, fp32 [B, num], by the transform of Box and Muller; at most 5.8 in size."""
    bits = _bits(draws_B, num, purpose)
    radius = 1.0 - ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24
    angle = ((bits >> 16) & 0xFFFFFF).float() * (2.0**-24 * 2 * math.pi)
    return torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(angle)


def draws_of_rows(rows: np.ndarray, seed: int, step: int = 0) -> np.ndarray:
    """The draws of samples at positions `rows` of a split, int64 [len(rows)], for a seed and a step."""
    base = _mixed(torch.tensor([_signed(seed)]) ^ _mixed(torch.tensor([_signed(step * _GOLDEN + 1)])))
    return _mixed(torch.from_numpy(np.asarray(rows, dtype=np.int64)) * _signed(_GOLDEN) + base).numpy()
