"""Sharded checkpoints that appear whole, and consolidated weights as safetensors.

Every rank writes, publishes and hashes its own files, and on the way back reads its own and those that all share, so what a
rank does stays the same at any number of ranks. `state.json`, which names them with their digests, is replaced last: a kill
at any moment leaves the older checkpoint. A checkpoint of another number of ranks is converted, once.

A save need not hold up the steps: a thread of each rank writes a copy, and once all ranks know that all have written theirs, it
is put in place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.decode import canonical, decode
from pipeline.engine.agreement import BEAT_SECONDS, Act, Group, agreed
from pipeline.engine.places import Places
from pipeline.engine.watchdog import beat
from pipeline.errors import CheckpointError, IntegrityError, UnlearnError
from pipeline.records import FileRef, record
from pipeline.storage import hash_file, join, publish_bytes, read_bytes

__all__ = ["Checkpoints", "Files", "TrainState", "load_weights", "save_weights"]

log = logging.getLogger("unlearn")

NAME = re.compile(r"step-\d+-[0-9a-f]{8}")


@record
class TrainState:
    """Where a phase stands: steps done, sample gradients spent, samples seen and their keys digest, per stream; `tally`: what
    noisy steps have measured."""

    step: int = 0
    sample_gradients: int = 0
    seconds: float = 0.0
    seen: tuple[int, ...] = ()
    digests: tuple[str, ...] = ()
    measures: dict[str, float] = dataclasses.field(default_factory=dict)
    tally: dict[str, float] = dataclasses.field(default_factory=dict)


@record
class Piece:
    """One file of a checkpoint, relative to its folder. The rank that wrote it reads it again; all read a shared one."""

    rank: int
    shared: bool
    file: FileRef


@record
class Saved:
    """Content of `state.json`: the newest checkpoint, whose files lie in `folder` beside it."""

    state: TrainState
    world_size: int
    config_digest: str
    folder: str
    pieces: tuple[Piece, ...]
    schema: Literal["checkpoint/2"] = "checkpoint/2"


class Files(NamedTuple):
    """What one rank wrote, relative to the folder: files that it alone reads again, and files that all ranks read."""

    own: Sequence[str]
    shared: Sequence[str]


class Savable(Protocol):
    """What a checkpoint saves beside the state. Folders are local."""

    def save(self, folder: str, *, copy: bool) -> Callable[[], Files]:
        """What writes the state of now; with `copy` it may be called later, from another thread."""

    def load(self, folder: str) -> None: ...

    def convert(self, folder: str, files: Sequence[str], target: str) -> None:
        """Make `target` from all `files` of a checkpoint, whatever its number of ranks; one process calls."""

    def load_converted(self, folder: str, target: str) -> None: ...


class _Pending:
    """A checkpoint that is not in place yet: what it is of, and this rank's part of writing it."""

    def __init__(self, *, state: TrainState, folder: str, write: Act[list[Piece]]) -> None:
        self.state, self.folder, self.write = state, folder, write
        # Not a daemon: an interpreter that ends under a writing thread may crash. A process that must end at once still does.
        self._thread = threading.Thread(target=write, name="checkpoint")

    def begin(self) -> None:
        """Write in the background."""
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it is written, or failed."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait until it is `done`; the watchdog sees that the process lives."""
        while not self.done:
            self._thread.join(BEAT_SECONDS)
            beat()

    def result(self) -> list[Piece]:
        """This rank's files. Raises what went wrong in writing them."""
        self.join()
        return self.write.result()


class Checkpoints:
    """The newest checkpoint of one phase.

    Args:
        folder: the run folder; checkpoints lie in its `checkpoints/<phase>/`.
        config_digest: checkpoints written under another configuration are ignored.
        fence: called on rank 0 right before a checkpoint is put in place or removed; what it raises is raised on all ranks.
        scratch: where a bucket's files lie on this machine, see `Places`.
    """

    def __init__(
        self,
        folder: str,
        phase: str,
        *,
        config_digest: str,
        group: Group,
        fence: Callable[[], None] = lambda: None,
        scratch: str = "",
    ) -> None:
        self._places = Places(folder, phase, scratch=scratch)
        self._digest, self._group, self._fence = config_digest, group, fence
        self._newest = ""
        self._mine: list[str] = []
        """What this rank wrote of the newest checkpoint, as far as it knows."""
        self._pending: _Pending | None = None

    @property
    def _first(self) -> bool:
        return self._group.rank == 0

    def save(self, backend: Savable, state: TrainState, *, wait: bool = True) -> None:
        """Write a checkpoint and put it in place of the older one; every rank must call.

        Args:
            wait: otherwise it is written while the caller goes on, and put in place by the next `settle` of all ranks.

        Raises:
            UnlearnError: a rank could not publish its files, or the fence is down; the older checkpoint stands.
        """
        self.settle()
        name = agreed(self._group, lambda: self._places.new_name(state.step))[0]
        # Not agreed on: the ranks meet inside, and one that fails there ends, which ends the others.
        write = backend.save(self._places.prepare(name), copy=not wait)
        self._pending = _Pending(state=state, folder=name, write=Act(lambda: self._published(name, write())))
        if wait:
            self._pending.write()
            self.settle()
        else:
            self._pending.begin()

    @property
    def pending(self) -> bool:
        """Whether a checkpoint is being written, or waits to be put in place; the same on all ranks."""
        return self._pending is not None

    @property
    def written(self) -> bool:
        """Whether this rank has nothing left to write."""
        return self._pending is None or self._pending.done

    def settle(self) -> None:
        """Wait for what is being written, and put it in place of the older checkpoint; every rank must call.

        Raises:
            UnlearnError: see `save`.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pieces = agreed(self._group, pending.result)
        except UnlearnError:
            # Half a checkpoint must not keep a full disk full.
            with contextlib.suppress(UnlearnError):
                self._places.drop(pending.folder, first=self._first)
            raise
        saved = Saved(
            state=pending.state,
            world_size=self._group.world_size,
            config_digest=self._digest,
            folder=pending.folder,
            pieces=tuple(piece for rank in pieces for piece in rank),
        )
        agreed(self._group, lambda: self._point(saved))
        if self._newest:
            # Each rank its own: one that removed all of them would keep the others waiting, the longer the more they are.
            for path in self._mine:
                self._places.remove(f"{self._newest}/{path}")
            self._group.barrier()
            self._places.drop(self._newest, first=self._first)
        self._newest, self._mine = pending.folder, [piece.file.uri for piece in pieces[self._group.rank]]

    def _published(self, name: str, files: Files) -> list[Piece]:
        named = [(False, path) for path in files.own] + [(True, path) for path in files.shared]
        return [Piece(rank=self._group.rank, shared=shared, file=self._places.put(name, path)) for shared, path in named]

    def _point(self, saved: Saved) -> None:
        if self._first:
            self._fence()
            self._places.point(canonical(saved))

    def read(self) -> Saved | None:
        """The newest checkpoint of this configuration, of any number of ranks, or None; its files are not looked at.

        Raises:
            IntegrityError: what should name it is no state of a checkpoint.
        """
        return self._look()[0]

    def _look(self) -> tuple[Saved | None, str]:
        """The newest checkpoint that can be used, and the digest of what names the newest one."""
        content, where = self._places.pointed(), self._places.pointer
        if content is None:
            return None, ""
        try:
            saved = decode(Saved, json.loads(content), where=where, error=IntegrityError)
        except (ValueError, IntegrityError) as fault:
            named = fault.message if isinstance(fault, IntegrityError) else f"{where}: not the state of a checkpoint"
            raise IntegrityError(named, self._places.cure) from None
        if not NAME.fullmatch(saved.folder):
            raise IntegrityError(f"{where}: {saved.folder!r} is no folder of a checkpoint", self._places.cure)
        self._newest = saved.folder
        return saved if saved.config_digest == self._digest else None, hashlib.sha256(content).hexdigest()

    def restore(self, backend: Savable) -> TrainState | None:
        """Load the newest checkpoint, if there is one, whatever number of ranks wrote it; every rank must call.

        Raises:
            IntegrityError: a file of the checkpoint is missing or changed; the same error on all ranks.
            CheckpointError: it holds other things than plain data.
        """
        self.settle()
        seen: list[Saved | None] = []
        if len(set(agreed(self._group, lambda: self._swept(seen)))) > 1:
            cure = "give all nodes one run folder: a shared disk or a bucket"
            raise IntegrityError(f"{self._places.pointer}: the ranks see different checkpoints", cure)
        saved = seen[0]
        if saved is None:
            return None
        if saved.world_size == self._group.world_size:
            agreed(self._group, lambda: self._fetched(saved))
            self._mine = [piece.file.uri for piece in saved.pieces if piece.rank == self._group.rank]
            backend.load(self._places.local(saved.folder))
        elif saved.state.step == 0:
            return None  # where the phase begins anyway; and there are no moments yet that could be converted
        else:
            self._resize(backend, saved)
        if self._first and saved.state.step:
            log.info("going on from step %d, saved by %d ranks", saved.state.step, saved.world_size)
        return saved.state

    def _swept(self, seen: list[Saved | None]) -> str:
        saved, digest = self._look()
        seen.append(saved)
        if self._first:
            self._fence()
        self._places.sweep(self._newest, first=self._first)
        return digest

    def _fetched(self, saved: Saved) -> None:
        for piece in saved.pieces:
            if piece.rank == self._group.rank and not piece.shared:
                self._places.get(saved.folder, piece.file)
        with self._places.alone():
            for piece in saved.pieces:
                if piece.shared:
                    self._places.get(saved.folder, piece.file)

    def _resize(self, backend: Savable, saved: Saved) -> None:
        if self._first:
            log.info("the checkpoint of %d ranks is converted for %d", saved.world_size, self._group.world_size)
        name = f"{saved.folder}.{agreed(self._group, lambda: secrets.token_hex(4))[0]}.part"
        target = self._places.local(name)
        agreed(self._group, lambda: self._converted(backend, saved, target), patient=True)
        backend.load_converted(self._places.local(saved.folder), target)
        self._group.barrier()  # others may still be reading
        self._places.drop(name, first=self._first)
        self.save(backend, saved.state)  # the next restart, and a step back, find it at this number of ranks

    def _converted(self, backend: Savable, saved: Saved, target: str) -> None:
        if self._places.shared and not self._first:
            return
        with self._places.alone():
            if os.path.exists(target):
                return  # another process of this machine was first
            for piece in saved.pieces:
                self._places.get(saved.folder, piece.file)
            os.makedirs(target)
            backend.convert(self._places.local(saved.folder), [piece.file.uri for piece in saved.pieces], target)

    def clear(self) -> None:
        """Remove the checkpoints once the phase's weights are published: they hold optimizer states of forget data."""
        if self._pending is not None:
            self._pending.join()
            self._pending = None
        self._group.barrier()
        agreed(self._group, self._cleared)

    def _cleared(self) -> None:
        if self._first:
            self._fence()
        self._places.clear(first=self._first)
        self._newest, self._mine = "", []


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
