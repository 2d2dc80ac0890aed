"""The daemon ticks, pauses, outlives a ledger that is away, and leaves when it is told to."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from launch import serve_schedule as module
from launch.batch_steps import Step
from launch.schedule import Tick
from launch.serve_schedule import serve_schedule, tick_line
from pipeline.errors import StorageError
from pipeline.ledger.deadlines import later
from pipeline.ledger.schema import BATCH
from pipeline.ledger.store import open_ledger
from tests.support.schedule import FakeRunner, ask, desk_of, write_line, write_policy


def test_one_line_a_tick() -> None:
    steps = (Step(batch_id="b-000001", state="evaluated"), Step(batch_id="b-000002", state="failed", failure="storage"))
    assert tick_line(Tick(closed=("b-000001",), steps=steps, dangers=())) == (
        "tick: 1 batches closed; worked on: 1 evaluated, 1 failed; due dates in danger: 0"
    )


def test_it_ticks_with_pauses_a_little_at_random(tmp_path: Path) -> None:
    said: list[str] = []
    pauses: list[float] = []
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        ask(ledger, write_line(tmp_path), "train-000001")
        desk = desk_of(ledger, write_policy(tmp_path, pause="10s"), FakeRunner(tmp_path / "journal"), said=said)
        assert serve_schedule(desk, ticks=3, sleep=pauses.append) == 3
    assert sum(line.startswith("tick: ") for line in said) == 3
    assert len(set(pauses)) == len(pauses) == 2 and all(10 <= pause <= 11 for pause in pauses)


def test_a_signal_ends_it_cleanly_and_handlers_are_as_before(tmp_path: Path) -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        desk = desk_of(ledger, write_policy(tmp_path), FakeRunner(tmp_path / "journal"), said=said)
        assert serve_schedule(desk, sleep=lambda seconds: os.kill(os.getpid(), signal.SIGTERM)) == 1
    assert said[-1] == "schedule: told to leave"
    signal.signal(signal.SIGTERM, before)


def test_a_batch_that_is_lost_to_another_host_does_not_end_it(tmp_path: Path) -> None:
    said: list[str] = []
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        ask(ledger, write_line(tmp_path), "train-000001")

        def overslept() -> None:
            with ledger.write() as tx:
                until = later(tx.now, 600)
                mine = {"lease_owner": "host-2", "lease_number": BATCH.c.lease_number + 1, "lease_until": until}
                tx.execute(sa.update(BATCH).values(mine))
            time.sleep(5)

        runner = FakeRunner(tmp_path / "journal", meanwhile=overslept)
        desk = desk_of(ledger, write_policy(tmp_path, lease_seconds=0.4), runner, said=said)
        pauses: list[float] = []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        before = signal.getsignal(signal.SIGTERM)
        assert serve_schedule(desk, ticks=20, sleep=sleep) == 2
        signal.signal(signal.SIGTERM, before)
    assert "b-000001: taken over" in said and said[-1] == "schedule: told to leave"


def test_a_ledger_that_is_away_for_a_while_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def away(desk: object) -> Tick:
        raise StorageError("postgresql://db: the database refused")

    monkeypatch.setattr(module, "tick", away)
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        desk = desk_of(ledger, write_policy(tmp_path), FakeRunner(tmp_path / "journal"), said=said)
        assert serve_schedule(desk, ticks=2, sleep=lambda seconds: None) == 2
    assert said == ["tick: the ledger or a storage is away; it is tried again"] * 2
