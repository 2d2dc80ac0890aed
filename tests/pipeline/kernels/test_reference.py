"""The reference is the formula: each pass compared with it in fp64, and steps that cost only what they need."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.kernels.counter import Draw, normal
from pipeline.kernels.reference import PIECE, Reference

COUNT = PIECE + 1001
DRAW = Draw("philox", bytes(8), 2)


def some(seed: int) -> torch.Tensor:
    return torch.randn(COUNT, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("rho", [1.0, 0.8])
def test_a_step_is_its_formula(anchored: bool, rho: float) -> None:
    weights, gradient, anchor = some(0), some(1), some(2)
    p, g, a = (tensor.double() for tensor in (weights, gradient, anchor if anchored else torch.zeros(COUNT)))
    copy = torch.zeros(COUNT, dtype=torch.bfloat16)
    centre = anchor if anchored else None
    sums = Reference().move(weights, gradient, start=5, anchor=centre, copy=copy, rho=rho, pull=-0.3, scale=0.05, draw=DRAW)
    noise = 0.05 * normal(DRAW, 5, COUNT).double()
    wanted = a + rho * (p - a) - 0.3 * g + noise
    torch.testing.assert_close(weights.double(), wanted, rtol=0, atol=2e-6)
    assert torch.equal(copy, weights.bfloat16())
    squares = [(0.3 * g).square().sum(), noise.square().sum(), (weights.double() - a).square().sum()]
    for found, square in zip(sums, squares, strict=True):
        assert float(found) == pytest.approx(float(square), rel=1e-5)
    distance = math.sqrt(float(sums[2]))
    apart = Reference().project(weights, start=5, anchor=centre, copy=copy, factor=1.0 / distance)
    assert float(apart) == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(weights.double(), a + (wanted - a) / distance, rtol=0, atol=1e-6)
    assert torch.equal(copy, weights.bfloat16())


def test_a_factor_of_one_and_a_step_of_nothing_write_what_was_there() -> None:
    weights, given = some(3), some(3)
    copy = torch.zeros(COUNT, dtype=torch.bfloat16)
    assert float(Reference().project(weights, start=0, anchor=some(4), copy=copy)) > 0
    assert torch.equal(copy, given.bfloat16())
    assert Reference().move(weights, None, start=0, anchor=some(4)).tolist()[:2] == [0.0, 0.0]
    assert torch.equal(weights, given)


def test_nothing_has_no_length() -> None:
    empty = torch.empty(0)
    assert float(Reference().square(empty, start=3)) == 0.0
    assert Reference().move(empty, empty, start=3, draw=DRAW).tolist() == [0.0, 0.0, 0.0]
