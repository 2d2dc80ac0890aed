"""Do both phases run at full model size? Some real steps of the ViT-Base MAE at 224 px and the UNet at 256 px on two ranks.

    python benchmarks/large.py                      ZeRO 2 and 3, bf16, two ranks: time, steps and peak memory of each phase
    python benchmarks/large.py --models mae --zero 3

The images are drawn shapes of full size; what is measured is the machinery, not forgetting. Memory is the largest sum of
the unique set sizes of all processes of a stage, sampled four times a second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import psutil
import yaml

# Pixels, images and batch of training; and what completes a picture in a few passes of the network.
SIZES: dict[str, tuple[int, int, int, dict[str, int]]] = {
    "mae": (224, 32, 8, {}),
    "inpainting": (256, 12, 4, {"sample_steps": 2}),
    "vqgan": (256, 12, 4, {"decode_steps": 2}),
}
HEADER = "| model | parameters | ZeRO | stage | steps | images a step | seconds of steps | peak memory, GiB |"


def _run_file(folder: Path, model: str, zero: int, precision: str) -> Path:
    pixels, samples, batch, fields = SIZES[model]
    section = {"component": model, "activation_checkpointing": True, **fields}
    run = {
        "name": f"{model}-zero{zero}",
        "requests": [{"request_id": "r1", "label": "shape 1"}],
        "output": str(folder / "runs"),
        "source": {"component": "synthetic", "samples": samples, "unseen_samples": 8, "size": pixels, "channels": 3},
        "model": section,
        "task": "center_crop",
        "reference": "none",
        "shards": {"near_bits": None},
        "method": {
            "component": "decouple",
            "level": 100.0,
            "calibration": {"samples": 4},
            "forget": {"batch_size": batch // 2, "passes": 1, "retain_floor": 1e6, "probe_steps": 100},
            "retain": {"share": 1.0, "batch_size": batch // 2, "guard_batch_size": 2},
        },
        "train": {"epochs": 1, "batch_size": batch, "warmup_steps": 1, "learning_rate": 1e-4},
        "engine": {"zero_stage": zero, "precision": precision, "checkpoint_steps": 1000, "log_steps": 1},
        "evaluation": {"max_samples": 4, "batch_size": 2, "bootstrap": 10, "grid_images": 2},
        "launch": {"ranks": 2},
    }
    file = folder / f"{run['name']}.yaml"
    file.write_text(yaml.safe_dump(run))
    return file


class _Watch(threading.Thread):
    """The largest memory of this process's descendants by the stage that runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, int] = {}

    def run(self) -> None:
        while True:
            total, stage = 0, ""
            for process in psutil.Process().children(recursive=True):
                try:
                    words = " ".join(process.cmdline()).split()  # a forked process has one word for all
                    total += process.memory_full_info().uss
                except psutil.Error:
                    continue
                if "pipeline" in words and words.index("pipeline") + 1 < len(words):
                    stage = words[words.index("pipeline") + 1]
            self.peaks[stage] = max(total, self.peaks.get(stage, 0))
            time.sleep(0.25)


def _both_phases(file: Path, output: Path) -> Path:
    """Run up to the end of retention and return the run folder. Evaluation would take longer than both phases and shows
    nothing that is printed here, so the chain is sent away before it."""
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen([sys.executable, "-m", "launch", "run", str(file)], stdout=log, stderr=log) as chain,
    ):
        while not (done := list(output.glob(f"{file.stem}-*/receipts/retain.json"))) and chain.poll() is None:
            time.sleep(0.5)
        chain.terminate()
        chain.wait()
        if not done:
            log.seek(0)
            sys.exit(f"{file.stem}: ended before the end of retention\n{log.read().decode(errors='replace')}")
    return done[0].parent.parent


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=["mae", "inpainting"])
    parser.add_argument("--zero", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--precision", default="bf16")
    given = parser.parse_args()
    print(f"{date.today().isoformat()}, {' '.join(sys.argv)}\n\n{HEADER}\n|" + " --- |" * HEADER.count("|", 1))
    watch = _Watch()
    watch.start()
    with tempfile.TemporaryDirectory() as temporary:
        for model in given.models:
            for zero in given.zero:
                watch.peaks.clear()
                file = _run_file(Path(temporary), model, zero, given.precision)
                run = _both_phases(file, Path(temporary) / "runs")
                for stage in ("train", "forget", "retain"):
                    outcome = json.loads((run / "phases" / f"{stage}.json").read_text())
                    images = outcome["sample_gradients"] / max(1, outcome["steps"])
                    print(
                        f"| {model} | {outcome['parameters']:,} | {zero} | {stage} | {outcome['steps']} | {images:.1f} "
                        f"| {outcome['seconds']:.1f} | {watch.peaks.get(stage, 0) / 2**30:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
