"""Train the original model on all images, or take the weights that the run names; either way with its data-order ledger."""

from __future__ import annotations

from pipeline.data.slices import Slicing
from pipeline.engine.checkpoint import TrainState, load_weights, save_weights
from pipeline.stages.ledger import adopt, order_file, refuse_unknown, write_order
from pipeline.stages.phase import Phase
from pipeline.stages.runner import Job, Result
from pipeline.stages.sliced import train_slices, whole

__all__ = ["run", "train"]


def run(job: Job) -> Result:
    """The original: trained on the split `original`, forget images included."""
    return train(job, weights="original", split="original", given=job.config.original)


def train(job: Job, *, weights: str, split: str, given: str) -> Result:
    """Train on a split, or adopt the weights at the URI `given`, checked for architecture and finite values."""
    phase = Phase(job, job.spec.module)
    if given not in ("train", "retrain"):
        return _take(phase, weights, given)
    slicing = Slicing(phase.samples(split), seed=phase.seed, slices=job.config.train.slices)
    order = train_slices(phase, slicing, weights=weights)
    outcome = phase.conclude(whole(phase, order, order.trained[-1].outcome.reason))
    files = [item.weights.uri for item in order.trained]
    return Result(outputs=phase.outputs(*files, order_file(weights)), facts=phase.facts(outcome))


def _take(phase: Phase, weights: str, given: str) -> Result:
    """Given weights, and the ledger where one lies beside them."""
    job, model = phase.job, phase.model()
    load_weights(model, given)
    order = adopt(given, home=job.home, output=job.config.output, weights=weights)
    if weights == "original" and job.config.method["component"] == "rewind" and not job.config.methods:
        refuse_unknown(order, job.config)  # now, and not after the reference was trained
    if job.first:
        save_weights({name: tensor.cpu() for name, tensor in model.state_dict().items()}, job.folder, weights)
        if order is not None:
            write_order(job.home, order)
    outcome = phase.finish(TrainState(), "given", parameters=sum(parameter.numel() for parameter in model.parameters()))
    files = [f"checkpoints/{weights}/model.safetensors", *([order_file(weights)] if order is not None else [])]
    return Result(outputs=(phase.outputs()[0], *files), facts=phase.facts(outcome))
