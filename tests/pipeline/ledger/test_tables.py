"""Files of requests are read row by row, and a faulty row is named by its number and not by its text."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, DataError, StorageError, UnlearnError
from pipeline.ledger import tables
from pipeline.ledger.tables import RowFile

CSV = 'kind,value,subject\nkey,"a, b",Ann\nlabel,"two\nlines",\nprefix,p/,"say ""x"""\n'


def write(folder: Path, content: str | bytes, name: str = "a.csv") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(path: str) -> list[tables.Row]:
    with RowFile(path) as file:
        return list(file.rows())


def test_quotes_commas_and_line_breaks_are_text(tmp_path: Path) -> None:
    rows = read(write(tmp_path, CSV))
    assert [number for number, _ in rows] == [1, 2, 3]
    assert rows[0][1] == {"kind": "key", "value": "a, b", "subject": "Ann"}
    assert rows[1][1]["value"] == "two\nlines" and rows[2][1]["subject"] == 'say "x"'


def test_both_forms_hold_the_same_rows(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "key": ["a", "ü", "c"],
        "note": ["", None, "n"],
        "received_at": [None, datetime.date(2026, 1, 2), None],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    csv = write(tmp_path, "\ufeffkey,note,received_at\na,,\nü,,2026-01-02\nc,n,\n")
    assert read(str(tmp_path / "a.parquet")) == read(csv)
    with RowFile(csv) as file:
        assert file.kind == "keys" and file.columns == ("value", "note", "received_at") and len(file.sha256) == 64
        assert file.kind_of({"value": "a"}) == "keys" and file.kind_of({"kind": "labels"}) == "label"


@given(st.lists(st.tuples(st.sampled_from(["r1", "r2", "r3", ""]), st.integers(0, 99)), max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_rows_of_one_request_come_together_and_none_is_lost(tmp_path: Path, given_rows: list[tuple[str, int]]) -> None:
    text = "request_id,key\n" + "".join(f"{name},{key}\n" for name, key in given_rows)
    rows = read(write(tmp_path, text))
    assert sorted(number for number, _ in rows) == list(range(1, len(given_rows) + 1))
    names = [row["request_id"] for _, row in rows if row["request_id"]]
    changes = [name for number, name in enumerate(names) if number == 0 or names[number - 1] != name]
    assert len(changes) == len(set(changes))
    assert all(row == {"request_id": given_rows[n - 1][0], "value": str(given_rows[n - 1][1])} for n, row in rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("key\nok\nMARKER,more\n", r"row 2: not 1 columns"),
        ('key,note\na,b\nc,d\n"MARKER",x,y\n', r"row 3: not 2 columns"),
        (b"key\nok\nok\nMARKER\xff\n", r"row 3: not UTF-8"),
        ("kind\nkey\n", "no column value"),
        ("value\na\n", "no column kind"),
        ("key,MARKER\na,b\n", "unknown column"),
        ("key,key\na,b\n", "key, key: which holds the values"),
        ("key,label\na,b\n", "which holds the values"),
        ("kind,value,note,note\nkey,b,c,d\n", "a column twice: note"),
        ("", "no column kind, value"),
        (b"\xff\xfe\n", "not readable as CSV"),
    ],
)
def test_what_is_wrong_is_named_without_its_text(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UnlearnError, match=message) as refused:
        read(write(tmp_path, content))
    assert "MARKER" not in str(refused.value) or "unknown column" in str(refused.value)
    assert isinstance(refused.value, ConfigError | DataError)


def test_a_faulty_row_is_counted_from_the_first_block_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK_BYTES", 200)
    with pytest.raises(DataError, match="row 501: not 1 columns"):
        read(write(tmp_path, "key\n" + "train/n01440764/image.JPEG\n" * 500 + "a,b\n" + "c\n" * 10))


def test_a_header_alone_holds_no_row(tmp_path: Path) -> None:
    assert read(write(tmp_path, "request_id,key\n")) == []


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        RowFile(str(tmp_path / "none.csv"))
    with pytest.raises(ConfigError, match=r"neither \.csv nor \.parquet"):
        RowFile(write(tmp_path, "key\n", "a.txt"))
    with pytest.raises(DataError, match="not readable as Parquet"):
        RowFile(write(tmp_path, "MARKER", "a.parquet"))
    pq.write_table(pa.table({"key": [[1], [2]]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="not readable as Parquet"):
        read(str(tmp_path / "b.parquet"))
