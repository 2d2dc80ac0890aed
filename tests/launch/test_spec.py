"""A run as a chain of jobs: each stage's own resources, as the cluster gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cluster import read_cluster
from launch.spec import chain_of_jobs, ranks_per_node
from pipeline.config import resolve
from pipeline.errors import ConfigError
from tests.support.runs import write_run_file


def test_each_stage_gets_its_own_nodes_and_single_processes_get_one(tmp_path: Path) -> None:
    config = resolve(str(write_run_file(tmp_path)), ["stream.lanes=64"])
    cluster = read_cluster("h100", {"slurm": {"minutes": 100}, "stages": {"retain": {"nodes": 8, "minutes": 30}}})
    jobs = {job.stage: job for job in chain_of_jobs(config, cluster)}
    assert list(jobs) == ["shard", "train", "retrain", "calibrate", "forget", "retain", "evaluate", "release"]
    assert {name: job.nodes for name, job in jobs.items()} == {
        **{"shard": 1, "train": 4, "retrain": 4, "calibrate": 1},
        **{"forget": 1, "retain": 8, "evaluate": 1, "release": 1},
    }
    assert (jobs["shard"].ranks_per_node, jobs["shard"].gpus_per_node) == (0, 0)
    assert (jobs["train"].ranks_per_node, jobs["train"].gpus_per_node, jobs["train"].min_nodes) == (8, 8, 1)
    assert (jobs["retain"].minutes, jobs["train"].minutes) == (30, 100)
    assert jobs["forget"].needs == ("shard", "train", "calibrate")


def test_without_fewest_nodes_all_are_needed(tmp_path: Path) -> None:
    config = resolve(str(write_run_file(tmp_path)))
    jobs = chain_of_jobs(config, read_cluster("", {"nodes": 3}))
    assert {job.min_nodes for job in jobs if job.ranks_per_node} == {3}


def test_more_ranks_than_lanes_is_refused_with_the_number_to_set(tmp_path: Path) -> None:
    config = resolve(str(write_run_file(tmp_path)))
    with pytest.raises(ConfigError, match="stage train: 64 ranks share 32 lanes") as caught:
        chain_of_jobs(config, read_cluster("", {"nodes": 8, "node": {"gpus": 8}}))
    assert "stream.lanes=64" in caught.value.cure


def test_ranks_are_given_or_one_a_gpu_or_one() -> None:
    found = [
        ranks_per_node(read_cluster("", {"node": node})) for node in ({}, {"gpus": 4}, {"gpus": 4, "ranks": 2}, {"ranks": 6})
    ]
    assert found == [1, 4, 2, 6]
