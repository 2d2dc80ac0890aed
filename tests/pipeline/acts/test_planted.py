"""A tiny run and its planted twin: the original is found, the retrained model is not, and no secret or forgotten image leaks."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from PIL import Image

from launch.local import prepare_folder
from launch.planted import KEY_FILE, twin_of
from pipeline.acts import planted
from pipeline.acts.audit_store import further_parts
from pipeline.audit_orders import PlantedOrder
from pipeline.chain import write_receipt
from pipeline.config import read_run, run_folder
from pipeline.errors import StorageError
from pipeline.evaluation.grid import CELL
from pipeline.findings import Finding, Found
from pipeline.records import FileRef, Receipt
from pipeline.requests import parse
from pipeline.storage import create_bytes
from tests.support.distributed import run_distributed
from tests.support.runs import TINY, prepare, run_stages

STAGES = ("shard", "train", "retrain", "calibrate", "forget", "retain", "evaluate", "release")
SECRET = bytes(range(100, 132))
WEIGHTS = FileRef(uri="weights/model.safetensors", sha256="ab" * 32, bytes=1)
RELEASED = Receipt(
    stage="release", inputs={}, outputs=(WEIGHTS,), config_digest="", code_version="", world_size=1, started_at="", ended_at=""
)
"""All that is asked of the run itself: that it has ended, and with which weights."""


def make_twin(run: str) -> None:
    """Cut the run's shards, say that it has ended, and make its twin; its own models are asked for by nobody here."""
    run_stages(run, "shard")
    write_receipt(run, RELEASED)
    twin, requests = twin_of(read_run(run), parse(TINY["requests"], where="test"), run, canaries=36)
    folder = run_folder(twin, requests)
    create_bytes(f"{folder}/{KEY_FILE}", SECRET)
    prepare_folder(twin, requests, folder)
    run_stages(folder, *STAGES)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    source = {**TINY["source"], "samples": 400}
    folder = prepare(tmp_path_factory.mktemp("planted"), source=source, train={**TINY["train"], "epochs": 6})
    run_distributed(make_twin, 1, folder)
    return folder


@pytest.fixture(scope="module")
def twin(run: str) -> str:
    (folder,) = Path(run).parent.glob("tiny-planted-*")
    return str(folder)


@pytest.fixture(scope="module")
def found(run: str, twin: str) -> Found:
    return planted.run(PlantedOrder(folder=run, twin=twin, samples=100))


def of(found: Found, attack: str) -> dict[str, Finding]:
    return {item.subject: item for item in found.findings if item.attack == attack}


def test_the_original_is_found_and_the_retrained_model_is_not(found: Found) -> None:
    for attack in ("canary", "backdoor"):
        assert of(found, attack)["original"].says == "still there"
        assert of(found, attack)["unlearned"].says in ("still there", "over-forgotten", "not told apart")  # it had power
    assert (of(found, "canary")["original"].epsilon_low or 0) > 0
    for attack in ("canary", "poison"):
        assert of(found, attack)["retrained"].says in ("not told apart", "no power")
    assert set(of(found, "poison")) == {"original", "unlearned", "retrained"}


def test_an_audit_takes_up_what_was_found_as_long_as_the_weights_are_the_same(run: str, found: Found) -> None:
    job = planted._job(run)
    assert further_parts(job, WEIGHTS.sha256) == {"planted": found}
    assert further_parts(job, "0" * 64) == {}


def test_the_same_weights_are_not_attacked_again(run: str, twin: str, found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "_Attacks", lambda *given: pytest.fail("attacked again"))
    assert planted.run(PlantedOrder(folder=run, twin=twin, samples=100)) == found


def test_neither_secret_nor_key_is_told(run: str, twin: str, found: Found) -> None:
    secret = (SECRET, SECRET.hex().encode(), base64.b64encode(SECRET))
    files = [path for folder in (run, twin) for path in Path(folder).rglob("*") if path.is_file()]
    holders = {path.relative_to(twin) for path in files if any(form in path.read_bytes() for form in secret)}
    assert holders == {Path(KEY_FILE)}
    assert b"train-0" not in Path(run, planted.FILE).read_bytes()
    assert Path(twin, KEY_FILE).stat().st_mode & 0o077 == 0


def test_the_picture_shows_canaries_and_stamped_images_in_every_model(run: str, found: Found) -> None:
    with Image.open(Path(run, planted.PICTURE)) as picture:
        width, height = picture.size
    columns, rows = 2 * planted.COLUMNS, 5
    assert width > columns * CELL and height > rows * CELL


@pytest.mark.parametrize(("epsilon", "says"), [(None, "not told apart"), (2.0, "not told apart"), (0.5, "still there")])
def test_a_bound_above_the_certified_epsilon_refutes_the_certificate(epsilon: float | None, says: str) -> None:
    line = Finding(attack="canary", group="g", subject="unlearned", measure="m", says="not told apart", epsilon_low=1.0)
    made = planted.beside_certificate(Found(findings=(line,)), epsilon).findings[0]
    assert made.says == says and ("refutes the certificate (epsilon 0.5)" in made.note) == (says == "still there")


def test_a_run_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="has not ended"):
        planted.run(PlantedOrder(folder=prepare(tmp_path), twin=str(tmp_path), samples=100))
