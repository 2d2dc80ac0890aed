"""Unlearning beside retraining, end to end: seconds of whole stages of the demo, with their start, loading and saving.

    python benchmarks/retraining.py                     three seeds of the demo: a quarter of an hour on two cores
    python benchmarks/retraining.py --runs demo-1234    of runs that are there; other runs than the demo as well

Stages of a run follow one another, so a stage lasts from the end of the one before it to its own end, by their receipts: nothing
of a start is left out. A run that was interrupted, or repeated in part, has a gap there that is no stage's, and is refused.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from harness import machine, spread, table

UNLEARNING, PHASES = ("calibrate", "forget", "retain"), ("forget", "retain")
GAP = 60.0
"""Seconds before a stage begins its own work, at most: to start one takes less."""


def _at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def stages(run: Path) -> dict[str, float]:
    """Seconds of each stage but the first."""
    receipts = [json.loads(path.read_text())["receipt"] for path in (run / "receipts").glob("*.json")]
    receipts.sort(key=lambda receipt: _at(receipt["ended_at"]))
    found = {}
    for before, receipt in itertools.pairwise(receipts):
        if not -1.0 < _at(receipt["started_at"]) - _at(before["ended_at"]) < GAP:
            sys.exit(
                f"{run}: {receipt['stage']} does not follow {before['stage']} at once; take a run that was made in one piece"
            )
        found[receipt["stage"]] = _at(receipt["ended_at"]) - _at(before["ended_at"])
    if missing := {*UNLEARNING, "retrain"} - set(found):
        sys.exit(f"{run}: no {', '.join(sorted(missing))}; a run with `method: decouple` and `reference: retrain` has them")
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="folders of finished runs, in place of the demo")
    given = parser.parse_args()
    found = [stages(run) for run in given.runs]
    if not found:
        with tempfile.TemporaryDirectory() as folder:
            for seed in given.seeds:
                command = [sys.executable, "-m", "launch", "run", "demo", f"seed={seed}", f"output={folder}", "--json"]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
                if done.returncode not in (0, 4):  # 4: the verdict is no, which the seconds do not depend on
                    sys.exit(done.returncode)
                found.append(stages(Path(json.loads(done.stdout)["folder"])))
                print(
                    f"seed {seed}: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in found[-1].items())}", file=sys.stderr
                )
    shares = [[100 * sum(times[name] for name in names) / times["retrain"] for times in found] for names in (PHASES, UNLEARNING)]
    print(f"{machine()}\n")
    names = [name for name in found[0] if name in (*UNLEARNING, "train", "retrain", "evaluate", "report")]
    print(table(("stage", "seconds: median (range)"), *((n, spread([times[n] for times in found], digits=1)) for n in names)))
    print(f"\nforget + retain / retrain: {spread(shares[0], digits=1)} %")
    print(f"calibrate + forget + retain / retrain: {spread(shares[1], digits=1)} %")


if __name__ == "__main__":
    main()
