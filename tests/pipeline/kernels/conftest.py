"""Triton reads whether it interprets when it is first loaded, so this stands before any test."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
