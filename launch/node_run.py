"""`unlearn run` on several nodes, and `unlearn stage` inside a batch job: from what the user gave to `launch.nodes`."""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
from collections.abc import Sequence

from launch import torchrun
from launch.cluster import ClusterConfig, read_cluster
from launch.local import Outcome, Say, check_parts, prepare_folder, refuse_erased, refuse_other_batch, stages_to_run
from launch.nodes import meeting_of, node_resources, run_node
from launch.seat import Seat, find_seat
from launch.spec import StageJob, chain_of_jobs
from pipeline.chain import chain_for, stage
from pipeline.config import RunConfig, read_run, run_folder
from pipeline.decode import decode
from pipeline.errors import ConfigError, IntegrityError
from pipeline.records import RequestBatch, record
from pipeline.requests import batch_digest
from pipeline.storage import exists, is_local, join, read_bytes

__all__ = ["Given", "dry_run", "given_nodes", "run_on_nodes", "run_one_stage"]


@record
class Given:
    """What the command line says of nodes."""

    cluster: ClusterConfig
    hosts: tuple[str, ...]
    node_rank: int | None
    address: str


def given_nodes(
    cluster: str, nodes: int, hosts: str, node_rank: int | None, address: str, *, shown: bool = False
) -> Given | None:
    """Put the options together; None when none of them is there, and the run is for this machine alone.

    Args:
        cluster: name or file; empty: none.
        nodes: how many; 0: the cluster's, or as many as hosts.
        hosts: addresses of the nodes in the order of their ranks, with commas.
        node_rank: of this node.
        address: of this node.
        shown: nothing will be run, so this node's rank does not matter.

    Raises:
        ConfigError: options that contradict each other.
    """
    if not (cluster or nodes or hosts or address or node_rank is not None):
        return None
    named = tuple(word for text in hosts.split(",") if (word := text.strip()))
    if nodes and named and nodes != len(named):
        raise ConfigError(f"--nodes {nodes}: --hosts names {len(named)}", "give one of them, or as many hosts as nodes")
    count = nodes or len(named)
    found = read_cluster(cluster, {"nodes": count} if count else None)
    if named and found.nodes != len(named):
        raise ConfigError(f"--hosts: {len(named)} hosts for {found.nodes} nodes", "name one host for each node")
    if found.nodes > 1 and node_rank is None and not shown and "SLURM_NODEID" not in os.environ:
        raise ConfigError("--node-rank: missing", f"give this node's number, 0 to {found.nodes - 1}; node 0 begins")
    if named and node_rank is not None and not address:
        address = named[node_rank] if 0 <= node_rank < len(named) else ""
    return Given(cluster=found, hosts=named, node_rank=node_rank, address=address)


def run_on_nodes(config: RunConfig, batch: RequestBatch, given: Given, *, say: Say, to_stderr: bool = False) -> Outcome:
    """This node's part in the whole chain. `ran` of the outcome are the stages that this node had a part in.

    Raises:
        UnlearnError: what refused or failed.
    """
    cluster, folder = given.cluster, run_folder(config, batch)
    refuse_other_batch(folder, batch_digest(batch))
    refuse_erased(folder)
    seat = find_seat(nodes=cluster.nodes, rank=given.node_rank, address=given.address, interface=cluster.interface)
    for job in chain_of_jobs(config, cluster):
        node_resources(job)
    names, ran = tuple(spec.name for spec in chain_for(config)), tuple[str, ...]()
    if not exists(join(folder, "config.yaml")) or stages_to_run(config, folder):
        check_parts(config, to_stderr=to_stderr)
        prepare = functools.partial(prepare_folder, config, batch, folder)
        ran = run_node(config, folder, cluster, seat, say=say, prepare=prepare, to_stderr=to_stderr)
    return Outcome(folder=folder, ran=ran, current=tuple(name for name in names if name not in ran))


def run_one_stage(
    folder: str, name: str, *, node_rank: int | None = None, address: str = "", say: Say, to_stderr: bool = False
) -> tuple[str, ...]:
    """This node's part in one stage of a run folder that `unlearn submit` prepared.

    Raises:
        ConfigError: no such stage, or the folder was not prepared.
        UnlearnError: what refused or failed.
    """
    config = read_run(folder)
    uri = join(folder, "jobs", "cluster.json")
    if not exists(uri):
        raise ConfigError(f"{folder}: no jobs/cluster.json", "prepare the run with `unlearn submit`")
    cluster = decode(ClusterConfig, json.loads(read_bytes(uri)), where=uri, error=IntegrityError)
    try:
        spec = stage(name, config)
    except KeyError:
        known = ", ".join(item.name for item in chain_for(config))
        raise ConfigError(f"{folder}: this run has no stage called '{name}'", f"known: {known}") from None
    job = next(job for job in chain_of_jobs(config, cluster) if job.stage == spec.name)
    seat = find_seat(nodes=job.nodes, rank=node_rank, address=address, interface=cluster.interface)
    return run_node(config, folder, cluster, seat, say=say, only=(spec.name,), to_stderr=to_stderr)


def dry_run(config: RunConfig, batch: RequestBatch, given: Given, command: Sequence[str]) -> list[str]:
    """What each node runs, as lines for a shell: one command a node, and below it the agents that this command starts.

    Args:
        command: the words of this command without its options for nodes.
    """
    cluster, folder = given.cluster, run_folder(config, batch)
    hosts = given.hosts or tuple(f"HOST{number}" for number in range(cluster.nodes))
    jobs, lines = chain_of_jobs(config, cluster), list[str]()
    for rank, host in enumerate(hosts):
        seat = Seat(rank=rank, nodes=cluster.nodes, address=host, interface=cluster.interface or "INTERFACE", attempt="")
        options = ["--hosts", ",".join(hosts), "--node-rank", str(rank)]
        lines += [f"# node {rank}, {host}", shlex.join(["unlearn", *command, *options]), "# which starts here:"]
        lines += [f"#   {line}" for job in jobs for line in _stage_lines(config, folder, job, cluster, seat, hosts)]
        lines.append("")
    if not is_local(folder):
        return lines
    return [*lines, f"# All nodes must see {folder}."]


def _stage_lines(
    config: RunConfig, folder: str, job: StageJob, cluster: ClusterConfig, seat: Seat, hosts: Sequence[str]
) -> list[str]:
    spec = stage(job.stage, config)
    machine = torchrun.Resources(
        ranks=job.ranks_per_node or 1, threads=job.threads or 1, gpus=job.gpus_per_node, cores=job.cpus_per_node or 1
    )
    endpoint = f"{hosts[0]}:{cluster.port or 29400}"
    meeting = meeting_of(job, cluster, seat, leader=0, endpoint=endpoint, name=f"{job.stage}-0-ID")
    if meeting is None and (seat.rank or job.ranks_per_node):
        return []
    plain = torchrun.stage_job(spec, folder, machine, threads=job.threads)
    if meeting is not None:
        plain = torchrun.agent_job(spec, folder, machine, meeting, extra=cluster.environment)
    threads = ("OMP_NUM_THREADS",) if job.threads else ()
    shown = ("DS_ACCELERATOR", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TORCHELASTIC_SIGNALS_TO_HANDLE", *threads)
    words = [f"{name}={plain.env[name]}" for name in (*shown, *cluster.environment) if name in plain.env]
    argv = ["python" if word == sys.executable else word for word in plain.argv]
    return [shlex.join(["env", *words, *argv])]
