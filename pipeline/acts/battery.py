"""The attacks of an audit on the images of one group of a run.

Images, models and their controls are read here; what is done with them is in `pipeline.evaluation.battery`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.data.samples import read_samples
from pipeline.data.stream import ImageReader, to_tensor
from pipeline.draws import draws_of_rows
from pipeline.evaluation.base import Resampling
from pipeline.evaluation.battery import ATTACKS, Attacked, Attacks, driven
from pipeline.evaluation.grid import draw
from pipeline.evaluation.relearn import Views
from pipeline.evaluation.second_decoder import decoder_answers
from pipeline.evaluation.splits import SOURCES, Slice, choose
from pipeline.evaluation.summary import REFERENCE
from pipeline.findings import OVER, Finding, Found
from pipeline.models.base import ImageModel
from pipeline.stages.evaluate import to_bytes
from pipeline.stages.phase import Phase

__all__ = ["ATTACKS", "Battery"]

LEAST = 8
"""Images on each side below which nothing can be said."""
RETAINED = 1000
"""Kept images that the second decoder is fitted on."""
DECODED = ("original", "unlearned", REFERENCE)
"""Models whose second decoder is shown."""


class Battery:
    """The images that all attacks share, and the models; `others` are retrained models of other seeds."""

    def __init__(self, phase: Phase, models: dict[str, ImageModel], samples: int, others: Sequence[ImageModel] = ()) -> None:
        self._phase, self._models, self._others = phase, models, others
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
            self._over = number, driven(self._models, forgotten)
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
        half = len(kept.indices) // 2
        others = self._attacked(self._views(kept, kept.indices[: min(half, len(forgotten))]), kept, half)
        return Attacks(self._retained(), self._resampling, self._others).find(
            attack,
            models,
            self._attacked(forgotten, unseen),
            self._models,
            others,
            group=group.name,
            label=f"audit/{attack}/{number}",
        )

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

    def _attacked(self, images: Views, item: Slice, start: int = 0) -> Attacked:
        """Images with others of a slice from `start` on, in two parts: to judge as a control, and to search among."""
        rows = item.indices[start:][: 2 * self._samples]
        half = len(rows) // 2
        return Attacked(images=images, control=self._views(item, rows[:half]), gallery=self._views(item, rows[half:]))
