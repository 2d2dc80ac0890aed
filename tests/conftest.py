"""What tests in several folders share: laws without time limits, and the address of an empty ledger, on each kind of database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.support import postgres

# Triton reads it once, when it is first loaded, and torch's compiler loads Triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """The socket's folder of a private PostgreSQL."""
    if postgres.programs() is None:
        pytest.skip("Debian's package postgresql is not installed")
    with postgres.running() as folder:
        yield folder


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a ledger that is not there yet; the environment names it and the file of its pseudonym key, too."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/ledger.sqlite"
    else:
        url = postgres.new_database(request.getfixturevalue("postgres_server"))
    monkeypatch.setenv("UNLEARN_LEDGER", url)
    monkeypatch.setenv("UNLEARN_PSEUDONYM_KEY", str(tmp_path / "ledger.key"))
    return url
