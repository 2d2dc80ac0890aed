"""What a certificate costs in quality: unseen-retain error against epsilon, for noise on all weights and on a bottleneck alone.

    python benchmarks/certificate.py --seeds 0 1 2 --epsilons 1 8 50 999        about an hour
    python benchmarks/certificate.py --draw results/certificate.md curve.png    the picture of a table that was printed

One original a seed forgets a class of Fashion-MNIST: ascent, then noisy steps, then for all the same plain retention. Two kinds
of rows need no noise and are the measure of the others, because they are exact: the same retention begun at the anchor (random
weights, or a base that never saw the data set), and retraining. Where the noise swamps what the start holds, a row ends where
the exact one does, and the certificate has bought nothing.

The base is an AutoEncoder of the same shape trained on drawn shapes, which hold no photograph. Error is the mean squared error
in the hidden region, pixels in [0, 1], on images of kept kinds that no model was trained on.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from harness import machine, table
from matplotlib.figure import Figure

RADIUS = {"all": 5.0, "bottleneck": 1.0}
DECLARED = {"A6": "benchmark", "A9": "benchmark", "A10": "benchmark", "base": "benchmark"}


def _launch(file: Path) -> Path:
    command = [sys.executable, "-m", "launch", "run", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{file.stem}: {done.stderr[-2000:]}")
    return Path(json.loads(done.stdout.strip().splitlines()[-1])["folder"])


def _run_file(folder: Path, name: str, seed: int, **fields: Any) -> Path:
    run = {
        "name": name,
        "seed": seed,
        # Each in a folder of its own: settings that were tried one after the other on one batch earn no certificate.
        "output": str(folder / name),
        "requests": [{"request_id": "r1", "label": "Trouser"}],
        "source": {"component": "fashion_mnist", "limit": 6000},
        "model": {"component": "autoencoder", "width": 16, "latent": 64},
        "task": "center_crop",
        "images": {"fit": "pad"},
        "shards": {"near_bits": None},
        "reference": "none",
        "train": {"epochs": 6, "batch_size": 128, "learning_rate": 1e-3, "warmup_steps": 20},
        "method": {"component": "decouple", "retention": "plain", "level": 0.06, "retain": {"share": 0.15, "batch_size": 128}},
        "evaluation": {"bootstrap": 100, "grid_images": 2},
        **fields,
    }
    file = folder / f"{name}-{seed}.yaml"
    file.write_text(yaml.safe_dump(run))
    return file


def _error(run: Path, subject: str) -> float:
    content = json.loads((run / "evaluation.json").read_text())["evaluations"]
    results = next(item["results"] for item in content if item["subject"] == subject)
    return next(float(r["value"]) for r in results if (r["name"], r["split"]) == ("error_region", "unseen_retain"))


def _granted(run: Path) -> tuple[float, float]:
    """Epsilon as certified, and the norm of the noise over the radius."""
    certificate = json.loads((run / "report.json").read_text())["certificate"]
    if not certificate["granted"]:
        sys.exit(f"{run}: {[item['text'] for item in certificate['assumptions'] if item['state'] == 'failed']}")
    return certificate["epsilon"], json.loads((run / "certify.json").read_text())["weights_norm"]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--draw", nargs=2, metavar=("TABLE", "PNG"), help="draw the curve of a printed table, and measure nothing"
    )
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1, 8, 50, 200, 1000])
    given = parser.parse_args()
    if given.draw:
        draw(Path(given.draw[0]).read_text(), given.draw[1])
        return
    found: dict[tuple[str, str], list[float]] = {}
    norms: dict[tuple[str, str], list[float]] = {}

    def note(noise: str, epsilon: str, error: float, norm: float | None = None) -> None:
        found.setdefault((noise, epsilon), []).append(error)
        if norm is not None:
            norms.setdefault((noise, epsilon), []).append(norm)

    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            _one_seed(Path(temporary), seed, given.epsilons, note)
    print(f"{machine()}\n")
    print(
        table(("noise on", "epsilon at delta 1e-5", "norm of the weights after the noisy steps", "error on unseen kept images"))
    )
    for (noise, epsilon), errors in found.items():
        norm = norms.get((noise, epsilon))
        cells = (noise, epsilon, f"{statistics.mean(norm):.1f}" if norm else "-")
        print(f"| {' | '.join(cells)} | {statistics.mean(errors):.4f} ({min(errors):.4f} to {max(errors):.4f}) |", flush=True)


ROW = re.compile(r"\| (.+?) \| (.+?) \| .+? \| ([0-9.]+) \(([0-9.]+) to ([0-9.]+)\) \|")


def draw(text: str, file: str) -> None:
    """The printed table as a picture: error on unseen kept images against epsilon, with the exact routes as lines."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    rows = [(noise, epsilon, *map(float, values)) for noise, epsilon, *values in ROW.findall(text)]
    colours = {"all": "#b4462f", "bottleneck": "#1f5f9e"}
    for name, colour in colours.items():
        points = [(float(epsilon), *values) for noise, epsilon, *values in rows if noise == name]
        epsilons, means, lows, highs = zip(*points, strict=True)
        spread = [[m - low for m, low in zip(means, lows, strict=True)], [h - m for m, h in zip(means, highs, strict=True)]]
        axes.errorbar(epsilons, means, yerr=spread, color=colour, marker="o", capsize=3, label=f"noise on {name}")
    lines = {"nothing: original": ":", "nothing: retrained": "-"}
    lines |= {f"{name}: retention from the anchor": "--" for name in colours}
    for noise, _, mean, _, _ in rows:
        if noise in lines:
            axes.axhline(
                mean, color=colours.get(noise.split(":")[0], "#555555"), linestyle=lines[noise], linewidth=1, label=noise
            )
    axes.set(xscale="log", yscale="log", xlabel="certified epsilon, at delta = 1e-5", ylabel="error on unseen kept images")
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(file, dpi=150)


def _one_seed(folder: Path, seed: int, epsilons: list[float], note: Any) -> None:
    base_run = _launch(
        _run_file(
            folder,
            "base",
            seed,
            source={"component": "synthetic", "samples": 4000, "unseen_samples": 200, "size": 28, "channels": 1},
            requests=[{"request_id": "r1", "label": "shape 1"}],
            method="none",
        )
    )
    base = str(base_run / "checkpoints/original/model.safetensors")
    first = _launch(_run_file(folder, "first", seed, reference="retrain"))
    original = str(first / "checkpoints/original/model.safetensors")
    note("nothing: original", "none", _error(first, "original"))
    note("nothing: ascent, then retention", "none", _error(first, "unlearned"))
    note("nothing: retrained", "0 (exact)", _error(first, "retrained"))
    anchors = {"all": {"anchor": "initial"}, "bottleneck": {"anchor": "base", "base": base}}
    for trains, anchor in anchors.items():
        # Noise of a millionth on a ball of a millionth is the anchor itself: retention alone, which saw no forget image.
        exact = {"mechanism": "noisy_retain", "trains": trains, **anchor, "radius": 1e-6, "step_norm": 1e-9, "noise": 1e-9}
        for epsilon in ("exact", *epsilons):
            settings = {
                "mechanism": "noisy_retain",
                "trains": trains,
                **anchor,
                "radius": RADIUS[trains],
                "epsilon": epsilon,
                "steps": 20,
                "learning_rate": 0.1,
                "step_norm": RADIUS[trains] / 100,
                "declared": DECLARED,
                "price_limit": 1e9,
            }
            method = {
                "component": "decouple",
                "retention": "plain",
                "level": 0.06,
                "retain": {"share": 0.15, "batch_size": 128},
                "certify": exact if epsilon == "exact" else settings,
            }
            run = _launch(_run_file(folder, f"{trains}-{epsilon}", seed, original=original, method=method))
            if epsilon == "exact":
                note(f"{trains}: retention from the anchor", "0 (exact)", _error(run, "unlearned"))
            else:
                certified, norm = _granted(run)
                note(trains, f"{certified:.4g}", _error(run, "unlearned"), norm)


if __name__ == "__main__":
    main()
