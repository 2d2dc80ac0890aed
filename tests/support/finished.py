"""A finished run on tars in a folder, in a second: shards, index, report and receipts are real, the models are made up."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.acts import erase
from pipeline.chain import chain_for, config_digest, inputs_of, read_receipt, write_receipt
from pipeline.config import read_run
from pipeline.evaluation.grid import draw
from pipeline.orders import EraseOrder, ErasurePlan
from pipeline.records import Erasure
from pipeline.stages.runner import run_stage
from pipeline.storage import hash_file
from tests.pipeline.data.tars import packed, picture
from tests.pipeline.report import fabricated
from tests.support.runs import prepare, write_run_file

LAYOUT = [[0, 1, 2, 0], [1, 1], [2, 2, 0], [0, 0]]
"""Labels by shard: forgetting class one empties the second shard, and leaves the last as it is."""
FORGOTTEN = {"s0/img1": 2, "s1/img0": 5, "s1/img1": 6, "s2/img2": 9}
"""Key to number of its picture, for label one and a single key."""
CLASSES = ["zero", "one", "two"]
GROUPS = (("class one", "class"), ("single images", "images"))
REQUESTS = [{"request_id": "r1", "label": "one"}, {"request_id": "r2", "keys": ["s2/img2"]}]


def tar_source(folder: Path) -> dict[str, Any]:
    """The section of a run file for `LAYOUT` as tars below `folder`; they are written where they are not there."""
    tars = folder / "tars"
    if not tars.exists():
        packed(folder, LAYOUT)
        shutil.rmtree(folder / "out")
        (tars / "unseen").mkdir()
        (tars / "unseen.tar").rename(tars / "unseen" / "unseen.tar")
    return {"component": "webdataset", "training": [f"{tars}/train-*.tar"], "unseen": [f"{tars}/unseen"], "classes": CLASSES}


def tar_run_file(folder: Path, **over: Any) -> Path:
    """A run file for the tars, with output beside them."""
    return write_run_file(folder, **{"source": tar_source(folder), "requests": REQUESTS, **over})


def finish(folder: Path, *, groups: tuple[tuple[str, str], ...] = GROUPS, model: bytes = b"weights" * 1000, **over: Any) -> Path:
    """A finished run on the tars below `folder`; returns its folder. `model`: bytes of its weights."""
    run = prepare(folder, **{"source": tar_source(folder), "requests": REQUESTS, **over})
    fabricated.build(run, groups=groups, num=20, model=model)
    for name, value in (("0", 50), ("1", 100), ("retain", 200)):  # so that each picture is known by its bytes
        grid = draw([("truth", np.full((4, 8, 8, 1), value, dtype=np.uint8))])
        Path(run, "evaluation", f"grid_{name}.png").write_bytes(grid)
    run_stage("shard", run)
    config = read_run(run)
    for spec in chain_for(config)[1:-1]:
        receipt = read_receipt(run, spec.name)
        assert receipt is not None
        outputs = tuple(dataclasses.replace(hash_file(f"{run}/{ref.uri}"), uri=ref.uri) for ref in receipt.outputs)
        settled = {"inputs": inputs_of(run, spec), "outputs": outputs, "config_digest": config_digest(config, spec)}
        write_receipt(run, dataclasses.replace(receipt, **settled))  # type: ignore[arg-type]
    run_stage("release", run)
    Path(run, ".lock").touch()
    return Path(run)


def plan(run: Path) -> ErasurePlan:
    """What an erasure of the run would do."""
    answer = erase.run(EraseOrder(folder=str(run), do=False))
    assert isinstance(answer, ErasurePlan)
    return answer


def do(run: Path) -> Erasure:
    """Erase the run's images."""
    answer = erase.run(EraseOrder(folder=str(run), do=True))
    assert isinstance(answer, Erasure)
    return answer


def holders(*roots: Path) -> list[str]:
    """Files that hold the bytes of a forgotten picture, or one of the forgotten keys."""
    found = []
    for path in (path for root in roots for path in sorted(root.rglob("*")) if path.is_file()):
        content = path.read_bytes()
        for key, number in FORGOTTEN.items():
            if picture(number) in content or key.encode() in content:
                found.append(f"{path}: {key}")
    return found


def contents(root: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of every file below a folder, by its path."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {os.path.relpath(path, root): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
