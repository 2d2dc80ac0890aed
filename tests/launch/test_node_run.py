"""What the options for nodes mean, and the text of a dry run: one command a node, and what it starts."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from launch.cluster import read_cluster
from launch.node_run import Given, dry_run, given_nodes, run_one_stage
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.records import RequestBatch

Small = tuple[RunConfig, RequestBatch]


def test_without_options_the_run_is_for_this_machine() -> None:
    assert given_nodes("", 0, "", None, "") is None


def test_hosts_give_number_and_address() -> None:
    found = given_nodes("", 0, "10.0.0.1, 10.0.0.2", 1, "")
    assert found is not None
    assert (found.cluster.nodes, found.node_rank, found.address) == (2, 1, "10.0.0.2")
    cluster = given_nodes("two_nodes", 0, "", 0, "10.0.0.1")
    assert cluster is not None
    assert (cluster.cluster.nodes, cluster.cluster.min_nodes) == (2, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("", 3, "a,b", 0, ""), "--nodes 3: --hosts names 2"),
        (("", 2, "", None, ""), "--node-rank: missing"),
        (("nowhere", 2, "", 0, ""), "no cluster is called 'nowhere'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: tuple[str, int, str, int | None, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    with pytest.raises(ConfigError, match=message):
        given_nodes(*options)


def test_the_dry_run_names_each_node_s_command_and_every_agent(small: Small) -> None:
    config, batch = small
    fields = {"node": {"gpus": 4, "threads": 8}, "environment": {"NCCL_IB_HCA": "mlx5 0"}, "port": 29511, "interface": "ib0"}
    cluster = read_cluster("two_nodes", {**fields, "stages": {"forget": {"nodes": 1}}})
    lines = dry_run(config, batch, Given(cluster=cluster, hosts=("a", "b"), node_rank=None, address=""), ["run", "my run.yaml"])
    text = "\n".join(lines)
    assert text.count("unlearn run 'my run.yaml' --hosts a,b --node-rank") == 2
    agents = [line.lstrip("# ") for line in lines if "torch.distributed.run" in line]
    of = {
        (number, stage): [a for a in agents if f"is_host={number}" in a and f"-m pipeline {stage} " in a]
        for number in (1, 0)
        for stage in ("forget", "retain")
    }
    assert [len(of[key]) for key in ((1, "forget"), (0, "forget"), (1, "retain"), (0, "retain"))] == [1, 0, 1, 1]
    words = shlex.split(of[0, "retain"][0])
    assert words[0] == "env"
    assert {"GLOO_SOCKET_IFNAME=ib0", "NCCL_SOCKET_IFNAME=ib0", "NCCL_IB_HCA=mlx5 0", "OMP_NUM_THREADS=8"} <= set(words)
    assert {"--nnodes=1:2", "--nproc-per-node=4", "--rdzv-endpoint=a:29511", "--local-addr=b", "--max-restarts=3"} <= set(words)
    assert words[-1].endswith(lines[-1].removeprefix("# All nodes must see ").rstrip("."))


def test_a_folder_that_was_not_prepared_for_jobs_is_named(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"no jobs/cluster\.json"):
        run_one_stage(str(finished), "train", say=print)
