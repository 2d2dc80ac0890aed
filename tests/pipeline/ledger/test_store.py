"""A ledger is opened, made once however many open it, brought up to date, and written by one at a time."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from pipeline.errors import ConfigError, StorageError
from pipeline.ledger import history, store
from pipeline.ledger.schema import HEAD, HISTORY, METADATA, REQUEST_VALUE, VERSION
from pipeline.ledger.store import Ledger, default_actor, open_ledger
from tests.pipeline.ledger.conftest import Clock
from tests.support.swarm import swarm


def test_what_the_migrations_leave_is_what_the_tables_say(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, METADATA) == []


def test_the_newest_migration_is_the_version(ledger: Ledger) -> None:
    scripts = Path(store.__file__).parent / "migrations" / "versions"
    assert max(path.name[1:5] for path in scripts.glob("v*.py")) == VERSION
    with ledger.read() as tx:
        assert tx.execute(sa.select(HEAD.c.version)).scalar_one() == VERSION


def test_opening_again_makes_nothing(ledger: Ledger, ledger_url: str) -> None:
    with open_ledger(ledger_url, create=False) as again, again.read() as tx:
        assert tx.seq == 1 and [entry["event"] for entry in history.entries(tx)] == ["created"]


def test_the_files_are_for_their_owner_alone(sqlite_ledger: Ledger) -> None:
    for path in (sqlite_ledger.engine.url.database, sqlite_ledger.key_file):
        assert stat.S_IMODE(Path(str(path)).stat().st_mode) == 0o600


def test_no_ledger_and_none_wanted_is_named(ledger_url: str) -> None:
    with pytest.raises(ConfigError, match="no ledger there") as refused:
        open_ledger(ledger_url, create=False)
    assert "unlearn ledger init" in refused.value.cure


def test_a_ledger_of_a_newer_version_is_refused_by_name(ledger: Ledger, ledger_url: str) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match=r"newer version.*9999"):
        open_ledger(ledger_url)


@pytest.mark.parametrize("url", ["mysql://u:hunter2@h/n", "sqlite://", "sqlite:///:memory:", "nothing", "sqlite:///a?mode=ro"])
def test_other_databases_are_refused_without_their_passwords(url: str) -> None:
    with pytest.raises(ConfigError, match="--ledger") as refused:
        open_ledger(url)
    assert "hunter2" not in str(refused.value)


def test_a_server_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="OperationalError") as refused:
        open_ledger(f"postgresql://me:hunter2@/none?host={tmp_path}")
    assert "hunter2" not in str(refused.value) and refused.value.__suppress_context__


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        open_ledger(f"sqlite:///{tmp_path}/nowhere/ledger.sqlite")


def test_a_body_that_raises_leaves_nothing(ledger: Ledger) -> None:
    with pytest.raises(KeyError), ledger.write() as tx:
        history.append(tx, "ledger", "n", "e")
        raise KeyError
    with ledger.read() as tx:
        assert tx.seq == 1 and len(history.entries(tx)) == 1
    assert history.check(ledger) == []


def test_a_refusal_of_the_database_quotes_no_row(ledger: Ledger) -> None:
    with pytest.raises(StorageError) as refused, ledger.write() as tx:
        twice = {"seq": 1, "name": "MARKER", **dict.fromkeys(("at", "actor", "what", "event", "detail", "previous", "hash"), "x")}
        tx.execute(sa.insert(HISTORY), twice)
    assert "MARKER" not in str(refused.value) and "refused" in str(refused.value)


def test_many_rows_are_inserted_or_refused_without_being_quoted(ledger: Ledger) -> None:
    columns, row = ("request_id", "value"), ("MARKER", "MARKER")
    with pytest.raises(StorageError, match="refused") as refused, ledger.write() as tx:
        tx.insert(REQUEST_VALUE, columns, [row])  # of a request that is not there
    assert "MARKER" not in str(refused.value)
    told = ("seq", *(column.name for column in HISTORY.c if column.name != "seq"))
    with ledger.write() as tx:
        tx.insert(HISTORY, told, [(number, *"abcdefgh") for number in (7, 8)])
        assert list(tx.execute(sa.select(HISTORY.c.seq).where(HISTORY.c.seq > 1)).scalars()) == [7, 8]


def test_a_reader_sees_one_state_while_another_writes(ledger: Ledger) -> None:
    with ledger.read() as reader:
        before = reader.seq
        with ledger.write() as tx:
            history.append(tx, "ledger", "n", "e")
        assert reader.execute(sa.select(HEAD.c.seq)).scalar_one() == before
    with ledger.read() as reader:
        assert reader.seq == before + 1


def test_a_clock_that_was_moved_back_changes_no_order(ledger: Ledger, clock: Clock) -> None:
    with ledger.write() as tx:
        history.append(tx, "ledger", "first", "e")
    clock.move(days=-400)
    assert ledger.now() == "2026-01-31T12:00:00.000000Z"
    with ledger.write() as tx:
        history.append(tx, "ledger", "second", "e")
    clock.move(days=800)
    with ledger.write() as tx:
        history.append(tx, "ledger", "third", "e")
        told = history.entries(tx)
    assert [entry["at"] for entry in told] == sorted(entry["at"] for entry in told)
    assert history.check(ledger) == []


def test_the_clock_is_the_server_s_or_this_machine_s(ledger_url: str) -> None:
    with open_ledger(ledger_url) as opened:
        said = datetime.datetime.fromisoformat(opened.now())
    assert abs((datetime.datetime.now(datetime.UTC) - said).total_seconds()) < 60


def test_the_actor_is_user_and_host() -> None:
    user, _, host = default_actor().partition("@")
    assert user and host


def test_another_pseudonym_key_is_refused(ledger: Ledger, ledger_url: str, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    other.write_text("0" * 64)
    with open_ledger(ledger_url, key_file=str(other)) as opened, opened.read() as tx:
        with pytest.raises(ConfigError, match="another pseudonym key"):
            _ = tx.secret
    with ledger.read() as tx:
        assert len(tx.secret) == 32


def test_many_texts_are_one_condition(ledger: Ledger) -> None:
    with ledger.read() as tx:
        query = sa.select(HISTORY.c.seq).where(
            tx.any_of(HISTORY.c.event, ["created", 'it\'s "odd" \\ ü', *map(str, range(40_000))])
        )
        assert list(tx.execute(query).scalars()) == [1]


def test_eight_processes_make_one_ledger_and_one_chain(ledger_url: str) -> None:
    swarm("append", 8, ledger_url)
    with open_ledger(ledger_url, create=False) as opened:
        assert history.check(opened) == []
        with opened.read() as tx:
            told = history.entries(tx)
    assert len(told) == 41 and len({entry["actor"] for entry in told[1:]}) == 8
