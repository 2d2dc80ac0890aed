"""The Triton kernels give the bits of the reference: interpreted here, compiled on a GPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from pipeline.kernels.counter import Draw
from pipeline.kernels.reference import Kernels, Reference
from tests.pipeline.kernels.test_cpu import vectors

DRAWS = [None, Draw("philox", bytes(range(8)), 3 << 33), Draw("chacha20", bytes(range(32)), 3 << 33)]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> tuple[Kernels, str]:
    pytest.importorskip("triton")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if interpreted != (request.param == "cpu"):
        pytest.skip("kernels are interpreted here" if interpreted else "kernels are compiled here")
    from pipeline.kernels.triton_update import Triton

    return Triton(), request.param


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.cipher if draw else "none")
@pytest.mark.parametrize(
    ("count", "start", "kind", "anchored", "rho"),
    [
        (0, 5, "fp32", True, 1.0),
        (1003, 0, "fp32", True, 0.9),
        (70_001, (1 << 36) - 333, "bf16", False, 1.0),
        (300, 17, "none", False, 0.9),
    ],
)
def test_each_pass_is_the_reference_bit_for_bit(
    kernels: tuple[Kernels, str], draw: Draw | None, count: int, start: int, kind: str, anchored: bool, rho: float
) -> None:
    answers, (compiled, device) = [], kernels
    for one in (Reference(), compiled):
        weights, gradient, anchor, copy = (tensor.to(device) for tensor in vectors(count, seed=count, low=kind == "bf16"))
        options: Any = {"start": start, "anchor": anchor if anchored else None, "copy": copy}
        length = one.square(gradient, start=start)
        sums = one.move(weights, None if kind == "none" else gradient, rho=rho, pull=-0.013, scale=0.07, draw=draw, **options)
        moved, first = weights.clone(), copy.clone()
        apart = one.project(weights, factor=0.3, **options)
        second = copy.clone()
        copy.zero_()
        stays = one.project(weights, **options)
        assert torch.equal(copy, second)
        answers.append(([moved, first, weights, copy], [length, *sums, apart, stays]))
    (theirs, their_sums), (ours, our_sums) = answers
    for left, right in zip(theirs, ours, strict=True):
        assert torch.equal(left, right)
    for wanted, found in zip(their_sums, our_sums, strict=True):
        assert float(found) == pytest.approx(float(wanted), rel=1e-11, abs=0)


def test_what_is_not_finite_shows_in_the_length(kernels: tuple[Kernels, str]) -> None:
    compiled, device = kernels
    for bad in (float("inf"), float("nan")):
        gradient = torch.zeros(1000, device=device)
        gradient[777] = bad
        assert not torch.isfinite(compiled.square(gradient, start=0))
