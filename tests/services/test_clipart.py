"""The messy colour source through the whole chain: drawings of all sizes, many transparent, links and look-alikes among them."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from pipeline.data.sources.openclipart import Config, build
from pipeline.errors import DataError
from tests.support.command import unlearn

pytestmark = pytest.mark.services

# Short of the packaged run in training and measuring only: the data and the batch are whole.
SHORT = (
    "train.epochs=2",
    "model.width=16",
    "model.latent=64",
    "evaluation.max_samples=200",
    "evaluation.bootstrap=50",
    "reference=none",
)


@pytest.fixture(scope="module")
def clipart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished short `unlearn run clipart`, on Debian's package or its cache."""
    try:
        build(Config(classes=("food",)))
    except DataError as fault:
        pytest.skip(f"openclipart-png is not here: {fault.message}")
    done = unlearn("run", "clipart", f"output={tmp_path_factory.mktemp('clipart')}", *SHORT, "--json", timeout=500)
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["folder"])


def test_the_batch_takes_its_look_alikes_with_it(clipart: Path) -> None:
    manifest = json.loads((clipart / "manifest.json").read_text())
    samples = {split["name"]: split["samples"] for split in manifest["splits"]}
    assert samples["forget"] + samples["retain"] == samples["original"] > 2000
    assert min(samples["calibration"], samples["holdout"]) > 200
    with open(clipart / "shards" / "copies.csv", newline="") as stream:
        copies = list(csv.DictReader(stream))
    found = Counter(copy["policy"] for copy in copies)
    assert found["include"] == len(copies) > 0
    assert manifest["near_copies"] == manifest["exact_copies"] == 0, "no copy stayed behind"
    assert manifest["groups"][0]["name"] == "class food"
    assert samples["forget"] == sum(group["samples"] for group in manifest["groups"])


def test_both_phases_covered_what_they_promise(clipart: Path) -> None:
    for phase in ("forget", "retain"):
        for coverage in json.loads((clipart / "phases" / f"{phase}.json").read_text())["coverage"]:
            assert coverage["keys_digest"] == coverage["expected_digest"] or not coverage["complete"]
    forget = json.loads((clipart / "phases" / "forget.json").read_text())["coverage"][0]
    assert forget["complete"] and forget["skipped"] == 0


def test_verify_and_plan_agree_with_the_run(clipart: Path) -> None:
    assert unlearn("verify", str(clipart)).returncode == 0
    planned = unlearn("plan", "clipart", f"output={clipart.parent}", *SHORT, "--json")
    assert planned.returncode == 0, planned.stderr
    manifest = json.loads((clipart / "manifest.json").read_text())
    assert len(json.loads(planned.stdout)["data"]["rewrite"]) == manifest["shards_rewritten"]
