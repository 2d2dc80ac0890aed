"""Scores a planted twin: canaries, noise and a backdoor, in the models of a run that was made to be attacked.

The twin is a finished run like any other, on the images of the run under audit with something planted among those to forget
(`pipeline.data.sources.planted`). What is planted is drawn again from the twin's secret. The findings and a picture go into the
folder of the run under audit; the picture shows canaries and images that no model was trained on, never a forgotten image.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import component
from pipeline.audit_orders import PlantedOrder
from pipeline.chain import read_receipt, stage
from pipeline.config import read_run
from pipeline.data import planting
from pipeline.data.samples import Samples, read_samples
from pipeline.data.sources.planted import Planted
from pipeline.data.stream import ImageReader, to_tensor
from pipeline.decode import canonical, decode, digest
from pipeline.draws import draws_of_rows
from pipeline.errors import IntegrityError, StorageError
from pipeline.evaluation.base import Floats
from pipeline.evaluation.extraction import completions
from pipeline.evaluation.grid import draw
from pipeline.evaluation.planted_scores import backdoor_scores, canary_scores, poison_scores, with_power
from pipeline.evaluation.relearn import Views
from pipeline.evaluation.summary import REFERENCE
from pipeline.findings import Finding, Found
from pipeline.models.base import ImageModel
from pipeline.stages.evaluate import load_subjects
from pipeline.stages.phase import Phase, choose
from pipeline.stages.runner import Job
from pipeline.storage import exists, publish_bytes, read_bytes

__all__ = ["beside_certificate", "run"]

log = logging.getLogger("unlearn")

VERSION = "planted/1"
"""Raised with every change to what is found, so that no older finding stands for a new one."""
FILE, PICTURE = "audit/planted.json", "audit/planted.png"
DRAWS = 4
"""Draws over which the loss of a canary is averaged at least."""
DELTA = 1e-5
"""Of the bound, where the run claims none."""
BATCH = 64
LEAST = 8
"""Images with noise, or with a trigger, below which nothing is said."""
COLUMNS = 4
"""Canaries, and as many stamped images, in the picture."""
ROWS = {"original": "before", "unlearned": "after"}


def run(order: PlantedOrder) -> Found:
    """Attack the twin's models, and publish `audit/planted.json` and `audit/planted.png` in the run's folder.

    Raises:
        StorageError: run or twin has not ended.
        CheckpointError: a loss, gradient or answer that is not finite.
    """
    job, twin = _job(order.folder), _job(order.twin)
    phase = Phase(twin, "planted")
    models, marks = load_subjects(twin, phase.group.device)
    weights = _weights(job)
    mark = digest([VERSION, marks, order.samples, twin.config.source, twin.config.seed, weights])
    uri = job.path(FILE)
    if exists(uri) and (content := json.loads(read_bytes(uri))).get("mark") == mark:
        log.info("planted: up to date")
        return decode(Found, content["found"], where=uri, error=IntegrityError)
    attacks = _Attacks(phase, models, order.samples)
    try:
        parts = {name: attacks.canaries(name) for name in models}
        log.info("planted: canaries done")
        parts |= {f"{name}/noise": attacks.noise(name) for name in models}
        log.info("planted: noise done")
        found = with_power({**parts, "backdoor": attacks.backdoor()})
        log.info("planted: backdoor done")
        publish_bytes(job.path(PICTURE), attacks.picture())
    finally:
        attacks.close()
    name = twin.folder.rsplit("/", 1)[-1]
    publish_bytes(uri, canonical({"mark": mark, "weights_sha256": weights, "twin": name, "found": found}))
    return found


def _job(folder: str) -> Job:
    config = read_run(folder)
    job = Job(spec=stage("evaluate", config), config=config, folder=folder)
    if not exists(job.path("receipts/release.json")):
        raise StorageError(f"{folder}: the run has not ended", "run it first")
    return job


def _weights(job: Job) -> str:
    """Digest of the run's released weights: a finding holds as long as they are the ones."""
    receipt = read_receipt(job.folder, "release")
    return next(ref.sha256 for ref in receipt.outputs if ref.uri == "weights/model.safetensors") if receipt else ""


class _Attacks:
    """What was planted, drawn again, and the models that may know it."""

    def __init__(self, phase: Phase, models: dict[str, ImageModel], samples: int) -> None:
        self._phase, self._models, self._samples = phase, models, samples
        self._config = phase.job.config
        self._source: Planted = component.build("source", self._config.source)
        self._shape = {"size": models["original"].image_size, "channels": models["original"].channels}
        self._device = phase.group.device
        self._readers: list[ImageReader] = []
        planted, secret = self._source.config, self._source.secret
        self._canaries = np.stack([planting.canary(secret, number, **self._shape) for number in range(planted.canaries)])
        self._heads = np.array([planting.coin(secret, number) for number in range(planted.canaries)])
        self._backdoor = planting.place_backdoor(phase.task, **self._shape)
        self._losses: dict[str, Floats] = {}
        report = json.loads(read_bytes(phase.job.path("report.json")))
        self._certificate: Mapping[str, Any] = report.get("certificate") or {}

    def close(self) -> None:
        """Stop reading."""
        for reader in self._readers:
            reader.close()

    def canaries(self, subject: str) -> Found:
        """Findings about the canaries in one model.

        Some canaries are harder than others; what the retrained model loses on one says how hard, and does not depend on its
        coin, so the other models are judged by the ratio.
        """
        losses = self._log_losses(subject)
        scores = losses if subject == REFERENCE else losses - self._log_losses(REFERENCE)
        delta, confidence = self._certificate.get("delta") or DELTA, self._config.evaluation.confidence
        found = canary_scores(
            scores[self._heads], scores[~self._heads], group="canaries", subject=subject, delta=delta, confidence=confidence
        )
        return beside_certificate(found, self._certificate.get("epsilon")) if subject == "unlearned" else found

    def _log_losses(self, subject: str) -> Floats:
        """Log of the mean loss of each canary over fixed draws, fp64 [canaries]."""
        if subject not in self._losses:
            model = self._models[subject]
            draws = max(DRAWS, model.probe_draws)
            with torch.no_grad():
                parts = [
                    sum(model(view.visible_BCHW, view.target_BCHW, view.region_B1HW, view.draws_B).double() for view in views)
                    for start in range(0, len(self._canaries), BATCH)
                    for views in [[self._canary_views(slice(start, start + BATCH), step) for step in range(draws)]]
                ]
            self._losses[subject] = (torch.cat(parts) / draws).clamp(min=1e-30).log().cpu().numpy()
        return self._losses[subject]

    def _canary_views(self, part: slice, step: int = 0) -> Views:
        images = self._canaries[part]
        return self._views(images, np.arange(len(self._canaries))[part], step)

    def _views(self, shown: np.ndarray, rows: np.ndarray, step: int = 0, truth: np.ndarray | None = None) -> Views:
        """Images as the models see them; uint8 [n, H, W, C]. `truth`: what is hidden in them, if it isn't the same."""
        image = to_tensor(shown, self._device)
        drawn = torch.from_numpy(draws_of_rows(rows, self._phase.seed, step)).to(self._device)
        visible, region = self._phase.task.degrade(image, drawn)
        target = image if truth is None else to_tensor(truth, self._device)
        return Views(visible_BCHW=visible, target_BCHW=target, region_B1HW=region, draws_B=drawn)

    def _fetch(self, samples: Samples, rows: np.ndarray) -> np.ndarray:
        reader = self._phase.reader(samples, self._models["original"])
        self._readers.append(reader)
        return reader.fetch(rows)

    def _parts(self, forget: Samples) -> np.ndarray:
        """What was done to each forget image of the run under audit."""
        planted = self._source.config
        shares = {"noised": planted.noised, "backdoored": planted.backdoored}
        return np.array([planting.part_of(self._source.secret, key, **shares) for key in forget.keys])

    def noise(self, subject: str) -> Found:
        """Findings about the noise in one model, at the images without it."""
        if self._noised is None:
            return _too_few("poison", "noised images", subject)
        (views, added), confidence, tau = self._noised, self._config.evaluation.confidence, self._source.config.tau
        return poison_scores(
            self._models[subject],
            views,
            added,
            tau=tau,
            group="noised images",
            subject=subject,
            confidence=confidence,
            seed=self._config.seed,
        )

    @functools.cached_property
    def _noised(self) -> tuple[Views, Tensor] | None:
        """Clean views of images that were trained on with noise, and the noise, fp32 [k, C, H, W]; None: too few."""
        source = self._source
        forget = read_samples(source.folder, source.manifest, "forget")
        rows = choose(forget, self._config.seed, self._samples, self._parts(forget) == "noised")
        if len(rows) < LEAST:
            return None
        keys = [forget.keys[row] for row in rows]
        drawn = [planting.noise(source.secret, key, **self._shape, tau=source.config.tau) for key in keys]
        added = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()
        return self._views(self._fetch(forget, rows), rows), added

    def backdoor(self) -> Found:
        """Findings about the backdoor in all models."""
        if self._stamped is None:
            return _too_few("backdoor", "stamped held-out images", "unlearned")
        views, pattern = self._stamped
        confidence = self._config.evaluation.confidence
        return backdoor_scores(self._models, views, pattern, group="stamped held-out images", confidence=confidence)

    @functools.cached_property
    def _stamped(self) -> tuple[Views, Tensor] | None:
        """Held-out images with the trigger, in the mix of classes that had the backdoor, and what it would make of them.

        A trigger may be learned together with what it was seen on, so other classes would show less of it. None: too few.
        """
        source = self._source
        forget = read_samples(source.folder, source.manifest, "forget")
        held_out = self._phase.samples("holdout")
        labels, counts = np.unique(forget.labels[self._parts(forget) == "backdoored"], return_counts=True)
        limits = np.ceil(self._samples * counts / max(1, counts.sum())).astype(int)
        seed = self._config.seed
        chosen = [
            choose(held_out, seed, int(limit), held_out.labels == label) for label, limit in zip(labels, limits, strict=True)
        ]
        alike = np.isin(np.arange(len(held_out)), np.concatenate([np.empty(0, dtype=np.int64), *chosen]))
        rows = choose(held_out, seed, self._samples, alike)
        if len(rows) < LEAST:
            return None
        clean = self._fetch(held_out, rows)
        views = self._views(self._backdoor.stamp(clean), rows, truth=clean)
        return views, to_tensor(self._backdoor.target(clean), self._device)

    def picture(self) -> bytes:
        """Canaries, whatever their coins showed, and stamped images, with each model's answers; PNG."""
        canaries = np.arange(min(COLUMNS, len(self._canaries)))
        shown = [self._views(self._canaries[canaries], canaries)]
        shown += [self._stamped[0].part(slice(0, COLUMNS))] if self._stamped else []
        rows = [("truth", [view.target_BCHW for view in shown]), ("hidden input", [view.visible_BCHW for view in shown])]
        for name, model in self._models.items():
            rows.append((ROWS.get(name, name), [completions(model, view) for view in shown]))
        return draw([(label, _to_bytes(torch.cat(images))) for label, images in rows])


def _too_few(attack: str, group: str, subject: str) -> Found:
    note = f"fewer than {LEAST} images, in which nothing would be found"
    return Found(findings=(Finding(attack=attack, group=group, subject=subject, measure="", says="not computed", note=note),))


def beside_certificate(found: Found, epsilon: float | None) -> Found:
    """What was found beside the certified epsilon, if there is one: a larger bound refutes it."""
    if epsilon is None:
        return found

    def beside(item: Finding) -> Finding:
        if item.epsilon_low is None or item.epsilon_low <= epsilon:
            return item
        refuted = f"refutes the certificate (epsilon {epsilon:.3g}): {item.note}"
        return dataclasses.replace(item, says="still there", note=refuted)

    return dataclasses.replace(found, findings=tuple(beside(item) for item in found.findings))


def _to_bytes(images_NCHW: Tensor) -> NDArray[np.uint8]:
    """fp32 [N, C, H, W] in [0, 1] -> uint8 [N, H, W, C]."""
    levels = images_NCHW.clamp(0, 1).mul(255).round().byte()
    return np.asarray(levels.permute(0, 2, 3, 1).cpu().numpy())
