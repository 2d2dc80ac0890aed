"""The planted twin of a run: what is the same, what it asks for, what is refused, and what becomes of its secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch import planted
from launch.planted import KEY_FILE, audit_planted, twin_of
from pipeline import component
from pipeline.audit_orders import PlantedOrder
from pipeline.config import RunConfig, read_batch, read_run, resolve, run_folder
from pipeline.decode import canonical
from pipeline.errors import ConfigError, Preempted, StorageError
from pipeline.findings import Found
from pipeline.records import RequestBatch
from pipeline.requests import PLANTED, parse
from pipeline.storage import publish_bytes
from tests.support.runs import prepare, write_run_file

FOUND = Found(findings=())


def finished(folder: Path, **over: Any) -> tuple[RunConfig, RequestBatch, str]:
    """Configuration, requests and folder of a run that looks finished."""
    run = prepare(folder, **over)
    publish_bytes(f"{run}/receipts/release.json", b"{}")
    config = resolve(str(write_run_file(folder, **over)))
    return config, read_batch(config), run


def test_the_twin_is_the_run_on_its_own_images_with_something_planted(tmp_path: Path) -> None:
    config, batch, run = finished(tmp_path, reference="none", shards={"near_bits": 3})
    twin, requests = twin_of(config, batch, run, canaries=50)
    folder = run_folder(twin, requests)
    assert folder.startswith(f"{config.output}/tiny-planted-")
    made = read_run(run)
    for name in ("model", "task", "method", "train", "engine", "seed", "images", "stream"):
        assert getattr(twin, name) == getattr(made, name)
    assert (twin.original, twin.reference, twin.shards.near_bits) == ("train", "retrain", None)
    fields = component.decode_config("source", twin.source)
    assert (fields.run, fields.secret, fields.canaries) == (run, f"{folder}/{KEY_FILE}", 50)


def test_the_twins_requests_name_no_image_and_differ_from_batch_to_batch(tmp_path: Path) -> None:
    config, batch, run = finished(tmp_path)
    twin, requests = twin_of(config, batch, run, canaries=50)
    assert b"train-0" not in canonical(requests) and b"shape" not in canonical(requests)
    assert [request.selector.values for request in requests.requests] == [(PLANTED,)]
    other = twin_of(config, parse([{"label": "shape 2"}], where="test"), run, canaries=50)
    assert run_folder(*other) != run_folder(twin, requests)


def test_what_cannot_be_planted_in_is_refused_with_the_cure(tmp_path: Path) -> None:
    for name, over, error, words in (
        ("given", {"original": "/weights.safetensors"}, ConfigError, "planting needs a training"),
        ("twin", {"source": {"component": "planted"}}, ConfigError, "is a planted twin itself"),
    ):
        (tmp_path / name).mkdir()
        config, batch, run = finished(tmp_path / name, **over)
        with pytest.raises(error, match=words):
            twin_of(config, batch, run, canaries=50)
    Path(run, "receipts", "release.json").unlink()
    with pytest.raises(StorageError, match="has not ended"):
        twin_of(config, batch, run, canaries=50)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, PlantedOrder]]:
    """The orders that were given, where the chain does nothing."""
    orders: list[tuple[str, PlantedOrder]] = []
    monkeypatch.setattr(planted, "run_chain", lambda twin, requests, **_: None)
    monkeypatch.setattr(planted, "carry_out", lambda act, order, answer, **_: orders.append((act, order)) or FOUND)
    return orders


def audited(folder: Path) -> Path:
    config, batch, run = finished(folder)
    assert audit_planted(config, batch, run, canaries=50, samples=20, say=lambda line: None) == FOUND
    twin, requests = twin_of(config, batch, run, canaries=50)
    return Path(run_folder(twin, requests))


def test_the_secret_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path, asked: list[tuple[str, PlantedOrder]]) -> None:
    key = audited(tmp_path) / KEY_FILE
    first = key.read_bytes()
    assert len(first) == 32 and key.stat().st_mode & 0o077 == 0
    audited(tmp_path)
    assert key.read_bytes() == first
    (act, order), *_ = asked
    assert act == "planted" and order.twin == str(key.parent.parent) and order.samples == 20


@pytest.mark.parametrize(("fault", "left"), [(ConfigError("refused"), False), (Preempted("later"), True)])
def test_a_twin_that_is_refused_leaves_no_secret(
    tmp_path: Path, asked: list[tuple[str, PlantedOrder]], monkeypatch: pytest.MonkeyPatch, fault: Exception, left: bool
) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise fault

    monkeypatch.setattr(planted, "run_chain", refuse)
    with pytest.raises(type(fault)):
        audited(tmp_path)
    assert bool(list(Path(tmp_path, "out").glob("tiny-planted-*"))) is left and not asked
