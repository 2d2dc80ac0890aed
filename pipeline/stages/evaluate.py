"""Stage evaluate: four splits, three models, the same images for each; figures, per-image errors and picture grids.

Ranks take batches in turn and every batch holds the same images at every world size, so the result does not depend on
the number of ranks. Computed in fp32 whatever the precision of training.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import component
from pipeline.chain import read_receipt
from pipeline.data.samples import read_samples
from pipeline.data.stream import ImageReader, to_tensor
from pipeline.data.tasks.base import Task
from pipeline.decode import canonical
from pipeline.draws import draws_of_rows
from pipeline.engine.checkpoint import load_weights
from pipeline.engine.distributed import ProcessGroup, group
from pipeline.engine.watchdog import beat, rest
from pipeline.errors import CheckpointError, StorageError
from pipeline.evaluation.base import Floats, Resampling
from pipeline.evaluation.grid import draw
from pipeline.evaluation.paired import METRICS, score
from pipeline.evaluation.splits import SOURCES, Slice, choose
from pipeline.evaluation.summary import REFERENCE, Place, summarise
from pipeline.models.base import ImageModel
from pipeline.records import FileRef, Group
from pipeline.stages.runner import Job, Result, read_manifest
from pipeline.stages.seeing import Eyes, Seen
from pipeline.storage import publish, publish_bytes

__all__ = ["load_subjects", "run", "to_bytes"]

log = logging.getLogger("unlearn")

ROW_NAMES = {"original": "before", "unlearned": "after"}

Measured = dict[str, dict[Place, dict[str, Floats]]]


def run(job: Job) -> Result:
    """Measure every subject on every split and publish what was found.

    Raises:
        StorageError: the original or the unlearned weights are not there. (The retrained ones may be absent.)
        CheckpointError: a model answers with values that are not finite.
    """
    ranks, manifest, config = group(), read_manifest(job), job.config
    models, _ = load_subjects(job, ranks.device)
    shape = next(iter(models.values()))
    tables = {name: read_samples(job.folder, manifest, name) for name in SOURCES}
    # Of a retain split of any size, only the rows of as many images as are measured are read.
    tables["retain"] = tables["retain"].spread(config.evaluation.max_samples, config.seed)
    readers = {
        name: ImageReader(
            table,
            size=shape.image_size,
            channels=shape.channels,
            images=config.images,
            reading=config.reading,
        )
        for name, table in tables.items()
    }
    slices = choose(tables, manifest.groups, seed=config.seed, max_samples=config.evaluation.max_samples)
    task: Task = component.build("task", config.task)
    eyes = Eyes(config.evaluation, ranks.device)
    try:
        parts = ranks.gather(_measure(models, task, slices, readers, config.evaluation.batch_size, eyes, ranks))
        rest()  # from here on the first rank works alone
        if not job.first:
            return Result(outputs=())
        scores = _assemble([measured for measured, _ in parts], slices, list(models))
        grids = _publish_grids(job, models, task, slices, readers, manifest.groups, ranks.device)
    finally:
        for reader in readers.values():
            reader.close()
    resampling = Resampling(seed=config.seed, resamples=config.evaluation.bootstrap, confidence=config.evaluation.confidence)
    subjects = tuple(_writers(job))
    seen = eyes.figures([part for _, part in parts], slices, subjects, list(models), resampling)
    evaluations = summarise(scores, [(item.split, item.group) for item in slices], resampling, subjects)
    evaluations = dataclasses.replace(
        evaluations,
        evaluations=tuple(
            dataclasses.replace(item, results=item.results + seen[item.subject]) for item in evaluations.evaluations
        ),
    )
    publish_bytes(job.path("evaluation.json"), canonical(evaluations))
    publish_bytes(job.path("evaluation/errors.npz"), _pack(scores, slices, manifest.groups))
    counts = {item.name: len(item.indices) for item in slices}
    outputs = ("evaluation.json", "evaluation/errors.npz", *grids, *_export(job, models))
    return Result(outputs=outputs, facts={"images": counts})


def _export(job: Job, models: Mapping[str, ImageModel]) -> list[str]:
    """The unlearned weights once more as the model's own library saves them, below `pretrained/`; release copies them."""
    if "unlearned" not in models:
        return []
    with tempfile.TemporaryDirectory() as scratch:
        models["unlearned"].export(Path(scratch))
        found = sorted(path for path in Path(scratch).rglob("*") if path.is_file())
        names = [f"pretrained/{path.relative_to(scratch).as_posix()}" for path in found]
        for name, path in zip(names, found, strict=True):
            with publish(job.path(name)) as out, path.open("rb") as stream:
                shutil.copyfileobj(stream, out)
    return names


def load_subjects(job: Job, device: torch.device, *, only: Collection[str] = ()) -> tuple[dict[str, ImageModel], dict[str, str]]:
    """Subjects in the order of SUBJECTS, those with published weights, ready to answer; and the sha256 of their weights.

    `only`: names of the subjects to load; all without it.
    """
    models, marks = {}, {}
    for subject, (stage_name, uri) in _writers(job).items():
        if only and subject not in only:
            continue
        ref = _published(job, stage_name, uri)
        if ref is None and subject == REFERENCE:
            log.info("evaluate: no retrained model; what compares with it is not computed")
            continue
        if ref is None:
            raise StorageError(f"{job.path(uri)}: no finished stage wrote it", "run the chain from its start")
        model: ImageModel = component.build("model", job.config.model)
        load_weights(model, job.path(uri), ref.sha256)
        models[subject], marks[subject] = model.to(device).eval(), ref.sha256
    return models, marks


def _writers(job: Job) -> dict[str, tuple[str, str]]:
    """Each subject's stage and file, in the order to report: original, unlearned or all compared methods, retrained.

    A method's model is that of its last phase; without one it is the original.
    """
    found = {"original": ("train", "checkpoints/original/model.safetensors")}
    for variant in job.config.methods or [""]:
        folder, ending = (f"methods/{variant}/", f".{variant}") if variant else ("", "")
        subject, writer = variant or "unlearned", found["original"]
        for stage_name, weights in (("forget", "forgotten"), ("certify", "certified"), ("retain", "unlearned")):
            if stage_name + ending in job.spec.needs:
                writer = (stage_name + ending, f"{folder}checkpoints/{weights}/model.safetensors")
        found[subject] = writer
    return {**found, REFERENCE: ("retrain", "checkpoints/retrained/model.safetensors")}


def _published(job: Job, stage: str, uri: str) -> FileRef | None:
    # A receipt of a stage that this run no longer has is left from an older configuration.
    receipt = read_receipt(job.folder, stage) if stage in job.spec.needs else None
    return next((ref for ref in receipt.outputs if ref.uri == uri), None) if receipt else None


def _measure(
    models: Mapping[str, ImageModel],
    task: Task,
    slices: list[Slice],
    readers: Mapping[str, ImageReader],
    batch_size: int,
    eyes: Eyes,
    ranks: ProcessGroup,
) -> tuple[dict[tuple[int, int, str], dict[str, Floats]], Seen]:
    """This rank's batches: (slice, first image, subject) -> scores of the batch, and what extractors saw of it."""
    found: dict[tuple[int, int, str], dict[str, Floats]] = {}
    seen: Seen = {}
    for turn, (number, start) in enumerate(_batches(slices, batch_size)):
        if turn % ranks.world_size != ranks.rank:
            continue
        item = slices[number]
        beat(f"evaluate: split {item.split}, image {start}")
        images = readers[item.source].fetch(item.indices[start : start + batch_size])
        draws = draws_of_rows(item.indices[start : start + batch_size], number)
        truth, _, region, answers = _answer(models, task, images, draws, ranks.device)
        for subject, answer in answers.items():
            scores = score(answer, truth, region)
            if not all(np.isfinite(values).all() for values in scores.values()):
                raise CheckpointError(
                    f"{subject} model: answers with values that are not finite (split {item.name})",
                    "train it again with a lower learning rate, or in fp32",
                )
            found[number, start, subject] = scores
        seen |= eyes.look(number, start, truth, answers)
    return found, seen


def _batches(slices: list[Slice], batch_size: int) -> Iterator[tuple[int, int]]:
    """Slice number and first image of every batch, in one order for all ranks."""
    for number, item in enumerate(slices):
        for start in range(0, len(item.indices), batch_size):
            yield number, start


@torch.no_grad()
def _answer(
    models: Mapping[str, ImageModel], task: Task, images_NHWC: NDArray[np.uint8], draws: NDArray[np.int64], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Truth and visible fp32 [N, C, H, W], region bool [N, 1, H, W], and each subject's answer fp32 [N, C, H, W]."""
    truth = to_tensor(images_NHWC, device)
    drawn = torch.from_numpy(draws).to(device)
    visible, region = task.degrade(truth, drawn)
    return truth, visible, region, {name: model.complete(visible, region, drawn).float() for name, model in models.items()}


def _assemble(parts: list[dict[tuple[int, int, str], dict[str, Floats]]], slices: list[Slice], subjects: list[str]) -> Measured:
    """Join all ranks' batches in the order of the slices' indices; an empty slice gives arrays of no element."""
    merged = {key: scores for part in parts for key, scores in part.items()}
    measured: Measured = {subject: {} for subject in subjects}
    for number, item in enumerate(slices):
        starts = sorted({start for where, start, _ in merged if where == number})
        for subject in subjects:
            batches = [merged[number, start, subject] for start in starts]
            measured[subject][item.split, item.group] = {
                name: np.concatenate([np.empty(0), *(batch[name] for batch in batches)]) for name in METRICS
            }
    return measured


def _pack(scores: Measured, slices: list[Slice], groups: tuple[Group, ...]) -> bytes:
    """Region errors as npz: `subject/split` or `subject/split/number of the group` -> float64 [N], in no telling order."""
    numbers = {item.name: place for place, item in enumerate(groups)}
    arrays = {}
    for subject, places in scores.items():
        for item in slices:
            values = places[item.split, item.group]["error_region"]
            arrays["/".join([subject, item.split, *([str(numbers[item.group])] if item.group else [])])] = values
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _publish_grids(
    job: Job,
    models: Mapping[str, ImageModel],
    task: Task,
    slices: list[Slice],
    readers: Mapping[str, ImageReader],
    groups: tuple[Group, ...],
    device: torch.device,
) -> list[str]:
    """One grid a forget group (`grid_0.png`, ... in the manifest's order), and `grid_retain.png`; empty splits have none."""
    numbers = {item.name: str(place) for place, item in enumerate(groups)}
    outputs = []
    for number, item in enumerate(slices):
        chosen = item.indices[: job.config.evaluation.grid_images]
        if item.split not in ("forget", "retain") or not len(chosen):
            continue
        truth, visible, _, answers = _answer(
            models, task, readers[item.source].fetch(chosen), draws_of_rows(chosen, number), device
        )
        rows = [("truth", truth), ("hidden input", visible), *((ROW_NAMES.get(name, name), answers[name]) for name in answers)]
        name = f"evaluation/grid_{numbers.get(item.group, 'retain')}.png"
        publish_bytes(job.path(name), draw([(label, to_bytes(images)) for label, images in rows]))
        outputs.append(name)
    return outputs


def to_bytes(images_NCHW: Tensor) -> NDArray[np.uint8]:
    """fp32 [N, C, H, W] in [0, 1] -> uint8 [N, H, W, C]."""
    levels = images_NCHW.clamp(0, 1).mul(255).round().byte()
    return np.asarray(levels.permute(0, 2, 3, 1).cpu().numpy())
