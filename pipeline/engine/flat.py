"""On a CPU: what ZeRO 1 and 2 send and move, in blocks that stay. DeepSpeed keeps the layout, the masters and the checkpoints.

DeepSpeed joins all gradients in new memory, reduces that, copies it back, joins this rank's part in new memory again and keeps
masters that equal the weights bit for bit. Memory that is new at each step must be cleared by the system, which can take longer
than all the arithmetic. Here each gradient goes to its place in a block as soon as it is known, and is reduced and read there.
Ranks exchange parts pairwise: as many bytes as a ring sends, and without gloo's own copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.engine.distributed import ProcessGroup
from pipeline.engine.fused import FusedSteps, Lent

PIECE = 1 << 20
"""Elements that are received at once before they are added: so few stay in the processor's cache."""

__all__ = ["FlatSteps"]


class FlatSteps:
    """Takes the place of a ZeRO optimizer's own reduction and step, for the optimizer's life.

    Args:
        zero: DeepSpeed's optimizer of stage 1 or 2, without offloading; its weights lie in one block a group, in equal parts for
            the ranks. The gradients take over that layout.
        group: of all ranks; gradients are averaged over them.
        clip: largest length of the gradient of the whole vector; 0: any, and the length is not measured.
        steps: of our own, which read the blocks as they are, do their own clipping and round the weights; None: the optimizer's.
    """

    def __init__(self, zero: Any, group: ProcessGroup, clip: float, steps: FusedSteps | None = None) -> None:
        self._zero, self._group, self._clip, self._own = zero, group, clip, steps
        self._blocks: list[Tensor] = []
        self._places: dict[nn.Parameter, Tensor] = {}
        self._known: set[nn.Parameter] = set()
        self.bad = torch.zeros(())
        """Blocks of this rank's last gradients that were not finite, fp32 []."""
        for parameters in zero.bit16_groups:
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(self._take)
        zero.process_gradients = lambda parameter, index: None
        zero.reduce_gradients = zero.overlapping_partition_gradients_reduce_epilogue = self._reduce
        zero.step = self._step
        self._parts = [parts[group.rank] for parts in zero.parallel_partitioned_bit16_groups]
        for weights, master in zip(self._parts, zero.single_partition_of_fp32_groups, strict=True):
            if weights.dtype == master.dtype:  # one of both is enough
                master.data = weights.data
        zero._link_all_hp_params()

    def _make(self) -> None:
        for weights, parameters in zip(self._zero.bit16_groups_flat, self._zero.bit16_groups, strict=True):
            block = torch.zeros_like(weights, requires_grad=False)
            self._blocks.append(block)
            for parameter in parameters:
                start = (parameter.data_ptr() - weights.data_ptr()) // weights.element_size()
                self._places[parameter] = block[start : start + parameter.numel()].view(parameter.shape)

    @torch.no_grad()
    def _take(self, parameter: nn.Parameter) -> None:
        if not self._blocks:
            self._make()
        place, gradient = self._places[parameter], parameter.grad
        assert gradient is not None
        if parameter in self._known:  # again in the same pass: what a part that is computed anew adds
            place.add_(gradient)
        else:
            place.copy_(gradient)
        parameter.grad = None
        self._known.add(parameter)

    @torch.no_grad()
    def _reduce(self, **kwargs: Any) -> None:
        if not self._blocks:
            self._make()
        for parameter, place in self._places.items():
            if parameter not in self._known:
                place.zero_()
        self._known.clear()
        # By a sum, and before anything is exchanged, as in `pipeline.engine.backend`.
        self.bad += torch.stack([~torch.isfinite(block.sum()) for block in self._blocks]).sum()
        for block in self._blocks:
            self._sum(block.chunk(self._group.world_size))

    @torch.no_grad()
    def _step(self, closure: Any = None) -> None:
        """Raises FloatingPointError where the gradient has no finite length; nothing was moved."""
        zero, rank = self._zero, self._group.rank
        gradients = [block.chunk(self._group.world_size)[rank] for block in self._blocks]
        if self._own is not None:
            rows = zip(self._parts, zero.single_partition_of_fp32_groups, gradients, strict=True)
            lent = {m: Lent(g, w if w.data_ptr() != m.data_ptr() else None) for w, m, g in rows}
            self._own.take(lent, 1 / self._group.world_size)
        else:
            self._move(gradients)
        for parts in zero.parallel_partitioned_bit16_groups:
            self._give(parts)

    def _move(self, gradients: list[Tensor]) -> None:
        zero, factor = self._zero, self._shortened(gradients) / self._group.world_size
        for index, (weights, gradient) in enumerate(zip(self._parts, gradients, strict=True)):
            master = zero.single_partition_of_fp32_groups[index]
            master.grad = gradient.to(master.dtype)
            if factor != 1:
                master.grad.mul_(factor)
            zero._optimizer_step(index)
            master.grad = None
            if weights.data_ptr() != master.data_ptr():
                weights.copy_(master)

    def _shortened(self, gradients: list[Tensor]) -> float:
        if not self._clip:
            return 1.0
        squares = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float32).double() ** 2 for gradient in gradients])
        length = float(self._group.sum(squares.sum()[None])) ** 0.5 / self._group.world_size
        if not math.isfinite(length):
            raise FloatingPointError("the gradient has no finite length; no weight was moved")
        return min(1.0, self._clip / (length + 1e-6))

    def _sum(self, parts: Sequence[Tensor]) -> None:
        """Add each rank's part of all ranks up on that rank."""
        mine = parts[self._group.rank].split(PIECE)
        room = torch.empty_like(mine[0]) if self._group.world_size > 1 else mine[0]
        for to, source in self._pairs():
            sending = [torch.distributed.isend(piece, to) for piece in parts[to].split(PIECE)]
            for piece in mine:
                torch.distributed.recv(room[: len(piece)], source)
                piece.add_(room[: len(piece)])
            _wait(sending)

    def _give(self, parts: Sequence[Tensor]) -> None:
        """Each rank's part to all others."""
        for to, source in self._pairs():
            _wait([torch.distributed.isend(parts[self._group.rank], to), torch.distributed.irecv(parts[source], source)])

    def _pairs(self) -> Iterator[tuple[int, int]]:
        """Whom to send to and whom to receive from, until all have met."""
        rank, count = self._group.rank, self._group.world_size
        for distance in range(1, count):
            yield (rank + distance) % count, (rank - distance) % count


def _wait(works: Sequence[torch.distributed.Work | None]) -> None:
    for work in works:
        assert work is not None
        work.wait()
