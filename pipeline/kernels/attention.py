"""Attention of transformers' models, in fp32 on processors.

torch's bf16 attention for CPUs takes three times as long backward as the one in fp32 (0.37 s and 0.12 s of a ViT-Base step of
eight images), so there its inputs are widened and its answer is narrowed again. On GPUs it stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["ATTENTION", "as_on_gpus"]

ATTENTION = "sdpa_fp32_on_cpu"
"""Its name for `attn_implementation`."""
_widened = ContextVar("widened", default=True)


@contextlib.contextmanager
def as_on_gpus() -> Iterator[None]:
    """In the body CPU tensors are attended as a GPU attends its own: for a trace of what a GPU will do."""
    token = _widened.set(False)
    try:
        yield
    finally:
        _widened.reset(token)


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """torch's scaled dot-product attention of [B, heads, tokens, width] each; [B, tokens, heads, width] in the query's dtype."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not _widened.get():
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)
    with torch.autocast("cpu", enabled=False):
        found, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), *args, **kwargs)
    return found.to(query.dtype), None


AttentionInterface.register(ATTENTION, _attend)
