"""A small run whose workers are fake: the chain, the receipts and the command are real."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from launch import queue, torchrun
from launch.local import run_chain
from launch.torchrun import JobSpec, Resources
from pipeline.chain import StageSpec
from pipeline.config import RunConfig, read_batch, resolve, run_folder
from pipeline.ledger.refusals import Looked
from pipeline.records import RequestBatch
from pipeline.request_orders import LikenessAnswer, LookupAnswer
from tests.launch.fake_slurm import FakeSlurm
from tests.support.finished import GROUPS
from tests.support.releasing import WIDER, Place, moved, other_run, place, usual_run

ROOT = Path(__file__).resolve().parents[2]
RUN = """
name: small
source: fashion_mnist
model: autoencoder
task: center_crop
method: {component: decouple}
requests: [{request_id: r1, label: Trouser}]
"""


def fake_job(name: str, where: str) -> JobSpec:
    """Start the fake worker in place of the real one."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return JobSpec(argv=(sys.executable, str(Path(__file__).parent / "fake_worker.py"), name, where), env=env)


def _fake_stage(spec: StageSpec, folder: str, machine: Resources, *, threads: int = 0) -> JobSpec:
    return fake_job(spec.name, folder)


def _write_run(folder: Path) -> str:
    folder.mkdir()
    (folder / "small.yaml").write_text(RUN + f"output: '{folder}/runs'\n")
    return str(folder / "small.yaml")


def use_fake_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the launcher start fake workers."""
    monkeypatch.setattr(torchrun, "stage_job", _fake_stage)
    monkeypatch.setattr(torchrun, "worker_job", lambda act, file, machine: fake_job(act, file))


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run file in a folder with a space in its name; its output lies beside it."""
    use_fake_workers(monkeypatch)
    return _write_run(tmp_path / "a space")


@pytest.fixture
def small(run_file: str) -> tuple[RunConfig, RequestBatch]:
    """The same run, resolved, and its batch."""
    config = resolve(run_file)
    return config, read_batch(config)


@pytest.fixture(scope="session")
def _finished_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of one finished run, to be copied."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_fake_workers(monkeypatch)
        config = resolve(_write_run(tmp_path_factory.mktemp("finished") / "a space"))
        run_chain(config, read_batch(config), say=lambda line: None)
    return Path(config.output)


@pytest.fixture
def finished(small: tuple[RunConfig, RequestBatch], _finished_output: Path) -> Path:
    """The run folder of `small` after a whole run."""
    shutil.copytree(_finished_output, small[0].output)
    return Path(run_folder(*small))


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A Slurm that only remembers what it was asked."""
    fake = FakeSlurm()
    monkeypatch.setattr(queue, "_client", fake)
    monkeypatch.setattr(queue, "require", lambda: None)
    return fake


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, with no ledger named but the one that lies there."""
    monkeypatch.chdir(tmp_path)
    for name in ("UNLEARN_LEDGER", "UNLEARN_PSEUDONYM_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Looked | None]:
    """What the index is made to say, last in the list; no worker is started."""
    says: list[Looked | None] = [None]
    answers = {
        "lookup": lambda order: LookupAnswer(looked=says[-1]),
        "likeness": lambda order: LikenessAnswer(hashes=tuple("0f" * 8 if file.endswith(".png") else "" for file in order.files)),
    }
    monkeypatch.setattr("launch.acts.carry_out", lambda act, order, answer, to_stderr=False: answers[act](order))
    return says


@pytest.fixture(scope="session")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that may be released; never to be changed."""
    return usual_run(tmp_path_factory.mktemp("usual"))


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of another batch on the same images; never to be changed."""
    return other_run(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="session")
def wider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that forgot all that `usual` did, and more; never to be changed."""
    return other_run(tmp_path_factory.mktemp("wider"), requests=WIDER, groups=GROUPS, model=b"wider" * 1000)


@pytest.fixture
def room(tmp_path: Path) -> Place:
    """A key, a secret, and a folder for releases with nothing in it."""
    return place(tmp_path)


@pytest.fixture(scope="session")
def _released(usual: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = place(tmp_path_factory.mktemp("released"))
    made.send(usual, alias="production")
    return made


@pytest.fixture
def shop(_released: Place, tmp_path: Path) -> Place:
    """The same with the usual run released, under the alias `production`."""
    return moved(_released, tmp_path / "a shop")


@pytest.fixture
def bundle(shop: Place) -> Path:
    """The folder of that release."""
    (folder,) = shop.line.glob("tiny-*")
    return folder
