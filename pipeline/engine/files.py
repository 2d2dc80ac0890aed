"""How DeepSpeed's engine meets files: what it would write is held, it loads plain data only, and looks for no other rank's."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import CheckpointError, StorageError

__all__ = ["SHARD", "Copies", "guard_files", "plain_loading", "whole_files"]

SHARD = "zero_pp_rank_"
"""In the names of files that one rank alone reads."""
FORCE, FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
WRITER = ("inline_container", "iostream error")
"""One of them is in what torch says of files that it could not write: the second where only the end found no room."""
FULL = 1 << 20
"""Bytes: with fewer a disk is full, even if a small file would still find room."""
REFUSED = re.compile(r"GLOBAL (\S+)")


@contextlib.contextmanager
def plain_loading(where: str) -> Iterator[None]:
    """Limit `torch.load` to tensors, plain data and four plain classes of DeepSpeed, whatever its caller asks for.

    Raises:
        CheckpointError: a file holds something else; none of it was executed.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = {name: os.environ.pop(name, None) for name in (FORCE, FORBID)}
    known = torch.serialization.get_safe_globals()
    os.environ[FORCE] = "1"
    torch.serialization.add_safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address])
    try:
        yield
    except pickle.UnpicklingError as fault:
        found = REFUSED.search(str(fault))
        what = found[1] if found else "something"
        cure = "this program did not write it so: remove the checkpoint and run again"
        raise CheckpointError(f"{where}: holds {what}, which is not plain data", cure) from None
    finally:
        # torch's own context would take away what one around it had added.
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(known)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def whole_files(folder: str) -> Iterator[None]:
    """Have a name for what happens where `torch.save` cannot write a file below `folder` to its end.

    Raises:
        StorageError: no space left, or what the disk said.
    """
    try:
        yield
    except (OSError, RuntimeError) as fault:
        # torch's writer tells of a full disk as of a place in the file where it did not expect to be.
        if not isinstance(fault, OSError) and not any(words in str(fault) for words in WRITER):
            raise
        full = getattr(fault, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) or shutil.disk_usage(folder).free < FULL
        why = "no space left" if full else str(fault).splitlines()[0]
        cure = "free space, or choose another output folder (a bucket's files wait below TMPDIR), then run again"
        raise StorageError(f"{folder}: not written: {why}", cure) from fault


class Copies:
    """Copies of states in the machine's memory, which is used again: fresh memory costs several times what copying does."""

    def __init__(self) -> None:
        self._spare: dict[tuple[object, ...], list[Tensor]] = {}
        self._lent: list[Tensor] = []

    def of(self, state: Any, *, views: bool = False) -> Any:
        """The same nested state with tensors of its own: what moves on later does not change it.

        Tensors that were one stay one, and a view brings only its own elements along.

        Args:
            views: only such tensors become their own as are parts of larger ones, which a file would hold whole.
        """
        known: dict[tuple[object, ...], Tensor] = {}

        def copied(item: Any) -> Any:
            if isinstance(item, Tensor):
                key = (item.device, item.dtype, item.data_ptr(), item.shape, item.stride())
                if key not in known or not item.numel():
                    known[key] = item if views and not _is_part(item) else self._held(item)
                return known[key]
            if isinstance(item, dict):
                made = copy.copy(item)  # of its own kind: ordered, with defaults
                made.update({name: copied(value) for name, value in item.items()})
                return made
            if type(item) in (list, tuple):
                return type(item)(copied(value) for value in item)
            return copy.deepcopy(item)

        return copied(state)

    def _held(self, tensor: Tensor) -> Tensor:
        if tensor.numel() > 1 and not any(tensor.stride()):  # one number that is shown many times stays one
            return tensor.detach()[(0,) * tensor.dim()].cpu().clone().expand(tensor.shape)
        spare = self._spare.get((tensor.dtype, tensor.shape))
        target = spare.pop() if spare else torch.empty(tensor.shape, dtype=tensor.dtype)
        self._lent.append(target)
        return target.copy_(tensor.detach())

    def give_back(self) -> None:
        """All copies made so far are needed no longer."""
        for tensor in self._lent:
            self._spare.setdefault((tensor.dtype, tensor.shape), []).append(tensor)
        self._lent.clear()


def _is_part(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()


def guard_files(engine: Any, rank: int, held: list[tuple[Any, str]]) -> None:
    """Have DeepSpeed load plain data only, put into `held` what it would write where, and look for no other rank's files."""
    files = engine.checkpoint_engine

    def save(state_dict: Any, path: str) -> None:
        held.append((state_dict, path))

    def load(path: str, map_location: Any = None) -> Any:
        with plain_loading(path):
            return torch.load(path, map_location=map_location, weights_only=True)

    def states(folder: str, tag: str) -> list[str]:
        # Its own way is to list the folder, which holds as many files as there are ranks.
        first = "0" if engine.load_universal_checkpoint() else None
        return [engine._get_ckpt_name(folder, tag, pp_placeholder=first)]

    def shards(folder: str, tag: str, bf16_mode: bool) -> list[str | None]:
        own = engine._get_rank_zero_ckpt_name(folder, tag, engine.checkpoint_mp_rank, rank, bf16_mode)
        return [own if other == rank else None for other in range(engine.loaded_checkpoint_dp_world_size)]

    engine._copy_recovery_script = lambda folder: None  # a program beside each checkpoint, by one rank while the others wait
    files.save, files.load, engine._get_all_ckpt_names, engine._get_all_zero_checkpoint_names = save, load, states, shards
