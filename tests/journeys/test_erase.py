"""One story by the command line: images come in, are asked to be forgotten, skipped, unlearned, and erased for good.

Index, plan, tombstone, run, erase, verify, index again; at the end nothing but weights still knows the images.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.chain import chain_for
from pipeline.config import read_run
from pipeline.data.images import encode_png
from tests.support.command import unlearn
from tests.support.distributed import run_distributed
from tests.support.runs import prepare, run_stages, write_run_file
from tests.support.shards import make_shard

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SHARDS, IMAGES, UNSEEN = 4, 15, 40
PERSON = "person-7"
"""Whose folder of images is to be forgotten: four in the second shard, and all of a shard of its own."""
SINGLE = "album/s0n3"


def image(number: int) -> bytes:
    """A smooth picture of 8 x 8 pixels, another for each number."""
    noise = np.random.default_rng(number).integers(0, 256, (2, 2), dtype=np.uint8)
    return encode_png((np.kron(noise, np.ones((4, 4))) + np.arange(8)).clip(0, 255).astype(np.uint8))


def corpus() -> dict[str, dict[str, tuple[int, int]]]:
    """Shard -> key -> (label, number of the image)."""
    shards: dict[str, dict[str, tuple[int, int]]] = {}
    for shard in range(SHARDS):
        mine = range(4) if shard == 1 else ()
        names = [f"{PERSON}/s{shard}n{n}" if n in mine else f"album/s{shard}n{n}" for n in range(IMAGES)]
        shards[f"train-{shard}.tar"] = {name: (n % 3, shard * IMAGES + n) for n, name in enumerate(names)}
    shards["train-person.tar"] = {f"{PERSON}/n{n}": (n % 3, 500 + n) for n in range(5)}
    shards["unseen.tar"] = {f"unseen/n{n}": (n % 3, 1000 + n) for n in range(UNSEEN)}
    return shards


def write_source(folder: Path) -> dict[str, bytes]:
    """The corpus as shards; returns the images to be forgotten by key."""
    folder.mkdir()
    for name, images in corpus().items():
        members = {}
        for key, (label, number) in images.items():
            members |= {f"{key}.cls": str(label).encode(), f"{key}.png": image(number)}
        make_shard(folder / name, members)
    every = {key: image(number) for images in corpus().values() for key, (_, number) in images.items()}
    return {key: content for key, content in every.items() if key.startswith(PERSON) or key == SINGLE}


def said(*words: str, code: int = 0) -> str:
    """Standard output of a command that ends as it should."""
    done = unlearn(*words)
    assert done.returncode == code, (words, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr if code else done.stdout


def answer(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said(*words, "--json"))
    return found


def holders(place: Path, forgotten: dict[str, bytes]) -> set[str]:
    """Files below a folder that hold a forgotten image or its key, in their bytes or in their rows."""
    found = set()
    for path in (path for path in place.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet" and "key" in (table := pq.read_table(path)).column_names:
            content += "\n".join(table["key"].to_pylist()).encode()
        if any(key.encode() in content or png in content for key, png in forgotten.items()):
            found.add(str(path.relative_to(place)))
    return found


def test_from_a_request_to_the_proof_that_its_images_are_gone(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    forgotten = write_source(source)
    assert len(forgotten) == 4 + 5 + 1
    requests = tmp_path / "deletions.csv"
    requests.write_text(f"request_id,kind,value\nr1,prefix,{PERSON}/\nr2,key,{SINGLE}\n")
    section = {"component": "webdataset", "training": [f"{source}/train-*.tar"], "unseen": [f"{source}/unseen.tar"]}
    fields: dict[str, Any] = {
        "source": section,
        "requests": str(requests),
        "reference": "none",
        "method": {"level": {"images": 0.3}},
        "train": {"epochs": 1},
        "launch": {"ranks": 1},
        "evaluation": {"bootstrap": 20},
    }
    run_file = write_run_file(tmp_path, **fields)
    order = ("index", "webdataset", f"training=[{source}/train-*.tar]", f"unseen=[{source}/unseen.tar]", "--out", str(out))

    # What there is, what would be done, and no stream reads the images any more.
    first = answer(*order)
    assert (first["generation"], first["training"], first["unseen"]) == (1, SHARDS * IMAGES + 5, UNSEEN)
    plan = answer("plan", str(run_file))
    touched = [str(source / f"train-{name}.tar") for name in ("0", "1", "person")]
    assert plan["data"]["rewrite"] == touched and plan["data"]["forget_samples"] == len(forgotten)
    assert plan["data"]["bytes_to_rewrite"] == sum(Path(uri).stat().st_size for uri in touched)
    assert said("tombstone", str(run_file)).startswith(f"{len(forgotten)} images are skipped from now on: ")
    assert answer(*order)["generation"] == 1

    # Unlearned, by all stages in one process: what is told of a run that is made stage by stage is another story.
    run = Path(prepare(tmp_path, **fields))
    stages = [spec.name for spec in chain_for(read_run(str(run)))]
    run_distributed(run_stages, 1, str(run), *stages)
    done = answer("run", str(run_file))
    assert (Path(done["folder"]), done["ran"]) == (run, [])

    # And still there.
    assert run.name == plan["run_id"]
    before = holders(tmp_path, forgotten) - {requests.name}
    assert {"source/train-0.tar", "source/train-1.tar", "source/train-person.tar"} <= before
    assert f"out/{run.name}/shards/forget-000000.tar" in before

    # Erased, once.
    stamps = {name: (source / name).stat().st_mtime_ns for name in ("train-2.tar", "train-3.tar", "unseen.tar")}
    told = said("erase", run.name, "--out", str(out), "--yes")
    assert f"erased {len(forgotten)} images" in told and f"proof: {run}/erasure.json" in told
    assert f"removed: {source}/train-person.tar" in told
    assert "not removed here: checkpoints/original and forgotten: weights of models that saw the images" in told
    assert "erased already" in said("erase", run.name, "--out", str(out), "--yes", code=2)
    assert "were erased from the source" in said("run", str(run_file), code=2)
    intact = said("verify", str(run))
    assert "receipts and digests intact" in intact and "versions of files were erased, and are gone" in intact

    # Nothing of them is left, and what lay beside them is as it was.
    assert not holders(source, forgotten) | holders(out, forgotten)
    assert {name: (source / name).stat().st_mtime_ns for name in stamps} == stamps
    page = (run / "report.html").read_text()
    assert "no certificate" in page and not list(run.glob("evaluation/grid_[0-9]*.png"))
    last = answer(*order)
    assert (last["generation"], last["training"]) == (2, first["training"] - len(forgotten))

    # And they do not come back, under another name or their own.
    make_shard(source / "train-4.tar", {"new/n0.cls": b"0", "new/n0.png": forgotten[SINGLE]})
    assert "train-4.tar: key 'new/n0': this image was deleted on request" in said(*order, code=3)
    assert hashlib.sha256(forgotten[SINGLE]).hexdigest() in next(out.glob("tombstones/*.json")).read_text()
