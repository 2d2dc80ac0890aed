"""What a schedule releases by itself: what passed, once, under its policy's alias; what the gate refuses waits for a person."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from launch.batch_run import BatchRun
from launch.policy import SchedulePolicy
from launch.releasing import release_run
from launch.schedule import tick
from pipeline.errors import ConfigError, GateFailed, StorageError
from pipeline.ledger import batches, lineage
from pipeline.ledger.requests import Submission, submit
from pipeline.ledger.store import Ledger, open_ledger
from pipeline.records import RequestBatch
from pipeline.requests import batch_digest
from tests.support.finished import tar_run_file
from tests.support.releasing import FAILS, PASSES, Place, usual_run
from tests.support.schedule import desk_of, write_policy

LINE = "tars"


@pytest.fixture
def ledger(room: Place) -> Iterator[Ledger]:
    with open_ledger(f"sqlite:///{room.base}/ledger.sqlite", actor="tester") as opened:
        yield opened


def policy_of(room: Place, run_file: Path, **over: Any) -> SchedulePolicy:
    fields = {"release": "auto", "release_to": room.to, "release_key": str(room.base / "signer.key"), "alias": "production"}
    return write_policy(room.base, lines={LINE: {"run": str(run_file)}}, **{**fields, **over})


class Finisher:
    """Runs the requests of the ledger's batch as a run whose models are made up."""

    def __init__(self, base: Path, rules: Mapping[str, Any]) -> None:
        self.base, self.rules = base, rules

    def plan(self, run: BatchRun) -> None:
        return None

    def unmatched(self, run: BatchRun) -> tuple[str, ...]:
        return ()

    def skip_images(self, run: BatchRun) -> None:
        return None

    def carry_on(self, run: BatchRun, note: Callable[[Mapping[str, str]], None]) -> str | None:
        made = usual_run(self.base, requests=_entries(run.batch), **self.rules)
        assert str(made) == run.folder
        return ""


def _entries(batch: RequestBatch) -> list[dict[str, Any]]:
    return [{"request_id": one.request_id, one.selector.kind: list(one.selector.values)} for one in batch.requests]


def ask(ledger: Ledger) -> None:
    with ledger.write() as tx:
        submit(tx, Submission(kind="label", values=("one",), line=LINE, request_id="r1"), checked=True)
        submit(tx, Submission(kind="keys", values=("s2/img2",), line=LINE, request_id="r2"), checked=True)


def row_of(ledger: Ledger) -> dict[str, Any]:
    with ledger.read() as tx:
        return batches.find(tx, "b-000001")


def test_what_passed_is_released_under_the_alias(ledger: Ledger, room: Place) -> None:
    ask(ledger)
    run_file = tar_run_file(room.base, **PASSES)
    policy = policy_of(room, run_file)
    done = tick(desk_of(ledger, policy, Finisher(room.base, PASSES)))
    assert [step.state for step in done.steps] == ["released"]
    with ledger.read() as tx:
        (alias,) = lineage.alias_history(tx, LINE, "production")
        (model,) = lineage.model_named(tx, alias["model_id"])
        batch = batches.as_batch(tx, "b-000001")
    assert model["digests"].keys() >= {"kind", "statement"}
    assert model["batch_id"] == "b-000001" and Path(model["uri"], "model.safetensors").is_file()
    assert model["uri"].startswith(room.to) and batch_digest(batch)[:8] in model["uri"]
    again = release_run(ledger, policy, row_of(ledger)["folder"])
    assert not again.new and again.promotion is not None and again.promotion.did == "unchanged"
    assert tick(desk_of(ledger, policy, Finisher(room.base, PASSES))).steps == ()


def test_what_the_gate_refuses_is_held(ledger: Ledger, room: Place) -> None:
    ask(ledger)
    run_file = tar_run_file(room.base, **FAILS)
    done = tick(desk_of(ledger, policy_of(room, run_file), Finisher(room.base, FAILS)))
    assert [(step.state, step.failure) for step in done.steps] == [("held", "verdict")]
    assert not list(Path(room.to).glob("*/*/statement*"))
    with pytest.raises(GateFailed):
        release_run(ledger, policy_of(room, run_file), row_of(ledger)["folder"])


def test_a_store_that_is_away_is_tried_again(ledger: Ledger, room: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(ledger)
    run_file = tar_run_file(room.base, **PASSES)
    real = release_run

    def away(*given: Any) -> None:
        raise StorageError("s3://models: away")

    monkeypatch.setattr("launch.releasing.release_run", away)
    desk = desk_of(ledger, policy_of(room, run_file), Finisher(room.base, PASSES))
    assert [(step.state, step.failure) for step in tick(desk).steps] == [("evaluated", "storage")]
    monkeypatch.setattr("launch.releasing.release_run", real)
    assert [step.state for step in tick(desk).steps] == ["released"]


def test_a_key_that_is_not_there_is_named(ledger: Ledger, room: Place) -> None:
    policy = policy_of(room, Path("x.yaml"), release_key=str(room.base / "nobody.key"))
    with pytest.raises(ConfigError, match=r"nobody\.key"):
        release_run(ledger, policy, str(room.base))
