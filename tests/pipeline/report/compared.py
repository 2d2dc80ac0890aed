"""Finished runs of a comparison, made up: every record that the act `compare` reads, with receipts that fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from pipeline.chain import chain_for, config_digest, inputs_of, write_receipt
from pipeline.config import RunConfig
from pipeline.decode import canonical, plain
from pipeline.evaluation.base import Resampling
from pipeline.evaluation.grid import draw
from pipeline.evaluation.paired import METRICS
from pipeline.evaluation.summary import summarise
from pipeline.orders import Budget, ComparedRun, CompareOrder
from pipeline.records import Evaluations, FileRef, Group, Manifest, MetricResult, PhaseOutcome, Receipt, Split
from pipeline.storage import hash_file, publish_bytes
from tests.pipeline.report import fabricated

GROUPS = (("Trouser", "class"), ("single images", "images"))
METHODS: dict[str, tuple[float, float, float]] = {"near": (0.05, 1.01, 0.17), "far": (0.6, 1.02, 0.1), "dear": (0.02, 1.0, 0.6)}
"""Of each method: roughly how far from retrained it errs, its error on all else over the retrained model's, and its cost."""


def sections(methods: Mapping[str, Any] = METHODS) -> dict[str, dict[str, Any]]:
    return {name: {"component": "decouple", "forget": {}, "retain": {}} for name in methods}


def run_folder(
    folder: str,
    seed: int = 0,
    *,
    methods: Mapping[str, tuple[float, float, float]] = METHODS,
    groups: tuple[tuple[str, str], ...] = GROUPS,
    reference: bool = True,
    further: tuple[str, ...] = (),
    num: int = 60,
    pictures: np.ndarray | None = None,
) -> str:
    """Write one seed's run into `folder` and return it."""
    config = fabricated.config(reference="retrain" if reference else "none", methods=sections(methods), seed=seed)
    publish_bytes(f"{folder}/config.yaml", yaml.safe_dump(plain(config)).encode())
    made = tuple(Group(name=name, kind=kind, labels=(n,), samples=200) for n, (name, kind) in enumerate(groups))  # type: ignore[arg-type]
    outputs: dict[str, dict[str, bytes]] = {spec.name: {} for spec in chain_for(config)}
    outputs["shard"]["manifest.json"] = canonical(_manifest(folder, made, seed))
    if reference:
        outputs["retrain"]["phases/retrain.json"] = canonical(_outcome("retrain", 100_000))
    for name, (_, _, cost) in methods.items():
        for phase, share in (("forget", 0.3), ("retain", 0.7)):
            content = canonical(_outcome(phase, round(cost * share * 100_000)))
            outputs[f"{phase}.{name}"][f"methods/{name}/phases/{phase}.json"] = content
    outputs["evaluate"]["evaluation.json"] = canonical(_evaluations(methods, made, seed, num, reference, further))
    shown = np.random.default_rng(seed).integers(0, 255, (3, 8, 8, 1), dtype=np.uint8) if pictures is None else pictures
    rows = ("truth", "hidden input", "before", *methods, *(["retrained"] if reference else []))
    for key in (*range(len(made)), "retain"):
        outputs["evaluate"][f"evaluation/grid_{key}.png"] = draw([(row, shown) for row in rows])
    for spec in chain_for(config):
        _seal(config, folder, spec.name, outputs[spec.name])
    return folder


def order(folder: str, runs: tuple[ComparedRun, ...], methods: Mapping[str, Any] = METHODS, **more: Any) -> CompareOrder:
    """The order for the act."""
    settled = {"budget": Budget(), "made_from": "ab" * 32, "name": "demo", "methods": sections(methods), **more}
    return CompareOrder(folder=folder, runs=runs, **settled)


def _seal(config: RunConfig, folder: str, name: str, files: Mapping[str, bytes]) -> None:
    for uri, content in files.items():
        publish_bytes(f"{folder}/{uri}", content)
    spec = next(spec for spec in chain_for(config) if spec.name == name)
    receipt = Receipt(
        stage=name,
        inputs=inputs_of(folder, spec) or {},
        outputs=tuple(dataclasses.replace(hash_file(f"{folder}/{uri}"), uri=uri) for uri in files),
        config_digest=config_digest(config, spec),
        code_version="i2i-unlearn 0",
        world_size=2,
        started_at="2026-01-02T03:04:05.000+00:00",
        ended_at="2026-01-02T03:14:05.000+00:00",
    )
    write_receipt(folder, receipt)


def _manifest(folder: str, groups: tuple[Group, ...], seed: int) -> Manifest:
    names = ("original", "forget", "retain", "calibration", "holdout")
    return Manifest(
        run_id=folder.rsplit("/", 1)[-1],
        batch_digest="0123abcd" * 8,
        requests=3,
        source="fashion_mnist",
        source_digest="ab" * 32,
        classes=("Trouser", "Coat"),
        seed=seed,
        groups=groups,
        splits=tuple(Split(name=n, shards=(), samples=20000, keys_digest="cd" * 32) for n in names),  # type: ignore[arg-type]
        index=(FileRef(uri="index.parquet", sha256="00", bytes=1),),
        source_folder="../sources/x-1",
        shards_clean=17,
        shards_rewritten=3,
    )


def _outcome(phase: str, gradients: int) -> PhaseOutcome:
    return PhaseOutcome(
        phase=phase,
        reason="budget",
        steps=9,
        samples=gradients,
        sample_gradients=gradients,
        seconds=gradients / 900,
        parameters=1_300_000,
        coverage=(),
    )


def _evaluations(
    methods: Mapping[str, tuple[float, float, float]],
    groups: tuple[Group, ...],
    seed: int,
    num: int,
    reference: bool,
    further: tuple[str, ...],
) -> Evaluations:
    """Lognormal errors; a method lies between the original and the retrained model, as near as it is said to."""
    generator = np.random.default_rng(seed)
    subjects = ("original", *methods, *(["retrained"] if reference else []))
    places = [(split, group.name) for group in groups for split in ("forget", "unseen")] + [("retain", ""), ("unseen_retain", "")]
    found: dict[str, Any] = {subject: {} for subject in subjects}
    for split, group in places:
        hard = generator.normal(0, 0.5, num)
        for subject in subjects:
            away, ratio, _ = methods.get(subject, (0.0, 1.0, 0.0) if subject == "retrained" else (1.0, 0.98, 0.0))
            shift = -1.2 * away if split == "forget" else float(np.log(ratio))
            errors = 0.05 * np.exp(hard + shift + generator.normal(0, 0.1, num))
            found[subject][split, group] = dict.fromkeys(METRICS, errors)
    made = summarise(found, places, Resampling(seed=seed, resamples=40, confidence=0.95), ("original", *methods, "retrained"))
    extra = [(name, split, group) for name in further for split, group in places if split in ("forget", "unseen_retain")]
    return Evaluations(
        evaluations=tuple(
            dataclasses.replace(
                item,
                results=(
                    *item.results,
                    *(
                        MetricResult(
                            name=name, split=split, group=group, value=generator.random(), low=0.0, high=1.0, samples=num
                        )
                        for name, split, group in extra
                    ),
                ),
            )
            for item in made.evaluations
        )
    )
