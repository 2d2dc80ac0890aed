"""The attacks of an audit on the images of one group: every model beside the retrained one, with the figures behind it.

An attack that does not find the images in the original model has no power, and its pass says nothing. A model that was driven too
far on purpose must be found as well, from the other side. Kept images that nobody trained on are attacked with them, because two
trainings differ on those too.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from pipeline.data.samples import read_samples
from pipeline.data.stream import ImageReader, to_tensor
from pipeline.draws import draws_of_rows
from pipeline.evaluation.base import Floats, Interval, Resampling
from pipeline.evaluation.extraction import extraction
from pipeline.evaluation.grid import draw
from pipeline.evaluation.relearn import Attack, Views, relearn
from pipeline.evaluation.second_decoder import decoder_answers, second_decoder
from pipeline.evaluation.splits import SOURCES, Slice, choose
from pipeline.evaluation.summary import REFERENCE
from pipeline.findings import OVER, Finding, Found, Says, Series
from pipeline.models.base import ImageModel
from pipeline.stages.evaluate import to_bytes
from pipeline.stages.phase import Phase

__all__ = ["ATTACKS", "Battery"]

FAR = 3.0
"""It is driven until the forget images lose so many times the retrained model's error."""
FAR_STEPS = 200
FAR_RATE = 1e-3
LEAST = 8
"""Images on each side below which nothing can be said."""
RETAINED = 1000
"""Kept images that the second decoder is fitted on."""
ATTACKS = ("relearn", "second_decoder", "extraction")

STATISTICS = {
    "relearn": "log ratio of losses, beside retrained",
    "second_decoder": "log ratio of errors, beside retrained",
    "extraction": "share of truths found, less than by retrained",
}
"""What each attack's score is, below an axis."""
DECODED = ("original", "unlearned", REFERENCE)
"""Models whose second decoder is shown."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """What an attack saw.

    scores: of each model beside the retrained one · note: what they are · axis: what an image's own score is, in words ·
    images: these by model, retrained too, higher means more like a member · null: draws of `scores` where models are swapped
    """

    scores: Mapping[str, Interval]
    note: str
    axis: str
    images: Mapping[str, Floats]
    null: Mapping[str, Floats]


class Battery:
    """The images that all attacks share, and the models."""

    def __init__(self, phase: Phase, models: dict[str, ImageModel], samples: int) -> None:
        self._phase, self._models = phase, models
        manifest, config = phase.manifest, phase.job.config
        tables = {name: read_samples(phase.job.folder, manifest, name) for name in SOURCES}
        tables["retain"] = tables["retain"].spread(max(samples, RETAINED), config.seed)
        shape = models["original"]
        self._readers: dict[str, ImageReader] = {name: phase.reader(table, shape) for name, table in tables.items()}
        slices = choose(tables, manifest.groups, seed=config.seed, max_samples=max(samples, RETAINED))
        self._slices = {(item.split, item.group): item for item in slices}
        self._samples = samples
        self._over: tuple[int, ImageModel] | None = None
        self._resampling = Resampling(
            seed=config.seed, resamples=config.evaluation.bootstrap, confidence=config.evaluation.confidence
        )

    def close(self) -> None:
        """Stop reading."""
        for reader in self._readers.values():
            reader.close()

    def _views(self, item: Slice, rows: np.ndarray) -> Views:
        device = self._phase.group.device
        truth = to_tensor(self._readers[item.source].fetch(rows), device)
        drawn = torch.from_numpy(draws_of_rows(rows, self._phase.seed)).to(device)
        visible, region = self._phase.task.degrade(truth, drawn)
        return Views(visible_BCHW=visible, target_BCHW=truth, region_B1HW=region, draws_B=drawn)

    def _of_group(self, number: int) -> tuple[Slice, Slice, Slice]:
        """Forget images of a group, unseen ones of their kind, and unseen ones that are kept."""
        name = self._phase.manifest.groups[number].name
        return self._slices["forget", name], self._slices["unseen", name], self._slices["unseen_retain", ""]

    def _subjects(self, number: int, forgotten: Views) -> dict[str, ImageModel]:
        """The models, and the one that was driven too far on a group's images; that of the last group is kept."""
        if self._over is None or self._over[0] != number:
            self._over = number, _driven(self._models, forgotten)
        return {**self._models, OVER: self._over[1]}

    def attack(self, attack: str, number: int) -> Found:
        """What one attack finds of the images of one group."""
        group = self._phase.manifest.groups[number]
        forget, unseen, kept = self._of_group(number)
        counts = [len(item.indices) for item in (forget, unseen, kept)]
        if min(counts) < 2 * LEAST:
            note = f"{counts[0]} forget, {counts[1]} unseen and {counts[2]} unseen kept images, and it takes {2 * LEAST} of each"
            line = Finding(attack=attack, group=group.name, subject="unlearned", measure="", says="not computed", note=note)
            return Found(findings=(line,))
        forgotten = self._views(forget, forget.indices[: self._samples])
        models = self._subjects(number, forgotten)
        make = {"relearn": self._relearn, "second_decoder": self._second_decoder, "extraction": self._extraction}[attack]
        seen = make(models, forgotten, *self._halves(unseen), f"audit/{attack}/{number}")
        half = len(kept.indices) // 2
        others = self._views(kept, kept.indices[: min(half, len(forgotten))]), *self._halves(kept, half)
        base = make(self._models, *others, f"audit/{attack}/{number}/kept").scores
        findings = _findings(attack, group.name, seen.scores, base, len(forgotten), note=seen.note)
        return Found(findings=tuple(findings), series=_series(attack, group.name, seen))

    @torch.no_grad()
    def picture(self, number: int) -> bytes | None:
        """Images of a group's kind that no model was trained on, and what models and second decoders make of them, as PNG.

        Nobody asked to have these forgotten. None where the group has too few images to attack.
        """
        forget, unseen, kept = self._of_group(number)
        if min(len(item.indices) for item in (forget, unseen, kept)) < 2 * LEAST:
            return None
        shown = self._views(unseen, unseen.indices[: self._phase.job.config.evaluation.grid_images])
        models = self._subjects(number, self._views(forget, forget.indices[: self._samples]))
        rows = [("truth", shown.target_BCHW), ("hidden input", shown.visible_BCHW)]
        for name in ("original", OVER, "unlearned", REFERENCE):
            rows.append((name, models[name].complete(shown.visible_BCHW, shown.region_B1HW, shown.draws_B)))
        seed, retained = self._resampling.seed, self._retained()
        for name in DECODED:
            rows.append((f"decoder, {name}", decoder_answers(models[name], retained=retained, shown=shown, seed=seed)))
        return draw([(label, to_bytes(images)) for label, images in rows])

    def _retained(self) -> Views:
        item = self._slices["retain", ""]
        return self._views(item, item.indices[:RETAINED])

    def _halves(self, item: Slice, start: int = 0) -> tuple[Views, Views]:
        """Images of a slice from `start` on, in two parts: to judge as a control, and to search among."""
        rows = item.indices[start:][: 2 * self._samples]
        half = len(rows) // 2
        return self._views(item, rows[:half]), self._views(item, rows[half:])

    def _relearn(self, models: Mapping[str, ImageModel], attacked: Views, control: Views, gallery: Views, label: str) -> _Seen:
        del control, gallery
        half = len(attacked) // 2
        taught, judged = attacked.part(slice(0, half)), attacked.part(slice(half, None))
        attack = Attack(batch_size=min(32, half))
        found = {
            name: relearn(
                model,
                models[REFERENCE],
                taught=taught,
                judged=judged,
                attack=attack,
                resampling=self._resampling,
                label=f"{label}/{name}",
            )
            for name, model in models.items()
            if name != REFERENCE
        }
        losses = {name: made.losses["unlearned"] for name, made in found.items()}
        losses[REFERENCE] = found["unlearned"].losses[REFERENCE]
        return _Seen(
            scores={name: made.score for name, made in found.items()},
            note=f"log ratio of the loss of {len(judged)} while {half} others are trained on",
            axis="minus its loss while others are trained on",
            images={name: -np.array(values) for name, values in losses.items()},
            null={name: np.array(made.null) for name, made in found.items()},
        )

    def _second_decoder(
        self, models: Mapping[str, ImageModel], attacked: Views, control: Views, gallery: Views, label: str
    ) -> _Seen:
        del gallery
        retained = self._retained()
        found = second_decoder(
            models, retained=retained, forget=attacked, unseen=control, resampling=self._resampling, label=label
        )
        return _Seen(
            scores={name: _log(made.ratio) for name, made in found.items() if made.ratio is not None},
            note=f"log ratio of the error of a decoder fitted on {len(retained)} kept images",
            axis="minus the second decoder's error",
            images={name: -np.array(made.errors) for name, made in found.items()},
            null={name: np.log(np.maximum(made.null, 1e-12)) for name, made in found.items()},
        )

    def _extraction(self, models: Mapping[str, ImageModel], attacked: Views, control: Views, gallery: Views, label: str) -> _Seen:
        found = extraction(
            models,
            forget=attacked,
            unseen=control,
            gallery_MCHW=gallery.target_BCHW,
            resampling=self._resampling,
            label=label,
        )
        rates = [found[name].rate.value for name in ("unlearned", REFERENCE)]
        return _Seen(
            scores={name: _turned(made.difference) for name, made in found.items() if made.difference},
            note=f"own truth nearest of {len(gallery) + 1} less often: {rates[0]:.3f}, retrained {rates[1]:.3f}",
            axis="1 / rank of its own truth",
            images={name: 1 / np.array(made.ranks) for name, made in found.items()},
            null={name: -np.array(made.null) for name, made in found.items()},
        )


def _log(ratio: Interval) -> Interval:
    low, value, high = (float(np.log(max(part, 1e-12))) for part in (ratio.low, ratio.value, ratio.high))
    return Interval(value=value, low=low, high=high)


def _turned(difference: Interval) -> Interval:
    """With the sign of the other attacks: below 0 the images are better known than by the retrained model."""
    return Interval(value=-difference.value, low=-difference.high, high=-difference.low)


def _driven(models: Mapping[str, ImageModel], forgotten: Views) -> ImageModel:
    """A copy of the original after gradient ascent far beyond the retrained model's loss."""
    driven = copy.deepcopy(models["original"]).eval()
    moving = [weight for weight in driven.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=FAR_RATE, weight_decay=0.0)
    batch = forgotten.part(slice(0, 64))
    given = (batch.visible_BCHW, batch.target_BCHW, batch.region_B1HW, batch.draws_B)
    with torch.no_grad():
        target = FAR * float(models[REFERENCE](*given).mean())
    for _ in range(FAR_STEPS):
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = driven(*given).mean()
            if float(loss.detach()) >= target:
                break
            (-loss).backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
    return driven


def _findings(
    attack: str, group: str, scores: Mapping[str, Interval], base: Mapping[str, Interval], samples: int, *, note: str
) -> list[Finding]:
    """One line a model. Where the original is not found to know the images better, a pass says nothing.

    Two trainings differ also on images that neither saw: only what lies beyond that is said of the forgotten ones. (The model
    that was driven too far is off on all images, so it is judged against none.)
    """
    none = Interval(value=0.0, low=0.0, high=0.0)

    def found(name: str) -> Says:
        score, kept = scores[name], base.get(name, none)
        if score.high < min(0.0, kept.low):
            return "still there"
        return "over-forgotten" if score.low > max(0.0, kept.high) else "not told apart"

    power = found("original") == "still there"

    def says(name: str) -> Says:
        blind = name == "unlearned" and not power and found(name) == "not told apart"
        return "no power" if blind else found(name)

    return [
        Finding(
            attack=attack,
            group=group,
            subject=name,
            measure=note,
            says=says(name),
            value=score.value,
            low=score.low,
            high=score.high,
            kept_low=base[name].low if name in base else None,
            kept_high=base[name].high if name in base else None,
            samples=samples,
        )
        for name, score in scores.items()
    ]


def _series(attack: str, group: str, seen: _Seen) -> tuple[Series, ...]:
    """The figures behind each model's finding, to six digits."""
    return tuple(
        Series(
            attack=attack,
            group=group,
            subject=name,
            score=seen.axis,
            own=_short(seen.images[name]),
            other=_short(seen.images[REFERENCE]),
            statistic=STATISTICS[attack],
            null=_short(seen.null[name]),
            observed=_short([score.value])[0],
        )
        for name, score in seen.scores.items()
    )


def _short(values: Iterable[float]) -> tuple[float, ...]:
    # Adding 0 turns the -0 of a negated rate into 0.
    return tuple(float(f"{value:.6g}") + 0.0 for value in values)
