"""`unlearn plan`: what a run would do, without doing any of it.

What only the index can tell (how many images a label or prefix means, which shards hold them) is read from the
manifest of an earlier run of the same batch, and is otherwise named as not computed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from launch import torchrun
from launch.local import refuse_other_batch
from pipeline.chain import StageSpec, chain_for, current_receipt, read_receipt
from pipeline.config import RunConfig, run_folder, run_id
from pipeline.decode import decode
from pipeline.errors import IntegrityError
from pipeline.records import Manifest, RequestBatch, record
from pipeline.requests import batch_digest
from pipeline.storage import exists, join, read_bytes

__all__ = ["DataPlan", "Plan", "StagePlan", "lines", "make_plan"]

NOT_COMPUTED = "not computed"


@record
class StagePlan:
    """One stage: its state, its processes, and the sample gradients it costs where that is known."""

    name: str
    title: str
    state: Literal["up to date", "to run", "resumes"]
    ranks: int
    sample_gradients: int | None


@record
class DataPlan:
    """What the manifest says about the data."""

    forget_samples: int
    retain_samples: int
    shards_clean: int
    shards_rewritten: int
    bytes_rewritten: int
    groups: tuple[str, ...]


@record
class Plan:
    """The whole dry run. `data` is None until the source has been indexed for this batch."""

    run_id: str
    folder: str
    requests: int
    keys: int
    labels: int
    prefixes: int
    gpus: int
    threads: int
    stages: tuple[StagePlan, ...]
    data: DataPlan | None
    schema: Literal["plan/1"] = "plan/1"


def make_plan(config: RunConfig, batch: RequestBatch) -> Plan:
    """Look at the run's folder and configuration; nothing is written and no data is read.

    Raises:
        ConfigError: the folder belongs to another batch.
    """
    folder = run_folder(config, batch)
    refuse_other_batch(folder, batch_digest(batch))
    machine = torchrun.resources(config.launch)
    values: dict[str, set[str]] = {"keys": set(), "label": set(), "prefix": set()}
    for request in batch.requests:
        values[request.selector.kind].update(request.selector.values)
    manifest = _manifest(folder)
    planned: list[StagePlan] = []
    for spec in chain_for(config):
        before = {stage.name: stage.state for stage in planned}
        state = _state(config, folder, spec, before)
        cost = _sample_gradients(config, folder, spec, manifest, state)
        ranks = machine.ranks if spec.distributed else 1
        planned.append(StagePlan(name=spec.name, title=spec.title, state=state, ranks=ranks, sample_gradients=cost))
    return Plan(
        run_id=run_id(config, batch),
        folder=folder,
        requests=len(batch.requests),
        keys=len(values["keys"]),
        labels=len(values["label"]),
        prefixes=len(values["prefix"]),
        gpus=machine.gpus,
        threads=machine.threads,
        stages=tuple(planned),
        data=_data(manifest) if manifest else None,
    )


def _manifest(folder: str) -> Manifest | None:
    uri = join(folder, "manifest.json")
    if not exists(uri):
        return None
    try:
        content = json.loads(read_bytes(uri))
    except ValueError:
        raise IntegrityError(f"{uri}: not a manifest", "remove receipts/shard.json and run again") from None
    return decode(Manifest, content, where=uri, error=IntegrityError)


def _state(
    config: RunConfig, folder: str, spec: StageSpec, before: Mapping[str, str]
) -> Literal["up to date", "to run", "resumes"]:
    waits = any(before.get(name, "up to date") != "up to date" for name in spec.needs)
    if not waits and current_receipt(config, folder, spec):
        return "up to date"
    return "resumes" if not waits and exists(join(folder, "checkpoints", spec.name, "last")) else "to run"


def _sample_gradients(config: RunConfig, folder: str, spec: StageSpec, manifest: Manifest | None, state: str) -> int | None:
    """From the receipt of a finished stage, or from epochs and samples; None where only the run itself will show it."""
    receipt = read_receipt(folder, spec.name) if state == "up to date" else None
    noted: Any = receipt.facts.get("sample_gradients") if receipt else None
    if isinstance(noted, int):
        return noted
    given = {"train": config.original != "train", "retrain": config.reference != "retrain"}
    if spec.name in ("shard", "evaluate", "release") or given.get(spec.name):
        return 0
    if manifest is None or spec.name not in given:
        return None
    return config.train.epochs * manifest.split("original" if spec.name == "train" else "retain").samples


def _data(manifest: Manifest) -> DataPlan:
    retain, forget = manifest.split("retain"), manifest.split("forget")
    return DataPlan(
        forget_samples=forget.samples,
        retain_samples=retain.samples,
        shards_clean=manifest.shards_clean,
        shards_rewritten=manifest.shards_rewritten,
        bytes_rewritten=sum(shard.bytes for shard in retain.shards if shard.origin == "rewritten"),
        groups=tuple(f"{group.name} ({group.kind}, {group.samples} images)" for group in manifest.groups),
    )


def lines(plan: Plan) -> list[tuple[str, str]]:
    """The plan's facts, apart from its stages, as labels and texts."""
    from launch.show import size_text

    data = plan.data
    facts = [
        ("run", plan.run_id),
        ("folder", plan.folder),
        ("requests", f"{plan.requests}: {plan.keys} keys, {plan.labels} labels, {plan.prefixes} prefixes"),
        ("processors", f"{plan.gpus} GPUs" if plan.gpus else f"CPU, {plan.threads} threads per rank"),
    ]
    if data is None:
        return [*facts, ("images and shards", f"{NOT_COMPUTED}: the source is not indexed for this batch yet")]
    return [
        *facts,
        ("groups", "; ".join(data.groups)),
        ("forget", f"{data.forget_samples} images"),
        ("retain", f"{data.retain_samples} images"),
        (
            "retain shards",
            f"{data.shards_clean} as they are, {data.shards_rewritten} rewritten ({size_text(data.bytes_rewritten)})",
        ),
    ]
