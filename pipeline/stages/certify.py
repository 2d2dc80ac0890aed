"""Between ascent and retention: noisy steps on retained images, after which no weight can tell what it saw before.

Nothing that the phase computes on the way is logged or kept: the promise is about its last weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pipeline.chain import weights_before
from pipeline.decode import canonical, decode, digest
from pipeline.engine.backend import OptimizerConfig
from pipeline.engine.checkpoint import load_weights, save_weights
from pipeline.engine.guard import Guard
from pipeline.engine.noisy import NoisySteps
from pipeline.errors import DataError
from pipeline.methods.base import Losses, plain_loss
from pipeline.models.base import ImageModel, certified_weights
from pipeline.privacy.mechanism import CertifyConfig, Mechanism, certify_config, mechanism_of
from pipeline.privacy.noise import SecretNoise, fresh_key
from pipeline.records import NoisyMeasures, record
from pipeline.stages.phase import Phase
from pipeline.stages.runner import Job, Result
from pipeline.storage import create_bytes, exists, hash_file, join, list_files, publish_bytes, read_bytes, size

__all__ = ["FIRST", "base_of", "centre_of", "run", "settings"]

MEASURES = "certify.json"
FIRST = "certified"
"""Folder below the output folder: for every batch, the settings that were the first to be used for it."""
SEARCHED = 16 << 20
"""Larger files are weights and shards, which nobody writes a key into by mistake."""


@record
class Settings:
    """The first certified run of a batch."""

    run_id: str
    settings: str
    """Digest of `method.certify`."""


def settings(job: Job) -> CertifyConfig:
    """The run's section for this phase, decoded."""
    found = certify_config(job.config.method.get("certify"))
    assert found is not None  # the chain has this stage
    return found


def run(job: Job) -> Result:
    """Publish `certified` weights and what was measured on the way."""
    phase, config = Phase(job, job.spec.module), settings(job)
    mechanism = mechanism_of(config)
    other = _first_settings(phase, config)
    model = _start(phase, config)
    fresh, base = phase.model(), base_of(phase, config)
    buffers = _as_built(model, fresh)
    outside = _take_base(model, base) if config.trains == "bottleneck" else ()
    noise = SecretNoise(phase.group.gather(fresh_key() if job.first else b"")[0])
    feed = phase.feed(model, (phase.samples("retain"), config.batch_size))
    optimizer = OptimizerConfig(learning_rate=config.learning_rate, steps=mechanism.steps, decay=False)
    backend = phase.backend(model, feed, optimizer, steps=_noisy(mechanism, noise, phase))
    backend.arm(centre_of(config, fresh, base) or None)
    try:
        state, reason = phase.fit(backend, feed, _silent(phase), steps=mechanism.steps, guard=Guard())
    except FloatingPointError as error:
        raise DataError(
            f"{job.spec.name}: {error}", "lower method.certify.learning_rate, and look at the retained images"
        ) from None
    full, tally = backend.weights(), backend.tally
    backend.close()
    file = job.own("checkpoints/certified/model.safetensors")
    if job.first:
        save_weights(full, job.home, "certified")
    outcome = phase.finish(state, reason, parameters=sum(parameter.numel() for parameter in fresh.parameters()))
    held = _held_in(job, noise) if job.first else ()
    noise.destroy()
    measures = NoisyMeasures(
        steps=int(tally.get("steps", 0)),
        planned=mechanism.steps,
        dimension=int(tally.get("dimension", 0)),
        start_norm=tally.get("start_norm", 0.0),
        step_norm=tally.get("step_norm", 0.0),
        noise_low=tally.get("noise_low", 0.0),
        noise_high=tally.get("noise_high", 0.0),
        ball_norm=tally.get("ball_norm"),
        weights_norm=_norm(full),
        buffers=(*buffers, *_changed(full, fresh)),
        outside=outside,
        held_in=held,
        destroyed=all(phase.group.gather(noise.destroyed)),
        reads=tuple(stream.reader.samples.split for stream in feed.streams),
        left=_left(job),
        other_settings=other,
        base_sha256=hash_file(config.base).sha256 if config.base else "",
    )
    if job.first:
        publish_bytes(job.path(job.own(MEASURES)), canonical(measures))
    return Result(outputs=phase.outputs(file, job.own(MEASURES)), facts={**phase.facts(outcome), "reads_forget": False})


def _noisy(mechanism: Mechanism, noise: SecretNoise, phase: Phase) -> Callable[[list[nn.Parameter]], NoisySteps]:
    kernels = phase.kernels()
    return lambda moving: NoisySteps(moving, mechanism=mechanism, noise=noise, sum=phase.group.sum, kernels=kernels)


def _silent(phase: Phase) -> Callable[[nn.Module, object], Losses]:
    """The plain training loss, without its value: a log of it would tell of weights that nobody may see."""
    loss = plain_loss(phase.context)

    def silent(model: nn.Module, batch: object) -> Losses:
        found = loss(model, batch)
        return Losses(total=found.total, measures={}, samples=found.samples)

    return silent


def _start(phase: Phase, config: CertifyConfig) -> ImageModel:
    model = phase.loaded(*weights_before(phase.job.spec))
    if config.trains == "all":
        for parameter in model.parameters():
            parameter.requires_grad_(True)  # noise goes onto what the phases leave alone, too
    return model


def base_of(phase: Phase, config: CertifyConfig) -> ImageModel | None:
    """The model with the weights of the declared base, or None."""
    if not config.base:
        return None
    model = phase.model()
    load_weights(model, config.base)
    return model


def centre_of(config: CertifyConfig, fresh: ImageModel, base: ImageModel | None) -> dict[str, Tensor]:
    """Centre of the balls, by parameter name; empty: zero."""
    model = {"initial": fresh, "base": base, "zero": None}[config.anchor]
    return {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()} if model else {}


def _as_built(model: ImageModel, fresh: ImageModel) -> tuple[str, ...]:
    """Set all buffers to what the model is built with; the names of those that training would change again."""
    built = dict(fresh.named_buffers())
    for name, buffer in model.named_buffers():
        buffer.data.copy_(built[name])
    return tuple(model.training_buffers)


def _changed(full: Mapping[str, Tensor], fresh: ImageModel) -> tuple[str, ...]:
    """Buffers that differ from the built ones in the end."""
    return tuple(name for name, buffer in fresh.named_buffers() if name in full and not torch.equal(full[name], buffer.cpu()))


def _take_base(model: ImageModel, base: ImageModel | None) -> tuple[str, ...]:
    """Freeze all but the bottleneck, and give it the base's weights; the names of weights that then differ from the base's."""
    assert base is not None  # `mechanism_of` refuses it otherwise
    inside = set(certified_weights(model, "bottleneck"))
    theirs, outside = dict(base.named_parameters()), []
    for name, parameter in model.named_parameters():
        if name in inside:
            parameter.requires_grad_(True)
            continue
        parameter.requires_grad_(False)
        parameter.data.copy_(theirs[name].data)
        if not torch.equal(parameter.data, theirs[name].data):
            outside.append(name)
    return tuple(outside)


def _norm(full: Mapping[str, Tensor]) -> float:
    return float(sum(tensor.double().square().sum() for tensor in full.values() if tensor.is_floating_point()) ** 0.5)


def _first_settings(phase: Phase, config: CertifyConfig) -> str:
    """The run that first served this batch with other settings, or nothing; this one if it is the first."""
    job, mark = phase.job, digest(config)
    uri = join(job.config.output, FIRST, f"{phase.manifest.batch_digest[:32]}.json")
    if job.first:
        own = Settings(run_id=phase.manifest.run_id, settings=mark)
        if not exists(uri):
            create_bytes(uri, canonical(own))
    phase.group.barrier()
    first = decode(Settings, json.loads(read_bytes(uri)), where=uri)
    return "" if first.settings == mark else first.run_id


def _held_in(job: Job, noise: SecretNoise) -> tuple[str, ...]:
    """Files of the run, by their place in its folder, in which the key stands."""
    found = []
    for uri in list_files(job.folder):
        if size(uri) <= SEARCHED and noise.held_in(read_bytes(uri)):
            found.append(uri.removeprefix(job.folder).lstrip("/"))
    return tuple(found)


def _left(job: Job) -> tuple[str, ...]:
    """Files of the phase beside its last weights."""
    folder = job.path(job.own("checkpoints/certify"))
    return tuple(sorted(uri.removeprefix(job.folder).lstrip("/") for uri in list_files(folder))) if exists(folder) else ()
