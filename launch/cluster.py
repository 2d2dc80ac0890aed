"""Cluster facts: what a node has, how nodes find each other, how they are asked for. They live in `configs/launch/` or in a
file of your own, never in a run: the same run goes to a laptop and to a cluster.

Every text that may reach a script is checked against a pattern here, so that no field can smuggle in a command.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import StringConstraints

from pipeline.config import NotNegative, NotNegativeFloat, Positive, PositiveFloat
from pipeline.decode import closest, decode
from pipeline.errors import ConfigError
from pipeline.layers import assignments, merge, packaged, read_yaml
from pipeline.records import record
from pipeline.storage import absolute, is_local

__all__ = ["ClusterConfig", "NodeConfig", "SlurmConfig", "StageConfig", "Word", "read_cluster"]

Word = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9_.,:/@+%=^&|*\[\]-]*)$", max_length=200)]
"""A name of the cluster's: no space, quote, dollar, semicolon, backquote or parenthesis."""
Path = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=1000)]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=2000)]
Port = Annotated[int, Ge(0), Le(65535)]
STAGES = ("shard", "train", "retrain", "calibrate", "forget", "certify", "retain", "evaluate", "release")


@record
class NodeConfig:
    """What a node gives to a stage."""

    gpus: NotNegative = 0
    """GPUs of a node; 0: ranks compute on the CPU."""
    cpus: NotNegative = 0
    """Cores that a node's processes may use; 0: all that they are let use."""
    ranks: NotNegative = 0
    """Ranks on a node; 0: one per GPU, or one on a node without."""
    threads: NotNegative = 0
    """Compute threads per rank; 0: cores divided by ranks."""
    memory_gib: NotNegative = 0
    """Memory asked for; 0: what the cluster gives."""
    device: Word = ""
    """Entry of the device table that the planner computes with, e.g. `h100`; empty: this machine, measured."""
    network_gbit: NotNegativeFloat = 0.0
    """Network between nodes, gigabits a second and node; 0: the device table's."""
    price_per_hour: NotNegativeFloat = 0.0
    """What a node costs an hour, in any currency; 0: costs are in node-hours only."""


@record
class StageConfig:
    """What one stage gets that differs from the others."""

    nodes: NotNegative = 0
    """Nodes; 0: as many as the others. Ascent wants few ranks, retention many."""
    minutes: NotNegative = 0
    """Time limit; 0: that of the others."""


@record
class SlurmConfig:
    """How jobs are asked for."""

    partition: Word = ""
    """Partition; empty: the cluster's default."""
    account: Word = ""
    """Account that pays; empty: the user's default."""
    qos: Word = ""
    """Quality of service."""
    constraint: Word = ""
    """Node features, e.g. `h100&ib`."""
    reservation: Word = ""
    """Reservation to run in."""
    minutes: Positive = 240
    """Time limit of a stage."""
    grace_seconds: Annotated[int, Ge(30), Le(3600)] = 120
    """How long before its end a job is told to save and leave; the cluster may tell it up to a minute earlier."""
    requeues: NotNegative = 20
    """How often a job that was pre-empted, or ran into its time limit, is queued again."""
    exclusive: bool = False
    """Share no node with other jobs."""


@record
class ClusterConfig:
    """One cluster."""

    nodes: Positive = 1
    """Nodes of a stage that computes with many ranks."""
    min_nodes: NotNegative = 0
    """With fewer than `nodes`, but at least so many, a stage goes on when nodes die; 0: all nodes are needed."""
    stages: Mapping[str, StageConfig] = dataclasses.field(default_factory=dict)
    """What single stages get, by name."""
    node: NodeConfig = NodeConfig()
    rendezvous: Literal["c10d", "static"] = "c10d"
    """How torchrun's agents meet. `c10d` lets nodes leave and come back, `static` needs all of them."""
    port: Port = 29400
    """Port of the rendezvous on the node that leads; 0, or where it is taken: any free one."""
    interface: Word = ""
    """Network interface that ranks speak over; empty: the one that has the node's address."""
    restarts: NotNegative = 3
    """How often a stage's ranks are started again, from the last checkpoint, when one of them dies."""
    lease_seconds: PositiveFloat = 20.0
    """A run folder's owner that gives no sign of life for so long has lost it."""
    modules: tuple[Word, ...] = ()
    """Environment modules that a job loads."""
    container: Path = ""
    """Image that a job's processes run in, for clusters whose srun takes `--container-image`."""
    mounts: tuple[Path, ...] = ()
    """Folders that the container sees, as SOURCE:TARGET."""
    environment: Mapping[Variable, Text] = dataclasses.field(default_factory=dict)
    """Variables of every process, e.g. NCCL_IB_HCA. No secrets: they are written into job files."""
    python: Path = ""
    """Interpreter with this package on the nodes; empty: the one that runs now."""
    slurm: SlurmConfig = SlurmConfig()


def read_cluster(cluster: str = "", overrides: Mapping[str, Any] | list[str] | None = None) -> ClusterConfig:
    """Decode a cluster.

    Args:
        cluster: a packaged name (see `configs/launch/`), a YAML file at any fsspec URI, or empty: one node, no extras.
        overrides: fields laid over it, as a mapping or as `key=value` texts.

    Raises:
        ConfigError: no such cluster, an unknown field or stage, a value that decodes but cannot work.
    """
    files, given, where = packaged("launch"), dict[str, Any](), cluster or "cluster"
    if cluster in files:
        given = read_yaml(str(files[cluster]))
    elif cluster.endswith((".yaml", ".yml")):
        given = read_yaml(absolute(cluster) if is_local(cluster) else cluster)
    elif cluster:
        raise ConfigError(f"no cluster is called '{cluster}'", f"{closest(cluster, list(files))}; or name a YAML file")
    laid = assignments(overrides) if isinstance(overrides, list) else dict(overrides or {})
    config = decode(ClusterConfig, merge(given, laid), where=where)
    for stage in config.stages:
        if stage not in STAGES:
            raise ConfigError(f"{where}: stages: no stage is called '{stage}'", closest(stage, list(STAGES)))
    if config.min_nodes > config.nodes:
        raise ConfigError(f"{where}: min_nodes: {config.min_nodes} of {config.nodes} nodes", "set it to at most nodes")
    if config.min_nodes and config.rendezvous == "static":
        raise ConfigError(f"{where}: min_nodes: a static rendezvous needs all nodes", "set rendezvous=c10d, or min_nodes=0")
    if config.node.gpus and config.node.ranks > config.node.gpus:
        message = f"{where}: node.ranks: {config.node.ranks} ranks on {config.node.gpus} GPUs"
        raise ConfigError(message, "use at most one rank per GPU")
    return config
