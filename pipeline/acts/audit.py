"""The attack battery on a finished run: relearning, a second decoder, extraction; beside the retrained model and two controls.

An attack that does not find the images in the original model has no power here, and its pass says nothing. A model that was
driven too far on purpose must be found as well, from the other side. Kept images that nobody trained on are attacked with them,
because two trainings differ on those too. What was found of a group and an attack is kept: an audit
that was broken off goes on, and does nothing again for the same weights.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
from collections.abc import Callable, Mapping

import numpy as np
import torch

from pipeline.acts.planted import planted_findings
from pipeline.chain import stage
from pipeline.data.samples import read_samples
from pipeline.data.stream import ImageReader, to_tensor
from pipeline.decode import canonical, decode, digest
from pipeline.draws import draws_of_rows
from pipeline.errors import ConfigError, StorageError
from pipeline.evaluation.base import Interval, Resampling
from pipeline.evaluation.extraction import extraction
from pipeline.evaluation.relearn import Attack, Views, relearn
from pipeline.evaluation.second_decoder import second_decoder
from pipeline.evaluation.splits import SOURCES, Slice, choose
from pipeline.evaluation.summary import REFERENCE
from pipeline.findings import Audit, Finding, Says
from pipeline.models.base import ImageModel
from pipeline.orders import AuditOrder
from pipeline.stages.evaluate import load_subjects
from pipeline.stages.phase import Phase
from pipeline.stages.runner import Job
from pipeline.storage import exists, publish_bytes, read_bytes

__all__ = ["OVER", "run"]

log = logging.getLogger("unlearn")

OVER = "over-ascended"
"""The control that was driven too far."""
FAR = 3.0
"""It is driven until the forget images lose so many times the retrained model's error."""
FAR_STEPS = 200
FAR_RATE = 1e-3
LEAST = 8
"""Images on each side below which nothing can be said."""
RETAINED = 1000
"""Kept images that the second decoder is fitted on."""
BATTERY = "battery/1"
"""Raised with every change to what is found, so that no older finding stands for a new one."""
ATTACKS = ("relearn", "second_decoder", "extraction")

Found = tuple[dict[str, Interval], str]
"""A score of each model beside the retrained one, and what it is."""


def run(order: AuditOrder) -> Audit:
    """Attack, and publish `audit.json`.

    Raises:
        StorageError: the run has not ended.
        ConfigError: the run has no retrained model, which is the measure of every attack here.
    """
    job = Job(spec=stage("evaluate", order.config), config=order.config, folder=order.folder)
    if not exists(job.path("receipts/release.json")):
        raise StorageError(f"{job.folder}: the run has not ended", "run it first")
    phase = Phase(job, "audit")
    models, marks = load_subjects(job, phase.group.device)
    if REFERENCE not in models:
        raise ConfigError(
            "audit: no retrained model to compare with", "set reference=retrain, or name its weights, and run again"
        )
    battery = _Battery(phase, models, order.samples)
    found: list[Finding] = []
    for number, group in enumerate(phase.manifest.groups):
        for attack in ATTACKS:
            mark = digest([BATTERY, marks, order.samples, order.config.seed, phase.manifest.batch_digest, attack, number])
            found += _kept(job, attack, number, mark, functools.partial(battery.attack, attack, number))
        log.info("audit: %s done", group.name)
    found += planted_findings(job)
    passed, words = _verdict(found)
    answer = Audit(
        run_id=phase.manifest.run_id,
        weights_sha256=marks["unlearned"],
        findings=tuple(found),
        passed=passed,
        words=words,
        confidence=order.config.evaluation.confidence,
    )
    publish_bytes(job.path("audit.json"), canonical(answer))
    battery.close()
    return answer


def _kept(job: Job, attack: str, number: int, mark: str, make: Callable[[], list[Finding]]) -> list[Finding]:
    """What an earlier audit of the same weights found, or what this one does."""
    uri = job.path(f"audit/{attack}-{number}.json")
    if exists(uri):
        content = json.loads(read_bytes(uri))
        if content.get("mark") == mark:
            log.info("audit: %s, group %d: up to date", attack, number)
            return [decode(Finding, item, where=uri) for item in content["findings"]]
    log.info("audit: %s, group %d", attack, number)
    found = make()
    publish_bytes(uri, canonical({"mark": mark, "findings": found}))
    return found


class _Battery:
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

    def attack(self, attack: str, number: int) -> list[Finding]:
        """Findings of one attack on the images of one group."""
        group = self._phase.manifest.groups[number]
        places = (("forget", group.name), ("unseen", group.name), ("unseen_retain", ""))
        forget, unseen, kept = (self._slices[place] for place in places)
        counts = [len(item.indices) for item in (forget, unseen, kept)]
        if min(counts) < 2 * LEAST:
            note = f"{counts[0]} forget, {counts[1]} unseen and {counts[2]} unseen kept images, and it takes {2 * LEAST} of each"
            return [Finding(attack=attack, group=group.name, subject="unlearned", measure="", says="not computed", note=note)]
        forgotten = self._views(forget, forget.indices[: self._samples])
        models = {**self._models, OVER: _driven(self._models, forgotten)}
        make = {"relearn": self._relearn, "second_decoder": self._second_decoder, "extraction": self._extraction}[attack]
        scores, note = make(models, forgotten, *self._halves(unseen), f"audit/{attack}/{number}")
        half = len(kept.indices) // 2
        others = self._views(kept, kept.indices[: min(half, len(forgotten))]), *self._halves(kept, half)
        base, _ = make(self._models, *others, f"audit/{attack}/{number}/kept")
        return _findings(attack, group.name, scores, base, len(forgotten), note=note)

    def _halves(self, item: Slice, start: int = 0) -> tuple[Views, Views]:
        """Images of a slice from `start` on, in two parts: to judge as a control, and to search among."""
        rows = item.indices[start:][: 2 * self._samples]
        half = len(rows) // 2
        return self._views(item, rows[:half]), self._views(item, rows[half:])

    def _relearn(self, models: Mapping[str, ImageModel], attacked: Views, control: Views, gallery: Views, label: str) -> Found:
        del control, gallery
        half = len(attacked) // 2
        taught, judged = attacked.part(slice(0, half)), attacked.part(slice(half, None))
        attack = Attack(batch_size=min(32, half))
        scores = {
            name: relearn(
                model,
                models[REFERENCE],
                taught=taught,
                judged=judged,
                attack=attack,
                resampling=self._resampling,
                label=f"{label}/{name}",
            ).score
            for name, model in models.items()
            if name != REFERENCE
        }
        return scores, f"log ratio of the loss of {len(judged)} while {half} others are trained on"

    def _second_decoder(
        self, models: Mapping[str, ImageModel], attacked: Views, control: Views, gallery: Views, label: str
    ) -> Found:
        del gallery
        item = self._slices["retain", ""]
        retained = self._views(item, item.indices[:RETAINED])
        found = second_decoder(
            models, retained=retained, forget=attacked, unseen=control, resampling=self._resampling, label=label
        )
        scores = {name: _log(made.ratio) for name, made in found.items() if made.ratio is not None and name != REFERENCE}
        return scores, f"log ratio of the error of a decoder fitted on {len(retained)} kept images"

    def _extraction(self, models: Mapping[str, ImageModel], attacked: Views, control: Views, gallery: Views, label: str) -> Found:
        found = extraction(
            models,
            forget=attacked,
            unseen=control,
            gallery_MCHW=gallery.target_BCHW,
            resampling=self._resampling,
            label=label,
        )
        scores = {name: _turned(made.difference) for name, made in found.items() if made.difference and name != REFERENCE}
        rates = [found[name].rate.value for name in ("unlearned", REFERENCE)]
        return scores, f"own truth nearest of {len(gallery) + 1} less often: {rates[0]:.3f}, retrained {rates[1]:.3f}"


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


def _verdict(found: list[Finding]) -> tuple[bool | None, str]:
    own = [item for item in found if item.subject == "unlearned"]
    flagged = [item for item in own if item.says in ("still there", "over-forgotten")]
    powerful = [item for item in own if item.says == "not told apart"]
    if flagged:
        names = ", ".join(f"{item.attack} ({item.group}): {item.says}" for item in flagged)
        return False, f"found by {len(flagged)} of {len(own)} attacks: {names}"
    if not powerful:
        return None, "no attack had the power to find these images, even in the original model"
    blind = len(own) - len(powerful)
    rest = f"; {blind} more had no power here" if blind else ""
    return True, f"not told apart from the retrained model by {len(powerful)} attacks{rest}; no upper bound follows"
