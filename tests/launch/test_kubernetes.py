"""The example for Kubernetes is valid by Kubernetes' own schema, and gives the command what the command takes."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from launch.cli import app
from launch.cluster import ClusterConfig
from pipeline.errors import ConfigError, DataError, GateFailed, Preempted
from pipeline.layers import CONFIGS

FILE = CONFIGS / "launch" / "kubernetes" / "indexed-job.yaml"
VERSION = "1.31"


def documents() -> dict[str, dict[str, Any]]:
    return {item["kind"]: item for item in yaml.safe_load_all(FILE.read_text())}


@pytest.mark.parametrize("kind", ["Service", "Job"])
def test_it_is_valid(kind: str) -> None:
    kubernetes_validate.validate(documents()[kind], VERSION, strict=True)


def test_the_schema_would_see_a_mistake() -> None:
    job = documents()["Job"]
    job["spec"]["completionsMode"] = job["spec"].pop("completionMode")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSION, strict=True)


def test_its_words_are_the_command_s() -> None:
    spec = documents()["Job"]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    run = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    known = {option for parameter in run.params for option in parameter.opts}
    options = dict(word.split("=", 1) for word in container["args"] if word.startswith("--"))
    assert container["args"][0] == "run"
    assert set(options) <= known
    assert int(options["--nodes"]) == spec["completions"] == spec["parallelism"]
    ports = {port["containerPort"] for port in container["ports"]} | {
        port["port"] for port in documents()["Service"]["spec"]["ports"]
    }
    assert ports == {ClusterConfig().port}


def test_what_is_tried_again_is_what_can_be_cured_by_that() -> None:
    rules = documents()["Job"]["spec"]["podFailurePolicy"]["rules"]
    of = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule}
    assert of["FailJob"] == sorted({error.exit_code for error in (ConfigError, DataError, GateFailed)})
    assert of["Ignore"] == [Preempted.exit_code]
