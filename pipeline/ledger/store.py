"""Open a ledger: its address, its tables made or brought up to date, its transactions.

Writing is one at a time: SQLite's own lock, or PostgreSQL's lock on the one row of `head`. So every transaction sees the end
of the history, and nothing has to be tried again.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import getpass
import json
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from pipeline.errors import ConfigError, IntegrityError, StorageError
from pipeline.ledger import history
from pipeline.ledger.deadlines import time_text
from pipeline.ledger.pseudonyms import key_id, make_key, read_key
from pipeline.ledger.schema import HEAD, HISTORY, VERSION

__all__ = ["DEFAULT_URL", "KEY_VARIABLE", "URL_VARIABLE", "Ledger", "Transaction", "default_actor", "open_ledger"]

DEFAULT_URL = "sqlite:///unlearn-ledger.sqlite"
URL_VARIABLE, KEY_VARIABLE = "UNLEARN_LEDGER", "UNLEARN_PSEUDONYM_KEY"
BUSY_SECONDS = 120
"""How long to wait for another writer: longer than an import of a million rows."""
CACHE_KIB = 128 * 1024
"""Pages of the file that SQLite keeps in memory: the indexes of a million requests."""
MIGRATION_LOCK = 5_077_310_221
"""PostgreSQL's advisory lock that whoever makes or changes tables holds."""
_WRITES = "ledger_writes"


def default_actor() -> str:
    """Who acts, where nobody is named: user and host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class Transaction:
    """One unit of reading or writing.

    Attributes:
        ledger: whose transaction it is.
        now: the time that all it writes bears; never before the last entry of the history.
        seq, hash: end of the history, its own entries included.
        key_id: of the pseudonym key that the ledger is kept with.
    """

    def __init__(self, ledger: Ledger, connection: sa.Connection, *, lock: bool) -> None:
        self.ledger, self.connection = ledger, connection
        head = connection.execute(sa.select(HEAD).with_for_update() if lock else sa.select(HEAD)).mappings().first()
        if head is None:
            raise IntegrityError(f"{ledger.name}: the head of the history is missing", "restore the ledger from its backup")
        self.seq, self.hash, self.key_id = int(head["seq"]), str(head["hash"]), str(head["key_id"])
        last = connection.scalar(sa.select(HISTORY.c.at).where(HISTORY.c.seq == self.seq))
        self.now = max(ledger.clock_time(connection), str(last or ""))

    @property
    def secret(self) -> bytes:
        """The pseudonym key. Raises ConfigError where the file is missing, or holds the key of another ledger."""
        key = read_key(self.ledger.key_file)
        if key_id(key) != self.key_id:
            message = f"{self.ledger.key_file}: another pseudonym key than the ledger's"
            raise ConfigError(message, "name the file that was made with this ledger: --pseudonym-key")
        return key

    def any_of(self, column: sa.Column[Any], texts: Collection[str]) -> sa.ColumnElement[bool]:
        """The condition that a column is one of many texts, handed over as one parameter."""
        if self.connection.dialect.name == "postgresql":
            return column == sa.any_(sa.literal(list(texts), sa.ARRAY(sa.Text)))
        listed = sa.func.json_each(json.dumps(list(texts))).table_valued("value")
        return column.in_(sa.select(listed.c.value))

    def insert(self, table: sa.Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert many rows, each a tuple in the order of `columns`, without what SQLAlchemy does for each row."""
        names = ", ".join(columns)
        if self.connection.dialect.name == "postgresql":
            driver: Any = self.connection.connection
            try:
                with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(row)
            except self.connection.dialect.loaded_dbapi.Error as fault:
                raise _refused(self.ledger.name, fault) from None
            return
        text = f"INSERT INTO {table.name} ({names}) VALUES ({', '.join('?' for _ in columns)})"  # noqa: S608
        self.connection.exec_driver_sql(text, list(rows))

    def execute(self, statement: sa.Executable, rows: Any = None) -> sa.CursorResult[Any]:
        """Run a statement of SQLAlchemy; `rows` are its parameters: one mapping, or a list of them."""
        return self.connection.execute(statement, rows)


class Ledger:
    """An open ledger. Use `write` and `read`; close it at the end, or use it as a context.

    Attributes:
        name: its address, without password.
        actor: who is named in the history.
        key_file: where the pseudonym key lies.
    """

    def __init__(self, engine: sa.Engine, *, actor: str, key_file: str, clock: Callable[[], datetime.datetime] | None) -> None:
        self.engine, self.actor, self.key_file, self._clock = engine, actor, key_file, clock
        self.name = engine.url.render_as_string(hide_password=True)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up all connections."""
        self.engine.dispose()

    def clock_time(self, connection: sa.Connection) -> str:
        """The time by the clock that was given, by the database server's where there is one, or by this machine's."""
        if self._clock is None and self.engine.dialect.name == "postgresql":
            return time_text(connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one())
        return time_text(self._clock() if self._clock else datetime.datetime.now(datetime.UTC))

    def now(self) -> str:
        """The present time, never before the last entry of the history: a clock that was moved back changes no order."""
        with self.read() as tx:
            return tx.now

    @contextlib.contextmanager
    def write(self) -> Iterator[Transaction]:
        """One transaction that writes, alone; all of it is kept, or nothing where the body raises.

        Raises:
            StorageError: the database refuses, or another writer did not finish in two minutes.
        """
        with self._connected({_WRITES: True}) as connection, connection.begin():
            yield Transaction(self, connection, lock=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Transaction]:
        """One transaction that reads a single state of the ledger, whoever writes meanwhile. Raises StorageError."""
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self._connected(options if self.engine.dialect.name == "postgresql" else {}) as connection, connection.begin():
            yield Transaction(self, connection, lock=False)

    @contextlib.contextmanager
    def _connected(self, options: dict[str, Any]) -> Iterator[sa.Connection]:
        with _named_faults(self.name), self.engine.connect() as connection:
            yield connection.execution_options(**options)


@contextlib.contextmanager
def _named_faults(name: str) -> Iterator[None]:
    """Faults of the database as one message: their own texts quote the rows, and so keys."""
    try:
        yield
    except sa.exc.DBAPIError as fault:
        raise _refused(name, fault.orig) from None


def _refused(name: str, fault: BaseException | None) -> StorageError:
    """One message for a fault of the database's driver, with its kind and code and nothing of its text."""
    if "locked" in str(fault):
        return StorageError(f"{name}: in use by another writer for {BUSY_SECONDS} s", "run the same command again")
    state = getattr(fault, "sqlstate", None) or getattr(fault, "sqlite_errorname", None)
    what = f"the database refused: {type(fault).__name__}{f' {state}' if state else ''}"
    return StorageError(f"{name}: {what}", "check that the database runs, has room and lets you write")


def open_ledger(
    url: str = "",
    *,
    create: bool = True,
    key_file: str = "",
    actor: str = "",
    clock: Callable[[], datetime.datetime] | None = None,
) -> Ledger:
    """Open a ledger, and make its tables or bring them up to date.

    Args:
        url: `sqlite:///FILE` or `postgresql+psycopg://...`; empty: the environment's `UNLEARN_LEDGER`, or a file here.
        create: make a ledger where there is none.
        key_file: the pseudonym key; empty: the environment's, or a file beside the ledger's; made with the ledger.
        actor: who is named in the history; empty: user and host.
        clock: gives the time; by default the database server's or this machine's.

    Raises:
        ConfigError: another kind of database, no ledger there, or one of a newer version.
        StorageError: the database cannot be reached, or refuses.
    """
    address = _address(url or os.environ.get(URL_VARIABLE, "") or DEFAULT_URL)
    key_file = key_file or os.environ.get(KEY_VARIABLE, "") or _beside(address)
    if address.get_backend_name() == "sqlite":
        _touch(address, create)
    ledger = Ledger(_engine(address), actor=actor or default_actor(), key_file=key_file, clock=clock)
    try:
        _bring_up(ledger, create)
    except BaseException:
        ledger.close()
        raise
    return ledger


def _address(text: str) -> sa.URL:
    cure = "write sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME"
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        raise ConfigError("--ledger: not an address of a database", cure) from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ConfigError(f"--ledger: {url.drivername}: not a kind of database that a ledger lives in", cure)
    if url.drivername == "sqlite" and (not url.database or url.database == ":memory:" or url.query):
        raise ConfigError("--ledger: sqlite: a file is needed, without options", cure)
    return url


def _beside(address: sa.URL) -> str:
    if address.get_backend_name() == "sqlite":
        return str(Path(str(address.database)).with_suffix(".key"))
    return "unlearn-ledger.key"


def _touch(address: sa.URL, create: bool) -> None:
    path = Path(str(address.database))
    if path.exists():
        return
    if not create:
        raise ConfigError(f"{path}: no ledger there", "make one with `unlearn ledger init`, or name another with --ledger")
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's own would be open to the group.
    except OSError as fault:
        raise StorageError(f"{path}: {fault.strerror}", "name another file with --ledger") from None


def _engine(address: sa.URL) -> sa.Engine:
    # Parameters are hidden: a message of the database would carry keys.
    if address.get_backend_name() == "sqlite":
        engine = sa.create_engine(address, hide_parameters=True, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})
        sa.event.listen(engine, "connect", _settle_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        return sa.create_engine(address, hide_parameters=True, pool_size=2, pool_pre_ping=True, isolation_level="READ COMMITTED")
    except ImportError:
        raise ConfigError("--ledger: PostgreSQL's driver is not installed", "pip install 'i2i-unlearn[postgres]'") from None


def _settle_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # Python's sqlite3 would begin by itself, and too late.
    # Bytes that are no text must not hide from the check of the history which entry holds them.
    connection.text_factory = functools.partial(str, encoding="utf-8", errors="surrogateescape")
    for pragma in ("foreign_keys = ON", "synchronous = FULL", f"cache_size = -{CACHE_KIB}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITES) else "BEGIN")


def _version(connection: sa.Connection) -> str:
    """The version of the tables that are there; empty: none."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")) or "")


def _bring_up(ledger: Ledger, create: bool) -> None:
    with ledger._connected({}) as connection, connection.begin():
        found = _version(connection)
    if found == VERSION:
        return
    if not found and not create:
        raise ConfigError(f"{ledger.name}: no ledger there", "make one with `unlearn ledger init`, or name another with --ledger")
    sqlite = ledger.engine.dialect.name == "sqlite"
    if sqlite and not found:
        with ledger._connected({}) as connection:
            # Readers and a writer do not wait for each other; the file remembers it. Not possible inside a transaction.
            raw = connection.connection.driver_connection
            assert raw is not None
            raw.execute("PRAGMA journal_mode = WAL")
    with ledger._connected({_WRITES: True}) as connection, connection.begin():
        if not sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        found = _version(connection)  # Another process may have been quicker.
        if found != VERSION:
            _upgrade(ledger, connection, found)


def _upgrade(ledger: Ledger, connection: sa.Connection, found: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    if found and found not in known:
        message = f"{ledger.name}: made by a newer version of this program (tables {found}, and {VERSION} is known here)"
        raise ConfigError(message, "update this program on this machine")
    for noisy in ("alembic.runtime.migration", "alembic.runtime.plugins.setup"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    command.upgrade(config, VERSION)
    if not found:
        key = make_key(ledger.key_file)
        first = {"id": 1, "seq": 0, "hash": history.FIRST, "version": VERSION, "key_id": key_id(key)}
        connection.execute(sa.insert(HEAD).values(first))
    else:
        connection.execute(sa.update(HEAD).values(version=VERSION))
    event = "upgraded" if found else "created"
    tx = Transaction(ledger, connection, lock=True)
    history.append(tx, "ledger", "tables", event, {"version": VERSION, "key_id": tx.key_id})
