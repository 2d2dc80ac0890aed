"""Attention in fp32 on processors: the exact answer, rounded once, whatever autocast would do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from pipeline.kernels.attention import ATTENTION, as_on_gpus


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    found, weights = AttentionInterface()[ATTENTION](nn.Module(), query, key, value, None, is_causal=False)
    assert weights is None
    return found.transpose(1, 2)


def _parts(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 17, 8).to(dtype).requires_grad_() for _ in range(3))
    return query, key, value


def _exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """By its formula, softmax(q k^T / sqrt(d)) v, in fp64."""
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1) @ value


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_attention_is_the_exact_one_rounded_once(autocast: bool) -> None:
    parts = _parts(torch.bfloat16)
    doubles = [part.detach().double().requires_grad_() for part in parts]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = _attend(*parts)
    exact = _exact(*doubles)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, exact.bfloat16(), rtol=2**-8, atol=1e-5)
    slope = torch.randn_like(exact).bfloat16()
    found.backward(slope)
    exact.backward(slope.double())
    for part, double in zip(parts, doubles, strict=True):
        assert part.grad is not None and double.grad is not None and part.grad.dtype == torch.bfloat16
        torch.testing.assert_close(part.grad, double.grad.bfloat16(), rtol=2**-8, atol=1e-5)


def test_torch_itself_is_less_exact_in_bf16() -> None:
    """Or the test above could not tell the two apart."""
    parts = _parts(torch.bfloat16)
    exact = _exact(*(part.detach().double() for part in parts))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(functional.scaled_dot_product_attention(*parts), exact.bfloat16(), rtol=2**-8, atol=1e-5)


def test_a_trace_for_gpus_is_attended_as_they_do() -> None:
    parts = _parts(torch.bfloat16)
    widened = _attend(*parts)
    with as_on_gpus():
        assert torch.equal(_attend(*parts), functional.scaled_dot_product_attention(*parts))
    assert torch.equal(_attend(*parts), widened)


def test_fp32_attention_is_torchs() -> None:
    parts = _parts(torch.float32)
    assert torch.equal(_attend(*parts), functional.scaled_dot_product_attention(*parts))
