"""Bytes a weight that a phase holds between its steps, and the most that a step takes beside them.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 benchmarks/memory.py
    torchrun --nproc-per-node 1 benchmarks/memory.py --model mae           on a GPU, where there is one

Held are all tensors that live in the process after a step, each storage once: weights, optimizer, what DeepSpeed keeps; before an
update gradients are among them. A batch of one image takes next to nothing. On a GPU the peak is that of torch's allocator, with
what the forward pass keeps for the way back; on a CPU it is not told.
"""

from __future__ import annotations

import argparse
import gc
from functools import partial

import torch
from harness import gpu, machine, settle, table
from torch import nn
from training import MODELS, batch_of, built, device, engine, group

from pipeline.engine.backend import Backend
from pipeline.engine.distributed import ProcessGroup, leave_group
from pipeline.engine.fused import FusedAscent
from pipeline.kernels.choose import choose

WAYS = ("AdamW", "ascent", "ascent in a ball")


def held() -> int:
    """Bytes of all living tensors' storages, each once."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor) and item.device.type == device().type:
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def ascent(moving: list[nn.Parameter], *, ball: float | None, ranks: ProcessGroup) -> FusedAscent:
    """Plain steps."""
    return FusedAscent(moving, lr=1e-6, clip=1.0, ball=ball, key=bytes(8), sum=ranks.sum, kernels=choose(ranks.device))


def made(model: str, way: str, zero: int, precision: str, ranks: ProcessGroup) -> Backend:
    """The model under the engine, by one way of moving it."""
    network = built(model)
    if way == "AdamW":
        return engine(network, ranks, zero=zero, precision=precision, size=1)
    ball = 1.0 if way.endswith("ball") else None
    start = {name: parameter.detach().cpu().clone() for name, parameter in network.named_parameters()}
    backend = engine(network, ranks, zero=zero, precision=precision, size=1, steps=partial(ascent, ball=ball, ranks=ranks))
    backend.arm(start if ball else None)
    return backend


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="middle")
    parser.add_argument("--zero", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16", "autocast"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    ranks = group()
    on_gpu, rows = (
        device().type == "cuda",
        [("way", "precision", "ZeRO", "B held, this rank", "before an update", "B more in a step")],
    )
    weights = sum(parameter.numel() for parameter in built(given.model).parameters() if parameter.requires_grad)
    for way in WAYS:
        for precision in given.precision:
            for zero in given.zero:
                before, backend = held(), made(given.model, way, zero, precision, ranks)
                batch = batch_of(backend.engine.module, 1)
                for step in range(3):
                    settle(device())
                    if on_gpu:
                        torch.cuda.reset_peak_memory_stats()
                        between = torch.cuda.memory_allocated()
                    backend.backward(batch.loss(backend.model))
                    full = held() - before
                    backend.step(step)
                    settle(device())
                more = f"{(torch.cuda.max_memory_allocated() - between) / weights:.1f}" if on_gpu else ""
                rows.append((way, precision, str(zero), f"{(held() - before) / weights:.1f}", f"{full / weights:.1f}", more))
                backend.close()
                del backend, batch
    if ranks.rank == 0:
        head = f"{machine()}{gpu(device())}; torch {torch.__version__}"
        print(f"{head}\n\n{given.model}, {weights / 1e6:.1f} million weights that move, {ranks.world_size} ranks\n")
        print(table(*rows), flush=True)
    leave_group()


if __name__ == "__main__":
    main()
