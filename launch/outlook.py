"""What a run will take on a cluster: facts of its model traced, rates measured here or taken from the device table, and every
stage estimated from them. `unlearn plan` with --nodes, --gpus, --cluster or --curve.

Nothing is kept from one plan to the next: a measurement is of this machine as it is now, and its load is told beside it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch import torchrun
from launch.acts import carry_out
from launch.advice import WORTH, Advice, advise, bound_of, curve
from launch.cluster import ClusterConfig, StageConfig, read_cluster
from launch.devices import Device, device_names, read_device
from launch.estimate import LOOK_BATCH, Basis, Rates, StageEstimate, estimate
from launch.memory import Slack, forked_bytes
from launch.plan import Plan, unseen_images
from launch.rates import measured_rates, measured_slack, table_rates
from launch.work import Counts, StageWork, unknown_work, work_of
from launch.worker import run_worker
from pipeline.chain import CHAIN, StageSpec, chain_for
from pipeline.config import RunConfig
from pipeline.decode import canonical, decode
from pipeline.errors import ConfigError, IntegrityError
from pipeline.layers import assignments
from pipeline.orders import Machine, MeasureAnswer, MeasureOrder, PictureAnswer, PictureOrder, ProbeOrder, Series
from pipeline.records import RequestBatch, record

__all__ = ["Outlook", "Wish", "look_ahead", "parted"]

CLUSTER_FIELDS = ("node", "stages")
"""Fields of a cluster that may stand among a plan's KEY=VALUE."""


@record
class Wish:
    """What the command line asks for."""

    cluster: str = ""
    nodes: int = 0
    gpus: int | None = None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the cluster, laid over its own."""
    curve: str = ""


@record
class Outlook:
    """All estimates. `machine` is what was measured, None with a device of the table; `price` of a node and hour is 0 where none
    is given. The sums are None where no stage's time is known."""

    nodes: int
    per_node: int
    device: str
    price: float
    machine: Machine | None
    answer: MeasureAnswer
    stages: tuple[StageEstimate, ...]
    """Of stages that are still to run."""
    advice: tuple[Advice, ...]
    seconds: float | None
    node_hours: float | None
    missing: tuple[str, ...]
    """Parts that are in no time."""
    curve: str = ""


def parted(overrides: list[str] | None) -> tuple[list[str], dict[str, Any]]:
    """KEY=VALUE texts for the run, and those for the cluster."""
    mine = [text for text in overrides or [] if re.split(r"[.=]", text)[0] in CLUSTER_FIELDS]
    return [text for text in overrides or [] if text not in mine], assignments(mine)


def look_ahead(config: RunConfig, batch: RequestBatch, plan: Plan, wish: Wish, *, to_stderr: bool = False) -> Outlook:
    """Measure and estimate.

    Args:
        config: a resolved run.
        batch: its requests.
        plan: its dry run.
        wish: what is asked for.
        to_stderr: keep standard output free, for JSON.

    Raises:
        ConfigError: no such cluster or device, or GPUs that are neither here nor named.
    """
    cluster = _cluster(wish)
    device = read_device(cluster.node.device) if cluster.node.device else None
    per_node = _ranks(cluster, config, wish)
    kinds = _kinds(plan, batch)
    order = MeasureOrder(config=config, groups=kinds, gpu=bool(cluster.node.gpus), started=time.time())
    answer = carry_out("measure", order, MeasureAnswer, to_stderr=to_stderr)
    counts = _counts(plan, len(kinds))
    if device:
        machine = None
    else:
        look = max(_work(spec, config, answer, counts).look for spec in chain_for(config))
        machine = _probe(config, plan, cluster, per_node, look, to_stderr)
    if machine is not None:
        answer = dataclasses.replace(answer, process_bytes=round(forked_bytes(machine)))
    sight = _Sight(config, cluster, device, machine, answer, per_node, counts)
    waiting = [spec for spec in chain_for(config) if plan.state(spec.name) != "up to date"]
    stages = tuple(sight.stage(spec, sight.nodes(spec)) for spec in waiting)
    times = [item.seconds for item in stages if item.seconds is not None]
    hours = [item.node_hours for item in stages if item.node_hours is not None]
    trained = [spec for spec in waiting if spec.distributed and sight.work(spec).facts is not None]
    return Outlook(
        nodes=cluster.nodes,
        per_node=per_node,
        device=cluster.node.device or "this machine",
        price=cluster.node.price_per_hour,
        machine=machine,
        answer=answer,
        stages=stages,
        advice=tuple(found for spec in trained if (found := sight.advice(spec)) is not None),
        seconds=sum(times) if times else None,
        node_hours=sum(hours) if hours else None,
        missing=tuple(dict.fromkeys(name for item in stages if item.seconds is not None for name in item.missing)),
        curve=_draw(sight, trained, config, wish.curve, to_stderr) if wish.curve else "",
    )


def _cluster(wish: Wish) -> ClusterConfig:
    """The cluster with the command line's numbers laid over it."""
    laid: dict[str, Any] = {name: dict(value) if isinstance(value, Mapping) else value for name, value in wish.fields.items()}
    if wish.nodes:
        laid |= {"nodes": wish.nodes, "min_nodes": 0}
    if wish.gpus is not None:
        laid["node"] = {**laid.get("node", {}), "gpus": wish.gpus}
    cluster = read_cluster(wish.cluster, laid)
    here, known = torchrun.count_gpus(os.environ), " or ".join(device_names())
    if cluster.node.gpus > here and not cluster.node.device:
        message = f"{cluster.node.gpus} GPUs a node, and this machine has {here}: what they can do is not known"
        raise ConfigError(message, f"name the device: node.device=h100 (known: {known})")
    if cluster.node.device and not cluster.node.gpus:
        raise ConfigError(f"node.device: {cluster.node.device} without GPUs", "add --gpus 8, or leave the device out")
    return cluster


def _ranks(cluster: ClusterConfig, config: RunConfig, wish: Wish) -> int:
    """Ranks of a node: the cluster's, or those that `unlearn run` starts on this machine."""
    if cluster.node.ranks or cluster.node.gpus:
        return cluster.node.ranks or cluster.node.gpus
    alone = cluster.nodes == 1 and not wish.cluster
    return torchrun.resources(config.launch).ranks if alone else 1


def _kinds(plan: Plan, batch: RequestBatch) -> tuple[str, ...]:
    """Kinds of the groups of forget images, from the data where it is indexed, and from the requests otherwise."""
    texts = plan.data.groups if plan.data else ()
    found = [match.group(1) for text in texts if (match := re.search(r"\((class|images), \d+ images\)$", text))]
    named = ["class" if request.selector.kind == "label" else "images" for request in batch.requests]
    return tuple(found or sorted(set(named)) or ["class"])


def _counts(plan: Plan, groups: int) -> Counts | None:
    """None: the data is not indexed."""
    data, unseen = plan.data, unseen_images(plan.folder)
    return Counts(forget=data.forget_samples, retain=data.retain_samples, groups=groups, unseen=unseen) if data else None


def _work(spec: StageSpec, config: RunConfig, answer: MeasureAnswer, counts: Counts | None) -> StageWork:
    return unknown_work(spec, config, answer) if counts is None else work_of(spec, config, answer, counts)


def _probe(config: RunConfig, plan: Plan, cluster: ClusterConfig, per_node: int, look: int, to_stderr: bool) -> Machine:
    """Measure this machine with as many ranks as a node has, at the size of a rank's part of a batch, half and a quarter of
    it."""
    launch = dataclasses.replace(config.launch, ranks=per_node, threads=cluster.node.threads or config.launch.threads)
    share = -(-config.train.batch_size // (cluster.nodes * per_node))
    data, train = plan.data, next(spec for spec in CHAIN if spec.name == "train")
    images = data.forget_samples + data.retain_samples if data else 0
    with tempfile.TemporaryDirectory(prefix="unlearn-") as scratch:
        file = os.path.join(scratch, "order.json")
        order = ProbeOrder(
            config=config,
            samples=tuple(sorted({max(1, share // 4), max(1, share // 2), share} if share > 1 else {1, 2})),
            look=min(LOOK_BATCH, -(-look // (cluster.nodes * per_node))) or share,
            sample_bytes=round(data.bytes_of["original"] / images) if data and images else 0,
            folder=scratch,
            started=time.time(),
        )
        Path(file).write_bytes(canonical(order))
        job = torchrun.stage_job(dataclasses.replace(train, name="probe"), file, torchrun.resources(launch))
        run_worker(job, what="probe", to_stderr=to_stderr)
        found = json.loads(Path(scratch, "answer.json").read_bytes())
    return decode(Machine, found, where="answer of probe", error=IntegrityError)


class _Sight:
    """Estimates of a run's stages for any number of nodes."""

    def __init__(
        self,
        config: RunConfig,
        cluster: ClusterConfig,
        device: Device | None,
        machine: Machine | None,
        answer: MeasureAnswer,
        per_node: int,
        counts: Counts | None,
    ) -> None:
        self._config, self.cluster, self._device, self._machine = config, cluster, device, machine
        self._answer, self.per_node = answer, per_node
        self._slack = measured_slack(machine, config, answer) if machine and not cluster.node.gpus else Slack()
        self._counts = counts

    def work(self, spec: StageSpec) -> StageWork:
        """What a stage does."""
        return _work(spec, self._config, self._answer, self._counts)

    def nodes(self, spec: StageSpec) -> int:
        """Nodes that the cluster gives a stage."""
        own = self.cluster.stages.get(spec.module, StageConfig())
        return (own.nodes or self.cluster.nodes) if spec.distributed else 1

    def _rates(self, per_node: int) -> Rates:
        if self._device is not None:
            return table_rates(self._device, self.cluster, self._config, self._answer, per_node)
        assert self._machine is not None  # measured where no device is named
        return measured_rates(self._machine, self.cluster, self._config, self._answer)

    def stage(self, spec: StageSpec, nodes: int, per_node: int = 0) -> StageEstimate:
        """A stage on so many nodes."""
        ranks = per_node or self.per_node
        basis = Basis(config=self._config, answer=self._answer, rates=self._rates(ranks), slack=self._slack)
        return estimate(spec, self.work(spec), basis, nodes=nodes, per_node=ranks)

    def _limit(self, spec: StageSpec) -> Any:
        return bound_of(self.work(spec).samples, self._config.stream.lanes)

    def advice(self, spec: StageSpec) -> Advice | None:
        """Which numbers of nodes make sense for a stage."""
        memory = self._device.memory_bytes if self._device else self.cluster.node.memory_gib * 2**30 / self.per_node or None
        return advise(spec.name, lambda nodes: self.stage(spec, nodes), self._limit(spec), per_node=self.per_node, memory=memory)

    def line(self, spec: StageSpec) -> Series:
        """A stage's time by its number of ranks."""
        return curve(spec.name, lambda nodes, ranks: self.stage(spec, nodes, ranks), self._limit(spec), per_node=self.per_node)


def _draw(sight: _Sight, trained: list[StageSpec], config: RunConfig, file: str, to_stderr: bool) -> str:
    """Draw the training stages' times, and what they cost together; the file that was written."""
    if not file.endswith(".png"):
        raise ConfigError(f"--curve {file}: not a PNG file", "write a name that ends in .png")
    lines = [sight.line(spec) for spec in trained]
    known = [dict(line.points) for line in lines]
    price, full = sight.cluster.node.price_per_hour, sight.per_node
    common = sorted(set.intersection(*(set(points) for points in known))) if known else []
    sums = tuple((count, sum(points[count] for points in known) * -(-count // full) * (price or 1.0)) for count in common)
    marks = {found.stage: float(found.nodes * full) for spec in trained if (found := sight.advice(spec))}
    order = PictureOrder(
        file=os.path.abspath(file),
        title=f"{config.name}: time and cost by {'GPUs' if sight.cluster.node.gpus else 'ranks'}",
        unit="GPUs" if sight.cluster.node.gpus else "ranks",
        hours=tuple(lines),
        cost=Series(name="cost", points=sums, allowed=min((line.allowed for line in lines), default=1.0)),
        cost_unit="cost of these stages" if price else "node-hours of these stages",
        marks=marks,
        ring=f"last doubling that is worth it: at least {WORTH} times as fast",
        note=f"dotted: more ranks than the batch or stream.lanes={config.stream.lanes} allows",
    )
    return carry_out("picture", order, PictureAnswer, to_stderr=to_stderr).file
