"""A made-up ledger with two months of work and run folders, made once; nobody writes to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.web.site import Site
from pipeline.ledger.store import Ledger, open_ledger
from tests.support.ledger_page import Clock, months_of_work


@dataclasses.dataclass
class Work:
    """What was made: the folder that all lies in, the ledger and its clock, and the runs' names, oldest first."""

    folder: Path
    ledger: Ledger
    clock: Clock
    runs: list[str]

    @property
    def site(self) -> Site:
        """Its pages."""
        return Site(self.ledger, runs=str(self.folder / "runs"))


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """The only one; read only."""
    folder, clock = tmp_path_factory.mktemp("work"), Clock()
    with open_ledger(f"sqlite:///{folder}/ledger.sqlite", actor="ops@node-1", clock=clock) as ledger:
        runs = months_of_work(ledger, clock, folder / "runs")
        yield Work(folder, ledger, clock, runs)
