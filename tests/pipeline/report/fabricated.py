"""A finished run, made up: every record that the release stage reads, with receipts that fit."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from typing import Any

import numpy as np

from pipeline.chain import stage, write_receipt
from pipeline.config import RunConfig
from pipeline.decode import canonical
from pipeline.evaluation.base import Resampling
from pipeline.evaluation.grid import draw
from pipeline.evaluation.paired import METRICS
from pipeline.evaluation.summary import summarise
from pipeline.records import Calibration, Coverage, FileRef, Group, GroupLevel, Manifest, PhaseOutcome, Receipt, Split
from pipeline.stages.runner import Job
from pipeline.storage import hash_file, publish_bytes

# Mean region errors as a prototype measured them: split -> original, unlearned, retrained.
MEANS = {
    "forget/0": (0.0189, 0.0604, 0.0607),
    "unseen/0": (0.0193, 0.0593, 0.0581),
    "forget/1": (0.0223, 0.0281, 0.0284),
    "unseen/1": (0.0289, 0.0290, 0.0294),
    "retain": (0.0286, 0.0290, 0.0294),
    "unseen_retain": (0.0290, 0.0296, 0.0297),
}

WRITERS = {"retain": ("retain", "unlearned"), "forget": ("forget", "forgotten")}
"""Stage and name of the last weights of a method, by the part of its section."""


def config(**changes: Any) -> RunConfig:
    parts = {"source": {"component": "fashion_mnist"}, "model": {"component": "autoencoder", "width": 32}}
    parts |= {
        "task": {"component": "center_crop"},
        "method": {"component": "decouple", "calibration": {}, "forget": {}, "retain": {}},
    }
    return RunConfig(name="demo", **{**parts, **changes})


def scores(groups: tuple[Group, ...], *, reference: bool, num: int) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Lognormal errors around MEANS. The same image is easy or hard for every model, as in life."""
    subjects = ("original", "unlearned", "retrained") if reference else ("original", "unlearned")
    found: dict[str, Any] = {subject: {} for subject in subjects}
    places = []
    for name, means in MEANS.items():
        split, _, number = name.partition("/")
        if number and int(number) >= len(groups):
            continue
        place = (split, groups[int(number)].name if number else "")
        places.append(place)
        generator = np.random.default_rng(len(places))
        hard = generator.normal(0, 0.5, num)
        for subject, mean in zip(subjects, means, strict=False):
            errors = mean * np.exp(hard + generator.normal(0, 0.25, num) - 0.16)
            found[subject][place] = dict.fromkeys(METRICS, errors)
            found[subject][place] |= {"error_image": errors / 4, "psnr_region": -10 * np.log10(errors)}
            found[subject][place] |= {"psnr_image": -10 * np.log10(errors / 4)}
            found[subject][place] |= {"ssim_region": np.clip(1 - 9 * errors, -1, 1), "ssim_image": np.clip(1 - 3 * errors, -1, 1)}
    return found, places


def build(
    folder: str,
    *,
    groups: tuple[tuple[str, str], ...] = (("Trouser", "class"), ("single images", "images")),
    reference: bool = True,
    already_unseen: bool = False,
    guarded: bool = True,
    parts: tuple[str, ...] = ("calibration", "forget", "retain"),
    num: int = 200,
    pictures: np.ndarray | None = None,
    model: bytes = b"weights" * 1000,
) -> Job:
    """Write the run below `folder` and return the release stage's job.

    Args:
        parts: of the method's section; the phases and stages that it has.
        pictures: uint8 [n, H, W, C] for the grids; noise without.
        model: bytes of the last weights.
    """
    made = tuple(
        Group(name=name, kind=kind, labels=(number,), samples=2000 if kind == "class" else 200)  # type: ignore[arg-type]
        for number, (name, kind) in enumerate(groups)
    )
    method = {"component": "decouple", **{part: {} for part in parts}}
    settings = config(reference="retrain" if reference else "none", method=method)
    names = ("original", "forget", "retain", "calibration", "holdout")
    manifest = Manifest(
        run_id="demo-0123abcd",
        batch_digest="0123abcd" * 8,
        requests=3,
        source="fashion_mnist",
        source_digest="ab" * 32,
        classes=("Trouser", "Coat"),
        seed=0,
        groups=made,
        splits=tuple(Split(name=n, shards=(), samples=20000, keys_digest="cd" * 32) for n in names),  # type: ignore[arg-type]
        index=(FileRef(uri="index.parquet", sha256="00", bytes=1),),
        source_folder="../sources/x-1",
        shards_clean=17,
        shards_rewritten=3,
    )
    level = {"method": "shadow", "level": 0.058, "low": 0.052, "high": 0.064, "original_error": 0.0189, "samples": 2000}
    auc = {"auc": 0.51, "auc_low": 0.47, "auc_high": 0.54}
    levels = tuple(GroupLevel(group=g.name, already_unseen=already_unseen, **level, **auc) for g in made)  # type: ignore[arg-type]
    calibration = Calibration(levels=levels, retain_error=0.029, sample_gradients=6000)
    found, places = scores(made, reference=reference, num=num)
    evaluations = summarise(found, places, Resampling(seed=0, resamples=200, confidence=0.95))
    outputs: dict[str, dict[str, bytes]] = {name: {} for name in stage("release", settings).needs}
    outputs["shard"]["manifest.json"] = canonical(manifest)
    if "calibration" in parts:
        outputs["calibrate"]["calibration.json"] = canonical(calibration)
    outputs["evaluate"]["evaluation.json"] = canonical(evaluations)
    outputs["evaluate"]["evaluation/errors.npz"] = _npz(found, made)
    pictures = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 1), dtype=np.uint8) if pictures is None else pictures
    rows = ("truth", "hidden input", "before", "after", "retrained")[: 5 if reference else 4]
    for number in (*range(len(made)), "retain"):
        outputs["evaluate"][f"evaluation/grid_{number}.png"] = draw([(row, pictures) for row in rows])
    writer, weights = next((pair for part, pair in WRITERS.items() if part in parts), ("train", "original"))
    outputs[writer][f"checkpoints/{weights}/model.safetensors"] = model
    _phases(outputs)
    for name, files in outputs.items():
        for uri, content in files.items():
            publish_bytes(os.path.join(folder, uri), content)
        write_receipt(folder, _receipt(folder, name, tuple(files), {"reads_forget": guarded} if name == "retain" else {}))
    return Job(spec=stage("release", settings), config=settings, folder=folder)


def _receipt(folder: str, name: str, uris: tuple[str, ...], facts: dict[str, Any]) -> Receipt:
    refs = tuple(dataclasses.replace(hash_file(os.path.join(folder, uri)), uri=uri) for uri in uris)
    times = {"started_at": "2026-01-02T03:04:05.000+00:00", "ended_at": "2026-01-02T03:14:05.000+00:00"}
    settled = {"config_digest": "ef" * 32, "code_version": "i2i-unlearn 0", "world_size": 2}
    return Receipt(stage=name, inputs={}, outputs=refs, facts=facts, **settled, **times)  # type: ignore[arg-type]


def _npz(found: dict[str, Any], groups: tuple[Group, ...]) -> bytes:
    numbers = {group.name: f"/{number}" for number, group in enumerate(groups)} | {"": ""}
    stream = io.BytesIO()
    arrays = {f"{s}/{p[0]}{numbers[p[1]]}": m["error_region"] for s, places in found.items() for p, m in places.items()}
    np.savez(stream, **arrays)
    return stream.getvalue()


def _phases(outputs: dict[str, dict[str, bytes]]) -> None:
    work = {"train": (936, 120_000), "retrain": (846, 108_000), "calibrate": (47, 6_000), "forget": (34, 4_400)}
    for name, (steps, gradients) in {**work, "retain": (63, 8_000)}.items():
        if name not in outputs:
            continue
        seen = 4_400 if name == "forget" else 0
        coverage = Coverage(
            split="forget",
            passes=2,
            samples_expected=4_400,
            samples_seen=seen,
            keys_digest="a",
            expected_digest="a",
            complete=True,
        )
        outcome = PhaseOutcome(
            phase=name,
            reason="reached lambda" if name == "forget" else "budget",
            steps=steps,
            samples=gradients,
            sample_gradients=gradients,
            seconds=gradients / 900,
            parameters=1_300_000,
            coverage=(coverage,) if name == "forget" else (),
        )
        outputs[name][f"phases/{name}.json"] = canonical(outcome)
        points = [(step, 0.03 + 0.2 * 0.97**step) for step in range(10, steps, 10)]
        key = "forget_loss_0" if name == "forget" else "retain_loss"
        lines = [{"step": step, "seconds": step / 9, "images_per_second": 900.0, key: value} for step, value in points]
        outputs[name][f"metrics/{name}.jsonl"] = "\n".join(map(json.dumps, lines)).encode()
