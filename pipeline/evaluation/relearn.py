"""Relearning attack: how soon does a model know forget images again, once it is trained on a few others of them?

A copy of each model is trained on the same k forget images in the same order, and its loss is measured on other forget images,
which the attack never trains on. Unlearning that only hides what was learned is undone in a few steps, and a model retrained
without the images is not (Siddiqui et al., From Dormant to Deleted, arXiv 2505.22310). Here a retrained model improves too, since
the k images teach their kind, so only the difference from it tells. The score is two-sided: images that are harder to relearn
than ones that were never seen stand out as well.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from pipeline.draws import draws_of_rows, uniform
from pipeline.errors import CheckpointError
from pipeline.evaluation.base import Floats, Interval, Resampling
from pipeline.models.base import ImageModel
from pipeline.records import record

__all__ = ["Attack", "Relearning", "Views", "relearn", "relearning_areas", "relearning_losses"]

# An exact model has the area 0, whose logarithm no mean survives; real losses lie far above this.
SMALLEST_AREA = 1e-30


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """Images as a model sees them, prepared once, so that every model is asked the same. All on one device.

    Raises:
        ValueError: no image, parts of different lengths, or an image without any pixel to judge.
    """

    visible_BCHW: Tensor  # noqa: N815
    """Degraded images, fp32 in [0, 1]."""
    target_BCHW: Tensor  # noqa: N815
    """True images, fp32 in [0, 1]."""
    region_B1HW: Tensor  # noqa: N815
    """bool, True where the task hides and the answer is judged."""
    draws_B: Tensor  # noqa: N815
    """int64; see `ImageModel.forward`."""

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.visible_BCHW, self.target_BCHW, self.region_B1HW, self.draws_B)}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"views of {sorted(lengths)} images")
        if not bool(self.region_B1HW.flatten(1).any(1).all()):
            raise ValueError("an image without any pixel to judge")

    def __len__(self) -> int:
        return len(self.draws_B)

    def part(self, places: slice | Tensor) -> Views:
        """The images at these places, in this order."""
        names = [field.name for field in dataclasses.fields(self)]
        return Views(**{name: getattr(self, name)[places] for name in names})

    def batches(self, size: int) -> Iterator[Views]:
        """All images in order, at most `size` at once."""
        for start in range(0, len(self), size):
            yield self.part(slice(start, start + size))

    def redrawn(self, seed: int, step: int) -> Tensor:
        """Other draws of the same images, int64 [B]: functions of their draws, seed and step."""
        drawn = draws_of_rows(self.draws_B.cpu().numpy(), seed, step)
        return torch.from_numpy(drawn).to(self.draws_B.device)


@record
class Attack:
    """How the copies are trained: AdamW (betas 0.9 and 0.95, as everywhere here), no decay of weights."""

    learning_rate: float = 3e-4
    """Constant, above 0."""
    steps: int = 50
    """At least 1."""
    every: int = 5
    """Steps between two measurements, at least 1; the first and the last step are always measured."""
    batch_size: int = 32
    """Images a step, at most all k; also how many are measured at once. At least 1."""

    @property
    def measured(self) -> tuple[int, ...]:
        """Steps after which losses are measured; 0 is before the first."""
        return (*range(0, self.steps, self.every), self.steps)


@record
class Relearning:
    """What the attack found, about one unlearned model.

    The intervals cover which images were judged. They do not cover the randomness of retraining or of the attack's order: to
    see how much these move the score, give a second retrained model in the place of the unlearned one.
    """

    steps: tuple[int, ...]
    curves: Mapping[str, tuple[float, ...]]
    """`unlearned`, `retrained` and, if it was given, `original`: mean loss of the judged images after each of `steps`."""
    score: Interval
    """log(area under the unlearned model's curve / area under the retrained one's). Above 0: harder to relearn than a model
    that never saw the images (over-forgotten). Below 0: quicker (a trace is left)."""
    start: Interval
    """The same of the losses before the first step: how much of the score was there without any attack."""
    control: Interval | None
    """The score of the original in the place of the unlearned model. Unless it lies below 0 the attack has no power here."""
    images: int
    """k, forget images that the attack trained on."""
    samples: int
    """n, forget images that were judged."""
    confidence: float
    losses: Mapping[str, tuple[float, ...]]
    """By the names of `curves`: the mean loss of each judged image over the attack, in the order that they were given."""
    null: tuple[float, ...]
    """Draws of `score` with the unlearned and the retrained model swapped in a random half of the images."""


def relearn(
    unlearned: ImageModel,
    retrained: ImageModel,
    *,
    taught: Views,
    judged: Views,
    attack: Attack,
    resampling: Resampling,
    label: str,
    original: ImageModel | None = None,
) -> Relearning:
    """Attack both models, and the original as a control; they are left bit for bit as they were.

    On a CPU a model equal to the retrained one scores exactly 0; on a GPU up to the rounding of sums in no fixed order.

    Args:
        unlearned, retrained, original: of the same architecture. What requires a gradient in them is trained.
        taught: k forget images to train on.
        judged: n other forget images. The caller keeps copies of the taught ones out.
        attack: how to train.
        resampling: how intervals are made; its seed orders the batches too.
        label: the figure's own name within the run.

    Raises:
        CheckpointError: a loss that is not finite.
        ValueError: an attack out of range, or models that do not train the same tensors.
    """
    models = {"unlearned": unlearned, "retrained": retrained} | ({"original": original} if original is not None else {})
    if len({tuple(_trained(model)) for model in models.values()}) != 1:
        raise ValueError("the models do not train the same tensors")
    losses = {name: relearning_losses(model, taught, judged, attack, resampling.seed) for name, model in models.items()}
    areas = {name: _areas(found, attack.measured) for name, found in losses.items()}
    starts = {name: np.maximum(found[0], SMALLEST_AREA) for name, found in losses.items()}

    def compare(values: Mapping[str, Floats], name: str, what: str) -> Interval:
        ratio = resampling.ratio(values[name], values["retrained"], f"{label}/{what}")
        return Interval(value=math.log(ratio.value), low=math.log(ratio.low), high=math.log(ratio.high))

    mine, theirs = resampling.swapped(areas["unlearned"], areas["retrained"], f"{label}/swapped")
    return Relearning(
        steps=attack.measured,
        curves={name: tuple(float(mean) for mean in found.mean(axis=1)) for name, found in losses.items()},
        score=compare(areas, "unlearned", "areas"),
        start=compare(starts, "unlearned", "starts"),
        control=compare(areas, "original", "areas") if original is not None else None,
        images=len(taught),
        samples=len(judged),
        confidence=resampling.confidence,
        losses={name: tuple(found.tolist()) for name, found in areas.items()},
        null=tuple(np.log(mine / theirs).tolist()),
    )


def relearning_areas(model: ImageModel, taught: Views, judged: Views, attack: Attack, seed: int) -> Floats:
    """Area under the curve of each judged image, as its mean loss over the attack, fp64 [n]; see `relearning_losses`."""
    return _areas(relearning_losses(model, taught, judged, attack, seed), attack.measured)


def relearning_losses(model: ImageModel, taught: Views, judged: Views, attack: Attack, seed: int) -> Floats:
    """Losses of the judged images while a copy of the model is trained on the taught ones, fp64 [measured steps, n].

    Each loss is the mean over `model.probe_draws` draws, the same at every step and for every model. Training has new draws
    at each step: noise and timesteps change as they do in training, the hidden region stays.

    The copy is in eval mode throughout, so that neither dropout, which draws from the global generator, nor batch statistics
    come in. For the arguments and errors see `relearn`.
    """
    if min(attack.steps, attack.every, attack.batch_size) < 1 or not attack.learning_rate > 0:
        raise ValueError(f"an attack out of range: {attack}")
    pupil = copy.deepcopy(model).eval()
    moving = [weight for weight in pupil.parameters() if weight.requires_grad]
    if not moving:
        raise ValueError("a model without a tensor to train")
    optimizer = torch.optim.AdamW(moving, lr=attack.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    found, order = [_losses(pupil, judged, attack.batch_size, seed)], _order(taught, attack.batch_size, seed)
    for step in range(1, attack.steps + 1):
        batch = taught.part(next(order))
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = pupil(batch.visible_BCHW, batch.target_BCHW, batch.region_B1HW, batch.redrawn(seed, step)).mean()
            loss.backward()
        optimizer.step()
        if step in attack.measured:
            found.append(_losses(pupil, judged, attack.batch_size, seed))
    return np.stack(found)


def _trained(model: ImageModel) -> list[str]:
    return [name for name, weight in model.named_parameters() if weight.requires_grad]


def _order(taught: Views, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Places of each step's images, int64: one pass after the other, each in its own order, cut without regard to passes."""
    num, passes, waiting = len(taught), 0, torch.empty(0, dtype=torch.int64)
    size = min(batch_size, num)
    while True:
        while len(waiting) < size:
            drawn = uniform(torch.from_numpy(draws_of_rows(np.arange(num), seed, passes)), 1)[:, 0]
            waiting, passes = torch.cat([waiting, drawn.argsort(stable=True)]), passes + 1
        yield waiting[:size].to(taught.draws_B.device)
        waiting = waiting[size:]


@torch.no_grad()
def _losses(model: ImageModel, judged: Views, batch_size: int, seed: int) -> Floats:
    """Mean loss over the probe's draws, fp64 [n]; the first draw is the image's own."""
    parts = []
    for batch in judged.batches(batch_size):
        total = torch.zeros(len(batch), dtype=torch.float64, device=batch.draws_B.device)
        for number in range(model.probe_draws):
            drawn = batch.redrawn(seed, -number) if number else batch.draws_B
            total += model(batch.visible_BCHW, batch.target_BCHW, batch.region_B1HW, drawn).double()
        parts.append((total / model.probe_draws).cpu().numpy())
    found: Floats = np.concatenate(parts)
    if not np.isfinite(found).all():
        raise CheckpointError("relearning: a loss that is not finite", "attack with a lower learning rate")
    return found


def _areas(losses_SN: Floats, steps: tuple[int, ...]) -> Floats:
    """Area under each image's curve by the trapezoidal rule, divided by the steps: a mean loss, fp64 [N]."""
    widths = np.diff(np.array(steps, dtype=np.float64))[:, None]
    areas: Floats = ((losses_SN[1:] + losses_SN[:-1]) / 2 * widths).sum(axis=0) / steps[-1]
    return np.maximum(areas, SMALLEST_AREA)
