"""Does `unlearn plan` foresee what a run takes? Its estimates beside real stages of this machine, and beside published figures.

    python benchmarks/planner.py                     both tables: half an hour
    python benchmarks/planner.py --published         the published figures alone, at once
    python benchmarks/planner.py --rounds 1 --models autoencoder

A round is a plan, whose rates come from a probe of half a minute, and then the run itself up to the end of retention. The probe
takes the plain training loss at the batch size of training and at half of it; what is compared beside that are other phases, with
other losses and batch sizes. Seconds of a step are medians of all steps but the first two. Memory is the kernel's own mark of the
largest resident set (VmHWM) of the largest rank, read ten times a second.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import yaml
from harness import machine, table
from published import rows as published_rows

from launch.acts import carry_out, index_order
from launch.endings import WorkerError
from launch.outlook import Outlook, Wish, look_ahead
from launch.plan import forecast, make_plan
from pipeline.config import read_batch, resolve
from pipeline.orders import IndexAnswer

STAGES = ("train", "calibrate", "forget", "retain")
SKIPPED = 2
MAE: dict[str, Any] = {"component": "mae", "image_size": 64, "patch_size": 8, "width": 384, "layers": 6, "heads": 6}
# Model, pixels, channels, images, batch of training.
MODELS: dict[str, tuple[dict[str, Any], int, int, int, int]] = {
    "autoencoder": ({"component": "autoencoder", "image_size": 64, "channels": 3, "width": 64, "latent": 512}, 64, 3, 960, 64),
    "mae": ({**MAE, "decoder_width": 192, "decoder_layers": 2, "decoder_heads": 6}, 64, 3, 720, 48),
    "inpainting": ({"component": "inpainting_small"}, 32, 3, 720, 48),
    "vqgan": ({"component": "vqgan_small"}, 32, 3, 720, 48),
}


def _run_file(folder: Path, model: str, ranks: int, zero: int, precision: str) -> Path:
    section, pixels, channels, samples, batch = MODELS[model]
    run = {
        "name": f"{model}-{ranks}",
        "requests": [{"request_id": "r1", "label": "shape 1"}],
        "output": str(folder / "runs"),
        "source": {"component": "synthetic", "samples": samples, "unseen_samples": 200, "size": pixels, "channels": channels},
        "model": section,
        "task": "center_crop",
        "reference": "none",
        "shards": {"near_bits": None},
        "method": {
            "component": "decouple",
            "calibration": {"samples": 50, "shadow_share": 0.4},
            "forget": {"batch_size": batch // 4, "passes": 1, "retain_floor": 1e6, "runaway": 1e6, "probe_steps": 1000},
            "retain": {"share": 0.5, "batch_size": batch // 2, "guard_batch_size": batch // 4},
        },
        "train": {"epochs": 2, "batch_size": batch, "warmup_steps": 1, "learning_rate": 1e-4},
        "engine": {"zero_stage": zero, "precision": precision, "checkpoint_steps": 1000, "log_steps": 1},
        "launch": {"ranks": ranks},
    }
    file = folder / f"{run['name']}.yaml"
    file.write_text(yaml.safe_dump(run))
    return file


def _foreseen(file: Path) -> Outlook:
    """What the planner says; the source is indexed first, because a plan does not do that."""
    config = resolve(str(file))
    fields = [f"{name}={value}" for name, value in config.source.items() if name != "component"]
    order = index_order("synthetic", fields, output=config.output, on_error="stop", max_quarantined=0, task="")
    carry_out("index", order, IndexAnswer, to_stderr=True)
    config = dataclasses.replace(config, methods={})
    batch = read_batch(config)
    plan = make_plan(config, batch, forecast(config, batch, to_stderr=True))
    return look_ahead(config, batch, plan, Wish(nodes=1), to_stderr=True)


class _Watch(threading.Thread):
    """The largest VmHWM of a rank, by stage."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, int] = {}

    def run(self) -> None:
        while True:
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    self._look(entry)
            time.sleep(0.1)

    def _look(self, entry: Path) -> None:
        try:
            # A forked process has one word, with spaces, for a title.
            words = (entry / "cmdline").read_bytes().replace(b" ", b"\0").split(b"\0")
            status = (entry / "status").read_text()
        except OSError:
            return
        # The agent has the same words after its own, and computes nothing.
        if b"pipeline" not in words or b"torch.distributed.run" in words:
            return
        stage = words[words.index(b"pipeline") + 1].decode()
        marks = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")]
        self.peaks[stage] = max(self.peaks.get(stage, 0), *marks, 0)


def _taken(file: Path, watch: _Watch) -> dict[str, tuple[float, int]]:
    """Seconds of a step and bytes of each stage of the real run. It is sent away before its evaluation."""
    watch.peaks.clear()
    output = file.parent / "runs"
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen([sys.executable, "-m", "launch", "run", str(file)], stdout=log, stderr=log) as chain:
            while not (done := list(output.glob(f"{file.stem}-*/receipts/retain.json"))) and chain.poll() is None:
                time.sleep(0.3)
            chain.terminate()
        if not done:
            log.seek(0)
            sys.exit(f"{file.stem}: ended before the end of retention\n{log.read().decode(errors='replace')}")
    run, found = done[0].parent.parent, {}
    for stage in STAGES:
        marks = [json.loads(line)["seconds"] for line in (run / "metrics" / f"{stage}.jsonl").read_text().splitlines()]
        steps = [later - earlier for earlier, later in itertools.pairwise(marks)]
        found[stage] = statistics.median(steps[SKIPPED - 1 :]), watch.peaks[stage]
    return found


def _error(foreseen: float, taken: float) -> float:
    return foreseen / taken - 1


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--zero", type=int, default=1)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--published", action="store_true")
    given = parser.parse_args()
    print(f"{machine()}\n")
    print(table(*published_rows()))
    if given.published:
        return
    watch = _Watch()
    watch.start()
    head = (
        "model",
        "ranks",
        "stage",
        "images a rank",
        "step foreseen, ms",
        "taken, ms",
        "error",
        "memory foreseen, MB",
        "taken, MB",
        "error",
    )
    print(f"\n{table(head)}", flush=True)
    loads: list[float] = []
    for model in given.models:
        for ranks in given.ranks:
            rounds = []
            for _ in range(given.rounds):
                with tempfile.TemporaryDirectory() as temporary:
                    file = _run_file(Path(temporary), model, ranks, given.zero, given.precision)
                    try:
                        outlook = _foreseen(file)
                    except WorkerError as fault:
                        sys.exit(f"{fault}\n{fault.output}")
                    rounds.append((outlook, _taken(file, watch)))
                    loads += [outlook.machine.load if outlook.machine else 0.0, os.getloadavg()[0] - ranks]
            for stage in STAGES:
                _print(model, ranks, stage, rounds)
    print(f"\nProcesses at work beside ours: at most about {max(loads):.1f}, median {max(0.0, statistics.median(loads)):.1f}.")


def _print(model: str, ranks: int, stage: str, rounds: list[tuple[Outlook, dict[str, tuple[float, int]]]]) -> None:
    pairs = [(next(item for item in outlook.stages if item.stage == stage), taken[stage]) for outlook, taken in rounds]
    steps = [(item.step_seconds or 0.0, seconds) for item, (seconds, _) in pairs]
    sizes = [(item.memory.total if item.memory else 0.0, float(taken)) for item, (_, taken) in pairs]
    cells: list[str] = []
    for found, scale, digits in ((steps, 1e3, 1), (sizes, 1e-6, 0)):
        errors = [_error(*pair) for pair in found]
        middle = [statistics.median(column) * scale for column in zip(*found, strict=True)]
        cells += [
            f"{middle[0]:.{digits}f}",
            f"{middle[1]:.{digits}f}",
            f"{statistics.median(errors):+.0%} ({min(errors):+.0%} to {max(errors):+.0%})",
        ]
    print(f"| {model} | {ranks} | {stage} | {pairs[0][0].samples:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
