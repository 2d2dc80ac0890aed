"""Does the demo forget? Runs it for several seeds and classes and prints one table of distances, ratios and costs.

    python benchmarks/forgetting.py --seeds 0 1 2 --plain            the demo's batch: one class and 200 single images
    python benchmarks/forgetting.py --seeds 0 --labels Bag T-shirt/top    whole classes alone
    python benchmarks/forgetting.py --images 150 --set source.limit=3000 train.epochs=40    single images, memorised

Each row is one `unlearn run demo` with its own original, retrained model, calibration, ascent and retention; nothing is
shared but the packed source. `--plain` repeats phase 2 of each run without the guard. KS is the distance between the
per-image errors of a model and of the retrained one on forgotten images; its interval is a 95 % bootstrap.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

HEADER = (
    "| forgotten | seed | retention | KS original | KS unlearned (95 %) | unseen-retain error / retrained's (95 %) "
    "| membership AUC original, unlearned (95 %), retrained | cost / retrain "
    "| lambda: low, level, high | retrained's error | stopped because |"
)


def _run(output: str, *overrides: str) -> Path:
    """One `unlearn run demo`; returns the run folder."""
    command = [sys.executable, "-m", "launch", "run", "demo", f"output={output}", *overrides, "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(json.loads(done.stdout.strip().splitlines()[-1])["folder"])


def _rows(run: Path, seed: int) -> list[str]:
    """One table row for each forgotten group of a run."""
    report = {e["subject"]: e["results"] for e in json.loads((run / "evaluation.json").read_text())["evaluations"]}
    calibration = json.loads((run / "calibration.json").read_text())
    phases = {name: json.loads((run / "phases" / f"{name}.json").read_text()) for name in ("forget", "retain", "retrain")}
    guarded = json.loads((run / "receipts" / "retain.json").read_text())["receipt"]["facts"]["reads_forget"]
    spent = calibration["sample_gradients"] + phases["forget"]["sample_gradients"] + phases["retain"]["sample_gradients"]

    def find(subject: str, name: str, split: str, group: str) -> dict:
        return next(r for r in report[subject] if (r["name"], r["split"], r["group"]) == (name, split, group))

    rows = []
    for level in calibration["levels"]:
        group = level["group"]
        before, after = (find(subject, "ks", "forget", group) for subject in ("original", "unlearned"))
        ratio = find("unlearned", "error_ratio", "unseen_retain", "")
        auc = {name: find(name, "membership", "forget", group) for name in ("original", "unlearned", "retrained")}
        truth = find("retrained", "error_region", "forget", group)["value"]
        stop = "already unseen" if level["already_unseen"] else phases["forget"]["reason"]
        rows.append(
            f"| {group} | {seed} | {'guarded' if guarded else 'plain'} | {before['value']:.3f} "
            f"| {after['value']:.3f} ({after['low']:.3f} - {after['high']:.3f}) "
            f"| {ratio['value']:.3f} ({ratio['low']:.3f} - {ratio['high']:.3f}) "
            f"| {auc['original']['value']:.3f}, {auc['unlearned']['value']:.3f} "
            f"({auc['unlearned']['low']:.3f} - {auc['unlearned']['high']:.3f}), {auc['retrained']['value']:.3f} "
            f"| {spent / phases['retrain']['sample_gradients']:.3f} "
            f"| {level['low']:.4f}, {level['level']:.4f}, {level['high']:.4f} | {truth:.4f} | {stop} |"
        )
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", nargs="*", default=[], help="forget these classes, one run each, instead of the demo's batch")
    parser.add_argument(
        "--images", type=int, default=0, help="forget this many of the first 3,000 images instead of the demo's batch"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="fields to change in every run")
    parser.add_argument("--guard", choices=["guarded", "level"], default="guarded", help="what phase 2 does about forget images")
    parser.add_argument("--plain", action="store_true", help="repeat phase 2 without the guard")
    parser.add_argument("--output", default="", help="where runs lie; a temporary folder otherwise")
    given = parser.parse_args()
    print(f"{date.today().isoformat()}, {platform.processor() or platform.machine()}, {' '.join(sys.argv)}\n\n{HEADER}")
    print("|" + " --- |" * HEADER.count("|", 1))
    with tempfile.TemporaryDirectory() as temporary:
        output = given.output or temporary
        for label in given.labels or [""]:
            for seed in given.seeds:
                lines = [f"r1,label,{label}"] if label else []
                if given.images:
                    lines = [f"r{n},key,train-{n:06d}" for n in random.Random(seed).sample(range(3000), given.images)]
                batch = []
                if lines:
                    file = Path(temporary, "requests.csv")
                    file.write_text("request_id,kind,value\n" + "\n".join(lines) + "\n")
                    batch = [f"requests={file}"]
                overrides = [*batch, f"seed={seed}", f"name=demo-seed{seed}", *given.set]
                for retention in (given.guard, "plain") if given.plain else (given.guard,):
                    for row in _rows(_run(output, *overrides, f"method.retention={retention}"), seed):
                        print(row, flush=True)


if __name__ == "__main__":
    main()
