"""Train the original model on all images, or take the weights that the run names."""

from __future__ import annotations

from pipeline.engine.backend import OptimizerConfig
from pipeline.engine.checkpoint import TrainState, load_weights, save_weights
from pipeline.engine.guard import Guard
from pipeline.errors import CheckpointError
from pipeline.methods.base import plain_loss
from pipeline.stages.phase import Phase
from pipeline.stages.runner import Job, Result

__all__ = ["run", "train"]


def run(job: Job) -> Result:
    """The original: trained on the split `original`, forget images included."""
    return train(job, weights="original", split="original", given=job.config.original)


def train(job: Job, *, weights: str, split: str, given: str) -> Result:
    """Train on a split, or adopt the weights at the URI `given`, checked for architecture and finite values."""
    phase = Phase(job, job.spec.module)
    model = phase.model()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if given not in ("train", "retrain"):
        load_weights(model, given)
        if job.first:
            save_weights({name: tensor.cpu() for name, tensor in model.state_dict().items()}, job.folder, weights)
        outcome = phase.finish(TrainState(), "given", parameters=parameters)
        return Result(outputs=(phase.outputs()[0], f"checkpoints/{weights}/model.safetensors"), facts=phase.facts(outcome))
    settings = job.config.train
    feed = phase.feed(model, (phase.samples(split), settings.batch_size))
    steps = settings.epochs * feed.streams[0].steps_per_pass
    optimizer = OptimizerConfig(
        learning_rate=settings.learning_rate,
        steps=steps,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
    )
    backend = phase.backend(model, feed, optimizer)
    state, reason = phase.fit(backend, feed, plain_loss(phase.context), steps=steps, guard=Guard())
    if reason != "budget":
        raise CheckpointError(f"{job.spec.name}: training failed: {reason}", "lower train.learning_rate and run again")
    full = backend.weights()
    if job.first:
        save_weights(full, job.folder, weights)
    coverage = feed.streams[0].coverage(split, passes=settings.epochs, seen=state.seen[0], digest=state.digests[0])
    outcome = phase.finish(state, reason, parameters=parameters, coverage=(coverage,))
    backend.close()
    return Result(outputs=phase.outputs(f"checkpoints/{weights}/model.safetensors"), facts=phase.facts(outcome))
