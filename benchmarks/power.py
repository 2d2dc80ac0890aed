"""What the attacks find, and how often they cry wolf: many small models, some of which saw the images and some of which did not.

    python benchmarks/power.py --models 200 --trained 40        about a quarter of an hour on two cores

Each model is a small auto-encoder on 1,200 images of Fashion-MNIST, 16 x 16 pixels. Models of kind "never trained" never saw the
class to forget. Each has weights and an order of its own and is judged beside the next of them, so whatever an attack finds is a
false alarm. Relearning and the second decoder are tried beside the next five as well, as an audit does where shadow runs lend
theirs. "Do nothing" releases models that saw the class as they are. "Ascent, plain retention" ascends to three times the class's
error in a model without it, and then fine-tunes on kept images for a sixth of training.

For the attacks that need something planted, the originals' class images carry noise, and canaries with coins lie among them.
An attack is right at its nominal rate if it flags one never-trained model in twenty, either side counted.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import io
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from harness import machine, table
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipeline import component
from pipeline.data import planting
from pipeline.data.tasks.base import Task
from pipeline.draws import draws_of_rows
from pipeline.evaluation.base import Resampling, exact_rate
from pipeline.evaluation.battery import ATTACKS, Attacked, Attacks
from pipeline.evaluation.planted_scores import canary_scores, poison_scores
from pipeline.evaluation.relearn import Views
from pipeline.findings import Found
from pipeline.models.base import ImageModel

SIZE, EPOCHS, BATCH, RATE = 16, 6, 64, 4e-3
KEPT, FORGOTTEN, UNSEEN = 1200, 120, 96
LABEL = 1
CANARIES, COPIES, TAU = 120, 4, 0.15
FLAGGED = ("still there", "over-forgotten")
REFERENCES = 5
BESIDE = f"beside {REFERENCES}"
ROWS = (*ATTACKS, *(f"{name}, {BESIDE}" for name in ("relearn", "second_decoder")), "canary", "poison")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """fp32 [N, 1, 16, 16] in [0, 1]."""

    kept: Tensor
    forgotten: Tensor
    unseen: Tensor
    unseen_kept: Tensor


def load() -> Data:
    """Images of one class and of the others, at a quarter of their pixels."""
    source: Any = component.build("source", {"component": "fashion_mnist", "limit": 6000, "unseen_limit": 3000})

    def read(images: Any, wanted: bool, count: int) -> Tensor:
        found = []
        for item in images:
            if (item.label == LABEL) == wanted:
                pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(item.image)).convert("L"), dtype=np.float32) / 255)
                found.append(functional.avg_pool2d(functional.pad(pixels[None], (2, 2, 2, 2)), 2))
                if len(found) == count:
                    break
        return torch.stack(found)

    return Data(
        kept=read(source.training(), False, KEPT),
        forgotten=read(source.training(), True, FORGOTTEN),
        unseen=read(source.unseen(), True, 2 * UNSEEN),
        unseen_kept=read(source.unseen(), False, 3 * UNSEEN),
    )


def views(task: Task, images: Tensor, seed: int) -> Views:
    """Images with a fixed mask and draw each."""
    draws = torch.from_numpy(draws_of_rows(np.arange(len(images)), seed))
    visible, region = task.degrade(images, draws)
    return Views(visible_BCHW=visible, target_BCHW=images, region_B1HW=region, draws_B=draws)


def _batches(count: int, epochs: float, generator: torch.Generator) -> Iterator[Tensor]:
    steps = round(epochs * count / BATCH)
    while steps > 0:
        for rows in torch.randperm(count, generator=generator).split(BATCH)[: max(1, steps)]:
            yield rows
            steps -= 1


def fit(model: ImageModel, seen: Views, epochs: float, seed: int, rate: float = RATE) -> ImageModel:
    """Train on views in an order of the seed; returns the model in eval mode."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    for rows in _batches(len(seen), epochs, torch.Generator().manual_seed(seed)):
        part = seen.part(rows)
        optimizer.zero_grad(set_to_none=True)
        model(part.visible_BCHW, part.target_BCHW, part.region_B1HW, part.draws_B).mean().backward()
        optimizer.step()
    return model.eval()


def fresh(seed: int) -> ImageModel:
    """A small auto-encoder with random weights of the seed."""
    torch.manual_seed(seed)
    section = {"component": "autoencoder", "image_size": SIZE, "width": 8, "latent": 32}
    model: ImageModel = component.build("model", section)
    return model


def literal(original: ImageModel, forgotten: Views, kept: Views, target: float, seed: int) -> ImageModel:
    """Ascent until the class's mean error is `target`, then plain fine-tuning on kept images."""
    model = copy.deepcopy(original).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE / 3, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(200):
        optimizer.zero_grad(set_to_none=True)
        loss = model(forgotten.visible_BCHW, forgotten.target_BCHW, forgotten.region_B1HW, forgotten.draws_B).mean()
        if float(loss.detach()) >= target:
            break
        (-loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return fit(model, kept, EPOCHS / 6, seed, RATE / 2)


class Bench:
    """Data, planted things and attacks of one run of this table."""

    def __init__(self) -> None:
        self.task: Task = component.build("task", {"component": "center_crop"})
        self.data = load()
        self.kept, self.forgotten = views(self.task, self.data.kept, 1), views(self.task, self.data.forgotten, 2)
        control, gallery = (views(self.task, part, 3) for part in self.data.unseen.chunk(2))
        images, *others = (views(self.task, part, 4) for part in self.data.unseen_kept.chunk(3))
        self.attacked = Attacked(images=self.forgotten, control=control, gallery=gallery)
        self.base = Attacked(images=images, control=others[0], gallery=others[1])
        self.resampling = Resampling(seed=0, resamples=200, confidence=0.95)

    def planted(self, seed: int) -> tuple[Views, Views, Views, Tensor]:
        """What an original trains on, with canaries and noise of its own secret; canaries in, out; the noise as drawn."""
        secret = seed.to_bytes(32, "big")
        drawn = [self._canary(secret, number) for number in range(CANARIES)]
        coins = np.array([planting.coin(secret, number) for number in range(CANARIES)])
        every = torch.stack(drawn)
        noise = np.stack([planting.noise(secret, str(n), size=SIZE, channels=1, tau=TAU) for n in range(FORGOTTEN)])
        added = torch.from_numpy(noise).reshape(FORGOTTEN, SIZE, SIZE, 1).permute(0, 3, 1, 2).contiguous()
        noised = (self.data.forgotten + added).clamp(0, 1)
        inside = every[torch.from_numpy(coins)]
        seen = torch.cat([self.data.kept, noised, *[inside] * COPIES])
        heads, tails = (views(self.task, every[torch.from_numpy(mask)], 5) for mask in (coins, ~coins))
        return views(self.task, seen, 1), heads, tails, added

    def _canary(self, secret: bytes, number: int) -> Tensor:
        pixels = planting.canary(secret, number, size=SIZE, channels=1).astype(np.float32) / 255
        return torch.from_numpy(pixels).reshape(1, SIZE, SIZE)

    def flags(self, attack: str, model: ImageModel, references: Sequence[ImageModel], place: int) -> str:
        """What one attack says of a model beside retrained ones, whatever its power."""
        models = {"unlearned": model, "retrained": references[0], "original": model}
        attacks = Attacks(self.kept, self.resampling, references[1:])
        found = attacks.find(attack, models, self.attacked, models, self.base, group="class", label=f"{attack}/{place}")
        return self.said(found)

    def said(self, found: Found) -> str:
        """Of the one model; "no power" is decided over originals, so here it is what was found."""
        line = next(item for item in found.findings if item.subject == "unlearned")
        if line.value is None or line.low is None or line.high is None:
            return "not computed"
        if line.says == "no power":
            return "not told apart"
        return line.says


@torch.no_grad()
def losses(model: ImageModel, seen: Views) -> np.ndarray:
    """Of each image, fp64 [N]."""
    return model(seen.visible_BCHW, seen.target_BCHW, seen.region_B1HW, seen.draws_B).double().numpy()


def main() -> None:
    """Train, attack and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200, help="never-trained models")
    parser.add_argument("--trained", type=int, default=40, help="models that saw the images")
    given = parser.parse_args()
    bench, began = Bench(), time.monotonic()
    said: dict[tuple[str, str], list[str]] = {}
    never = [fit(fresh(seed), bench.kept, EPOCHS, seed) for seed in range(given.models + REFERENCES)]
    target = 3 * float(losses(never[0], bench.forgotten).mean())

    def attack(kind: str, model: ImageModel, first: int, place: int, planted: Any) -> None:
        references = never[first : first + REFERENCES]
        for row in ROWS[:-2]:
            name, *more = row.split(", ")
            said.setdefault((row, kind), []).append(bench.flags(name, model, references if more else references[:1], place))
        _, heads, tails, noise = planted
        found = canary_scores(losses(model, heads), losses(model, tails), group="class", subject="unlearned", delta=1e-5)
        said.setdefault(("canary", kind), []).append(bench.said(found))
        found = poison_scores(model, bench.forgotten, noise, tau=TAU, group="class", subject="unlearned", seed=place)
        said.setdefault(("poison", kind), []).append(bench.said(found))

    for place in range(given.models):
        attack("never trained", never[place], place + 1, place, bench.planted(10_000 + place))
    for place in range(given.trained):
        planted = bench.planted(place)
        original = fit(fresh(20_000 + place), planted[0], EPOCHS, place)
        attack("do nothing", original, place, place, planted)
        attack("ascent, plain retention", literal(original, bench.forgotten, bench.kept, target, place), place, place, planted)
    print(f"{machine()}; {time.monotonic() - began:.0f} s\n")
    kinds = ("never trained", "do nothing", "ascent, plain retention")
    rows = []
    for name in ROWS:
        rows.append((name, *(_cell(said[name, kind]) for kind in kinds)))
    print(table(("attack", *kinds), *rows))


def _cell(says: list[str]) -> str:
    """Flagged of all, the exact interval of the rate, and how many of them as too alien."""
    hits, far = sum(item in FLAGGED for item in says), says.count("over-forgotten")
    rate = exact_rate(hits, len(says), 0.95)
    return f"{hits} of {len(says)} ({rate.low:.3f} - {rate.high:.3f}); {far} as too alien"


if __name__ == "__main__":
    main()
