"""A whole ascent step, forward to update, under the engine with fused steps and in a plain PyTorch loop.

    python benchmarks/steps.py                                the ViT-Base MAE, batch 8: about half an hour on two cores
    python benchmarks/steps.py --model autoencoder
    python benchmarks/steps.py --batch 64                     on a GPU, where there is one

Both ascend on the same batch: clipped by the length of the whole gradient, with Gaussian noise, in a ball around the original.
The loop is fp32 and works tensor by tensor; `loop, autocast` is the same under bf16 autocast, so that the two reasons for a gain
can be told apart. At last both precisions take twenty steps without noise, and the drift is how far their moves lie apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from harness import gpu, machine, ratio, rounds, settle, spread, table
from torch import Tensor
from training import BATCH, MODELS, Batch, batch_of, built, device, engine, group

from pipeline.engine.backend import Backend
from pipeline.engine.distributed import ProcessGroup, leave_group
from pipeline.engine.fused import FusedAscent
from pipeline.kernels.choose import choose
from pipeline.models.base import ImageModel

RATE, CLIP, NOISE, BALL = 1e-3, 1.0, 1e-6, 1e3
DRIFT_STEPS, DRIFT_RATE = 20, 0.05


class Loop:
    """As one writes it."""

    def __init__(self, model: ImageModel, *, autocast: bool) -> None:
        self._model, self._autocast = model, autocast
        self._moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._before = [parameter.detach().clone() for parameter in self._moving]

    def gradient(self, batch: Batch) -> None:
        """Forward and backward."""
        self._model.zero_grad(set_to_none=True)
        with torch.autocast(device().type, torch.bfloat16, enabled=self._autocast):
            loss = batch.loss(self._model)
        (-loss).backward()

    @torch.no_grad()
    def update(self) -> None:
        """Clip, step, noise, ball."""
        torch.nn.utils.clip_grad_norm_(self._moving, CLIP)
        for parameter in self._moving:
            if parameter.grad is not None:
                parameter.sub_(parameter.grad * RATE)
            parameter.add_(torch.randn_like(parameter) * NOISE)
        apart = torch.stack([(p - a).norm() for p, a in zip(self._moving, self._before, strict=True)]).norm()
        if float(apart) > BALL:
            for p, a in zip(self._moving, self._before, strict=True):
                p.copy_(a + (BALL / apart) * (p - a))


def ascent(
    model: ImageModel,
    ranks: ProcessGroup,
    precision: str,
    size: int,
    *,
    rate: float,
    noise: float,
    zero: int,
    compiled: bool = False,
) -> Backend:
    """The model under the engine, with fused steps."""
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    kernels = choose(ranks.device)
    backend = engine(
        model,
        ranks,
        zero=zero,
        precision=precision,
        size=size,
        rate=rate,
        compiled=compiled,
        steps=lambda moving: FusedAscent(
            moving, lr=rate, clip=CLIP, noise=noise, ball=BALL, key=bytes(8), sum=ranks.sum, kernels=kernels
        ),
    )
    backend.arm(start)
    return backend


def parts(gradient: Callable[[], object], update: Callable[[], object], split: list[float]) -> float:
    """Seconds of a whole step; the update's are added to `split`."""
    settle(device())
    begun = time.perf_counter()
    gradient()
    settle(device())
    between = time.perf_counter()
    update()
    settle(device())
    ended = time.perf_counter()
    split.append(ended - between)
    return ended - begun


def moved(model: str, ranks: ProcessGroup, precision: str, size: int) -> Tensor:
    """How far the weights are after some steps without noise, as one vector."""
    made = built(model)
    before = {name: parameter.detach().clone() for name, parameter in made.named_parameters() if parameter.requires_grad}
    backend = ascent(made, ranks, precision, size, rate=DRIFT_RATE, noise=0.0, zero=1)
    for step in range(DRIFT_STEPS):
        backend.backward(-batch_of(made, size, seed=step).loss(backend.model))
        backend.step(step)
    after = backend.weights()
    backend.close()
    return torch.cat([(after[name] - old.cpu()).flatten().double() for name, old in before.items()])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="mae")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, help="images of a step")
    parser.add_argument("--zero", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="the engine with torch.compile as well")
    parser.add_argument("--no-drift", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    ranks, size = group(), given.batch or BATCH[given.model]
    acts: dict[str, Callable[[], float]] = {}
    updates: dict[str, list[float]] = {}
    backends = []
    for name, autocast in (("loop, fp32", False), ("loop, autocast", True)):
        model = built(given.model)
        loop, batch, split = Loop(model, autocast=autocast), batch_of(model, size), updates.setdefault(name, [])
        acts[name] = lambda loop=loop, batch=batch, split=split: parts(lambda: loop.gradient(batch), loop.update, split)
    for precision, compiled in (("fp32", False), ("autocast", False), *([("autocast", True)] if given.compile else [])):
        model, name = built(given.model), f"engine, {precision}{', compiled' if compiled else ''}"
        batch, split = batch_of(model, size), updates.setdefault(name, [])
        backend = ascent(model, ranks, precision, size, rate=RATE, noise=NOISE, zero=given.zero, compiled=compiled)
        backends.append(backend)

        def act(backend: Backend = backend, batch: Batch = batch, split: list[float] = split) -> float:
            return parts(lambda: backend.backward(-batch.loss(backend.model)), lambda: backend.step(0), split)

        acts[name] = act
    found = rounds(acts, given.rounds)
    for backend in backends:
        backend.close()
    print(f"{machine()}{gpu(device())}; torch {torch.__version__}\n\n{given.model}, batch {size}, {given.threads} threads\n")
    rows = []
    for name, times in found.items():
        update = updates[name][-given.rounds :]
        speed = ratio(found["loop, fp32"], times)
        rows.append(
            (name, spread([1e3 * one for one in times], digits=1), spread([1e3 * one for one in update], digits=1), speed)
        )
    print(table(("way", "ms a step: median (range)", "of it after backward", "loop, fp32 / it (95 %)"), *rows), flush=True)
    if not given.no_drift:
        exact, low = (moved(given.model, ranks, precision, size) for precision in ("fp32", "autocast"))
        drift = float((low - exact).norm() / exact.norm())
        print(f"\ndrift of autocast after {DRIFT_STEPS} steps: {100 * drift:.2f} % of the way that fp32 went")
    leave_group()


if __name__ == "__main__":
    main()
