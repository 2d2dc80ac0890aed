"""How long a checkpoint holds up training: written in the background, against written while all wait.

    python benchmarks/saves.py                       a ViT-MAE of 12 million parameters, fifteen rounds: some minutes
    python benchmarks/saves.py --model mae --rounds 5

In each round the same steps are taken three times, one after the other: without a checkpoint, with one that they wait for, and
with one in the background, put in place as the loop does it. What a checkpoint adds to the first is its cost: on a machine whose
cores all compute, writing in the background takes of their time. The stall is how long the save itself keeps the next step
waiting: for files that are hashed and flushed, or for a copy in memory, and for the call that puts it in place.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable

from harness import machine, ratio, rounds, spread, table
from training import BATCH, MODELS, Batch, batch_of, built, engine, group

from pipeline.engine.backend import Backend
from pipeline.engine.checkpoint import Checkpoints, TrainState
from pipeline.engine.distributed import leave_group


class Turn:
    """Steps with a checkpoint, and how long it kept them waiting."""

    def __init__(self, backend: Backend, batch: Batch, points: Checkpoints, steps: int) -> None:
        self._backend, self._batch, self._points, self._steps = backend, batch, points, steps
        self._done = 0
        self.stalls: dict[str, list[float]] = {"none": [], "waiting": [], "background": []}

    def seconds(self, save: str) -> float:
        """Of the steps, after the first of which a checkpoint is begun; it is in place at the end."""
        stall, begun = 0.0, time.perf_counter()
        for step in range(self._steps):
            self._backend.backward(self._batch.loss(self._backend.model))
            self._backend.step(self._done)
            self._done += 1
            asked = time.perf_counter()
            if step == 0 and save != "none":
                self._points.save(self._backend, TrainState(step=1), wait=save == "waiting")
            elif self._points.pending and self._points.written:
                self._points.settle()
            stall += time.perf_counter() - asked
        taken = time.perf_counter() - begun
        if self._points.pending:
            raise SystemExit(f"a checkpoint takes longer than {self._steps} steps: give more --steps")
        self.stalls[save].append(stall)
        return taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="middle")
    parser.add_argument("--zero", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    ranks, model = group(), built(given.model)
    parameters, batch = sum(parameter.numel() for parameter in model.parameters()), batch_of(model, BATCH[given.model])
    backend = engine(model, ranks, zero=given.zero, precision="fp32", size=BATCH[given.model])
    with tempfile.TemporaryDirectory() as folder:
        turn = Turn(backend, batch, Checkpoints(folder, "saves", config_digest="", group=ranks), given.steps)

        def act(save: str) -> Callable[[], float]:
            return lambda: turn.seconds(save)

        found = rounds({save: act(save) for save in turn.stalls}, given.rounds)
    backend.close()
    leave_group()
    stalls = {save: values[-given.rounds :] for save, values in turn.stalls.items()}  # the first round warms up
    print(f"{machine()}\n")
    print(f"{parameters / 1e6:.1f} million parameters, ZeRO {given.zero}, one rank; {given.steps} steps a turn\n")
    rows = [
        (save, spread(found[save], digits=2), ratio(found[save], found["none"], digits=3), spread(stalls[save], digits=3))
        for save in turn.stalls
    ]
    print(table(("checkpoint", "seconds of the steps", "over none (95 %)", "stall, seconds"), *rows))
    print(f"\nstall in the background / waiting: {ratio(stalls['background'], stalls['waiting'], digits=3)}")


if __name__ == "__main__":
    main()
