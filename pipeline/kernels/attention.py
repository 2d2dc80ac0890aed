"""Attention of transformers' models, in fp32 on processors.

torch's bf16 attention for CPUs takes three times as long backward as the one in fp32 (0.37 s and 0.12 s of a ViT-Base step of
eight images), so there its inputs are widened and its answer is narrowed again. On GPUs it stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["ATTENTION"]

ATTENTION = "sdpa_fp32_on_cpu"
"""Its name for `attn_implementation`."""


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """torch's scaled dot-product attention of [B, heads, tokens, width] each; [B, tokens, heads, width] in the query's dtype."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)
    with torch.autocast("cpu", enabled=False):
        found, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), *args, **kwargs)
    return found.to(query.dtype), None


AttentionInterface.register(ATTENTION, _attend)
