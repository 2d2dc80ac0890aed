"""Sharded checkpoints that appear whole, and consolidated weights as safetensors.

A checkpoint folder is renamed into place after its `state.json`, which holds the training state and the digest of
every other file; a kill at any moment leaves the older one. Sharded files are DeepSpeed's and local: when the run
folder is in a bucket they lie in a scratch folder of this machine, and only consolidated weights are published.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from typing import Any, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.decode import canonical, decode
from pipeline.engine.distributed import ProcessGroup
from pipeline.errors import CheckpointError, IntegrityError
from pipeline.records import FileRef, record
from pipeline.storage import hash_file, is_local, join, list_files, move_in, publish_bytes, read_bytes, remove_tree

__all__ = ["Checkpoints", "TrainState", "load_weights", "save_weights"]


@record
class TrainState:
    """Where a phase stands: steps done, sample gradients spent, samples seen and their keys digest, per stream."""

    step: int = 0
    sample_gradients: int = 0
    seconds: float = 0.0
    seen: tuple[int, ...] = ()
    digests: tuple[str, ...] = ()
    measures: dict[str, float] = dataclasses.field(default_factory=dict)


@record
class Saved:
    """Content of `state.json`."""

    state: TrainState
    world_size: int
    config_digest: str
    files: tuple[FileRef, ...]


class Savable(Protocol):
    """What a checkpoint saves beside the state."""

    def save(self, folder: str) -> None: ...
    def load(self, folder: str) -> None: ...


class Checkpoints:
    """The newest checkpoint of one phase.

    Args:
        folder: the run folder; checkpoints lie in its `checkpoints/<phase>/`.
        config_digest: checkpoints written under another configuration are ignored.
    """

    def __init__(self, folder: str, phase: str, *, config_digest: str, group: ProcessGroup) -> None:
        run = folder if is_local(folder) else os.path.join(tempfile.gettempdir(), "i2i-unlearn", os.path.basename(folder))
        self._base = os.path.join(run, "checkpoints", phase)
        self._digest, self._group = config_digest, group

    def _last(self) -> str:
        return os.path.join(self._base, "last")

    def save(self, backend: Savable, state: TrainState) -> None:
        """Write a checkpoint and put it in place of the older one; every rank must call."""
        part = os.path.join(self._base, "next.part")
        if self._group.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            os.makedirs(part, exist_ok=True)
        self._group.barrier()
        backend.save(part)
        self._group.barrier()
        if self._group.rank == 0:
            files = tuple(dataclasses.replace(hash_file(uri), uri=os.path.relpath(uri, part)) for uri in list_files(part))
            saved = Saved(state=state, world_size=self._group.world_size, config_digest=self._digest, files=files)
            publish_bytes(os.path.join(part, "state.json"), canonical(saved))
            move_in(part, self._last())
        self._group.barrier()

    def read(self) -> Saved | None:
        """The saved state, or None when there is none for this configuration and world size.

        Raises:
            IntegrityError: a file of the checkpoint is missing or changed.
        """
        uri = os.path.join(self._last(), "state.json")
        if not os.path.exists(uri):
            return None
        saved = decode(Saved, json.loads(read_bytes(uri)), where=uri, error=IntegrityError)
        if saved.config_digest != self._digest or saved.world_size != self._group.world_size:
            return None
        for ref in saved.files:
            path = os.path.join(self._last(), ref.uri)
            if not os.path.exists(path) or hash_file(path).sha256 != ref.sha256:
                raise IntegrityError(f"{path}: not the bytes that were saved", "remove the checkpoint folder and run again")
        return saved

    def restore(self, backend: Savable) -> TrainState | None:
        """Load the newest checkpoint, if there is one; every rank must call."""
        saved = self.read()
        self._group.barrier()
        if saved is None:
            return None
        backend.load(self._last())
        return saved.state

    def clear(self) -> None:
        """Remove sharded files once the phase's weights are published: they hold optimizer states of forget data."""
        self._group.barrier()
        if self._group.rank == 0:
            shutil.rmtree(self._last(), ignore_errors=True)
            remove_tree(os.path.join(self._base, "next.part"))


def save_weights(weights: dict[str, Tensor], folder: str, name: str) -> str:
    """Publish consolidated weights as `checkpoints/<name>/model.safetensors`; returns that relative path."""
    relative = join("checkpoints", name, "model.safetensors")
    content = safetensors.torch.save({key: weights[key].contiguous() for key in sorted(weights)}, {"format": "pt"})
    publish_bytes(join(folder, relative), content)
    return relative


def load_weights(model: nn.Module, uri: str, expected_sha256: str | None = None) -> None:
    """Load a safetensors file into `model`, strictly.

    Raises:
        IntegrityError: the file's digest is not the expected one.
        CheckpointError: not safetensors, another architecture, or non-finite values.
    """
    if expected_sha256 is not None and hash_file(uri).sha256 != expected_sha256:
        raise IntegrityError(f"{uri}: not the weights that were recorded", "restore the file, or run the stage again")
    try:
        weights = safetensors.torch.load(read_bytes(uri))
    except SafetensorError as fault:
        raise CheckpointError(f"{uri}: not a safetensors file: {fault}", "give weights saved as safetensors") from None
    wanted: dict[str, Any] = dict(model.state_dict())
    faults = [f"missing {name}" for name in wanted if name not in weights]
    faults += [f"unknown {name}" for name in weights if name not in wanted]
    faults += [
        f"{name} has shape {list(weights[name].shape)}, the model {list(wanted[name].shape)}"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            f"{uri}: weights of another architecture: {'; '.join(faults[:3])}{more}", "correct the model section or the weights"
        )
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{uri}: {name} holds values that are not finite", "give weights from a sound run")
    model.load_state_dict(weights)
