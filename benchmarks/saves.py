"""How long a checkpoint holds up training: written in the background, against written while all wait.

    python benchmarks/saves.py                       a ViT-MAE of 12 million parameters, fifteen rounds: some minutes
    python benchmarks/saves.py --model mae --rounds 5

In each round the same steps are taken three times, one after the other: without a checkpoint, with one that they wait for, and
with one in the background, put in place as the loop does it. The stall is what a checkpoint adds to the first. It is files on
the disk of the temporary folder: hashed, and flushed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import interval, machine, ratio, rounds, spread, table

from pipeline import component
from pipeline.config import EngineConfig
from pipeline.engine.backend import Backend, OptimizerConfig
from pipeline.engine.checkpoint import Checkpoints, TrainState
from pipeline.engine.distributed import join_group, leave_group
from pipeline.models.base import ImageModel

MODELS: dict[str, dict[str, Any]] = {
    "middle": {
        "component": "mae",
        "image_size": 64,
        "channels": 3,
        "patch_size": 8,
        "width": 384,
        "layers": 6,
        "heads": 6,
        "decoder_width": 192,
        "decoder_layers": 2,
        "decoder_heads": 6,
    },
    "mae": {"component": "mae"},
}
BATCH = {"middle": 16, "mae": 4}


class Training:
    """A model under the engine, and steps on one random batch."""

    def __init__(self, model: str, zero: int) -> None:
        self.group = join_group()
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it; before joining it would mean a launcher
        torch.manual_seed(0)
        built: ImageModel = component.build("model", MODELS[model])
        self.parameters = sum(parameter.numel() for parameter in built.parameters())
        shape = (BATCH[model], built.channels, built.image_size, built.image_size)
        self._images = torch.rand(shape)
        self._region = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
        self._region[..., shape[2] // 4 : -shape[2] // 4, shape[3] // 4 : -shape[3] // 4] = True
        self._draws = torch.arange(shape[0])
        self.backend = Backend(
            built,
            engine=EngineConfig(zero_stage=zero),  # type: ignore[arg-type]
            optimizer=OptimizerConfig(learning_rate=1e-6, steps=10**6),
            micro_batch=shape[0],
            group=self.group,
        )
        self._done = 0

    def step(self) -> None:
        """One."""
        visible = self._images.masked_fill(self._region, 0.5)
        loss = self.backend.model(visible, self._images, self._region, self._draws).mean()
        self.backend.backward(loss)
        self.backend.step(self._done)
        self._done += 1


def seconds(training: Training, points: Checkpoints, steps: int, *, save: str) -> float:
    """Of so many steps, after the first of which a checkpoint is begun; the last one is in place at the end."""
    begun = time.perf_counter()
    for step in range(steps):
        training.step()
        if step == 0 and save:
            points.save(training.backend, TrainState(step=1), wait=save == "waiting")
        elif points.pending and points.written:
            points.settle()
    taken = time.perf_counter() - begun
    if points.pending:
        raise SystemExit(f"a checkpoint takes longer than {steps} steps: give more --steps")
    return taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="middle")
    parser.add_argument("--zero", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    training = Training(given.model, given.zero)
    with tempfile.TemporaryDirectory() as folder:
        points = Checkpoints(folder, "saves", config_digest="", group=training.group)

        def act(save: str) -> Callable[[], float]:
            return lambda: seconds(training, points, given.steps, save=save)

        found = rounds({"none": act(""), "waiting": act("waiting"), "background": act("background")}, given.rounds)
    training.backend.close()
    leave_group()
    stalls = {name: [with_it - bare for with_it, bare in zip(found[name], found["none"], strict=True)] for name in found}
    print(f"{machine()}\n")
    print(f"{training.parameters / 1e6:.1f} million parameters, ZeRO {given.zero}, one rank; {given.steps} steps a turn\n")
    rows = [(name, spread(found[name], digits=2), spread(stalls[name], digits=3)) for name in ("none", "waiting", "background")]
    print(table(("checkpoint", "seconds of the steps", "stall, seconds: median (range)"), *rows))
    print(f"\nstall in the background / waiting: {ratio(stalls['background'], stalls['waiting'])}")
    print(f"seconds a step without a checkpoint: {interval(found['none'])[0] / given.steps:.3f}")


if __name__ == "__main__":
    main()
