"""Two nodes in network namespaces, under torchrun and ZeRO: both phases, the loss of a node, the loss of the one that leads."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import yaml

from tests.support.command import unlearn
from tests.support.nodes import ADDRESSES, Node, kill_node, missing, two_nodes
from tests.support.runs import write_run_file

pytestmark = [pytest.mark.services, pytest.mark.timeout(900), pytest.mark.skipif(bool(missing()), reason=missing())]
PHASES = {
    "level": 100.0,
    "forget": {"batch_size": 16, "learning_rate": 1e-4, "passes": 60, "probe_steps": 200, "retain_floor": 1e6, "runaway": 1e6},
    "retain": {"share": 12.0, "batch_size": 16, "guard_batch_size": 8},
}


def run_file(folder: Path, zero: int) -> Path:
    folder.mkdir(exist_ok=True)
    return write_run_file(folder, method=PHASES, reference="none", engine={"zero_stage": zero, "checkpoint_steps": 10})


@contextlib.contextmanager
def started(file: Path, names: tuple[str, str]) -> Iterator[list[Node]]:
    """The same command on both nodes."""
    cluster = file.parent / "cluster.yaml"
    cluster.write_text(yaml.safe_dump({"nodes": 2, "min_nodes": 1, "lease_seconds": 6.0, "node": {"threads": 1}}))
    words = ("run", str(file), "--cluster", str(cluster), "--hosts", ",".join(ADDRESSES), "--node-rank")
    nodes = [Node(name, *words, str(rank), log=file.parent / f"node{rank}.log") for rank, name in enumerate(names)]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.close()


def await_checkpoint(run: Path, stage: str, nodes: list[Node], step: int = 20) -> int:
    """Wait until the stage has saved a state of at least that step; returns the step."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, StopIteration, KeyError):
            state = json.loads(next(run.glob(f"out/tiny-*/checkpoints/{stage}/last/state.json")).read_text())
            if state["state"]["step"] >= step:
                return int(state["state"]["step"])
        ended = [node for node in nodes if node.process.poll() is not None]
        assert not ended, "\n".join(node.words() for node in nodes)
        time.sleep(0.05)
    raise AssertionError("\n".join(node.words() for node in nodes))


def outcome(run: Path, phase: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((next(run.glob("out/tiny-*")) / "phases" / f"{phase}.json").read_text())
    return {name: found[name] for name in ("reason", "steps", "samples", "sample_gradients", "coverage")}


def weights(run: Path, name: str) -> np.ndarray:
    found = safetensors.numpy.load_file(next(run.glob("out/tiny-*")) / "checkpoints" / name / "model.safetensors")
    return np.concatenate([found[key].ravel() for key in sorted(found)])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one rank alone, on one node."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = unlearn("run", str(run_file(folder, 2)), "launch.ranks=1", timeout=500)
    assert done.returncode == 0, done.stderr
    return folder


def same_end(run: Path, undisturbed: Path) -> None:
    """Same coverage and steps, and weights within what summing in another order does."""
    for phase in ("train", "forget", "retain"):
        assert outcome(run, phase) == outcome(undisturbed, phase), phase
    for name in ("original", "forgotten", "unlearned"):
        found, wanted = weights(run, name), weights(undisturbed, name)
        assert np.abs(found - wanted).max() <= 0.02 * np.abs(wanted).max(), name
        assert np.linalg.norm(found - wanted) <= 2e-3 * np.linalg.norm(wanted), name
    assert unlearn("verify", str(next(run.glob("out/tiny-*")))).returncode == 0


def test_both_phases_on_two_nodes(tmp_path: Path, undisturbed: Path) -> None:
    """ZeRO 3, which asks most of the network; ZeRO 2 trains, and forgets until the kill, over it in the next test."""
    file = run_file(tmp_path, 3)
    with two_nodes() as names, started(file, names) as nodes:
        codes = [node.wait(400) for node in nodes]
        words = "\n".join(node.words() for node in nodes)
    assert codes == [0, 0], words
    assert "retain: joining at" in words
    receipt = json.loads((next(tmp_path.glob("out/tiny-*")) / "receipts" / "retain.json").read_text())["receipt"]
    assert receipt["world_size"] == 2
    same_end(tmp_path, undisturbed)


@pytest.mark.parametrize(("stage", "dies", "zero"), [("forget", 1, 2), ("retain", 0, 3)])
def test_a_node_dies_and_the_other_goes_on_with_optimizer_state(
    stage: str, dies: int, zero: int, tmp_path: Path, undisturbed: Path
) -> None:
    file = run_file(tmp_path, zero)
    with two_nodes() as names, started(file, names) as nodes:
        saved = await_checkpoint(tmp_path, stage, nodes)
        kill_node(names[dies])
        nodes[dies].wait(30)
        code = nodes[1 - dies].wait(400)
        words = nodes[1 - dies].words()
    assert code == 0, words
    assert "Traceback" not in words
    receipt = json.loads((next(tmp_path.glob("out/tiny-*")) / "receipts" / f"{stage}.json").read_text())["receipt"]
    assert receipt["world_size"] == 1
    logs = "".join(path.read_text(errors="replace") for path in tmp_path.glob(f"out/tiny-*/logs/{stage}*.log"))
    steps = [int(step) for step in re.findall(r"going on from step (\d+), saved by 2 ranks", logs)]
    assert steps, logs[-3000:]
    assert max(steps) >= saved
    same_end(tmp_path, undisturbed)
