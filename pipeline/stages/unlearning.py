"""What phases 1 and 2 share: a method opened with its levels, and one plan carried out from weights to weights."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import component
from pipeline.chain import weights_before
from pipeline.data.samples import Samples
from pipeline.data.slices import Slicing
from pipeline.data.stream import Batch, Feed
from pipeline.decode import sha256_text
from pipeline.engine.backend import Backend, OptimizerConfig
from pipeline.engine.checkpoint import TrainState, save_weights
from pipeline.engine.fused import FusedAscent
from pipeline.engine.guard import Guard
from pipeline.engine.watchdog import beat
from pipeline.errors import DataError
from pipeline.findings import TrainedSlice
from pipeline.methods.base import Method, PhasePlan
from pipeline.models.base import ImageModel
from pipeline.records import Calibration, Coverage, PhaseOutcome
from pipeline.stages.ledger import order_file, write_order
from pipeline.stages.phase import Phase, retrain_steps
from pipeline.stages.runner import Job, Result, read_record
from pipeline.stages.sliced import begun
from pipeline.storage import hash_file, join

__all__ = ["Opened", "carry_out", "open_method"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A method at work in a phase. levels: lambda of each group in the manifest's order, None where nothing is to be done;
    without calibration None, and every group is active."""

    phase: Phase
    method: Method
    calibration: Calibration | None

    @property
    def levels(self) -> list[float | None] | None:
        """See the class."""
        return _levels(self.calibration)

    def forget(self) -> Samples:
        """The forget images of active groups."""
        samples, levels = self.phase.samples("forget"), self.levels
        if levels is None:
            return samples
        return samples.take(np.isin(samples.groups, [number for number, level in enumerate(levels) if level is not None]))

    def start(self, plan: PhasePlan) -> ImageModel:
        """The model to move: of the phase before, or with random weights."""
        if plan.start == "random":
            return self.phase.model()
        job = self.phase.job
        model = self.phase.loaded(*weights_before(job.spec))
        model.prepare_unlearning()
        return model


def _levels(calibration: Calibration | None) -> list[float | None] | None:
    return [None if level.already_unseen else level.level for level in calibration.levels] if calibration else None


def open_method(job: Job) -> Opened:
    """The method of the stage's run, with the levels that a calibration found where it has one."""
    phase = Phase(job, job.spec.module)
    calibrate = next((name for name in job.spec.needs if name.startswith("calibrate")), "")
    calibration: Calibration | None = read_record(job, Calibration, job.own("calibration.json")) if calibrate else None
    levels, found = _levels(calibration), calibration.levels if calibration else ()
    shadowed = [number for number, level in enumerate(found) if level.method == "shadow" and not level.already_unseen]
    method: Method = component.build("method", job.config.method, levels or [], phase.with_shadow(calibrate, shadowed))
    return Opened(phase=phase, method=method, calibration=calibration)


def carry_out(
    opened: Opened, plan: PhasePlan, *, weights: str, guard: Callable[[ImageModel, Feed, Samples], Callable[..., Guard]] | None
) -> Result:
    """Move the model as the plan says and publish `weights`.

    Args:
        opened: method and phase.
        plan: of this phase.
        weights: name of the weights that the phase publishes.
        guard: given model, feed and forget images before the engine takes the model, makes what is given the engine and
            answers with the guard; without it only what is not finite or above the plan's bounds stops the phase.
    """
    phase, job = opened.phase, opened.phase.job
    file = job.own(f"checkpoints/{weights}/model.safetensors")
    model = opened.start(plan)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parts = [opened.forget() if name == "forget" else phase.samples("retain") for name in plan.reads]
    if not all(len(part) for part in parts):
        if job.first:
            save_weights({name: tensor.cpu() for name, tensor in model.state_dict().items()}, job.home, weights)
        outcome = phase.finish(TrainState(), "every group already looks unseen to the original", parameters=parameters)
        return Result(outputs=(phase.outputs()[0], file), facts={**phase.facts(outcome), "reads_forget": False})

    train = job.config.train
    sizes = [train.batch_size] if plan.as_training else plan.batch_sizes
    feed = phase.feed(model, *zip(parts, sizes, strict=True))
    per_pass = feed.streams[0].steps_per_pass
    # In samples, so that a phase of larger batches than training's costs no more than its share.
    samples = (plan.share or 0.0) * retrain_steps(job, phase.manifest) * train.batch_size
    steps = plan.passes * per_pass if plan.passes else max(1, round(samples / sum(sizes)))
    spent = plan.prepare(model, _one_pass(phase, model, opened.forget(), plan.batch_sizes[-1])) if plan.prepare else 0
    if plan.trains is not None:
        _freeze_all_but(model, plan.trains(model))
    optimizer = OptimizerConfig(
        learning_rate=train.learning_rate if plan.as_training else plan.learning_rate,
        steps=steps,
        warmup_steps=train.warmup_steps if plan.as_training else plan.warmup_steps,
        weight_decay=train.weight_decay if plan.as_training else 0.0,
        decay=plan.decay,
        momentum=plan.momentum,
        clip=plan.clip,
    )
    armed = guard(model, feed, parts[0]) if guard else None
    backend = _backend(phase, model, feed, optimizer, plan)
    watching = armed(backend) if armed else Guard(bounds=plan.bounds)
    try:
        state, reason = phase.fit(backend, feed, plan.loss, steps=steps, guard=watching)
    except FloatingPointError as error:
        raise DataError(f"{job.spec.name}: {error}", "lower the phase's learning rate, and look at its images") from None
    full, moved = backend.weights(), {}
    if job.first:
        if plan.noise:
            moved = {"moved": _perturb(full, phase.loaded(*weights_before(job.spec)), plan.noise), "noise": plan.noise}
        save_weights(full, job.home, weights)
    coverage: tuple[Coverage, ...] = ()
    if plan.passes or (plan.as_training and state.step % per_pass == 0):
        passes = -(-state.step // per_pass)
        coverage = (feed.streams[0].coverage(plan.reads[0], passes=passes, seen=state.seen[0], digest=state.digests[0]),)
    state = dataclasses.replace(state, sample_gradients=state.sample_gradients + spent)
    files = [file]
    if plan.start == "random":
        whole = phase.outcome(state, reason, parameters=parameters, coverage=coverage)
        files.append(_ledger(phase, parts[0], weights, whole))
    outcome = phase.finish(state, reason, parameters=parameters, coverage=coverage, **moved)
    backend.close()
    return Result(outputs=phase.outputs(*files), facts={**phase.facts(outcome), "reads_forget": "forget" in plan.reads})


def _backend(phase: Phase, model: ImageModel, feed: Feed, optimizer: OptimizerConfig, plan: PhasePlan) -> Backend:
    if plan.optimizer == "adamw":
        return phase.backend(model, feed, optimizer)
    start = {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()} if plan.ball else None
    key = bytes.fromhex(sha256_text(f"{phase.seed}|step noise")[:16])
    kernels = phase.kernels()

    def steps(moving: list[nn.Parameter]) -> FusedAscent:
        return FusedAscent(
            moving,
            lr=optimizer.learning_rate,
            clip=optimizer.clip,
            noise=plan.step_noise,
            ball=plan.ball,
            key=key,
            sum=phase.group.sum,
            kernels=kernels,
        )

    backend = phase.backend(model, feed, optimizer, steps=steps)
    backend.arm(start)
    return backend


def _ledger(phase: Phase, samples: Samples, weights: str, outcome: PhaseOutcome) -> str:
    """Publish what a training from random weights has read; returns the file. Its samples are one slice."""
    job, slicing = phase.job, Slicing(samples, seed=phase.seed, slices=1)
    if job.first:
        file = f"checkpoints/{weights}/model.safetensors"
        ref = dataclasses.replace(hash_file(join(job.home, file)), uri=file)
        seen = slicing.sets[0]
        trained = TrainedSlice(samples=seen.samples, set_digest=seen.digest, seed=phase.seed, outcome=outcome, weights=ref)
        write_order(job.home, dataclasses.replace(begun(phase, slicing, weights), trained=(trained,)))
    return job.own(order_file(weights))


def _perturb(weights: dict[str, Tensor], before: ImageModel, noise: float) -> float:
    """Add noise to each weight in place; returns how far they had moved, in L2 norm over all weights.

    The noise is drawn anew at each call and never written down: whoever could draw it again could take it off again.
    """
    generator, squares = torch.Generator().manual_seed(secrets.randbits(63)), 0.0
    for name, old in before.named_parameters():
        new = weights[name].double()
        squares += float((new - old.detach().cpu().double()).square().sum())
        drawn = torch.randn(new.shape, generator=generator, dtype=torch.float64)
        weights[name] = (new + noise * drawn).to(weights[name].dtype)
    return math.sqrt(squares)


def _one_pass(phase: Phase, model: ImageModel, samples: Samples, batch_size: int) -> Iterator[Batch]:
    stream = phase.feed(model, (samples, batch_size)).streams[0]
    for step in range(stream.steps_per_pass):
        beat(f"{phase.name}: before its first step, batch {step}")
        yield stream.batch(step)


def _freeze_all_but(model: nn.Module, modules: object) -> None:
    moving = {parameter for module in modules for parameter in module.parameters()}  # type: ignore[attr-defined]
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in moving and parameter.requires_grad)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RuntimeError("a phase that moves no parameter")
