"""A private PostgreSQL in a temporary folder, reached by a socket only; each test gets a database of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.servers import server

USER = "postgres"
NUMBERS = itertools.count(1)


def programs() -> Path | None:
    """The folder of the newest server's programs, or None where Debian's package is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def _as_user() -> list[str]:
    """The server refuses to run as root."""
    if os.getuid() != 0:
        return []
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--pdeathsig=KILL"]


@contextlib.contextmanager
def running() -> Iterator[Path]:
    """Run a server; yields the folder of its socket."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # below pytest's own folder the server's user may not look
    try:
        if os.getuid() == 0:
            user = pwd.getpwnam(USER)
            os.chown(folder, user.pw_uid, user.pw_gid)
        home = programs()
        assert home is not None
        make = [
            *_as_user(),
            str(home / "initdb"),
            "-D",
            str(folder / "data"),
            "-U",
            USER,
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
        ]
        subprocess.run(make, check=True, capture_output=True, cwd="/")
        options = {"listen_addresses": "", "fsync": "off", "unix_socket_directories": str(folder), "max_connections": "60"}
        command = [*_as_user(), str(home / "postgres"), "-D", str(folder / "data")]
        command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        asks = [str(home / "pg_isready"), "-q", "-h", str(folder)]
        with server(command, folder.with_suffix(".log"), lambda: subprocess.run(asks, check=False).returncode == 0):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".log").unlink(missing_ok=True)


def new_database(folder: Path) -> str:
    """The address of an empty database on the server whose socket lies in `folder`."""
    import psycopg

    name = f"ledger_{next(NUMBERS)}"
    with psycopg.connect(host=str(folder), user=USER, dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql+psycopg://{USER}@/{name}?host={folder}"
