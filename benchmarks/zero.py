"""A training step under ZeRO on two ranks, beside DistributedDataParallel.

    torchrun --nproc-per-node 2 benchmarks/zero.py                      a ViT-MAE of 12 million parameters
    torchrun --nproc-per-node 2 benchmarks/zero.py --model autoencoder

All ways have the model, the batch of each rank, AdamW and the clipping by the length of the whole gradient in common, in fp32,
one thread a rank. DDP takes torch's fused AdamW. A step ends when its slowest rank has ended it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from harness import gpu, machine, ratio, rounds, settle, spread, table
from torch.nn.parallel import DistributedDataParallel
from training import BATCH, MODELS, Batch, batch_of, built, device, engine, group

from pipeline.engine.backend import Backend
from pipeline.engine.distributed import ProcessGroup, leave_group

RATE, CLIP = 1e-6, 1.0


def ddp(model: str, batch: Batch) -> Callable[[], None]:
    """A step of DDP."""
    wrapped = DistributedDataParallel(built(model), gradient_as_bucket_view=True)
    moving = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        batch.loss(wrapped).backward()
        torch.nn.utils.clip_grad_norm_(moving, CLIP)
        optimizer.step()

    return step


def zero(backend: Backend, batch: Batch) -> Callable[[], None]:
    """A step of the engine."""

    def step() -> None:
        backend.backward(batch.loss(backend.model))
        backend.step(0)

    return step


def timed(step: Callable[[], None], ranks: ProcessGroup) -> float:
    """Seconds of the slowest rank."""
    ranks.barrier()
    settle(device())
    begun = time.perf_counter()
    step()
    settle(device())
    return max(ranks.gather(time.perf_counter() - begun))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="middle")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, help="images of a step, of all ranks together")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ranks, model = group(), built(given.model)
    batch = batch_of(model, (given.batch or BATCH[given.model]) // ranks.world_size, seed=ranks.rank)
    acts: dict[str, Callable[[], None]] = {"DDP": ddp(given.model, batch)}
    backends = []
    for stage in (0, 1, 2):
        backends.append(engine(built(given.model), ranks, zero=stage, precision="fp32", size=len(batch.draws), rate=RATE))
        acts[f"ZeRO {stage}"] = zero(backends[-1], batch)
    # A step takes well under a second: five at once make the rounds longer than the machine's moods.
    found = rounds(
        {name: lambda act=act: sum(timed(act, ranks) for _ in range(5)) / 5 for name, act in acts.items()}, given.rounds
    )
    for backend in backends:
        backend.close()
    if ranks.rank == 0:
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        print(f"{machine()}{gpu(device())}; torch {torch.__version__}\n")
        print(f"{given.model}, {millions:.1f} million parameters, {ranks.world_size} ranks\n")
        rows = [(name, spread([1e3 * one for one in times]), ratio(times, found["DDP"])) for name, times in found.items()]
        print(table(("way", "ms a step: median (range)", "it / DDP (95 %)"), *rows), flush=True)
    leave_group()


if __name__ == "__main__":
    main()
