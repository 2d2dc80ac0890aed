"""The attacks of an audit on images that are already views: every model beside the retrained one, with the figures behind it.

An attack that does not find the images in the original model has no power, and its pass says nothing. A model that was driven too
far on purpose must be found as well, from the other side. Kept images that nobody trained on are attacked with them, because two
trainings differ on those too.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from pipeline.evaluation.base import Floats, Interval, Resampling
from pipeline.evaluation.extraction import extraction
from pipeline.evaluation.relearn import Attack, Views, relearn, relearning_areas
from pipeline.evaluation.second_decoder import decoder_errors, second_decoder
from pipeline.evaluation.summary import REFERENCE
from pipeline.evaluation.trainings import LEAST, beside_trainings
from pipeline.findings import Finding, Found, Says, Series
from pipeline.models.base import ImageModel

__all__ = ["ATTACKS", "Attacked", "Attacks", "driven"]

FAR = 3.0
"""It is driven until the forget images lose so many times the retrained model's error."""
FAR_STEPS = 200
FAR_RATE = 1e-3
ATTACKS = ("relearn", "second_decoder", "extraction")

STATISTICS = {
    "relearn": "log ratio of losses, beside retrained",
    "second_decoder": "log ratio of errors, beside retrained",
    "extraction": "share of truths found, less than by retrained",
}
"""What each attack's score is, below an axis."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """What an attack saw.

    scores: of each model beside the retrained one · note: what they are · axis: what an image's own score is, in words ·
    images: these by model, retrained too, higher means more like a member · null: draws of `scores` where models are swapped ·
    trainings: retrained models whose spread the intervals of `scores` cover; 1: they cover images
    """

    scores: Mapping[str, Interval]
    note: str
    axis: str
    images: Mapping[str, Floats]
    null: Mapping[str, Floats]
    trainings: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Attacked:
    """Images to attack, others of their kind that no model was trained on, and more of these to search among."""

    images: Views
    control: Views
    gallery: Views


class Attacks:
    """The attacks, with what they all share.

    Args:
        retained: kept images that every model was trained on; the second decoder is fitted on them.
        resampling: of intervals and null distributions.
        others: further retrained models, of other seeds. With at least two of them relearning and the second decoder are judged
            by the spread of all retrained models, at the resampling's confidence.
    """

    def __init__(self, retained: Views, resampling: Resampling, others: Sequence[ImageModel] = ()) -> None:
        self._retained, self._resampling = retained, resampling
        self._others = tuple(others) if len(others) + 1 >= LEAST else ()

    def find(
        self,
        attack: str,
        models: Mapping[str, ImageModel],
        forgotten: Attacked,
        kept_models: Mapping[str, ImageModel],
        kept: Attacked,
        *,
        group: str,
        label: str,
    ) -> Found:
        """What one attack finds of the forget images of one group, in each model beside the retrained one.

        Args:
            attack: one of `ATTACKS`.
            models: name -> model, `retrained` among them; in eval mode, left as they are.
            forgotten: the images of the group.
            kept_models: the models that are judged by unseen kept images as well.
            kept: such images.
            group: name, for the findings.
            label: makes the draws of different groups independent.
        """
        make = {"relearn": self._relearn, "second_decoder": self._second_decoder, "extraction": self._extraction}[attack]
        seen = make(models, forgotten.images, forgotten.control, forgotten.gallery, label)
        base: Mapping[str, Interval] = {}
        if seen.trainings < LEAST:
            base = make(kept_models, kept.images, kept.control, kept.gallery, f"{label}/kept").scores
        findings = _findings(attack, group, seen, base, len(forgotten.images))
        return Found(findings=tuple(findings), series=_series(attack, group, seen))

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
        losses = {name: np.array(made.losses["unlearned"]) for name, made in found.items()}
        losses[REFERENCE] = np.array(found["unlearned"].losses[REFERENCE])
        others = [relearning_areas(model, taught, judged, attack, self._resampling.seed) for model in self._others]
        return self._beside(
            losses,
            others,
            _Seen(
                scores={name: made.score for name, made in found.items()},
                note=f"log ratio of the loss of {len(judged)} while {half} others are trained on",
                axis="minus its loss while others are trained on",
                images={name: -values for name, values in losses.items()},
                null={name: np.array(made.null) for name, made in found.items()},
            ),
        )

    def _second_decoder(
        self, models: Mapping[str, ImageModel], attacked: Views, control: Views, gallery: Views, label: str
    ) -> _Seen:
        del gallery
        retained = self._retained
        found = second_decoder(
            models, retained=retained, forget=attacked, unseen=control, resampling=self._resampling, label=label
        )
        errors = {name: np.array(made.errors) for name, made in found.items()}
        seed = self._resampling.seed
        others = [decoder_errors(model, retained=retained, judged=[attacked], seed=seed)[0][0] for model in self._others]
        return self._beside(
            errors,
            others,
            _Seen(
                scores={name: _log(made.ratio) for name, made in found.items() if made.ratio is not None},
                note=f"log ratio of the error of a decoder fitted on {len(retained)} kept images",
                axis="minus the second decoder's error",
                images={name: -values for name, values in errors.items()},
                null={name: np.log(np.maximum(made.null, 1e-12)) for name, made in found.items()},
            ),
        )

    def _beside(self, losses: Mapping[str, Floats], others: Sequence[Floats], seen: _Seen) -> _Seen:
        """What was seen, with scores beside all retrained models where there are several: log mean losses, and their spread."""
        if not others:
            return seen
        logs = {name: float(np.log(max(values.mean(), 1e-30))) for name, values in losses.items()}
        trainings = [logs[REFERENCE], *(float(np.log(max(values.mean(), 1e-30))) for values in others)]
        confidence = self._resampling.confidence
        scores = {name: beside_trainings(logs[name], trainings, confidence) for name in seen.scores}
        note = f"{seen.note}, beside {len(trainings)} retrained models and their spread"
        return dataclasses.replace(seen, scores=scores, note=note, trainings=len(trainings), null={})

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


def driven(models: Mapping[str, ImageModel], forgotten: Views) -> ImageModel:
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


def _findings(attack: str, group: str, seen: _Seen, base: Mapping[str, Interval], samples: int) -> list[Finding]:
    """One line a model. Where the original is not found to know the images better, a pass says nothing.

    Two trainings differ also on images that neither saw: only what lies beyond `base` is said of the forgotten ones. (The model
    that was driven too far is off on all images, so it is judged against none.) The spread of several trainings says it all.
    """
    scores, none = seen.scores, Interval(value=0.0, low=0.0, high=0.0)

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
            measure=seen.note,
            says=says(name),
            value=score.value,
            low=score.low,
            high=score.high,
            kept_low=base[name].low if name in base else None,
            kept_high=base[name].high if name in base else None,
            samples=samples,
            trainings=seen.trainings,
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
            null=_short(seen.null.get(name, ())),
            observed=_short([score.value])[0],
        )
        for name, score in seen.scores.items()
    )


def _short(values: Iterable[float]) -> tuple[float, ...]:
    # Adding 0 turns the -0 of a negated rate into 0.
    return tuple(float(f"{value:.6g}") + 0.0 for value in values)
