"""Models and aliases in a ledger: written once however often, and what a roll-back sends back to the queue."""

from __future__ import annotations

import sqlalchemy as sa

from pipeline.ledger import batches, requests
from pipeline.ledger.history import check, entries
from pipeline.ledger.pseudonyms import key_id, make_key
from pipeline.ledger.releases import (
    Model,
    batch_of,
    known_model,
    line_of,
    record_alias,
    record_destroyed,
    record_kept,
    record_model,
    record_new_secret,
    record_retired,
    release_batch,
    released_batches,
    take_back,
)
from pipeline.ledger.requests import Submission
from pipeline.ledger.schema import ALIAS, MODEL, MODEL_OBJECT
from pipeline.ledger.store import Ledger, Transaction
from pipeline.records import ShardRef

SHARD = ShardRef(uri="s3://b/0.tar", sha256="1" * 64, bytes=1, samples=1, origin="original")


def evaluated(ledger: Ledger, line: str = "faces", label: str = "one") -> str:
    """A batch of one request whose run has ended; returns its name."""
    with ledger.write() as tx:
        requests.submit(tx, Submission(kind="label", values=(label,), line=line))
        name = batches.close(tx, line)
        batches.move(tx, name, "running")
        batches.move(tx, name, "evaluated")
    return name


def model(tx: Transaction, name: str, **over: object) -> Model:
    settled = {"model_id": "a" * 64, "line": "faces", "version": "v1", "batch": batches.find(tx, name)["requests_digest"]}
    settled |= {"folder": "runs/x", "uri": "rel/faces/v1", "verdict": "passed", "parent": None, "digests": {"statement": "d"}}
    return Model(**{**settled, "trained": (SHARD, SHARD), "forgotten": (SHARD,), **over})  # type: ignore[arg-type]


def released(tx: Transaction, made: Model) -> None:
    record_model(tx, made)
    release_batch(tx, made.batch, version=made.version, model_id=made.model_id)


def told(ledger: Ledger, what: str = "release") -> list[tuple[str, str]]:
    with ledger.read() as tx:
        return [(entry["name"], entry["event"]) for entry in entries(tx, what)]


def test_a_release_is_written_down_once_and_its_batch_is_released(ledger: Ledger) -> None:
    name = evaluated(ledger)
    for _ in range(2):
        with ledger.write() as tx:
            assert record_model(tx, model(tx, name)) == name
            assert batches.find(tx, name)["state"] in ("evaluated", "released")
            released(tx, model(tx, name))
    with ledger.read() as tx:
        assert tx.execute(sa.select(sa.func.count()).select_from(MODEL)).scalar() == 1
        rows = tx.execute(sa.select(MODEL_OBJECT.c.role, MODEL_OBJECT.c.sha256).order_by(MODEL_OBJECT.c.role)).all()
        assert [tuple(row) for row in rows] == [("forgotten", "1" * 64), ("trained", "1" * 64)]
        assert batches.find(tx, name)["state"] == "released" and known_model(tx, "a" * 64) and not known_model(tx, "b" * 64)
        assert released_batches(tx, "faces") == {batches.find(tx, name)["requests_digest"]} and released_batches(tx, "x") == set()
    assert told(ledger) == [("faces/v1", "released")] and check(ledger) == []


def test_a_batch_by_hand_has_no_row_and_its_model_keeps_the_given_line(ledger: Ledger) -> None:
    name = evaluated(ledger, line="lines/faces.yaml")
    with ledger.write() as tx:
        assert record_model(tx, model(tx, name, batch="9" * 64)) == "" and batch_of(tx, "9" * 64) is None
        assert line_of(tx, "a" * 64, "other") == "faces" and line_of(tx, "b" * 64, "other") == "other"
        assert line_of(tx, "b" * 64, "other", batch_digest=model(tx, name).batch) == "lines/faces.yaml"
        assert record_model(tx, model(tx, name, model_id="b" * 64, parent="a" * 64)) == name
        assert line_of(tx, "b" * 64, "other") == "lines/faces.yaml"  # the line that the requests were sent to
        parents = dict(tuple(row) for row in tx.execute(sa.select(MODEL.c.model_id, MODEL.c.parent)))
        assert parents == {"a" * 64: None, "b" * 64: "a" * 64}


def test_an_alias_has_a_row_a_change(ledger: Ledger) -> None:
    name = evaluated(ledger)
    with ledger.write() as tx:
        record_model(tx, model(tx, name))
    for number, act in ((1, "promoted"), (1, "promoted"), (2, "rolled back")):
        with ledger.write() as tx:
            facts = {"number": number, "model_id": "a" * 64, "version": "v1", "act": act, "by": "Ada"}
            record_alias(tx, "faces", "live", **facts, reason="why", approved=True)  # type: ignore[arg-type]
    with ledger.read() as tx:
        rows = tx.execute(sa.select(ALIAS.c.version, ALIAS.c.by, ALIAS.c.reason).order_by(ALIAS.c.version)).all()
        assert [tuple(row) for row in rows] == [(1, "Ada", "why"), (2, "Ada", "why")]
    assert told(ledger)[1:] == [("faces/live", "promoted"), ("faces/live", "rolled back")]


def test_a_roll_back_sends_requests_back_to_the_queue(ledger: Ledger) -> None:
    first, second = evaluated(ledger), evaluated(ledger, label="two")
    with ledger.write() as tx:
        released(tx, model(tx, first))
        released(tx, model(tx, second, model_id="b" * 64, version="v2"))
        digest = batches.find(tx, second)["requests_digest"]
        assert take_back(tx, [digest, "0" * 64], reason="live names v1") == [second]
        assert take_back(tx, [digest], reason="again") == []
        assert batches.find(tx, second)["state"] == "rolled_back" and batches.find(tx, first)["state"] == "released"
        assert requests.counts(tx) == {"released": 1, "queued": 1}
        assert released_batches(tx, "faces") == {batches.find(tx, first)["requests_digest"]}


def test_what_was_retired_has_its_date_once_and_an_entry_each_time(ledger: Ledger) -> None:
    name = evaluated(ledger)
    with ledger.write() as tx:
        record_model(tx, model(tx, name))
        for date in ("2026-03-03", "2027-01-01"):
            record_kept(tx, "faces", "v1", model_id="a" * 64, kept_until=date)
        record_retired(tx, "faces", "v1", model_id="a" * 64, files=2, weights=False)
        assert tx.execute(sa.select(MODEL.c.removed_at)).scalar() is None
        record_retired(tx, "faces", "v1", model_id="a" * 64, files=1, weights=True)
        removed, kept_until = tuple(tx.execute(sa.select(MODEL.c.removed_at, MODEL.c.kept_until)).one())
        assert removed == tx.now and kept_until == "2026-03-03"
    assert told(ledger)[1:] == [("faces/v1", "kept"), *[("faces/v1", "retired")] * 2]


def test_a_destroyed_secret_and_its_successor_are_written_down(ledger: Ledger, tmp_path: object) -> None:
    before = key_id(make_key(ledger.key_file))
    after = key_id(make_key(f"{tmp_path}/next.key"))
    with ledger.write() as tx:
        record_destroyed(tx, before)
    assert check(ledger) == []
    with ledger.write() as tx:
        record_new_secret(tx, after)
    assert check(ledger) == [] and told(ledger, "ledger")[1:] == [("pseudonym key", "destroyed"), ("pseudonym key", "changed")]
    with ledger.read() as tx:
        assert tx.key_id == after
