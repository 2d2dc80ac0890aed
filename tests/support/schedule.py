"""A schedule to try out: a ledger with requests, and a runner that runs nothing and writes down what it was asked to."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from launch.batch_run import BatchRun
from launch.desk import Desk
from launch.policy import SchedulePolicy, read_policy
from pipeline.chain import write_receipt
from pipeline.decode import canonical, digest, plain
from pipeline.errors import ConfigError
from pipeline.ledger.requests import Submission, submit
from pipeline.ledger.store import Ledger
from pipeline.records import FileRef, Manifest, Receipt, ShardRef, Split
from pipeline.requests import batch_digest

LINE = """
name: line
source: {component: synthetic, samples: 120, unseen_samples: 80, size: 8}
model: {component: autoencoder, image_size: 8, width: 8, latent: 16}
task: center_crop
method: {component: decouple}
"""


def write_line(folder: Path, name: str = "line", **over: Any) -> str:
    """A run file that may be a model line; its output lies beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**yaml.safe_load(LINE), "name": name, "output": str(folder / "runs"), **over}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return str(folder / f"{name}.yaml")


def write_policy(folder: Path, **fields: Any) -> SchedulePolicy:
    """A policy that closes at once whatever waits, and does not pause."""
    given = {"every": "0", "before_due": "0", "count": 1, "backoff": "0", "tombstones": False, **fields}
    (folder / "policy.yaml").write_text(yaml.safe_dump(given))
    return read_policy(str(folder / "policy.yaml"))


def ask(ledger: Ledger, line: str, *keys: str, name: str = "", subject: str = "", due_at: str = "") -> str:
    """Submit a request for some keys; returns its name."""
    with ledger.write() as tx:
        wish = Submission(kind="keys", values=keys, line=line, request_id=name, subject=subject, due_at=due_at)
        return submit(tx, wish, checked=True).request_id


class FakeRunner:
    """Runs a batch by writing its weights, once, into its folder; what it is asked goes to a file that processes share.

    Args:
        journal: the file; a line for each start, and one for each run that was really done.
        fails: batch -> what to raise or answer, one after the other, before it works.
        refuses: batch -> the requests that mean no image.
    """

    def __init__(
        self,
        journal: Path,
        *,
        fails: Mapping[str, list[BaseException | str | None]] | None = None,
        refuses: Mapping[str, tuple[str, ...]] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        self.journal, self.refuses, self.meanwhile = journal, refuses or {}, meanwhile
        self.fails = {name: list(words) for name, words in (fails or {}).items()}

    def _write(self, what: str, run: BatchRun) -> None:
        with self.journal.open("a") as stream:
            stream.write(f"{what} {run.batch_id} {batch_digest(run.batch)} {os.getpid()}\n")

    def told(self, what: str) -> list[str]:
        """The batches that something was written down of."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [line.split()[1] for line in lines if line.split()[0] == what]

    def plan(self, run: BatchRun) -> None:
        if run.batch_id in self.refuses:
            raise ConfigError("requests: key 'secret-key': no such training image", "correct it")

    def unmatched(self, run: BatchRun) -> tuple[str, ...]:
        return self.refuses.get(run.batch_id, ())

    def skip_images(self, run: BatchRun) -> None:
        self._write("skip", run)

    def carry_on(self, run: BatchRun, note: Callable[[Mapping[str, str]], None]) -> str | None:
        self._write("start", run)
        self.meanwhile()
        if faults := self.fails.get(run.batch_id):
            fault = faults.pop(0)
            if isinstance(fault, BaseException):
                raise fault
            return fault
        folder = Path(run.folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "done").exists():
            self._write("work", run)
            (folder / "done").write_text(batch_digest(run.batch))
        write_finished(folder, run)
        return ""


def write_finished(folder: Path, run: BatchRun) -> None:
    """What `made_by` reads of a run: manifest, report, configuration and the receipts of two stages."""

    def shard(name: str, origin: str, samples: int) -> ShardRef:
        content = digest([name, batch_digest(run.batch) if origin != "original" else ""])
        return ShardRef(uri=name, sha256=content, bytes=1, samples=samples, origin=origin)  # type: ignore[arg-type]

    clean, touched = shard("../sources/0.tar", "original", 60), shard("../sources/1.tar", "original", 60)
    rest, forget = shard("shards/rewritten.tar", "rewritten", 55), shard("shards/forget.tar", "forget", 5)
    splits = {"original": (clean, touched), "retain": (clean, rest), "forget": (forget,)}
    manifest = Manifest(
        run_id=folder.name,
        batch_digest=batch_digest(run.batch),
        requests=len(run.batch.requests),
        source="synthetic",
        source_digest="0" * 64,
        source_folder="../sources",
        classes=(),
        seed=0,
        groups=(),
        splits=tuple(
            Split(name=name, shards=refs, samples=sum(ref.samples for ref in refs), keys_digest="0")  # type: ignore[arg-type]
            for name, refs in splits.items()
        ),
        index=(),
        shards_clean=1,
        shards_rewritten=1,
    )
    (folder / "manifest.json").write_bytes(canonical(manifest))
    (folder / "report.json").write_text(json.dumps({"verdict": {"outcome": "passed", "rules": []}}))
    bare = dataclasses.replace(run.config, requests="", embedded_requests=())
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(bare)))
    for stage, weights in (("train", "original"), ("retain", "unlearned")):
        file = f"checkpoints/{weights}/model.safetensors"
        made = digest([weights, batch_digest(run.batch) if weights == "unlearned" else ""])
        write_receipt(
            str(folder),
            Receipt(
                stage=stage,
                inputs={},
                outputs=(FileRef(uri=file, sha256=made, bytes=1),),
                config_digest="",
                code_version="test",
                world_size=1,
                started_at="2026-01-01T00:00:00+00:00",
                ended_at="2026-01-01T01:00:00+00:00",
            ),
        )


def desk_of(ledger: Ledger, policy: SchedulePolicy, runner: Any, *, owner: str = "host-1", said: list[str] | None = None) -> Desk:
    """A desk with this runner in place of both real ones."""
    heard = [] if said is None else said
    return Desk(ledger, policy, owner=owner, say=heard.append, runners={"local": runner, "slurm": runner})
