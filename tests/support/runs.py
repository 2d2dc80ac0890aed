"""Small run folders for tests: synthetic images, a tiny autoencoder, all stages in seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import RunConfig, read_batch, resolve, run_folder
from pipeline.decode import canonical, plain
from pipeline.engine.distributed import group
from pipeline.stages.runner import run_stage
from pipeline.storage import publish_bytes

TINY: dict[str, Any] = {
    "name": "tiny",
    "requests": [{"request_id": "r1", "label": "shape 1"}, {"request_id": "r2", "keys": [f"train-{n:06d}" for n in (0, 2, 6)]}],
    "source": {"component": "synthetic", "samples": 120, "unseen_samples": 80, "size": 8},
    "model": {"component": "autoencoder", "image_size": 8, "width": 8, "latent": 16},
    "task": "center_crop",
    # Shapes of 8 x 8 pixels all look alike to a perceptual hash.
    "shards": {"near_bits": None},
    "method": {
        "component": "decouple",
        "level": {"class": 0.4, "images": 0.3},
        "forget": {"batch_size": 16, "learning_rate": 3e-3, "passes": 2, "probe_steps": 2, "retain_floor": 50.0, "runaway": 50.0},
        "retain": {"share": 0.5, "batch_size": 16, "guard_batch_size": 8},
    },
    "train": {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3, "warmup_steps": 2},
    "engine": {"checkpoint_steps": 4, "log_steps": 1},
    "evaluation": {"bootstrap": 50, "grid_images": 2},
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the nested mappings of `over` laid on top; another part replaces the whole section."""
    if "component" in over:
        return over
    return {
        **base,
        **{k: merged(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in over.items()},
    }


def write_run_file(folder: Path, **over: Any) -> Path:
    """A run file like `TINY` whose output lies in `folder`."""
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(merged({**TINY, "output": str(folder / "out")}, over)))
    return file


def prepare(folder: Path, **over: Any) -> str:
    """A run folder with configuration and batch, as the command line writes them; returns its path."""
    config: RunConfig = resolve(str(write_run_file(folder, **over)))
    batch = read_batch(config)
    run = run_folder(config, batch)
    saved = plain(dataclasses.replace(config, requests="", embedded_requests=()))
    publish_bytes(f"{run}/config.yaml", yaml.safe_dump(saved).encode())
    publish_bytes(f"{run}/shards/batch.json", canonical(batch))
    return run


def run_stages(run: str, *names: str) -> None:
    """Run stages in this process group: `shard` and `release` on rank 0 alone."""
    ranks = group()
    for name in names:
        if name in ("shard", "release"):
            if ranks.rank == 0:
                run_stage(name, run)
        else:
            run_stage(name, run, rank=ranks.rank, world_size=ranks.world_size)
        ranks.barrier()
