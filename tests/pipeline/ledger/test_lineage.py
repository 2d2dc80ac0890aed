"""What runs leave in the ledger, and what it answers: who saw a shard, what came from that, and which requests are in it."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from pipeline.ledger import batches, history, leases, lineage
from pipeline.ledger.lineage import Made, Seen
from pipeline.ledger.pseudonyms import pseudonym
from pipeline.ledger.requests import Submission, submit
from pipeline.ledger.schema import ALIAS
from pipeline.ledger.store import Ledger, Transaction

A, B, C = "a" * 64, "b" * 64, "c" * 64
CLEAN, TOUCHED, REST = ("s3://b/0.tar", "0" * 64), ("s3://b/1.tar", "1" * 64), ("/run/1.tar", "2" * 64)


def seen(*shards: tuple[str, str], role: str = "trained") -> tuple[Seen, ...]:
    return tuple(Seen(uri=uri, version="", sha256=sha256, role=role) for uri, sha256 in shards)  # type: ignore[arg-type]


def made(model_id: str, kind: str, parent: str | None, *shards: Seen) -> Made:
    ended = "2026-11-26T12:00:00.125+01:00"
    return Made(model_id=model_id, kind=kind, uri=f"/run/{kind}", made_at=ended, verdict="", parent=parent, seen=shards)


def request(tx: Transaction, name: str, kind: str, *values: str, subject: str = "") -> str:
    wish = Submission(kind=kind, values=values, line="line", request_id=name, subject=subject)
    return submit(tx, wish, checked=True).request_id


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    """A batch of two requests, run once; its original saw a shard that the unlearned model saw only the rest of."""
    with ledger.write() as tx:
        request(tx, "r1", "keys", "x/1", "y/2", subject="Ada")
        request(tx, "r2", "prefix", "x/", subject="Ada")
        request(tx, "r3", "label", "cat", subject="Bob")
    with ledger.write() as tx:
        name = batches.close(tx, "line")
        lease = leases.claim(tx, "me", 60, batch_id=name)
        assert lease is not None
        batches.move(tx, name, "running", lease=lease)
        batches.note(tx, lease, folder="/run")
    with ledger.write() as tx:
        models = (
            made(A, "original", None, *seen(CLEAN, TOUCHED)),
            made(B, "unlearned", A, *seen(CLEAN, REST), *seen(TOUCHED, role="forgotten")),
        )
        assert lineage.record_made(tx, models, line="line", batch_id="b-000001", folder="/run") == [A, B]
    return ledger


def test_what_a_run_made_is_written_once(filled: Ledger) -> None:
    with filled.write() as tx:
        assert {row["made_at"] for row in lineage.models_of_batches(tx, ["b-000001"])} == {"2026-11-26T11:00:00.125000Z"}
        again = (made(A, "original", None, *seen(CLEAN)), made(C, "unlearned", "d" * 64))
        assert lineage.record_made(tx, again, line="line", batch_id="b-000001", folder="/other") == [C]
        assert {row["model_id"]: row["folder"] for row in lineage.models_of_batches(tx, ["b-000001"])} == {
            A: "/run",
            B: "/run",
            C: "/other",
        }
        assert [row["parent"] for row in lineage.ancestry(tx, C)] == [None]  # a parent that nobody knows
        assert [entry["event"] for entry in history.entries(tx, "run", "/run")] == ["models made"]
    assert history.check(filled) == []


def test_models_that_saw_a_shard_and_in_which_role(filled: Ledger) -> None:
    with filled.read() as tx:
        found = lineage.models_that_saw(tx, [TOUCHED])
        assert {(row["model_id"], row["role"]) for row in found} == {(A, "trained"), (B, "forgotten")}
        assert {row["model_id"] for row in lineage.models_that_saw(tx, [CLEAN, REST])} == {A, B}
        assert lineage.models_that_saw(tx, [(TOUCHED[0], REST[1])]) == []  # another version of it
        assert lineage.models_that_saw(tx, [TOUCHED], folder="/elsewhere") == []
        many = [(f"s3://b/{n}.tar", "0" * 64) for n in range(1200)]
        assert {row["model_id"] for row in lineage.models_that_saw(tx, many)} == {A, B}
        assert [item["uri"] for item in lineage.objects_of(tx, A)] == [CLEAN[0], TOUCHED[0]]


def test_ancestors_and_descendants(filled: Ledger) -> None:
    with filled.write() as tx:
        lineage.record_made(tx, [made(C, "unlearned", B)], line="line", batch_id=None, folder="/next")
        assert [row["model_id"] for row in lineage.ancestry(tx, C)] == [C, B, A]
        assert lineage.descendants(tx, [A]) == [B, C] and lineage.descendants(tx, [C]) == []


def test_requests_by_person_and_by_key(filled: Ledger) -> None:
    with filled.read() as tx:
        assert lineage.requests_of_subject(tx, pseudonym(tx.secret, "Ada")) == ["r1", "r2"]
        assert lineage.requests_of_subject(tx, pseudonym(tx.secret, "Eve")) == []
        # A label is not a key, and a key is no beginning of another.
        keys = {"x/1": ["r1", "r2"], "x/12": ["r2"], "y/2": ["r1"], "cat": [], "x": []}
        assert {key: lineage.requests_naming(tx, key) for key in keys} == keys
        found = lineage.batches_of_requests(tx, ["r1", "r3"])
        assert [(row["request_id"], row["batch_id"], row["outcome"]) for row in found] == [
            ("r1", "b-000001", "pending"),
            ("r3", "b-000001", "pending"),
        ]
        assert [row["request_id"] for row in lineage.requests_of_batches(tx, ["b-000001"])] == ["r1", "r2", "r3"]
        assert lineage.runs(tx) == lineage.runs(tx, line="line") == [("b-000001", "/run")] and lineage.runs(tx, line="x") == []


def test_models_are_found_by_digits_file_and_folder(filled: Ledger) -> None:
    with filled.read() as tx:
        names = (A, A[:8], "/run/original", "/run", "/run/unlearned", "a" * 7, "nothing")
        found = [sorted(row["model_id"] for row in lineage.model_named(tx, name)) for name in names]
    assert found == [[A], [A], [A], [A, B], [B], [], []]


def test_the_last_version_of_an_alias_is_in_force(filled: Ledger) -> None:
    with filled.write() as tx:
        for version, model in enumerate((A, B), start=1):
            row = {
                "line": "line",
                "name": "live",
                "version": version,
                "model_id": model,
                "changed_at": tx.now,
                "by": "p",
                "reason": "",
            }
            tx.execute(sa.insert(ALIAS).values(row))
        assert [(row["model_id"], row["in_force"]) for row in lineage.aliases_of(tx, [A, B])] == [(A, False), (B, True)]
        assert [row["model_id"] for row in lineage.alias_history(tx, "line", "live")] == [A, B]
        assert lineage.alias_history(tx, "line", "dead") == []
        assert (lineage.alias_lines(tx, "live"), lineage.alias_lines(tx, "dead")) == (["line"], [])


def test_runs_that_began_after_a_batch_s_tombstones_skipped_its_images(filled: Ledger) -> None:
    with filled.write() as tx:
        history.append(tx, "batch", "b-000001", lineage.SKIPPED, {})
        request(tx, "r4", "keys", "z/1")
        name = batches.close(tx, "line")
        lease = leases.claim(tx, "me", 60, batch_id=name)
        assert lease is not None
        batches.move(tx, name, "running", lease=lease)
        batches.note(tx, lease, folder="/second")
        digest = batches.find(tx, "b-000001")["requests_digest"]
        assert lineage.skipped_before(tx) == {"/run": (), "/second": (digest,)}
