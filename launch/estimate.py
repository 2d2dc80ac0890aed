"""Time, bytes and cost of a stage on so many ranks: the sum of its parts, each from a rate that was measured or is in a table.

    stage = start-up + steps * step + looks without gradient + checkpoints
    step  = compute(samples of a rank) + exchanges + update, and loading: beside it on a GPU, on top on a processor, which decodes
            with the cores that compute

Where a rate is not known, the part is None and is named; nothing is put in its place. A stage of whose steps a part is not known
has no time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from launch.memory import Copied, Layout, Memory, Reading, Slack, memory_of
from launch.network import Exchange, Fabric, exchanges, seconds, sent
from launch.work import StageWork, reads
from pipeline.chain import StageSpec
from pipeline.config import EngineConfig, RunConfig
from pipeline.orders import MeasureAnswer, PhaseFacts
from pipeline.records import record

__all__ = ["LOOK_BATCH", "PARTS", "Basis", "Rates", "StageEstimate", "checkpoint_bytes", "estimate", "step_parts"]

PARTS = ("start-up", "compute", "loading", "network", "update", "looking", "saving")
NEEDED = ("compute", "network", "update", "looking")
"""Parts without which a stage's time means nothing."""
AHEAD_SPARE = 3
"""Batches in memory beside those made ahead: two handed out and one in the making."""
LOOK_BATCH = 256
"""Images whose losses are measured at once (`pipeline.engine.probe`)."""
SMALL = 64.0
"""Bytes of a sum of a few numbers."""
OVERLAPPED = 2 / 3
"""Share of the computation that gradients and weights can travel beside: the backward pass is two thirds of it."""


@record
class Rates:
    """How fast one rank is."""

    gpu: bool
    flop_seconds: float | None
    """Seconds a FLOP takes."""
    fixed_seconds: float
    """Of a step, whatever its samples."""
    call_seconds: float
    """Of one more pass through the model in a step."""
    update_seconds: float | None
    """Of a parameter that moves and is this rank's own, in the optimizer's step."""
    decode_seconds: float | None
    """Of an image, with all cores that a rank has for it."""
    start_seconds: float | None
    """From nothing to the first usual step."""
    checkpoint_seconds: float | None
    """Of a byte of a checkpoint, by all ranks of a node together."""
    fabric: Fabric


@record
class Basis:
    """What estimates are made from."""

    config: RunConfig
    answer: MeasureAnswer
    rates: Rates
    slack: Slack = Slack()


@record
class StageEstimate:
    """What one stage takes."""

    stage: str
    nodes: int
    ranks: int
    steps: int | None
    """None: not known while the data is not indexed."""
    at_most: bool
    parts: Mapping[str, float | None]
    """Seconds of the whole stage, by part; None: not known."""
    samples: float = 0.0
    """Of a step, on the rank with most."""
    step_seconds: float | None = None
    memory: Memory | None = None
    sent_step: float = 0.0
    """Bytes a rank sends in a step."""
    sent_total: float = 0.0
    """Bytes all ranks send in the stage."""
    checkpoint_bytes: float = 0.0
    weights_bytes: float = 0.0

    @property
    def seconds(self) -> float | None:
        """Of the stage."""
        if self.steps is None or any(self.parts[name] is None for name in NEEDED):
            return None
        return sum(value for value in self.parts.values() if value is not None)

    @property
    def missing(self) -> tuple[str, ...]:
        """Parts that are not computed, and not in the time."""
        return tuple(name for name, value in self.parts.items() if value is None)

    @property
    def bottleneck(self) -> str:
        """The part that takes longest; empty for a stage that does nothing, or of which too little is known."""
        if self.seconds is None or not self.seconds:
            return ""
        return max(self.parts, key=lambda name: self.parts[name] or 0.0)

    @property
    def node_hours(self) -> float | None:
        """What the stage costs."""
        return None if self.seconds is None else self.nodes * self.seconds / 3600


def checkpoint_bytes(trained: int, parameters: int, zero: int, precision: str) -> float:
    """A sharded checkpoint of all ranks: fp32 masters and both moments; weights beside them, unless ZeRO 3 has them split up,
    or they are their own masters (stage 0 in fp32)."""
    width = 2 if precision == "bf16" else 4
    masters = 12 if zero or precision == "bf16" else 8
    return masters * trained + (0 if zero == 3 else width * parameters)


def step_parts(work: StageWork, rates: Rates, layout: Layout, *, samples: float, decoded: float = 0.0) -> dict[str, float | None]:
    """Seconds of one step by part.

    Args:
        work: of a stage that trains.
        rates: of a rank.
        layout: of the engine.
        samples: on this rank.
        decoded: of them, on average over the stage, those that must be decoded.
    """
    zero, precision, ranks = layout.zero, layout.precision, layout.ranks
    facts = work.facts
    assert facts is not None
    known = rates.flop_seconds is not None
    # A pass without gradient is a third of one with.
    fixed = rates.fixed_seconds + rates.call_seconds * max(0.0, facts.calls - 1 + facts.quiet_calls / 3)
    compute = fixed + facts.flop.at(samples) * rates.flop_seconds if known else None  # type: ignore[operator]
    own = facts.trained / ranks if zero else facts.trained
    update = None if rates.update_seconds is None else own * rates.update_seconds
    loading = 0.0 if not decoded else None if rates.decode_seconds is None else decoded * rates.decode_seconds
    network = _exchanging(exchanges(zero, precision, facts.trained, gpu=rates.gpu), facts.sums, ranks, rates.fabric)
    if network is not None and compute is not None and zero == 3 and rates.gpu:
        # DeepSpeed overlaps communication with computation at stage 3, and only there.
        network = max(0.0, network - OVERLAPPED * compute)
    if rates.gpu and loading is not None and None not in (compute, network, update):
        loading = max(0.0, loading - compute - network - update)  # type: ignore[operator]
    return {"compute": compute, "loading": loading, "network": network, "update": update}


def _exchanging(found: tuple[Exchange, ...], sums: int, ranks: int, fabric: Fabric) -> float | None:
    # Beside the loss's own sums: the loop's, and the gradient norm's.
    small = [Exchange(kind="all_reduce", bytes=SMALL)] * (sums + 2)
    times = [seconds(item, ranks, fabric) for item in (*found, *small)]
    known = [time for time in times if time is not None]
    return sum(known) if len(known) == len(times) else None


def estimate(spec: StageSpec, work: StageWork, basis: Basis, *, nodes: int, per_node: int) -> StageEstimate:
    """One stage on so many nodes.

    Args:
        spec: the stage.
        work: what it does.
        basis: the run, what its model computes, and how fast.
        nodes: of the stage; 1 where it is no process group.
        per_node: ranks on each.
    """
    ranks = nodes * per_node if spec.distributed else 1
    answer, rates = basis.answer, basis.rates
    bare = StageEstimate(
        stage=spec.name, nodes=nodes, ranks=ranks, steps=work.steps, at_most=work.at_most, parts=dict.fromkeys(PARTS, 0.0)
    )
    if not spec.distributed:
        # It reads and writes files, and how fast storage is, is not known.
        return dataclasses.replace(bare, parts=dict.fromkeys(PARTS))
    looks = work.measured * answer.forward_flop + work.completed * answer.complete_flop
    if work.facts is None and not looks:
        return bare
    looking = None if rates.flop_seconds is None else looks * rates.flop_seconds / ranks
    parts = {**bare.parts, "start-up": rates.start_seconds, "looking": looking}
    if work.facts is None:
        memory = _answering(work, basis)
        return dataclasses.replace(bare, parts=parts, memory=memory)
    return _trained(dataclasses.replace(bare, parts=parts), work, work.facts, basis)


def _trained(bare: StageEstimate, work: StageWork, facts: PhaseFacts, basis: Basis) -> StageEstimate:
    """With what a training phase takes: for one step, and for all of them where their number is known."""
    engine, rates, answer, ranks = basis.config.engine, basis.rates, basis.answer, bare.ranks
    layout = Layout(zero=engine.zero_stage, precision=engine.precision, ranks=ranks)
    share = float(-(-work.samples // ranks))
    decoded = 0.0
    if work.steps:
        cache = basis.config.images.cache_bytes
        decoded = reads(work, image_bytes=answer.image_bytes, cache_bytes=cache, ranks=ranks) / work.steps / ranks
    step = step_parts(work, rates, layout, samples=share, decoded=decoded)
    values = [value for value in step.values() if value is not None]
    saved = checkpoint_bytes(facts.trained, facts.parameters, engine.zero_stage, engine.precision)
    weights, steps = 4.0 * facts.parameters, work.steps or 0
    parts = {**bare.parts, **{name: None if value is None else steps * value for name, value in step.items()}}
    saves, rate = 1 + steps // engine.checkpoint_steps, rates.checkpoint_seconds
    parts["saving"] = None if rate is None else (saves * saved / bare.nodes + weights) * rate
    sends = sum(sent(item, ranks) for item in exchanges(engine.zero_stage, engine.precision, facts.trained, gpu=rates.gpu))
    reading = _reading(work, basis, ranks)
    return dataclasses.replace(
        bare,
        samples=share,
        parts=parts,
        step_seconds=sum(values) if len(values) == len(step) else None,
        memory=memory_of(
            facts,
            layout,
            samples=share,
            reading=reading,
            process=answer.process_bytes,
            gpu=rates.gpu,
            looking=_looked_at(work, basis, ranks),
            slack=basis.slack,
            copies=_copied(work, facts, engine),
        ),
        sent_step=sends,
        sent_total=sends * steps * ranks,
        checkpoint_bytes=saved,
        weights_bytes=weights,
    )


def _copied(work: StageWork, facts: PhaseFacts, engine: EngineConfig) -> Copied:
    """A phase saves its start and when checkpoints are due, ascent after each pass and each look at kept images as well."""
    if not engine.background_saves:
        return "nothing"
    due = engine.checkpoint_steps
    if facts.phase == "forget":
        due = min(due, facts.probe_steps or due, (work.steps or due) // (facts.passes or 1))
    return "start" if work.steps is not None and work.steps <= due else "all"


def _reading(work: StageWork, basis: Basis, ranks: int) -> Reading:
    """Images in memory: all that the bound allows where the number of them is not known."""
    each, bound, ahead = basis.answer.image_bytes, basis.config.images.cache_bytes, basis.config.reading.ahead + AHEAD_SPARE
    if work.splits is None:
        return Reading(cache=bound, ahead=-(-work.samples // ranks) * ahead * each)
    kept = sum(min(bound, images * each * _seen(work, images, batch, ranks)) for images, batch in work.splits.values())
    return Reading(cache=kept, ahead=sum(-(-batch // ranks) for _, batch in work.splits.values()) * ahead * each)


def _looked_at(work: StageWork, basis: Basis, ranks: int) -> float:
    """Activations of the images whose losses a rank measures at once."""
    images = min(LOOK_BATCH, -(-work.look // ranks))
    return basis.answer.forward_bytes.at(images) if images else 0.0


def _seen(work: StageWork, images: int, batch: int, ranks: int) -> float:
    """Share of a split's images that a rank has read by the end: its lanes' in the first pass, later those of others too."""
    passes = (work.steps or 0) * batch / images
    return 1 - (1 - 1 / ranks) ** passes if passes >= 1 and ranks > 1 else min(1.0, passes / ranks)


def _answering(work: StageWork, basis: Basis) -> Memory:
    """Of evaluation, its models in fp32 and what completing a batch takes; of a calibration without shadow, one model and what
    measuring losses takes."""
    answer, factor = basis.answer, basis.slack.forward
    each = answer.complete_bytes.at(basis.config.evaluation.batch_size) if work.completed else _looked_at(work, basis, 1)
    parts = {"models": 4.0 * answer.phases[0].parameters * max(1, work.models), "activations": factor * each}
    if not basis.rates.gpu:
        images = work.completed / work.models if work.completed else work.measured / answer.draws
        kept = min(basis.config.images.cache_bytes, images * answer.image_bytes)
        parts |= {"process": float(answer.process_bytes), "images": kept}
    return Memory(moment="answers" if work.completed else "looking", parts=parts)
