"""One node's part in a run that several nodes share: the same command on each, and the run folder brings them together.

Whoever owns the run folder leads: it starts one stage after the other, and writes into its claim where the agents of the
stage meet. The others read that, start their agents, and wait for the next stage. When the leader dies the others see its
claim stand still, the next one takes the folder over, and the stage goes on from its last checkpoint with the nodes that
are left. So no node is needed for good, and no two nodes ever lead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launch import torchrun
from launch.cluster import ClusterConfig
from launch.local import Say, patient_lock, remove_parts
from launch.seat import Seat, port_for
from launch.spec import StageJob, chain_of_jobs
from launch.worker import Asked, WorkerError, run_worker, terminable
from pipeline import errors
from pipeline.chain import StageSpec, chain_for, current_receipt
from pipeline.claim import VARIABLE, Claim, Held, Taken, Watcher, owning
from pipeline.config import LaunchConfig, RunConfig
from pipeline.decode import canonical
from pipeline.errors import ConfigError, IntegrityError, Preempted, UnlearnError
from pipeline.storage import is_local, join, list_files, publish_bytes, read_bytes

__all__ = ["meeting_of", "node_resources", "run_node"]

POLL_SECONDS = 0.5
TURN_SECONDS = 2.0
"""Between the nodes' tries to take over from a leader that died, so that they do not race."""
REJOIN_SECONDS = 5.0
RECEIPT_SECONDS = 30.0
"""How long a shared file system may take to show what another node wrote."""
WORD_SECONDS = 3.0
"""How long a leader whose stage failed waits for another node's word of the cause."""


def node_resources(job: StageJob) -> torchrun.Resources:
    """What this machine gives the stage.

    Raises:
        ConfigError: it has fewer GPUs than the cluster's file says.
    """
    machine = torchrun.resources(LaunchConfig(ranks=job.ranks_per_node or 1, threads=job.threads))
    if job.gpus_per_node > machine.gpus:
        message = f"node.gpus: this node has {machine.gpus} GPUs, stage {job.stage} was to get {job.gpus_per_node}"
        raise ConfigError(message, "correct the cluster's file, or CUDA_VISIBLE_DEVICES")
    return machine if job.gpus_per_node else dataclasses.replace(machine, gpus=0)


def meeting_of(
    job: StageJob, cluster: ClusterConfig, seat: Seat, *, leader: int, endpoint: str, name: str
) -> torchrun.Meeting | None:
    """This node's part in a stage's meeting; None where the stage does not need it: it takes the leader and the lowest others."""
    order = [leader, *(rank for rank in range(seat.nodes) if rank != leader)]
    place = order.index(seat.rank)
    if place >= job.nodes or not job.ranks_per_node:
        return None
    return torchrun.Meeting(
        backend=cluster.rendezvous,
        endpoint=endpoint,
        name=name,
        nodes=min(job.nodes, seat.nodes),
        min_nodes=min(job.min_nodes, job.nodes, seat.nodes),
        rank=place,
        address=seat.address,
        interface=seat.interface,
        restarts=cluster.restarts,
    )


def run_node(
    config: RunConfig,
    folder: str,
    cluster: ClusterConfig,
    seat: Seat,
    *,
    say: Say,
    prepare: Callable[[], None] = lambda: None,
    only: Sequence[str] = (),
    to_stderr: bool = False,
) -> tuple[str, ...]:
    """Do this node's part until no stage is left.

    Args:
        config: a resolved run.
        folder: its folder, on storage that all nodes see.
        cluster: what nodes have.
        seat: of this node.
        say: takes one line of progress at a time.
        prepare: called by the node that leads, before the first stage.
        only: names of stages; all of the chain by default.
        to_stderr: keep standard output free, for JSON.

    Returns:
        Names of the stages that this node had a part in.

    Raises:
        UnlearnError: what refused or failed, on whichever node; Preempted where this node was asked to leave.
    """
    node = _Node(config, folder, cluster, seat, say=say, only=only, to_stderr=to_stderr)
    with terminable(f"node {seat.rank}"):
        node.run(prepare)
    return tuple(dict.fromkeys(node.ran))


class _Node:
    def __init__(
        self,
        config: RunConfig,
        folder: str,
        cluster: ClusterConfig,
        seat: Seat,
        *,
        say: Say,
        only: Sequence[str],
        to_stderr: bool,
    ) -> None:
        self.config, self.folder, self.cluster, self.seat = config, folder, cluster, seat
        self.say, self.to_stderr = say, to_stderr
        self.jobs = {job.stage: job for job in chain_of_jobs(config, cluster)}
        self.specs = [spec for spec in chain_for(config) if not only or spec.name in only]
        self.ran: list[str] = []
        self.tried: dict[str, float] = {}  # names of meetings, with the time at which this node may join them again

    def left(self) -> list[StageSpec]:
        """The stages that are not up to date."""
        return [spec for spec in self.specs if current_receipt(self.config, self.folder, spec) is None]

    def run(self, prepare: Callable[[], None]) -> None:
        watcher = Watcher(self.folder, lease_seconds=self.cluster.lease_seconds)
        old = watcher.look()
        # The first node may be late; once there was a leader, whoever is next follows it soon.
        turn, free_since = self.cluster.lease_seconds, time.monotonic()
        while True:
            claim = watcher.look()
            if claim is not None and not claim.ended:
                turn, free_since = TURN_SECONDS, time.monotonic()
                self.follow(claim, watcher.mark(claim))
            elif not self.left():
                return
            elif claim is not None and claim != old and not self.goes_on_after(claim.ended):
                raise _as_error(claim.ended)
            elif time.monotonic() - free_since >= turn * self.seat.rank:
                with contextlib.suppress(Taken):
                    self.lead(prepare)
                    continue
            time.sleep(POLL_SECONDS)

    def goes_on_after(self, ended: Mapping[str, str]) -> bool:
        """Whether a leader that was sent away leaves enough nodes to go on."""
        return ended.get("kind") == "Preempted" and 0 < self.cluster.min_nodes < self.seat.nodes

    def lead(self, prepare: Callable[[], None]) -> None:
        with owning(self.folder, lease_seconds=self.cluster.lease_seconds, patience=0, leave_word=True) as held:
            with patient_lock(self.folder, self.say) as lock:
                remove_parts(self.folder)
                try:
                    prepare()
                    for spec in self.specs:
                        if current_receipt(self.config, self.folder, spec):
                            self.say(f"{spec.name}: up to date")
                            continue
                        self.stage(spec, held, lock)
                        self.ran.append(spec.name)
                        held.note()
                finally:
                    remove_parts(self.folder)

    def stage(self, spec: StageSpec, held: Held, lock: int | None) -> None:
        """Lead one stage to its receipt, with as many attempts as the cluster allows."""
        started = time.monotonic()
        for attempt in range(self.cluster.restarts + 1):
            self.say(f"{spec.name}: {spec.title}" + (f" (attempt {attempt + 1})" if attempt else ""))
            try:
                self.attempt(spec, held, lock, attempt)
                break
            except Asked:
                raise
            except Preempted as fault:
                if held.lost or attempt == self.cluster.restarts:
                    raise
                self.say(f"{spec.name}: {fault.message}")
        receipt = self.receipt(spec)
        why = f": {receipt.facts['reason']}" if receipt.facts.get("reason") else ""
        self.say(f"{spec.name}: done in {time.monotonic() - started:.0f} s{why}")

    def attempt(self, spec: StageSpec, held: Held, lock: int | None, attempt: int) -> None:
        job = self.jobs[spec.name]
        machine = node_resources(job)
        name = "-".join(filter(None, [self.seat.attempt, spec.name, str(attempt), uuid.uuid4().hex[:8]]))
        endpoint = f"{self.seat.address}:{port_for(self.seat.address, self.cluster.port)}" if job.ranks_per_node else ""
        meeting = meeting_of(job, self.cluster, self.seat, leader=self.seat.rank, endpoint=endpoint, name=name)
        if meeting is not None:
            held.note(stage=spec.name, leader=str(self.seat.rank), endpoint=endpoint, name=name)
        try:
            self.work(spec, machine, meeting, held.mark, lock)
        except (Preempted, WorkerError) as fault:
            if isinstance(fault, Asked) or job.nodes == 1 or "made no progress" in str(fault):
                raise
            word = self.word(name)
            raise (fault if word is None or (isinstance(word, Preempted) and isinstance(fault, WorkerError)) else word) from None

    def work(
        self, spec: StageSpec, machine: torchrun.Resources, meeting: torchrun.Meeting | None, mark: str, lock: int | None
    ) -> None:
        """This node's processes of one attempt."""
        if meeting is None:
            job = torchrun.stage_job(spec, self.folder, machine, threads=self.cluster.node.threads)
        else:
            job = torchrun.agent_job(spec, self.folder, machine, meeting, extra=self.cluster.environment)
        suffix = f".node{self.seat.rank}" if lock is None else ""
        log = join(self.folder, "logs", f"{spec.name}{suffix}.log") if is_local(self.folder) else ""
        job = dataclasses.replace(job, env={**job.env, VARIABLE: mark})
        try:
            run_worker(job, what=f"stage {spec.name}", lock=lock, log=log, to_stderr=self.to_stderr)
        except WorkerError as crash:
            if meeting is not None and "Rendezvous" in crash.output and "ChildFailedError" not in crash.output:
                raise Preempted(f"stage {spec.name}: its nodes did not meet at {meeting.endpoint}", "see " + log) from crash
            raise

    def follow(self, claim: Claim, mark: str) -> None:
        """Join the stage that the leader is at, if it needs this node and this node has not done its part."""
        notes = claim.notes
        name = notes.get("name", "")
        if not name or time.monotonic() < self.tried.get(name, 0.0):
            return
        spec = next((spec for spec in self.specs if spec.name == notes["stage"]), None)
        if spec is None:
            return  # another job has the folder; this one's turn comes when it is done
        job = self.jobs[spec.name]
        meeting = meeting_of(job, self.cluster, self.seat, leader=int(notes["leader"]), endpoint=notes["endpoint"], name=name)
        self.tried[name] = float("inf")
        if meeting is None:
            return
        self.say(f"{spec.name}: joining at {notes['endpoint']}")
        try:
            self.work(spec, node_resources(job), meeting, mark, None)
            self.ran.append(spec.name)
        except Asked:
            raise
        except (UnlearnError, WorkerError) as fault:
            self.say(f"{spec.name}: this node's part failed: {fault}")
            self.tried[name] = time.monotonic() + REJOIN_SECONDS
            self.tell(name, fault)

    def tell(self, name: str, fault: UnlearnError | WorkerError) -> None:
        """Leave word of a fault for the leader, whose own ranks only saw that they lost a peer."""
        facts = {"kind": type(fault).__name__, "message": str(getattr(fault, "message", fault)), "node": str(self.seat.rank)}
        facts |= {"cure": getattr(fault, "cure", ""), "output": getattr(fault, "output", "")}
        with contextlib.suppress(UnlearnError):
            publish_bytes(join(self.folder, "claims", f"fault-{name}-{self.seat.rank}.json"), canonical(facts))

    def word(self, name: str) -> UnlearnError | WorkerError | None:
        """What another node says of the failure of this attempt, if one says anything soon: best a cause, else that it was
        interrupted too."""
        deadline, found = time.monotonic() + WORD_SECONDS, list[UnlearnError | WorkerError]()
        while time.monotonic() < deadline and all(isinstance(fault, Preempted) for fault in found):
            uris = [uri for uri in list_files(join(self.folder, "claims"), ".json") if f"/fault-{name}-" in uri]
            found = [_as_error(json.loads(read_bytes(uri))) for uri in uris]
            time.sleep(POLL_SECONDS)
        # Of nodes that were all interrupted, one whose rank hung knows more than those that lost it.
        found.sort(key=lambda fault: (isinstance(fault, Preempted), "made no progress" not in str(fault)))
        return found[0] if found else None

    def receipt(self, spec: StageSpec) -> Any:
        deadline = time.monotonic() + (RECEIPT_SECONDS if self.seat.nodes > 1 else 0.0)
        while (receipt := current_receipt(self.config, self.folder, spec)) is None:
            if time.monotonic() > deadline:
                raise IntegrityError(f"stage {spec.name}: ended without a receipt that fits", "see its log, then run again")
            time.sleep(POLL_SECONDS)
        return receipt


def _as_error(facts: Mapping[str, str]) -> UnlearnError | WorkerError:
    """The error that another node wrote down."""
    message, node = facts["message"], facts.get("node", "")
    if facts["kind"] == "WorkerError":
        return WorkerError(f"node {node}: {message}", facts.get("output", ""))
    kind = getattr(errors, facts["kind"], UnlearnError)
    return (kind if issubclass(kind, UnlearnError) else UnlearnError)(message, facts.get("cure", ""))
