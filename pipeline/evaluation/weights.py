"""Weights of extractors: read from local files that cannot run code, and loaded whole or not at all."""

from __future__ import annotations

import pickle

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError

__all__ = ["fill", "read_tensors"]


def read_tensors(path: str) -> dict[str, Tensor]:
    """Tensors by name of a local .safetensors file, or of any other file by torch's `weights_only`.

    Raises:
        CheckpointError: no such tensors are in it, or it would need to run code (TorchScript, pickled modules).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    cure = "give a plain state dict; TorchScript and pickles with code are not read"
    try:
        found = load_file(path) if path.endswith(".safetensors") else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"weights of an extractor: no tensors can be read from {path}", cure) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"weights of an extractor: {path} holds other things than tensors", cure)
    return found


def fill(network: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Load all weights of `network`; counters of batch normalisation, which some files leave out, do not matter.

    Raises:
        CheckpointError: tensors that are missing, unknown or of another shape; `name` says of which extractor.
    """
    cure = "give the weights of this architecture"
    try:
        wrong = network.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{name}: weights of other shapes: {error}", cure) from error
    lost = [key for key in (*wrong.missing_keys, *wrong.unexpected_keys) if not key.endswith("num_batches_tracked")]
    if lost:
        raise CheckpointError(f"{name}: {len(lost)} tensors do not fit, first {lost[0]}", cure)
