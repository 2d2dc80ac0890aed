"""`unlearn plan`: what a run would do, without doing any of it.

What only the index can tell (how many images a label or prefix means, which shards hold them) is read from the
manifest of an earlier run of the same batch, or from the index of the source; without either it is not computed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from launch import torchrun
from launch.acts import carry_out
from launch.local import refuse_erased, refuse_other_batch
from pipeline.chain import OFF, StageSpec, chain_for, current_receipt, read_receipt
from pipeline.config import RunConfig, run_folder, run_id
from pipeline.decode import decode
from pipeline.errors import IntegrityError, StorageError
from pipeline.orders import BatchOrder, Forecast, PriceAnswer, PriceOrder
from pipeline.records import Manifest, RequestBatch, record
from pipeline.requests import batch_digest
from pipeline.storage import exists, join, list_files, read_bytes

__all__ = ["Plan", "StagePlan", "forecast", "lines", "make_plan", "price", "price_lines", "stage_rows", "unseen_images"]

NOT_COMPUTED = "not computed"
SHOWN = 20


@record
class StagePlan:
    """One stage: its state, its processes, and the sample gradients it costs where that is known."""

    name: str
    title: str
    state: Literal["up to date", "to run", "resumes"]
    ranks: int
    sample_gradients: int | None
    bytes_read: int | None
    """Of shards and index at most: what fits in the cache of decoded images is read once."""


@record
class Plan:
    """The whole dry run. `data` is None until the source has been indexed."""

    run_id: str
    folder: str
    requests: int
    keys: int
    labels: int
    prefixes: int
    digests: int
    likenesses: int
    gpus: int
    threads: int
    stages: tuple[StagePlan, ...]
    data: Forecast | None
    schema: Literal["plan/2"] = "plan/2"

    def state(self, stage: str) -> str:
        """State of the stage of this name; KeyError if the run has none."""
        return {item.name: item.state for item in self.stages}[stage]


def make_plan(config: RunConfig, batch: RequestBatch, forecast: Callable[[], Forecast] | None = None) -> Plan:
    """Look at the run's folder and configuration; nothing is written and no image is read.

    Args:
        config: a resolved run.
        batch: its requests.
        forecast: asks the index what the batch means; called when no manifest says it. StorageError: there is no index.

    Raises:
        ConfigError: the folder belongs to another batch, or a request means nothing.
    """
    folder = run_folder(config, batch)
    refuse_other_batch(folder, batch_digest(batch))
    refuse_erased(folder)
    machine = torchrun.resources(config.launch)
    values: dict[str, set[str]] = {"keys": set(), "label": set(), "prefix": set(), "digest": set(), "likeness": set()}
    for request in batch.requests:
        values[request.selector.kind].update(request.selector.values)
    manifest = _manifest(folder)
    data = _data(manifest) if manifest else None
    if data is None and forecast is not None and _may_be_indexed(config):
        with contextlib.suppress(StorageError):
            data = forecast()
    planned: list[StagePlan] = []
    for spec in chain_for(config):
        before = {stage.name: stage.state for stage in planned}
        state = _state(config, folder, spec, before)
        cost = _sample_gradients(config, folder, spec, data, state)
        planned.append(
            StagePlan(
                name=spec.name,
                title=spec.title,
                state=state,
                ranks=machine.ranks if spec.distributed else 1,
                sample_gradients=cost,
                bytes_read=_bytes_read(config, spec, data, state),
            )
        )
    return Plan(
        run_id=run_id(config, batch),
        folder=folder,
        requests=len(batch.requests),
        keys=len(values["keys"]),
        labels=len(values["label"]),
        prefixes=len(values["prefix"]),
        digests=len(values["digest"]),
        likenesses=len(values["likeness"]),
        gpus=machine.gpus,
        threads=machine.threads,
        stages=tuple(planned),
        data=data,
    )


def forecast(config: RunConfig, batch: RequestBatch, *, to_stderr: bool = False) -> Callable[[], Forecast]:
    """Asks a worker what the batch means, for `make_plan`."""
    order = BatchOrder(config=config, batch=batch)
    return lambda: carry_out("forecast", order, Forecast, to_stderr=to_stderr)


def _may_be_indexed(config: RunConfig) -> bool:
    """Whether some source of this kind was packed below the output folder. A source that never was may be a download,
    which a plan must not begin."""
    folder = join(config.output, "sources")
    begins = f"/sources/{config.source['component']}-"
    return exists(folder) and any(begins in uri for uri in list_files(folder, "/source.json"))


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
    home = join(folder, "methods", spec.variant) if spec.variant else folder
    return "resumes" if not waits and exists(join(home, "checkpoints", spec.module, "last")) else "to run"


def _sample_gradients(config: RunConfig, folder: str, spec: StageSpec, data: Forecast | None, state: str) -> int | None:
    """From the receipt of a finished stage, or from epochs and samples; None where only the run itself will show it."""
    receipt = read_receipt(folder, spec.name) if state == "up to date" else None
    noted: Any = receipt.facts.get("sample_gradients") if receipt else None
    if isinstance(noted, int):
        return noted
    given = {"train": config.original != "train", "retrain": config.reference != "retrain"}
    if spec.name in ("shard", "evaluate", "release") or given.get(spec.name):
        return 0
    if data is None or spec.name not in given:
        return None
    return config.train.epochs * (data.retain_samples + (data.forget_samples if spec.name == "train" else 0))


def _bytes_read(config: RunConfig, spec: StageSpec, data: Forecast | None, state: str) -> int | None:
    """Bytes of shards and index; None where only the method or the run itself will show it."""
    if state == "up to date" or spec.name == "release":
        return 0
    if data is None:
        return None
    if spec.name == "shard":
        return 2 * data.bytes_to_rewrite + data.index_bytes  # once to check a shard, once to copy from it
    if spec.name in ("train", "retrain"):
        split, given = ("original", config.original) if spec.name == "train" else ("retain", config.reference)
        return config.train.epochs * data.bytes_of[split] if given == spec.name else 0
    return None


def _data(manifest: Manifest) -> Forecast:
    """What a batch did to its source, from the manifest."""
    retain, forget, original = (manifest.split(name) for name in ("retain", "forget", "original"))
    kept = {shard.uri for shard in retain.shards}
    rewrite = [shard for shard in original.shards if shard.uri not in kept]
    bytes_of = {str(split.name): sum(shard.bytes for shard in split.shards) for split in (retain, forget, original)}
    unseen = [split for split in manifest.splits if split.name in ("calibration", "holdout")]
    sizes = {shard.uri: shard.bytes for split in unseen for shard in split.shards}
    return Forecast(
        forget_samples=forget.samples,
        retain_samples=retain.samples,
        shards_clean=manifest.shards_clean,
        rewrite=tuple(shard.uri for shard in rewrite),
        bytes_to_rewrite=sum(shard.bytes for shard in rewrite),
        index_bytes=sum(ref.bytes for ref in manifest.index),
        bytes_of={**bytes_of, "unseen": sum(sizes.values())},
        groups=tuple(f"{group.name} ({group.kind}, {group.samples} images)" for group in manifest.groups),
    )


def price(config: RunConfig, folder: str, *, to_stderr: bool = False) -> PriceAnswer | None:
    """What the run's certificate would cost; None where it asks for none."""
    if config.method.get("certify") in OFF:
        return None
    return carry_out("price", PriceOrder(config=config, folder=folder), PriceAnswer, to_stderr=to_stderr)


def price_lines(found: PriceAnswer) -> list[tuple[str, str]]:
    """The price as labels and texts."""
    if found.loss_before is None or found.loss_after is None:
        loss = f"{NOT_COMPUTED}: {found.note}"
    else:
        loss = (
            f"{found.loss_before:.4g} to {found.loss_after:.4g} on {found.images} unseen kept images, before retention mends it"
        )
    return [
        ("certificate", f"epsilon {found.epsilon:g} at delta {found.delta:g}, if all its assumptions hold"),
        (
            "its noise",
            f"{found.noise:.4g} on each of {found.dimension:,} weights in {found.steps} steps: {found.noise_norm:.4g} in all, "
            f"{found.ratio:,.1f} times what they may keep of the model (radius {found.radius:g})",
        ),
        ("its loss", loss),
    ]


def unseen_images(folder: str) -> int | None:
    """Images of the run that were never trained on, in each of the two splits of them; None before its first stage."""
    manifest = _manifest(folder)
    found = {split.name: split.samples for split in manifest.splits} if manifest else {}
    return found.get("calibration")


def stage_rows(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the stages."""
    from launch.show import size_text

    rows = []
    for stage in plan.stages:
        cost = NOT_COMPUTED if stage.sample_gradients is None else str(stage.sample_gradients)
        size = NOT_COMPUTED if stage.bytes_read is None else size_text(stage.bytes_read)
        rows.append([stage.name, stage.state, str(stage.ranks), cost, size, stage.title])
    return ["stage", "state", "ranks", "sample gradients", "reads at most", "what it does"], rows


def lines(plan: Plan) -> list[tuple[str, str]]:
    """The plan's facts, apart from its stages, as labels and texts."""
    from launch.show import size_text

    data = plan.data
    facts = [
        ("run", plan.run_id),
        ("folder", plan.folder),
        (
            "requests",
            f"{plan.requests}: {plan.keys} keys, {plan.labels} labels, {plan.prefixes} prefixes, {plan.digests} digests"
            + (f", {plan.likenesses} likenesses" if plan.likenesses else ""),
        ),
        ("processors", f"{plan.gpus} GPUs" if plan.gpus else f"CPU, {plan.threads} threads per rank"),
    ]
    if data is None:
        return [
            *facts,
            ("images and shards", f"{NOT_COMPUTED}: the source is not indexed yet; `unlearn index` or the run does it"),
        ]
    return [
        *facts,
        ("groups", "; ".join(data.groups)),
        ("forget", f"{data.forget_samples} images"),
        ("retain", f"{data.retain_samples} images"),
        ("clean shards", f"{data.shards_clean}, referenced where they lie"),
        ("rewrite", f"{len(data.rewrite)} shards, {size_text(data.bytes_to_rewrite)}"),
        *(("", uri) for uri in data.rewrite[:SHOWN]),
        *([("", f"and {len(data.rewrite) - SHOWN} more; --json names them all")] if len(data.rewrite) > SHOWN else []),
        ("index", size_text(data.index_bytes)),
    ]
