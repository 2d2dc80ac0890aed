"""Where DeepSpeed keeps the fp32 masters of this rank, as pieces of the one vector of all weights that move.

The vector joins the flattened parameters in the order of their names in the model, so that a place in it means the same weight at
every world size and ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError

__all__ = ["Piece", "Run", "pieces_of", "runs_of"]


class Piece(NamedTuple):
    """A stretch of one parameter that this rank holds.

    name: of the parameter · master: fp32 [count], a view of what the optimizer moves · owner: the tensor of the optimizer's
    groups that it is a view of, whose `.grad` has the gradient at the same places · position: its first place in the flattened
    owner, start: in the vector, offset: in the parameter
    """

    name: str
    master: Tensor
    owner: Tensor
    position: int
    start: int
    offset: int


class Run(NamedTuple):
    """Pieces that follow one another both in their owner and in the vector, so that one call moves them.

    pieces: in order, of one owner · master: fp32 [count], a view of the owner · start: place of its first element in the vector
    """

    pieces: tuple[Piece, ...]
    master: Tensor
    start: int

    @property
    def owner(self) -> Tensor:
        """The tensor of the optimizer's groups that it is a stretch of."""
        return self.pieces[0].owner

    def part(self, whole: Tensor) -> Tensor:
        """The same places of a tensor that is laid out as the owner, contiguous [count]."""
        first = self.pieces[0].position
        return whole.detach().flatten()[first : first + len(self.master)]


def runs_of(pieces: Sequence[Piece]) -> list[Run]:
    """The pieces, joined where they can be."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and piece.owner is last.owner
            and piece.position == last.position + len(last.master)
            and piece.start == last.start + len(last.master)
        ):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    found = []
    for group in groups:
        first, count = group[0], sum(len(piece.master) for piece in group)
        master = first.owner.detach().flatten()[first.position : first.position + count] if len(group) > 1 else first.master
        found.append(Run(tuple(group), master, first.start))
    return found


def pieces_of(engine: Any, names: Sequence[str], optimizer: torch.optim.Optimizer) -> list[Piece]:
    """This rank's pieces, in the order of the vector.

    Args:
        engine: of DeepSpeed, around the model.
        names: of the model's parameters, in order.
        optimizer: the one that DeepSpeed was given, and whose groups it filled with its own tensors.

    Raises:
        ConfigError: the engine has no fp32 masters.
    """
    # At stage 3 the groups are filled during a step alone.
    moved = [owner for group in optimizer.param_groups for owner in group["params"]]
    moved += getattr(engine.optimizer, "fp32_partitioned_groups_flat", None) or []
    owners = {_address(owner): owner for owner in moved if owner.numel()}
    apart, found, start = _apart(engine), [], 0
    for name, parameter in zip(names, engine.module.parameters(), strict=True):
        if not parameter.requires_grad:
            continue
        fragment = (apart[id(parameter)], 0) if id(parameter) in apart else _fragment(parameter)
        if fragment is not None:
            master, offset = fragment
            whole = _numel(parameter)
            master = master.detach().flatten()[: max(0, whole - offset)]  # the last rank's partition ends in padding
            if len(master):
                owner = _owner(owners, master)
                position = (master.data_ptr() - owner.data_ptr()) // master.element_size()
                found.append(Piece(name, master, owner, position, start + offset, offset))
        start += _numel(parameter)
    if any(piece.master.dtype != torch.float32 for piece in found):
        message = "steps of our own (method.certify, optimizer: ascent) need fp32 masters, and this engine keeps none"
        raise ConfigError(f"engine: {message}", "set engine.zero_stage=1, or engine.precision=fp32")
    return found


def _apart(engine: Any) -> dict[int, Tensor]:
    """Masters by the id of their bf16 weights, where ZeRO is off and DeepSpeed's wrapper holds them whole beside those."""
    low, high = (getattr(engine.optimizer, name, None) for name in ("fp16_groups", "fp32_groups"))
    if not low or not high:
        return {}
    return {id(few): many for group, masters in zip(low, high, strict=True) for few, many in zip(group, masters, strict=True)}


def _fragment(parameter: nn.Parameter) -> tuple[Tensor, int] | None:
    """A view of this rank's part of the parameter's master, and where it begins in the parameter; None: it holds none of it."""
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_local_fp32_param

        local: Tensor = safe_get_local_fp32_param(parameter)
        return local, local.numel() * torch.distributed.get_rank()
    if hasattr(parameter, "_hp_mapping"):
        mapping: Any = parameter._hp_mapping
        return None if mapping is None else (mapping.hp_fragment, int(mapping.lp_fragment_address.start))
    return parameter, 0


def _numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr()


def _owner(owners: dict[int, Tensor], master: Tensor) -> Tensor:
    for address, owner in owners.items():
        if address <= master.data_ptr() < address + owner.numel() * owner.element_size():
            return owner
    raise ConfigError(
        "engine: it moves other tensors than its masters, which our own steps need",
        "set engine.zero_stage=1, or engine.precision=fp32",
    )
