"""A finished run on tars, made once; each test gets it anew at the same address."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.report import page
from tests.support.finished import finish


@pytest.fixture(scope="package")
def _pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Where the run lies, its folder, and a copy of all of it."""
    place, spare = tmp_path_factory.mktemp("place"), tmp_path_factory.mktemp("spare") / "copy"
    run = finish(place)
    shutil.copytree(place, spare)
    return place, run, spare


@pytest.fixture
def finished(_pristine: tuple[Path, Path, Path]) -> Path:
    """The run folder of a finished run, output folder above it, tars beside that; a test may do with it what it likes."""
    place, run, spare = _pristine
    shutil.rmtree(place)
    shutil.copytree(spare, place)
    return run


@pytest.fixture
def plain_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report page that only names its pictures: drawing the real one takes a second."""
    monkeypatch.setattr(page, "render", lambda facts, material: f"pictures: {sorted(material.grids)}")
