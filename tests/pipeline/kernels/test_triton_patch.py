"""The patch kernels in Triton beside the reference: interpreted here, compiled on a GPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from pipeline.kernels.reference import Reference


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize(("weighted", "normal"), [(False, False), (True, True)])
def test_errors_and_slopes_are_those_of_the_reference(device: str, low: bool, weighted: bool, normal: bool) -> None:
    pytest.importorskip("triton")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if interpreted != (device == "cpu"):
        pytest.skip("kernels are interpreted here" if interpreted else "kernels are compiled here")
    from pipeline.kernels.triton_patch import patch_errors, patch_slopes

    generator = torch.Generator().manual_seed(1)
    prediction, target = (torch.randn(9, 75, generator=generator) for _ in range(2))
    prediction = prediction.bfloat16() if low else prediction
    hidden, factors = torch.rand(9, generator=generator) < 0.6, torch.rand(9, generator=generator)
    weight = torch.rand(75, generator=generator) if weighted else None
    given: list[Any] = [
        tensor if tensor is None else tensor.to(device) for tensor in (prediction, target, hidden, factors, weight)
    ]
    options: Any = {"weight": given[4], "normal": normal}
    errors = patch_errors(*given[:3], *options.values())
    torch.testing.assert_close(errors, Reference().patch_errors(*given[:3], **options), rtol=1e-5, atol=0)
    slopes, wanted = patch_slopes(*given[:4], *options.values()), Reference().patch_slopes(*given[:4], **options)
    assert slopes.dtype == prediction.dtype
    torch.testing.assert_close(slopes, wanted, rtol=2.0**-7 if low else 1e-4, atol=1e-6)
