"""The history is only ever added to, and whatever is done to it by other means is found and named."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import StorageError
from pipeline.ledger import history
from pipeline.ledger.history import append, check, entries
from pipeline.ledger.schema import HISTORY
from pipeline.ledger.store import Ledger, open_ledger

COUNT = 6
FIELDS = ("at", "actor", "what", "name", "event", "detail", "previous", "hash")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a ledger with some entries."""
    path = tmp_path_factory.mktemp("told") / "ledger.sqlite"
    with open_ledger(f"sqlite:///{path}", actor="tester") as opened:
        for number in range(COUNT - 1):
            with opened.write() as tx:
                append(tx, "run", f"r{number}", "done", {"number": number, "text": "ü"})
    return path


def tampered(told: Path, folder: Path, *statements: tuple[str, tuple[Any, ...]]) -> list[history.Fault]:
    """The faults after somebody with the file in hand has run some statements on a copy."""
    for path in folder.iterdir():
        path.unlink()
    copy = folder / "ledger.sqlite"
    shutil.copy(told, copy)
    with sqlite3.connect(copy) as connection:
        for name in ("history_no_update", "history_no_delete"):
            connection.execute(f"DROP TRIGGER {name}")
        for statement, values in statements:
            connection.execute(statement, values)
    connection.close()
    with open_ledger(f"sqlite:///{copy}", create=False) as opened:
        return check(opened)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For one copy at a time."""
    (tmp_path / "copy").mkdir()
    return tmp_path / "copy"


def numbers(faults: list[history.Fault]) -> list[int]:
    return [fault.seq for fault in faults]


def test_what_nobody_touched_is_whole(told: Path, folder: Path) -> None:
    assert tampered(told, folder) == []


CHANGE = st.tuples(
    st.integers(1, COUNT), st.sampled_from(FIELDS), st.one_of(st.text(max_size=70), st.binary(max_size=9), st.integers(0, 9))
)


@given(CHANGE)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_any_change_of_any_field_names_the_entry(told: Path, folder: Path, change: tuple[int, str, Any]) -> None:
    seq, field, value = change
    with sqlite3.connect(told) as connection:
        ((before,),) = connection.execute(f"SELECT {field} FROM history WHERE seq = ?", (seq,))
    connection.close()
    faults = tampered(told, folder, (f"UPDATE history SET {field} = ? WHERE seq = ?", (value, seq)))
    with sqlite3.connect(folder / "ledger.sqlite") as connection:
        ((after,),) = connection.execute(f"SELECT {field} FROM history WHERE seq = ?", (seq,))
    connection.close()
    assert (numbers(faults)[:1] == [seq]) if after != before else faults == []


@given(st.integers(1, COUNT), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_any_byte_of_any_field_counts(told: Path, folder: Path, seq: int, data: Any) -> None:
    field = data.draw(st.sampled_from(FIELDS))
    with sqlite3.connect(told) as connection:
        ((before,),) = connection.execute(f"SELECT {field} FROM history WHERE seq = ?", (seq,))
    connection.close()
    raw = bytearray(before.encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    update = f"UPDATE history SET {field} = CAST(? AS TEXT) WHERE seq = ?"
    assert numbers(tampered(told, folder, (update, (bytes(raw), seq))))[:1] == [seq]


@pytest.mark.parametrize("seq", range(1, COUNT + 1))
def test_a_removed_entry_is_named(told: Path, folder: Path, seq: int) -> None:
    faults = tampered(told, folder, ("DELETE FROM history WHERE seq = ?", (seq,)))
    if seq < COUNT:
        assert f"entry {seq}: removed" in [fault.text for fault in faults]
    else:
        assert [fault.text for fault in faults] == [f"head: says entry {COUNT} is the last, and it is entry {COUNT - 1}"]


def test_a_gap_is_named_whole_and_so_is_an_empty_history(told: Path, folder: Path) -> None:
    faults = tampered(told, folder, ("DELETE FROM history WHERE seq BETWEEN 2 AND 4", ()))
    assert faults[0].text == "entry 2 to 4: removed"
    assert tampered(told, folder, ("DELETE FROM history", ()))[0].text.startswith("head: says")


def test_a_hidden_gap_is_found_by_the_chain(told: Path, folder: Path) -> None:
    faults = tampered(
        told,
        folder,
        ("DELETE FROM history WHERE seq = 3", ()),
        *(("UPDATE history SET seq = ? WHERE seq = ?", (seq - 1, seq)) for seq in range(4, COUNT + 1)),
    )
    assert numbers(faults)[0] == 3


def test_swapped_entries_are_named(told: Path, folder: Path) -> None:
    moves = ((99, 2), (2, 3), (3, 99))
    faults = tampered(told, folder, *(("UPDATE history SET seq = ? WHERE seq = ?", move) for move in moves))
    assert {2, 3} <= set(numbers(faults))


@pytest.mark.parametrize("field", ["seq", "hash", "version", "key_id"])
def test_a_changed_head_is_found(told: Path, folder: Path, field: str) -> None:
    value = 3 if field == "seq" else "0" * 16
    faults = tampered(told, folder, (f"UPDATE head SET {field} = ?", (value,)))
    assert numbers(faults) == [0] and faults[0].text.startswith("head: ")


def test_an_added_entry_without_its_place_in_the_chain_is_found(told: Path, folder: Path) -> None:
    row = (COUNT + 1, "9", "me", "run", "x", "done", "{}", "0" * 64, "0" * 64)
    insert = f"INSERT INTO history VALUES ({', '.join('?' * 9)})"
    assert COUNT + 1 in numbers(tampered(told, folder, (insert, row)))


def test_a_missing_head_is_named(told: Path, folder: Path) -> None:
    from pipeline.errors import IntegrityError

    with pytest.raises(IntegrityError, match="the head of the history is missing"):
        tampered(told, folder, ("DELETE FROM head", ()))


@pytest.mark.parametrize("statement", [sa.update(HISTORY).values(name="x"), sa.delete(HISTORY)])
def test_the_database_itself_refuses_changes(ledger: Ledger, statement: Any) -> None:
    with pytest.raises(StorageError, match="refused"), ledger.write() as tx:
        tx.execute(statement)
    assert check(ledger) == []


def test_a_table_is_not_emptied_on_a_server_either(ledger: Ledger) -> None:
    if ledger.engine.dialect.name == "postgresql":
        with pytest.raises(StorageError, match="refused"), ledger.write() as tx:
            tx.execute(sa.text("TRUNCATE history"))
    assert check(ledger) == []


def test_entries_are_found_by_what_and_name(ledger: Ledger) -> None:
    with ledger.write() as tx:
        first = append(tx, "run", "a", "began")
        append(tx, "run", "b", "began")
        append(tx, "batch", "a", "closed")
        last = append(tx, "run", "a", "ended", {"seconds": 3})
        assert [entry["seq"] for entry in entries(tx, "run", "a")] == [first, last]
        assert [entry["seq"] for entry in entries(tx, after=first, limit=2)] == [first + 1, first + 2]
        with pytest.raises(ValueError, match="not one of"):
            append(tx, "person", "a", "b")
    assert check(ledger) == []


def test_more_entries_than_a_page_are_checked(sqlite_ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "PAGE", 3)
    monkeypatch.setattr(entries, "__kwdefaults__", {"after": 0, "limit": 3})
    with sqlite_ledger.write() as tx:
        for number in range(10):
            append(tx, "run", f"r{number}", "done")
    assert check(sqlite_ledger) == []
