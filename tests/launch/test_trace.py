"""From people to models and back, on a ledger whose runs are a fake: what is known for certain, and what only perhaps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from launch.schedule import tick
from launch.trace import Trace, trace_key, trace_model, trace_request, trace_subject
from pipeline.errors import ConfigError
from pipeline.ledger import batches
from pipeline.ledger.schema import ALIAS, MODEL, MODEL_OBJECT
from pipeline.ledger.store import Ledger, open_ledger
from pipeline.schedule_orders import TraceAnswer, TracedRun, TracedShard, TraceOrder
from pipeline.storage import join
from tests.support.schedule import FakeRunner, ask, desk_of, write_line, write_policy


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Two batches of one line, each with a request of one person."""
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", actor="tester") as opened:
        line = write_line(tmp_path)
        policy = write_policy(tmp_path)
        for name in ("r1", "r2"):
            ask(opened, line, f"key-{name}", name=name, subject=f"Person {name}")
            tick(desk_of(opened, policy, FakeRunner(tmp_path / "journal")))
        yield opened


def folder_of(ledger: Ledger, number: int) -> str:
    with ledger.read() as tx:
        return str(batches.find(tx, f"b-{number:06d}")["folder"])


class Indexes:
    """What runs' indexes say: in every run the images lie in the source's second shard; a run of their own batch took them out.

    Args:
        states: of the runs in order, where they are not `read`.
    """

    def __init__(self, ledger: Ledger, *states: str) -> None:
        self.folders = [folder_of(ledger, 1), folder_of(ledger, 2)]
        self.states = list(states) or ["read", "read"]
        self.orders: list[TraceOrder] = []

    def __call__(self, order: TraceOrder) -> TraceAnswer:
        self.orders.append(order)
        return TraceAnswer(runs=tuple(self._of(folder, order) for folder in order.folders))

    def _of(self, folder: str, order: TraceOrder) -> TracedRun:
        number = self.folders.index(folder)
        state: Any = self.states[number]
        if state != "read":
            return TracedRun(folder=folder, state=state)
        values = [value for request in order.requests for value in request.selector.values]
        shards = [self._shard(folder, "original", "../sources/1.tar")]
        own = f"key-r{number + 1}" in values
        shards.append(self._shard(folder, "forget" if own else "retain", f"shards/{'forget' if own else 'rewritten'}.tar"))
        images = {split: sum(shard.split == split for shard in shards) for split in ("original", "forget", "retain")}
        return TracedRun(
            folder=folder, state="read", images=images, shards=tuple(shards), requests=(f"r{number + 1}",) if own else ()
        )

    def _shard(self, folder: str, split: str, name: str) -> TracedShard:
        content = json.loads(Path(folder, "manifest.json").read_text())
        found = {ref["uri"]: ref["sha256"] for one in content["splits"] for ref in one["shards"]}
        return TracedShard(split=split, uri=join(folder, name), sha256=found[name], images=1)


def how(found: Trace) -> dict[tuple[str, str], str]:
    return {(model.batch_id, model.kind): model.how for model in found.models}


# Both runs begin with the same original, which is recorded with the first.
LATER = {("b-000001", "original"): "trained", ("b-000001", "unlearned"): "trained", ("b-000002", "unlearned"): "forgot"}


def test_a_person_a_request_and_a_key_lead_to_the_same_models(ledger: Ledger) -> None:
    indexes = Indexes(ledger)
    found = [
        trace_subject(ledger, "Person r2", indexes),
        trace_request(ledger, "r2", indexes),
        trace_key(ledger, "key-r2", indexes),
    ]
    assert [how(one) for one in found] == [LATER] * 3
    assert {one.requests for one in found} == {(("r2", "evaluated"),)}
    assert {one.batches for one in found} == {(("b-000002", "evaluated", "pending", folder_of(ledger, 2)),)}
    assert [len(order.folders) for order in indexes.orders] == [2, 2, 2]


def test_nobody_saw_what_nobody_asked_for(ledger: Ledger) -> None:
    assert trace_subject(ledger, "Someone else", Indexes(ledger)) == Trace(requests=(), batches=(), runs=(), models=())
    assert trace_subject(ledger, "", Indexes(ledger)).models == ()
    with pytest.raises(ConfigError, match="request r9"):
        trace_request(ledger, "r9", Indexes(ledger))


def test_where_the_own_index_is_erased_the_batch_says_it(ledger: Ledger) -> None:
    found = trace_subject(ledger, "Person r2", Indexes(ledger, "read", "gone"))
    assert how(found) == LATER
    assert [run.state for run in found.runs] == ["read", "gone"]


def test_where_another_run_s_index_is_gone_its_models_may_have_seen_them(ledger: Ledger) -> None:
    with ledger.write() as tx:  # an original of its own, which saw the same shards
        kept = tx.execute(sa.select(MODEL).where(MODEL.c.batch_id == "b-000001", MODEL.c.parent.is_(None))).mappings().one()
        tx.execute(sa.insert(MODEL).values({**kept, "model_id": "f" * 64, "batch_id": "b-000002"}))
        objects = tx.execute(sa.select(MODEL_OBJECT).where(MODEL_OBJECT.c.model_id == kept["model_id"])).mappings().all()
        tx.execute(sa.insert(MODEL_OBJECT), [{**row, "model_id": "f" * 64} for row in objects])
        tx.execute(sa.update(MODEL).where(MODEL.c.model_id == "f" * 64).values(folder=folder_of(ledger, 2)))
    found = how(trace_subject(ledger, "Person r2", Indexes(ledger, "gone", "read")))
    assert found[("b-000001", "original")] == "perhaps" and found[("b-000002", "original")] == "trained"
    assert found[("b-000001", "unlearned")] == "perhaps" and found[("b-000002", "unlearned")] == "forgot"


def test_a_model_leads_to_its_requests(ledger: Ledger) -> None:
    model = trace_model(ledger, checkpoint=folder_of(ledger, 2))
    assert (model.kind, model.verdict, model.batches) == ("unlearned", "passed", ("b-000002",))
    assert model.requests == (("r2", "evaluated", "b-000002", "pending"),)
    assert [kind for _, kind in model.ancestry] == ["unlearned", "original"]
    assert len(model.trained) == 2 and len(model.forgotten) == 2
    assert trace_model(ledger, checkpoint=model.model_id[:10]) == model
    original = trace_model(ledger, checkpoint=model.ancestry[-1][0])
    assert (original.batches, original.requests) == ((), ())


def test_an_alias_leads_to_its_last_model(ledger: Ledger) -> None:
    first, second = (trace_model(ledger, checkpoint=folder_of(ledger, number)) for number in (1, 2))
    with ledger.write() as tx:
        for version, model in enumerate((first, second), start=1):
            row = {"line": model.line, "name": "live", "version": version, "model_id": model.model_id}
            tx.execute(sa.insert(ALIAS).values(**row, changed_at=tx.now, by="p", reason=""))
    found = trace_model(ledger, alias=f"{second.line}/live")
    assert found.model_id == second.model_id and found.aliases == (f"{second.line}/live",)
    assert trace_model(ledger, alias="line/live") == found
    assert trace_model(ledger, checkpoint=first.model_id).aliases == ()
    touched = trace_request(ledger, "r2", Indexes(ledger)).models
    assert {model.aliases for model in touched if model.how == "forgot"} == {found.aliases}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"checkpoint": "0" * 12}, "the ledger has no such model"),
        ({"checkpoint": "/nowhere"}, "the ledger has no such model"),
        ({"alias": "line/live"}, "the ledger has no such alias"),
        ({"alias": "live"}, "the ledger has no such alias"),
    ],
)
def test_unknown_models_are_named(ledger: Ledger, words: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        trace_model(ledger, **words)
