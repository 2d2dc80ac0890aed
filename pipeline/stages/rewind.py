"""Going back to the last weights of training that never saw the forgotten images, and training on from there without them."""

from __future__ import annotations

import dataclasses

from pipeline.data.slices import Slicing
from pipeline.errors import IntegrityError
from pipeline.findings import TrainingOrder
from pipeline.stages.ledger import known, order_file, refuse_unknown, rewind_point, write_order
from pipeline.stages.phase import Phase
from pipeline.stages.runner import Job, Result
from pipeline.stages.sliced import begun, train_slices, whole
from pipeline.storage import hash_file, join, publish_bytes, read_bytes, relative

__all__ = ["rewind"]

WEIGHTS = "unlearned"


def rewind(job: Job, latest: int | None) -> Result:
    """Publish `unlearned` weights and their ledger.

    The seed is that of the original's training, so that the result is the one that this training would have had without the
    forgotten images, bit for bit on the same machine.

    Args:
        latest: most slices to keep; None: all that are proved.

    Raises:
        ConfigError: no ledger, or one of other slices than the run's.
        IntegrityError: the ledger, or the weights that it names, were changed.
    """
    order = refuse_unknown(known(job, "train", order_file("original")), job.config)
    phase = Phase(job, job.spec.module, seed=order.seed)
    slicing = Slicing(phase.samples("retain"), seed=order.seed, slices=order.slices)
    proved = rewind_point(order, slicing.sets)
    kept = proved if latest is None else min(proved, latest)
    home, output = job.home, job.config.output
    earlier = tuple(
        dataclasses.replace(
            item, weights=dataclasses.replace(item.weights, uri=relative(job.path(item.weights.uri), home, output))
        )
        for item in order.trained[:kept]
    )
    if kept == order.slices:
        made = _taken_over(phase, begun(phase, slicing, WEIGHTS, earlier))
        reason = "the original was trained without these images: its weights are taken over"
    else:
        made = train_slices(phase, slicing, weights=WEIGHTS, kept=earlier)
        reason = f"rewound to the end of slice {kept} of {order.slices}" if kept else _anew(order, proved)
    outcome = phase.conclude(whole(phase, made, reason))
    files = [f"checkpoints/{WEIGHTS}/model.safetensors", order_file(WEIGHTS)]
    if kept < order.slices:
        files += [item.weights.uri for item in made.trained[kept:-1]]
    published = phase.outputs(*(job.own(file) for file in files))
    own = published if outcome.steps else tuple(uri for uri in published if "metrics/" not in uri)
    return Result(outputs=own, facts={**phase.facts(outcome), "reads_forget": False})


def _anew(order: TrainingOrder, proved: int) -> str:
    if proved:
        return "retrained from random weights, as the method asks for"
    return f"slice 1 of {order.slices} already holds forgotten images: retrained from random weights"


def _taken_over(phase: Phase, order: TrainingOrder) -> TrainingOrder:
    """The original's last weights as they are, under the new name."""
    job, last = phase.job, order.trained[-1].weights
    uri = join(job.home, last.uri)
    if hash_file(uri).sha256 != last.sha256:
        raise IntegrityError(f"{uri}: not the weights that its order ledger names", "restore the file")
    if job.first:
        publish_bytes(join(job.home, f"checkpoints/{WEIGHTS}/model.safetensors"), read_bytes(uri))
        write_order(job.home, order)
    phase.group.barrier()
    return order
