"""Fifty SIGKILLs at random moments over all stages: ranks, agents, the command itself. The end is that of a run left in peace.

The command goes on by itself after a rank or an agent died; when it was killed itself, it is given again.
"""

from __future__ import annotations

import collections
import contextlib
import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipeline.chain import CHAIN
from tests.support.command import UNLEARN, environment, unlearn
from tests.support.runs import write_run_file

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
KILLS = 50
QUOTA = {"shard": 2, "train": 10, "retrain": 9, "calibrate": 6, "forget": 10, "retain": 10, "evaluate": 6, "release": 2}
"""Kills of each stage; then it is left in peace, so that the chain gets on. The short ones may be over before they are hit."""
STAGES = tuple(spec.name for spec in CHAIN)
LONG = {
    "train": {"epochs": 20},
    "engine": {"checkpoint_steps": 10, "log_steps": 50},
    "method": {
        "level": "calibrate",
        "forget": {
            "batch_size": 16,
            "learning_rate": 1e-4,
            "passes": 40,
            "probe_steps": 10,
            "retain_floor": 50.0,
            "runaway": 50.0,
        },
        "retain": {"share": 1.0, "batch_size": 16, "guard_batch_size": 8},
    },
}


def start(run_file: Path, cluster: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [*UNLEARN, "run", str(run_file), "--cluster", str(cluster), "--node-rank", "0"]
    with log.open("ab") as stream:
        return subprocess.Popen(command, env=environment(), stdout=stream, stderr=stream)


def at_work(command: subprocess.Popen[bytes]) -> dict[str, list[tuple[str, psutil.Process]]]:
    """What runs under the command, by stage: its agent and its ranks, or its single worker."""
    found: dict[str, list[tuple[str, psutil.Process]]] = collections.defaultdict(list)
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(command.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, IndexError):
                words = process.cmdline()
                if "pipeline" in words and process.status() != psutil.STATUS_ZOMBIE:
                    stage = words[words.index("pipeline") + 1]
                    found[stage].append(("agent" if "torch.distributed.run" in words else "rank", process))
    return found


def survivors(folder: Path) -> list[str]:
    """Command lines of processes that still work for a run below the folder."""
    left = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(folder) in word for word in words) and "pipeline" in words:
            left.append(" ".join(words))
    return left


def kill_once(command: subprocess.Popen[bytes], dice: random.Random, hits: collections.Counter[str]) -> bool:
    """SIGKILL one process of the chain at a random moment; True where the command itself was hit, or has ended."""
    while command.poll() is None:
        for stage in [name for name in at_work(command) if hits[name] < QUOTA.get(name, 0)]:
            time.sleep(dice.uniform(0.0, 1.5 if stage in ("shard", "release") else 7.0))
            victims = at_work(command).get(stage, [])
            kind = dice.choices(("command", "agent", "rank"), (1, 1, 2))[0]
            of_kind = (
                [process for name, process in victims if name == kind] if kind != "command" else [psutil.Process(command.pid)]
            )
            if not victims or not of_kind:
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                dice.choice(of_kind).kill()
                hits[stage] += 1
                hits[kind] += 1
                return kind == "command"
        time.sleep(0.1)
    return True


def content(run: Path) -> dict[str, Any]:
    """What must not depend on what died: weights bit for bit, and what each phase did."""
    weights = {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.glob("checkpoints/*/model.safetensors"))}
    phases = {p.name: json.loads(p.read_text()) for p in sorted(run.glob("phases/*.json"))}
    for phase in phases.values():
        phase.pop("seconds")
    return {"weights": weights, "phases": phases}


def test_after_fifty_kills_weights_and_coverage_are_those_of_a_run_left_in_peace(tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(yaml.safe_dump({"node": {"ranks": 2, "threads": 1}, "restarts": 100, "port": 0}))
    for name in ("peace", "chaos"):
        (tmp_path / name).mkdir()
    peace, chaos = (write_run_file(tmp_path / name, **LONG) for name in ("peace", "chaos"))
    done = unlearn("run", str(peace), "--cluster", str(cluster), "--node-rank", "0", timeout=900)
    assert done.returncode == 0, done.stderr

    dice, hits, log = random.Random(20261125), collections.Counter[str](), tmp_path / "chaos.log"
    command, starts = start(chaos, cluster, log), 1
    try:
        while True:
            if not kill_once(command, dice, hits):
                continue
            code = command.wait(120)
            assert code in (0, 75, -9), log.read_text()[-4000:]
            if code == 0 and sum(hits[stage] for stage in STAGES) >= KILLS:
                break
            if code == 0:  # some kills came too late: once more through the stages of a method
                for stage in ("forget", "retain", "evaluate", "release"):
                    (next((tmp_path / "chaos").glob("out/tiny-*")) / "receipts" / f"{stage}.json").unlink()
                    QUOTA[stage] += 3
            command, starts = start(chaos, cluster, log), starts + 1
    finally:
        if command.poll() is None:
            command.kill()
            command.wait()
    last = unlearn("run", str(chaos), "--cluster", str(cluster), "--node-rank", "0", timeout=900)
    assert last.returncode == 0, last.stderr
    print(f"\n{dict(hits)}, the command was started {starts} times")
    assert "Traceback" not in log.read_text()
    assert {"train", "retrain", "calibrate", "forget", "retain", "evaluate", "rank", "agent", "command"} <= set(hits)
    assert sum(hits[stage] for stage in STAGES) >= KILLS

    quiet, shaken = (next((tmp_path / name).glob("out/tiny-*")) for name in ("peace", "chaos"))
    assert content(shaken) == content(quiet)
    assert not list(shaken.rglob("*.part"))
    assert not survivors(tmp_path)
    assert unlearn("verify", str(shaken)).returncode == 0
