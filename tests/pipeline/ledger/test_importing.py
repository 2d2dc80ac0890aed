"""A file is taken in whole or not at all, and the same file again changes nothing but counts."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from pipeline.errors import ConfigError, UnlearnError
from pipeline.ledger import history, importing
from pipeline.ledger.importing import Imported, import_file
from pipeline.ledger.requests import Submission, find, show, submit, values_of
from pipeline.ledger.schema import REQUEST, REQUEST_VALUE
from pipeline.ledger.store import Ledger


def bring(ledger: Ledger, path: Path | str, **more: Any) -> Imported:
    with ledger.write() as tx:
        return import_file(tx, str(path), line="demo", **more)


def write(folder: Path, text: str) -> Path:
    path = folder / "a.csv"
    path.write_text(text, encoding="utf-8")
    return path


def contents(ledger: Ledger) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = collections.defaultdict(list)
    with ledger.read() as tx:
        for name, value in tx.execute(sa.select(REQUEST_VALUE.c.request_id, REQUEST_VALUE.c.value)):
            found[name].append(value)
    return {name: tuple(sorted(values)) for name, values in found.items()}


def test_rows_are_requests_and_rows_of_one_name_join(ledger: Ledger, tmp_path: Path) -> None:
    done = bring(
        ledger, write(tmp_path, "request_id,kind,value,subject\nt1,key,a,Ann\n,key,x,\nt2,key,y,\nt1,keys,b,\n,key,z,\n")
    )
    assert done == Imported(rows=5, new=4, repeats=0, values=5, entry=2)
    made = contents(ledger)
    assert sorted(made.values()) == [("a", "b"), ("x",), ("y",), ("z",)] and made["t1"] == ("a", "b")


def test_the_history_tells_of_an_import_once_and_a_request_finds_it(ledger: Ledger, tmp_path: Path) -> None:
    done = bring(ledger, write(tmp_path, "request_id,key,note\nt1,KEY1,NOTE\nt2,KEY2,\n"))
    with ledger.read() as tx:
        told = show(tx, "t2")["history"]
        assert tx.seq == 2 and find(tx, "t1")["state"] == "received"  # type: ignore[index]
    assert [(entry["seq"], entry["event"]) for entry in told] == [(done.entry, "imported")]
    assert '"rows":2' in told[0]["detail"] and not any(mark in told[0]["detail"] for mark in ("KEY", "NOTE", "t1"))
    assert history.check(ledger) == []


def test_the_same_file_again_is_all_repeats(ledger: Ledger, tmp_path: Path) -> None:
    path = write(tmp_path, "request_id,key\nt1,a\nt2,b\nt1,c\n,d\n,d\n")
    first, before = bring(ledger, path), contents(ledger)
    again = bring(ledger, path)
    assert (first.new, first.repeats, again.new, again.repeats) == (3, 1, 0, 4)
    assert contents(ledger) == before


def test_an_import_knows_what_was_sent_one_by_one(ledger: Ledger, tmp_path: Path) -> None:
    with ledger.write() as tx:
        name = submit(tx, Submission(kind="keys", values=("a", "b"), line="demo", subject="Ann")).request_id
    assert bring(ledger, write(tmp_path, "request_id,key,subject\nt9,b,Ann\nt9,a,Ann\n")).repeats == 1
    with ledger.read() as tx:
        assert find(tx, name)["repeats"] == 1 and find(tx, "t9") is None  # type: ignore[index]


def test_columns_override_and_a_label_needs_a_word(ledger: Ledger, tmp_path: Path) -> None:
    path = write(tmp_path, "kind,value,line,received_at,due_at,copies\nlabel,Trouser,other,2026-01-02,2026-01-20,include\n")
    with pytest.raises(ConfigError, match="may be too broad: label"):
        bring(ledger, path)
    bring(ledger, path, confirmed=True)
    with ledger.read() as tx:
        row = tx.execute(sa.select(REQUEST)).mappings().one()
    assert (row["line"], row["copies"], row["state"]) == ("other", "include", "queued")
    assert (row["received_at"][:10], row["due_at"][:10]) == ("2026-01-02", "2026-01-20")


def test_parquet_is_taken_in_like_csv(ledger: Ledger, tmp_path: Path) -> None:
    pq.write_table(pa.table({"request_id": ["t1", "t1", None], "key": ["a", "b", "c"]}), tmp_path / "a.parquet")
    assert bring(ledger, tmp_path / "a.parquet", checked=True).new == 2
    with ledger.read() as tx:
        assert values_of(tx, "t1") == ("a", "b") and find(tx, "t1")["state"] == "queued"  # type: ignore[index]


GOOD = "request_id,kind,value,subject,copies,received_at\nt1,key,ok,,,\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("t2,key,,,,\n", "row 2: empty: no value"),
        ("t2,MARKER,x,,,\n", "row 2: kind: none of"),
        ("t2,digest,MARKER,,,\n", "row 2: a digest is not"),
        ("t2,key,x,,,\nt2,prefix,y,,,\n", "row 3: kind: another than in row 2 of the same request"),
        ("t2,key,x,MARKER,,\nt2,key,y,MARKER2,,\n", "row 3: subject: another than in row 2"),
        ("t2,key,x,,MARKER,\n", "row 2: copies: none of"),
        ("t2,key,x,,,MARKER\n", "row 2: received_at: neither"),
        ("MARKER ONE,key,x,,,\n", "row 2: request_id: not a name"),
        ("t2,key,ok,,include,\n", "row 2: request .* is open with copies=stop"),
        ("old,key,x,,,\n", "row 2: request_id: the ledger has another"),
        ("t2,key,x,,,\nx,y\n", "row 3: not 6 columns"),
    ],
)
def test_one_faulty_row_leaves_nothing_of_the_file(ledger: Ledger, tmp_path: Path, rows: str, message: str) -> None:
    with ledger.write() as tx:
        submit(tx, Submission(kind="keys", values=("before",), line="demo", request_id="old"))
    before = contents(ledger)
    path = write(tmp_path, GOOD + rows)
    with pytest.raises(UnlearnError, match=message) as refused:
        bring(ledger, path)
    assert str(path) in str(refused.value) and "MARKER" not in str(refused.value)
    assert contents(ledger) == before and history.check(ledger) == []


def test_an_empty_file_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no request in it"):
        bring(ledger, write(tmp_path, "key\n"))


def test_nothing_depends_on_how_many_are_taken_at_once(
    sqlite_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "REQUESTS_AT_ONCE", 3)
    monkeypatch.setattr(importing, "VALUES_AT_ONCE", 5)
    rows = [f"t{number % 11},k{number}" for number in range(60)] + [f",k{number % 7}" for number in range(30)]
    done = bring(sqlite_ledger, write(tmp_path, "request_id,key\n" + "\n".join(rows) + "\n"))
    assert (done.rows, done.new, done.repeats) == (90, 11 + 7, 23)
    assert sorted(map(len, contents(sqlite_ledger).values())) == [1] * 7 + [5] * 6 + [6] * 5
