"""A ledger as it may look after two months of work, with run folders beside it. All made up; no person is meant."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from PIL import Image

from pipeline.chain import PHASES, chain_for, write_receipt
from pipeline.config import read_run, resolve
from pipeline.decode import canonical
from pipeline.ledger import batches, history, requests
from pipeline.ledger.leases import claim
from pipeline.ledger.requests import Submission
from pipeline.ledger.schema import ALIAS, MODEL, MODEL_OBJECT, REQUEST, REQUEST_VALUE
from pipeline.ledger.store import Ledger, Transaction
from pipeline.records import Receipt
from pipeline.storage import publish_bytes

START = datetime.datetime(2026, 9, 21, 8, tzinfo=datetime.UTC)
LINES = ("faces-inpaint", "products-mae", "streets-vqgan")
KINDS = ("keys", "keys", "keys", "label", "prefix", "digest")
STAGE_SECONDS = {"shard": 40.0, "train": 5400.0, "retrain": 5310.0, "calibrate": 260.0, "forget": 190.0, "retain": 610.0}
STEPS = {"train": 4200, "retrain": 4180, "calibrate": 210, "forget": 96, "retain": 480}


class Clock:
    """Says the time that it was set to."""

    def __init__(self, time: datetime.datetime = START) -> None:
        self.time = time

    def __call__(self) -> datetime.datetime:
        return self.time

    def move(self, **span: float) -> None:
        """Move by days, hours, minutes or seconds."""
        self.time += datetime.timedelta(**span)


def values(kind: str, number: int) -> tuple[str, ...]:
    """What a made-up request asks for."""
    if kind == "keys":
        return tuple(f"shard-{number % 40:03d}/{number * 7 + n}" for n in range(1 + number % 4))
    if kind == "digest":
        return (hashlib.sha256(str(number).encode()).hexdigest(),)
    return (f"{kind}-{number}",)


def ask(tx: Transaction, number: int, *, line: str = "", **more: Any) -> str:
    """Submit a made-up request; returns its name."""
    kind = KINDS[number % len(KINDS)]
    chosen = {"kind": kind, "values": values(kind, number), "line": line or LINES[number % 3], "subject": f"person {number}"}
    return requests.submit(tx, Submission(**{**chosen, **more}), checked=True).request_id


def serve_batch(
    ledger: Ledger, line: str, folder: str, *, to: str, failed: int = 0, parent: str | None = None
) -> tuple[str, str]:
    """Close a batch of what waits on a line and bring it as far as `to`; returns its name, and its model if it was released."""
    with ledger.write() as tx:
        name = batches.close(tx, line, reason="time")
        if to == "closed":
            return name, ""
        lease = claim(tx, "node-3:4711", 3600, batch_id=name)
        assert lease is not None
        batches.note(tx, lease, folder=folder)
        batches.move(tx, name, "running", lease=lease)
        if to in ("evaluated", "released"):
            batches.move(tx, name, "evaluated", lease=lease)
        if to == "failed":
            batches.move(tx, name, "failed", lease=lease, failure="DataError")
        if to != "released":
            return name, ""
        members = tx.execute(sa.text("SELECT request_id FROM batch_request WHERE batch_id = :b"), {"b": name}).scalars().all()
        batches.move(tx, name, "released", failed=tuple(members[:failed]))
        model = hashlib.sha256(name.encode()).hexdigest()
        row = {"model_id": model, "line": line, "batch_id": name, "folder": folder, "uri": f"{folder}/weights", "made_at": tx.now}
        rest = {"kept_until": None, "removed_at": None, "verdict": "passed", "parent": parent, "digests": {}}
        tx.execute(sa.insert(MODEL).values(**row, **rest))
        shards = [(f"s3://example-data/{line}/train-{n:05d}.tar", "trained") for n in range(4)]
        shards.append((f"{folder}/shards/forget-000000.tar", "forgotten"))
        objects = [
            {"model_id": model, "uri": uri, "version": "", "role": role, "sha256": hashlib.sha256(uri.encode()).hexdigest()}
            for uri, role in shards
        ]
        tx.execute(sa.insert(MODEL_OBJECT), objects)
        version = (
            int(tx.execute(sa.select(sa.func.count()).where(ALIAS.c.line == line, ALIAS.c.name == "production")).scalar_one()) + 1
        )
        named = {"line": line, "name": "production", "version": version, "model_id": model, "changed_at": tx.now}
        tx.execute(sa.insert(ALIAS).values(**named, by="release@node-3", reason=""))
        history.append(tx, "release", f"{line}/production", "promoted", {"number": version, "model": model})
    return name, model


def months_of_work(ledger: Ledger, clock: Clock, runs: Path) -> list[str]:
    """Nine weeks of requests and batches on three lines, with run folders; returns the runs' names."""
    chance, number, parents, names = random.Random(8), 0, dict.fromkeys(LINES, ""), list[str]()
    for week in range(9):
        for _ in range(7):
            clock.move(days=1)
            with ledger.write() as tx:
                for _ in range(chance.randint(1, 6)):
                    ask(tx, number)
                    number += 1
        line = LINES[week % 3]
        to = "released" if week < 7 else "failed" if week == 7 else "running"
        name = f"{line}-{hashlib.sha256(str(week).encode()).hexdigest()[:8]}"
        _, model = serve_batch(ledger, line, str(runs / name), to=to, failed=int(week == 3), parent=parents[line] or None)
        parents[line] = model or parents[line]
        write_run(runs / name, line, done=9 if to == "released" else 5 if to == "running" else 2, seed=week, clock=clock)
        names.append(name)
    with ledger.write() as tx:
        requests.withdraw(tx, ask(tx, number))
        ask(tx, 1)
    clock.move(hours=5)
    return names


def loss(step: int, steps: int, seed: int, *, up: bool = False) -> float:
    """A curve that looks like one."""
    part, noise = step / steps, random.Random(step * 31 + seed).gauss(0, 1)
    smooth = 0.018 + 0.055 * part**1.6 if up else 0.021 + 0.12 * math.exp(-7 * part)
    return smooth * (1 + 0.05 * noise)


def write_run(folder: Path, line: str, *, done: int, seed: int, clock: Clock, at_step: float = 0.62) -> None:
    """A run folder of the packaged demo: configuration, receipts of its first `done` stages, metrics, a log, maybe a report."""
    config = dataclasses.replace(resolve("demo"), name=line, output=str(folder.parent))
    publish_bytes(str(folder / "config.yaml"), canonical(config))
    at = clock.time
    for number, spec in enumerate(chain_for(read_run(str(folder)))):
        steps, seconds = STEPS.get(spec.name, 0), STAGE_SECONDS.get(spec.name, 75.0)
        if number < done:
            facts: dict[str, Any] = {"seconds": seconds, "sample_gradients": steps * 128, "steps": steps} if steps else {}
            ended = (at + datetime.timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
            given = {"inputs": {}, "outputs": (), "config_digest": "0" * 64, "code_version": "made up", "world_size": 8}
            write_receipt(str(folder), Receipt(stage=spec.name, started_at=at.isoformat(), ended_at=ended, facts=facts, **given))
            at += datetime.timedelta(seconds=seconds)
        upto = steps if number < done else int(steps * at_step) if number == done else 0
        if upto and spec.name in ("train", "retrain", *PHASES):
            write_metrics(folder, spec.name, upto, steps, seed)
        if number == done and steps:
            each = seconds / steps
            words = f"{spec.name}: step {upto} of {steps}, {128 / each:,.0f} images/s, {(steps - upto) * each:.0f} s left\n"
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            (folder / "logs" / f"{spec.name}.log").write_text(f"loading\n{words}")
    if done >= 9:
        write_report(folder, line, seed)


def write_metrics(folder: Path, stage: str, upto: int, steps: int, seed: int) -> None:
    """Metrics of a stage up to a step."""
    names = {"forget": ["forget_loss_0", "forget_loss_1"], "retain": ["retain_loss"]}.get(stage, ["loss"])
    lines = []
    for step in range(1, upto + 1, max(1, steps // 90)):
        measures = {name: loss(step, steps, seed + n, up=stage == "forget") for n, name in enumerate(names)}
        lines.append(json.dumps({"step": step, "seconds": step * 0.2, "images_per_second": 640.0, **measures}))
    publish_bytes(str(folder / "metrics" / f"{stage}.jsonl"), "".join(f"{line}\n" for line in lines).encode())


def write_report(folder: Path, line: str, seed: int) -> None:
    """What the page reads of a report, a report's page, and one grid."""
    spent, retrain = (210 + 96 + 480 + 17 * (seed * 5 % 7 - 3)) * 128, 4180 * 128
    cost = {"sample_gradients": spent, "seconds": spent * 0.0105, "retrain_sample_gradients": retrain, "retrain_seconds": 5310.0}
    facts = {
        "run_id": folder.name,
        "summary": "The model treats the forgotten images like ones it never saw.",
        "deck": "To forget: 1 whole class and 200 single images, of 20,000 that the model was trained on.",
        "headline": ["distance to a retrained model on forgotten images: 0.06", "cost, beside retraining: 18.8 %"],
        "verdict": {"outcome": "passed", "rules": []},
        "cost": {**cost, "share": spent / retrain},
    }
    publish_bytes(str(folder / "report.json"), canonical(facts))
    publish_bytes(str(folder / "report.html"), f"<!doctype html><title>{line}</title><p>The report.</p>".encode())
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    shades = np.linspace(0, 255, 360).astype(np.uint8)
    Image.fromarray(np.tile(shades, (120, 1))).save(folder / "evaluation" / "grid_0.png")


def many(ledger: Ledger, number: int) -> None:
    """So many requests named `req-000000` and so on, straight into the tables: for tests of reading."""
    with ledger.write() as tx:
        submission = Submission(kind="keys", values=("k",), line=LINES[0])
        row, _ = requests.prepare(submission, tx.secret, tx.now)
        own = [
            {"request_id": f"req-{n:06d}", "fingerprint": f"{n:032d}", "line": LINES[n % 3], "state": "queued", "entry": 1}
            for n in range(number)
        ]
        columns = tuple({**row, **own[0]})
        tx.insert(REQUEST, columns, [tuple({**row, **item}[name] for name in columns) for item in own])
        tx.insert(REQUEST_VALUE, ("request_id", "value"), [(item["request_id"], f"k{n}") for n, item in enumerate(own)])
