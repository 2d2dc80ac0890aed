"""A run as a chain of jobs, one a stage, each with its own resources: plain data, made from the run and the cluster."""

from __future__ import annotations

from launch.cluster import ClusterConfig, StageConfig
from pipeline.chain import StageSpec, chain_for
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.records import record

__all__ = ["StageJob", "chain_of_jobs", "ranks_per_node"]


@record
class StageJob:
    """One job: a stage and what it asks of the cluster. `needs` names the jobs that must have ended well before it."""

    stage: str
    title: str
    needs: tuple[str, ...]
    nodes: int
    min_nodes: int
    """As few nodes as it goes on with when others die."""
    ranks_per_node: int
    """0: not a process group, but one process on one node."""
    gpus_per_node: int
    cpus_per_node: int
    """0: as many as the node lets it use."""
    threads: int
    """Of each rank; 0: cores divided by ranks."""
    memory_gib: int
    minutes: int


def ranks_per_node(cluster: ClusterConfig) -> int:
    """Ranks on each node: as given, else one per GPU, else one."""
    return cluster.node.ranks or cluster.node.gpus or 1


def chain_of_jobs(config: RunConfig, cluster: ClusterConfig) -> tuple[StageJob, ...]:
    """The run's stages in order, with the resources that the cluster gives them.

    Raises:
        ConfigError: more ranks than the sample order has lanes, or than a global batch has samples.
    """
    return tuple(_job(config, cluster, spec) for spec in chain_for(config))


def _job(config: RunConfig, cluster: ClusterConfig, spec: StageSpec) -> StageJob:
    own = cluster.stages.get(spec.module, StageConfig())
    nodes = (own.nodes or cluster.nodes) if spec.distributed else 1
    ranks = ranks_per_node(cluster) if spec.distributed else 0
    if nodes * ranks > config.stream.lanes:
        message = f"stage {spec.name}: {nodes * ranks} ranks share {config.stream.lanes} lanes of the sample order"
        raise ConfigError(message, f"set stream.lanes={nodes * ranks} in the run, or fewer nodes for this stage")
    return StageJob(
        stage=spec.name,
        title=spec.title,
        needs=spec.needs,
        nodes=nodes,
        min_nodes=min(cluster.min_nodes or nodes, nodes),
        ranks_per_node=ranks,
        gpus_per_node=cluster.node.gpus if spec.distributed else 0,
        cpus_per_node=cluster.node.cpus,
        threads=cluster.node.threads,
        memory_gib=cluster.node.memory_gib,
        minutes=own.minutes or cluster.slurm.minutes,
    )
