"""Training stage by stage, on one slice more each time; every stage is a fit of its own, and its weights are kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from pipeline.claim import fence
from pipeline.data.slices import Slicing, passes_of, slice_seed
from pipeline.engine.backend import OptimizerConfig
from pipeline.engine.checkpoint import load_weights, save_weights
from pipeline.engine.guard import Guard
from pipeline.errors import CheckpointError, ConfigError, StorageError
from pipeline.findings import TrainedSlice, TrainingOrder
from pipeline.methods.base import plain_loss
from pipeline.privacy.exactness import named_inputs
from pipeline.records import FileRef, PhaseOutcome
from pipeline.stages.ledger import order_file, read_order, settings_of, write_order
from pipeline.stages.phase import Phase
from pipeline.storage import exists, hash_file, join, list_files, publish_bytes, read_bytes, remove_tree

__all__ = ["begun", "train_slices", "whole"]


def begun(phase: Phase, slicing: Slicing, weights: str, kept: Sequence[TrainedSlice] = ()) -> TrainingOrder:
    """The ledger of a training that has not taken a step yet; `kept` slices are taken over from an earlier one."""
    return TrainingOrder(
        weights=weights,
        split=slicing.samples.split,
        slices=slicing.slices,
        seed=slicing.seed,
        settings=settings_of(phase.job.config),
        inputs=named_inputs(phase.job.config),
        kept=len(kept),
        trained=tuple(kept),
        mark=phase.mark,
    )


def train_slices(phase: Phase, slicing: Slicing, *, weights: str, kept: Sequence[TrainedSlice] = ()) -> TrainingOrder:
    """Train the slices that are not kept, and publish the weights after each and the ledger.

    Every stage begins at the weights of the one before, the first at random ones, with a fresh optimizer and the run's training
    settings. What an earlier process has finished is not done again.

    Args:
        phase: whose seed is that of the slicing.
        slicing: of the samples.
        weights: name of the last stage's; those of the others lie in its folder, as `slice-<number>`.
        kept: stages of an earlier training, whose weights are gone on from.

    Raises:
        ConfigError: a stage without samples.
        CheckpointError: a stage whose training failed.
    """
    order = _resumed(phase, begun(phase, slicing, weights, kept))
    _remove_others(phase, order)
    for number in range(len(order.trained) + 1, order.slices + 1):
        part = Phase(phase.job, _name(phase, slicing.slices, number), seed=slice_seed(slicing.seed, number, slicing.slices))
        found = _stage(phase, part, slicing, order, number)
        order = dataclasses.replace(order, trained=(*order.trained, found))
        if phase.job.first:
            write_order(phase.job.home, order)
        part.close()  # its checkpoints go when the ledger has its weights
    if phase.job.first and slicing.slices > 1:
        _join_metrics(phase, order)
    return order


def whole(phase: Phase, order: TrainingOrder, reason: str) -> PhaseOutcome:
    """The outcome of all stages that were trained here, as one phase."""
    outcomes = [item.outcome for item in order.trained[order.kept :]]
    return PhaseOutcome(
        phase=phase.name,
        reason=reason,
        steps=sum(item.steps for item in outcomes),
        samples=sum(item.samples for item in outcomes),
        sample_gradients=sum(item.sample_gradients for item in outcomes),
        seconds=round(sum(item.seconds for item in outcomes), 3),
        parameters=order.trained[-1].outcome.parameters,
        coverage=tuple(coverage for item in outcomes for coverage in item.coverage),
        losses=outcomes[-1].losses if outcomes else {},
    )


def _name(phase: Phase, slices: int, number: int) -> str:
    return phase.name if slices == 1 else f"{phase.name}.slice-{number}"


def _place(order: TrainingOrder, number: int) -> str:
    """Name of the weights after a stage; see `save_weights`."""
    return order.weights if number == order.slices else f"{order.weights}/slice-{number}"


def _resumed(phase: Phase, order: TrainingOrder) -> TrainingOrder:
    """What an earlier process had done of this training in slices, where its weights are still there."""
    uri = join(phase.job.home, order_file(order.weights))
    if order.slices == 1 or not exists(uri):
        return order
    before = read_order(uri)
    if before.mark != order.mark or before.trained[: order.kept] != order.trained or before.kept != order.kept:
        return order
    done = order.trained
    for number, item in enumerate(before.trained[order.kept :], start=order.kept + 1):
        if not _intact(phase, item.weights):
            break
        done = (*done, item)
        Phase(phase.job, _name(phase, order.slices, number)).checkpoints().clear()  # a kill may have come before it
    return dataclasses.replace(order, trained=done)


def _intact(phase: Phase, ref: FileRef) -> bool:
    try:
        return hash_file(join(phase.job.home, ref.uri)).sha256 == ref.sha256
    except StorageError:
        return False


def _remove_others(phase: Phase, order: TrainingOrder) -> None:
    """Weights of earlier attempts in other slices: nothing would name them any more."""
    folder = join(phase.job.home, "checkpoints", order.weights)
    if not phase.job.first or not exists(folder):
        return
    wanted = {join(phase.job.home, item.weights.uri) for item in order.trained}
    for uri in list_files(folder):
        if "/slice-" in uri.removeprefix(folder) and uri not in wanted:
            fence()
            remove_tree(uri)


def _stage(phase: Phase, part: Phase, slicing: Slicing, order: TrainingOrder, number: int) -> TrainedSlice:
    job, settings, samples = phase.job, phase.job.config.train, slicing.prefix(number)
    if not len(samples):
        raise ConfigError(f"train.slices: slice {number} of {order.slices} has no sample", "set train.slices lower")
    model = phase.model()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if number > 1:
        before = order.trained[-1].weights
        load_weights(model, join(job.home, before.uri), before.sha256)
    feed = part.feed(model, (samples, settings.batch_size))
    passes = passes_of(settings.epochs, order.slices)[number - 1]
    steps = passes * feed.streams[0].steps_per_pass
    optimizer = OptimizerConfig(
        learning_rate=settings.learning_rate,
        steps=steps,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
    )
    backend = part.backend(model, feed, optimizer)
    state, reason = part.fit(backend, feed, plain_loss(part.context), steps=steps, guard=Guard())
    if reason != "budget":
        raise CheckpointError(f"{job.spec.name}: training failed: {reason}", "lower train.learning_rate and run again")
    full, file = backend.weights(), f"checkpoints/{_place(order, number)}/model.safetensors"
    if job.first:
        save_weights(full, job.home, _place(order, number))
    # The others wait here, so that none goes on from weights that are not there yet.
    ref = part.group.gather(hash_file(join(job.home, file)) if job.first else None)[0]
    coverage = feed.streams[0].coverage(order.split, passes=passes, seen=state.seen[0], digest=state.digests[0])
    backend.close()
    seen = slicing.sets[number - 1]
    return TrainedSlice(
        samples=seen.samples,
        set_digest=seen.digest,
        seed=part.seed,
        outcome=part.outcome(state, reason, parameters=parameters, coverage=(coverage,)),
        weights=dataclasses.replace(ref, uri=file),
    )


def _join_metrics(phase: Phase, order: TrainingOrder) -> None:
    """One file of metrics of all stages, whose steps are counted on."""
    lines, done = [], 0
    for number, item in enumerate(order.trained[order.kept :], start=order.kept + 1):
        uri = join(phase.job.home, "metrics", f"{_name(phase, order.slices, number)}.jsonl")
        for line in read_bytes(uri).decode().splitlines() if exists(uri) else ():
            told = json.loads(line)
            lines.append(json.dumps({**told, "step": told["step"] + done}))
        done += item.outcome.steps
    publish_bytes(join(phase.job.home, "metrics", f"{phase.name}.jsonl"), "".join(f"{line}\n" for line in lines).encode())
