"""What a device makes of the precision that a run asks for."""

from __future__ import annotations

import torch

__all__ = ["emulated"]

BF16 = ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16")
"""Instructions that multiply in bf16, as torch calls them: Intel and AMD, then ARM."""


def emulated(precision: str, device: torch.device) -> str:
    """Why a run in this precision is slower here than in fp32, and the cure; empty where it is not, or where torch cannot tell.

    On a processor without any of these instructions torch widens, multiplies and rounds: ViT-Base's step took 3.8 times as long
    in bf16 and under autocast as in fp32, a convolutional auto-encoder's 3.8 times (forward and backward, two cores).

    Args:
        precision: of the engine.
        device: that computes.
    """
    if precision == "fp32" or _multiplies_bf16(device):
        return ""
    kind = "GPU" if device.type == "cuda" else "processor"
    slow = f"engine.precision: {precision} on a {kind} without bf16 instructions: torch emulates them, which is slower than fp32"
    return f"{slow} (three to four times on a processor); set engine.precision=fp32"


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    look = getattr(torch.cpu, "get_capabilities", None)  # newer than the oldest torch that is allowed
    return look is None or any(look().get(name, False) for name in BF16)
