"""Cluster files: decoded whole, refused with the field's name, and no text in them that could become a command."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch.cluster import ClusterConfig, read_cluster
from pipeline.errors import ConfigError
from pipeline.layers import packaged


def test_without_a_name_it_is_one_node() -> None:
    assert read_cluster() == ClusterConfig()
    assert read_cluster().nodes == 1


@pytest.mark.parametrize("name", sorted(packaged("launch")))
def test_packaged_clusters_decode(name: str) -> None:
    assert read_cluster(name).nodes >= 1


def test_a_file_and_fields_laid_over_it(tmp_path: Path) -> None:
    file = tmp_path / "ours.yaml"
    file.write_text(yaml.safe_dump({"nodes": 8, "min_nodes": 4, "node": {"gpus": 8}, "stages": {"forget": {"nodes": 1}}}))
    found = read_cluster(str(file), ["node.cpus=64", "slurm.partition=gpu"])
    assert (found.nodes, found.min_nodes, found.node.gpus, found.node.cpus) == (8, 4, 8, 64)
    assert found.slurm.partition == "gpu"
    assert found.stages["forget"].nodes == 1
    assert read_cluster(str(file), {"nodes": 4}).nodes == 4


@pytest.mark.parametrize(
    ("given_fields", "message"),
    [
        (["nodes=0"], "nodes: "),
        (["nods=2"], "nods: unknown field"),
        (["stages.forgot.nodes=1"], "no stage is called 'forgot'"),
        (["nodes=2", "min_nodes=3"], "min_nodes: 3 of 2 nodes"),
        (["nodes=2", "min_nodes=1", "rendezvous=static"], "a static rendezvous needs all nodes"),
        (["node.gpus=2", "node.ranks=3"], "node.ranks: 3 ranks on 2 GPUs"),
        (["port=65536"], "port: "),
        (["environment.A B=1"], "environment"),
        (['python="a\\tb"'], "python"),
    ],
)
def test_what_cannot_work_is_refused_by_name(given_fields: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", "\\(")):
        read_cluster("", given_fields)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        read_cluster("two_node")
    assert "two_nodes" in caught.value.cure


@given(st.text(min_size=1, max_size=20))
def test_no_name_of_the_cluster_can_hold_what_a_shell_acts_on(text: str) -> None:
    harmless = set(string.ascii_letters + string.digits + "_.,:/@+%=^&|*[]-")
    for field in ({"slurm": {"partition": text}}, {"interface": text}, {"modules": [text]}):
        if set(text) <= harmless:
            read_cluster("", field)
        else:
            with pytest.raises(ConfigError):
                read_cluster("", field)
