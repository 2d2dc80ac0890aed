"""The whole story of a schedule on Fashion-MNIST, by the command line alone: 300 requests, three batches, four runs.

Two hosts tick at once; one is killed in the middle of a run; releases move an alias; images are erased; a release is rolled back
and its requests come again; lineage is held against what was asked; a copied release verifies in a new environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.ledger import batches, history, requests
from pipeline.ledger.store import open_ledger
from tests.support.command import UNLEARN, environment

pytestmark = [pytest.mark.services, pytest.mark.timeout(3000)]

ROOT = Path(__file__).resolve().parents[2]
WAVE = 100
RUN: dict[str, Any] = {
    "name": "clothes",
    "reference": "none",
    "source": {"component": "fashion_mnist", "limit": 1500, "unseen_limit": 400},
    "model": "autoencoder",
    "task": "center_crop",
    "images": {"fit": "pad"},
    "shards": {"near_bits": None},
    "method": {
        "component": "decouple",
        "level": {"images": 0.5},
        "forget": {"batch_size": 50, "passes": 1, "retain_floor": 50.0, "runaway": 50.0},
        "retain": {"share": 0.3, "batch_size": 64},
    },
    "train": {"epochs": 1, "batch_size": 64},
    "evaluation": {"bootstrap": 20, "grid_images": 2, "max_samples": 200, "batch_size": 200},
    "launch": {"ranks": 1},
    "verdict": {"kept": {"at_most": 100.0, "reason": "a rule that any model keeps"}},
}
VERIFIES = ("typer", "rich", "pydantic", "pyyaml", "fsspec", "annotated-types", "braceexpand", "cryptography", "model-signing")


def key(number: int) -> str:
    return f"train-{4 * number + 1:06d}"


def person(number: int) -> str:
    return f"Zyxomma {number}"


class Story:
    """A folder with a ledger, a model line, a policy and a signing key."""

    def __init__(self, place: Path) -> None:
        self.place = place
        line = {**RUN, "output": str(place / "out")}
        (place / "clothes.yaml").write_text(yaml.safe_dump(line))
        policy = {
            **{"every": "0", "before_due": "0", "count": WAVE, "backoff": "0", "lease_seconds": 6.0, "attempts": 3},
            **{"release": "auto", "release_to": str(place / "releases"), "release_key": str(place / "signer.key")},
            **{"alias": "production", "lines": {"clothes.yaml": {}}},
        }
        (place / "policy.yaml").write_text(yaml.safe_dump(policy))
        self.said: list[str] = []

    def call(self, *words: str, given: str = "") -> str:
        done = subprocess.run(
            [*UNLEARN, *words],
            cwd=self.place,
            env=environment(),
            input=given,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        self.said += [done.stdout, done.stderr]
        return done.stdout

    def told(self, *words: str, given: str = "") -> Any:
        return json.loads(self.call(*words, "--json", given=given))

    def hand_in(self, numbers: Sequence[int]) -> None:
        lines = [f"r{number},key,{key(number)},clothes.yaml,{person(number)}" for number in numbers]
        (self.place / "requests.csv").write_text("\n".join(["request_id,kind,value,line,subject", *lines]))
        self.call("requests", "import", "requests.csv")

    def host(self) -> subprocess.Popen[str]:
        words = [*UNLEARN, "schedule", "tick", "--policy", "policy.yaml"]
        return subprocess.Popen(
            words, cwd=self.place, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def tick_on_two_hosts(self) -> None:
        hosts = [self.host(), self.host()]
        for one in hosts:
            said, _ = one.communicate(timeout=900)
            self.said.append(said)
            assert one.returncode == 0, said

    def batch(self, name: str) -> dict[str, Any]:
        with open_ledger() as ledger, ledger.read() as tx:
            return batches.find(tx, name)

    def states(self) -> dict[str, str]:
        with open_ledger() as ledger, ledger.read() as tx:
            return {row["batch_id"]: row["state"] for row in batches.listing(tx)}

    def how(self, number: int) -> dict[str, dict[str, str]]:
        """What each batch's models have to do with a person; where nothing had to be ascended, phase 1 left the original."""
        found: dict[str, dict[str, str]] = {}
        models = self.told("trace", "--subject", "-", given=person(number))["models"]
        for model in (model for model in models if model["kind"] != "forgotten"):
            found.setdefault(model["batch_id"], {})[model["kind"]] = model["how"]
        return found


def killed_in_the_middle(story: Story, name: str) -> None:
    """One host begins with a batch and is killed once the first stage is done."""
    one = story.host()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            if Path(story.batch(name)["folder"], "receipts", "shard.json").exists() and story.batch(name)["state"] == "running":
                break
        time.sleep(0.5)
    one.send_signal(signal.SIGKILL)
    one.communicate(timeout=60)
    assert story.batch(name)["state"] == "running"


def left_of(folder: str, number: int) -> dict[str, str]:
    """What can still be said of an image and an erased run's models: for sure where a part of its index that the erasure left as
    it was has a row of it. A part covers one shard or several, as the indexing went."""
    for ref in json.loads(Path(folder, "manifest.json").read_text())["index"]:
        part = Path(folder, ref["uri"])
        left = part.exists() and hashlib.sha256(part.read_bytes()).hexdigest() == ref["sha256"]
        if left and key(number) in pq.read_table(part, columns=["key"]).column("key").to_pylist():
            return {"original": "trained", "unlearned": "trained"}
    return {"original": "perhaps", "unlearned": "perhaps"}


def verified_elsewhere(release: Path, public: Path, place: Path) -> str:
    """What `unlearn verify` says of a copy of the release in an environment that has only what verifying needs."""
    shutil.copytree(release, place / "elsewhere" / release.name)
    shutil.copy(public, place / "elsewhere")
    venv.create(place / "venv", with_pip=True)
    python = str(place / "venv" / "bin" / "python")
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "UNLEARN"))}
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, *VERIFIES], check=True, timeout=600, env=clean)
    subprocess.run([*pip, "--no-deps", str(ROOT)], check=True, timeout=600, env=clean)
    words = [python, "-m", "launch", "verify", release.name, "--key", public.name]
    done = subprocess.run(words, cwd=place / "elsewhere", env=clean, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_from_300_requests_to_proofs(ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    story = Story(tmp_path)
    story.call("ledger", "init")
    story.call("keys", "new", "signer")

    # The first batch: two hosts, one run, one release; then its images are erased.
    story.hand_in(range(WAVE))
    story.tick_on_two_hosts()
    assert story.states() == {"b-000001": "released"}
    first = story.batch("b-000001")
    assert story.how(7) == {"b-000001": {"original": "trained", "unlearned": "forgot"}}
    story.call("erase", first["folder"], "--yes")

    # The second: the host that runs it is killed, another one takes over.
    story.hand_in(range(WAVE, 2 * WAVE))
    killed_in_the_middle(story, "b-000002")
    deadline = time.monotonic() + 600
    while story.states()["b-000002"] != "released" and time.monotonic() < deadline:
        story.tick_on_two_hosts()
        time.sleep(1)
    second = story.batch("b-000002")
    assert (second["state"], second["attempts"]) == ("released", 2)
    story.call("erase", second["folder"], "--yes")

    # The third is released, and rolled back to a model that still holds its images: a person must answer for it.
    story.hand_in(range(2 * WAVE, 3 * WAVE))
    story.tick_on_two_hosts()
    assert story.states()["b-000003"] == "released"
    versions = {path.name.split("-")[1]: path.name for path in (tmp_path / "releases" / "clothes").glob("clothes-*")}
    back = ["rollback", "--to", "releases", "--line", "clothes", "--alias", "production"]
    back += ["--version", versions[second["requests_digest"][:8]], "--key", "signer.pub"]
    refused = subprocess.run([*UNLEARN, *back], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert refused.returncode == 4, refused.stdout + refused.stderr
    story.call(*back, "--approve", "Grace", "--reason", "the third is too blurred")
    assert story.states()["b-000003"] == "rolled_back"

    # Its requests come again, with one more.
    story.hand_in([3 * WAVE])
    story.tick_on_two_hosts()
    assert story.states() == {"b-000001": "released", "b-000002": "released", "b-000003": "rolled_back", "b-000004": "released"}

    # Lineage, both ways, against what was asked.
    own = {"original": "trained", "unlearned": "forgot"}
    seen = {"original": "trained", "unlearned": "trained"}
    gone = {"original": "perhaps", "unlearned": "perhaps"}
    last = story.how(3 * WAVE)
    assert story.how(WAVE + 7) == {"b-000001": gone, "b-000002": own}
    left = {name: left_of(batch["folder"], 3 * WAVE) for name, batch in (("b-000001", first), ("b-000002", second))}
    assert last == {**left, "b-000003": seen, "b-000004": own}
    in_force = story.told("trace", "--alias", "clothes/production")
    assert in_force["batches"] == ["b-000004"]
    assert {request for request, *_ in in_force["requests"]} == {f"r{number}" for number in range(2 * WAVE, 3 * WAVE + 1)}
    with open_ledger() as ledger:
        assert history.check(ledger) == []
        with ledger.read() as tx:
            assert requests.counts(tx) == {"released": 3 * WAVE + 1}

    # A proof that stands alone, and nothing personal in all that was said.
    release = (
        tmp_path / "releases" / "clothes" / next(path.name for path in (tmp_path / "releases" / "clothes").glob("clothes-*"))
    )
    assert "signed" in verified_elsewhere(release, tmp_path / "signer.pub", tmp_path)
    said = "\n".join(story.said)
    assert "Zyxomma" not in said and key(1) not in said
