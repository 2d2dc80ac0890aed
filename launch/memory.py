"""Memory of a rank at its peak, part by part, as this engine holds them.

T parameters move, F are frozen, N ranks; e bytes a weight (2 in bf16, else 4). Partitioned states follow the ZeRO paper (arXiv
1910.02054, section 5): masters and moments from stage 1 on, gradients from stage 2 on, weights at stage 3. What DeepSpeed 0.19
needs beside them (buckets, flat copies) was read from its source and is bounded by its buckets of 5e8 elements; what the C
library's allocator keeps of freed blocks, on a machine without GPU, was measured once, at 1, 2 and 4 ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pipeline.orders import Machine, PhaseFacts
from pipeline.records import record

__all__ = ["Copied", "Layout", "Memory", "Reading", "Slack", "forked_bytes", "memory_of", "states"]

Copied = Literal["nothing", "start", "all"]
"""What is copied in memory for checkpoints in the background: of a short phase, while it takes steps, the start alone, without
moments."""

BUCKET = 500_000_000
"""Elements of DeepSpeed's buckets, at most (`pipeline.engine.backend`)."""
KEPT = {"fp32": (1.0, 1.0, 1.0, 4.2), "bf16": (2.0, 1.5, 1.5, 2.7), "autocast": (1.5, 1.5, 1.5, 4.2)}
"""Blocks that were freed and stay with the process, by stage, in fp32 copies of all that moves: the model as it was built,
gradients, under bf16 the exact copy of the weights, under autocast cast weights, under ZeRO 3 gathered weights and buckets."""
CONSOLIDATED = {"fp32": (0.0, 1.0, 1.0, 0.3), "bf16": (0.0, 0.5, 0.5, 0.7), "autocast": (0.0, 1.0, 1.0, 0.3)}
"""What of the consolidated weights, at the end, does not find room in such blocks."""


TOUCHED = 1 / 3
"""Of the mapped files of a process that has loaded all, the share that a stage forked from it looks at, which alone counts as its
own: 78 to 84 MB of 236 to 241 were measured in seven stages of two models; 175 in one whose server was still loading."""


@record
class Layout:
    """How the engine holds a model: stage of ZeRO, precision, and over how many ranks."""

    zero: int
    precision: str
    ranks: int


@record
class Reading:
    """Images in memory on one rank, in bytes: kept decoded, and in batches made ahead."""

    cache: float
    ahead: float


@record
class Slack:
    """What a probe found beyond the sum of parts: activations take so many times what was traced (holes between freed blocks,
    scratch of the kernels), those without gradient `forward` times, and `extra` bytes are of no known part."""

    factor: float = 1.0
    forward: float = 1.0
    extra: float = 0.0


@record
class Memory:
    """A rank's memory in bytes, by part, at the moment when it is largest: `backward`, `update`, `looking` (at losses without
    gradient), or `weights` (when rank 0 puts together what the phase publishes)."""

    moment: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self.parts.values())


def states(facts: PhaseFacts, layout: Layout) -> dict[str, float]:
    """Weights, gradients, fp32 masters and Adam's moments of one rank, in bytes, by the ZeRO paper."""
    zero, ranks, moving, width = layout.zero, layout.ranks, facts.trained, 2 if layout.precision == "bf16" else 4
    whole = facts.parameters * width
    masters = 4 * moving if layout.precision == "bf16" or zero else 0
    return {
        "weights": whole / ranks if zero == 3 else whole,
        "gradients": width * moving / ranks if zero >= 2 else width * moving,
        "masters": masters / ranks if zero else masters,
        "moments": 8 * moving / ranks if zero else 8 * moving,
    }


def memory_of(
    facts: PhaseFacts,
    layout: Layout,
    *,
    samples: float,
    reading: Reading,
    process: float,
    gpu: bool,
    looking: float = 0.0,
    slack: Slack = Slack(),  # noqa: B008 - frozen
    publishing: bool = True,
    copies: Copied = "nothing",
) -> Memory:
    """The peak of a training phase.

    Args:
        facts: of the phase.
        layout: of the engine.
        samples: of a step, on this rank.
        reading: images in this machine's memory; on a GPU there are none.
        process: bytes of a process that has loaded all and holds no model.
        looking: bytes of activations when losses are measured; 0 where none are.
        slack: of this machine.
        publishing: rank 0 puts together and writes the weights at the end.
        copies: what of a checkpoint is copied in the machine's memory.
        gpu: memory of the GPU is meant, not of the machine.
    """
    held = states(facts, layout)
    copied, later = held["masters"] + (held["weights"] if layout.zero < 3 else 0.0), held["moments"]  # on rank 0, writing weights
    held["teachers and shadows"] = 4.0 * facts.parameters * facts.companions
    held["buffers"] = float(facts.buffer_bytes)
    moments = (_on_gpu if gpu else _on_cpu)(facts, held, layout)
    moments["backward"]["activations"] = slack.factor * facts.activations.at(samples)
    if not publishing:
        moments.pop("weights", None)
    moments["looking"] = {"activations": slack.forward * looking}
    if not gpu:
        # Weights are read into blocks of their own, the model's and its companions', in which activations find room later.
        read = 4.0 * facts.parameters * (facts.companions + (facts.phase != "train"))
        for more in moments.values():
            more["blocks of read weights"] = max(0.0, read - more.get("activations", 0.0))
        held["images"] = reading.cache + reading.ahead
        held["process"] = process
        for moment in ("backward", "update"):  # found in steps; what measuring losses takes was measured as a whole
            moments[moment]["extra"] = slack.extra
        held["copy for checkpoints"] = {"nothing": 0.0, "start": copied, "all": copied + later}[copies]
        if copies == "start" and publishing:  # the end may be saved as well
            moments["weights"]["copy of moments"] = later
        held["frozen weights, kept exact"] = 4.0 * (facts.parameters - facts.trained)
    peaks = [Memory(moment=name, parts=_without_zeros({**held, **more})) for name, more in moments.items()]
    return max(peaks, key=lambda memory: memory.total)


def forked_bytes(machine: Machine) -> float:
    """Bytes of a stage that was forked by a process that has loaded all, before it has a model."""
    return machine.process_bytes - (1 - TOUCHED) * machine.mapped_bytes


def _without_zeros(parts: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in parts.items() if value}


def _comm_width(zero: int, precision: str) -> int:
    return 4 if precision == "fp32" or (precision == "autocast" and zero == 0) else 2


def _on_cpu(facts: PhaseFacts, held: dict[str, float], layout: Layout) -> dict[str, dict[str, float]]:
    """What comes on top at each moment. Freed blocks stay with the process, so gradients are among them at all times."""
    zero, precision, ranks = layout.zero, layout.precision, layout.ranks
    moving, width = facts.trained, 2 if precision == "bf16" else 4
    part = moving / ranks if zero else 0.0
    flat = zero in (1, 2)  # `pipeline.engine.flat`
    if flat:
        held["gradients"] = float(width * moving)  # in a block that stays
        held["masters"] = 4 * part if width == 2 else 0.0  # or they are the weights
    else:
        held.pop("gradients")
    held["freed blocks"] = KEPT[precision][zero] * 4 * moving
    copies = width * min(moving, BUCKET)  # the flat copy that is reduced, and the bucket it is made from
    update = 0.0 if flat and width == 4 else 4 * part  # this rank's gradients in fp32; AdamW's step is fused
    whole = 4 * facts.parameters
    return {
        "backward": {"buckets": 0.0 if flat else copies if zero == 0 else 2 * copies},
        "update": {"update": update},
        # safetensors makes bytes of every tensor, and then one file of them.
        "weights": {"weights to publish": CONSOLIDATED[precision][zero] * whole + 2 * whole},
    }


def _on_gpu(facts: PhaseFacts, held: dict[str, float], layout: Layout) -> dict[str, dict[str, float]]:
    """The same on a GPU, whose allocator uses freed blocks again; the driver's own memory is not counted."""
    zero, precision, ranks, moving = layout.zero, layout.precision, layout.ranks, facts.trained
    comm = _comm_width(zero, precision)
    flat = comm * min(moving, BUCKET)
    buckets = flat if zero == 0 else 2 * flat
    if zero == 3:
        buckets = 2 * comm * min(BUCKET, max(facts.largest, moving // 4))
        held["gathered weights"] = float((2 if precision != "fp32" else 4) * min(moving, 2 * BUCKET))
        buckets *= 2 if ranks > 1 else 1  # it overlaps them with the backward pass, and so has two
    return {
        "backward": {"buckets": buckets},
        "update": {"update": 12 * moving / ranks if zero else (12 if precision == "bf16" else 8) * moving},
    }
