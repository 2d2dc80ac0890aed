"""Finished runs, made once: on tars, which each test gets anew at the same address, and one that was audited."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.acts import audit
from pipeline.audit_orders import AuditOrder
from pipeline.config import read_run
from pipeline.decode import decode
from pipeline.findings import Audit
from pipeline.report import page
from tests.support.distributed import run_distributed
from tests.support.finished import finish
from tests.support.runs import TINY, prepare, run_stages

STAGES = ("shard", "train", "retrain", "calibrate", "forget", "retain", "evaluate", "release")


def audit_order(run: str, samples: int = 60) -> AuditOrder:
    return AuditOrder(config=read_run(run), folder=run, samples=samples)


@pytest.fixture(scope="package")
def audited_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run whose first group is large enough to be attacked, audited; each worker has a copy that tests leave as it is.

    All workers of a session share the work: whoever comes first does it.
    """
    own = tmp_path_factory.mktemp("audited")
    session = tmp_path_factory.getbasetemp().parent if os.environ.get("PYTEST_XDIST_WORKER") else own
    shared = session / "audited-by-all"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            source = {**TINY["source"], "samples": 400, "unseen_samples": 400}
            run = prepare(own, source=source, train={**TINY["train"], "epochs": 6})
            run_distributed(run_stages, 1, run, *STAGES)
            audit.run(audit_order(run))
            shutil.copytree(Path(run).parent, shared)
    (found,) = shared.glob("tiny-*")
    copied = own / "copy"
    shutil.copytree(shared, copied)
    return str(copied / found.name)


@pytest.fixture(scope="package")
def audited(audited_run: str) -> Audit:
    """What an audit found of it; its files lie in the run's folder."""
    uri = f"{audited_run}/audit.json"
    return decode(Audit, json.loads(Path(uri).read_bytes()), where=uri)


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
