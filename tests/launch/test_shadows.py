"""Shadow runs with fake workers: seeds, folders, where their chain ends, what is up to date, and what is refused at once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from launch import local, shadows
from launch.shadows import attack_with_shadows
from launch.torchrun import JobSpec
from pipeline import errors
from pipeline.audit_orders import ShadowsOrder
from pipeline.chain import chain_for
from pipeline.config import RunConfig, resolve
from pipeline.errors import ConfigError, StorageError
from pipeline.findings import Found
from pipeline.records import RequestBatch
from tests.launch import fake_worker

Small = tuple[RunConfig, RequestBatch]
NOTHING = Found(findings=())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ShadowsOrder]:
    """The orders that were given; stages run in this process."""
    orders: list[ShadowsOrder] = []
    errors_file = tmp_path / "error.json"
    monkeypatch.setenv("UNLEARN_ERROR_FILE", str(errors_file))

    def call(job: JobSpec, **_: object) -> None:
        try:
            fake_worker.main(*job.argv[-2:])
        except SystemExit:
            fault = json.loads(errors_file.read_text())
            raise getattr(errors, fault["kind"])(fault["message"], fault["cure"]) from None

    def carry_out(act: str, order: Any, answer: type[Found], **_: object) -> Found:
        assert (act, answer) == ("shadows", Found)
        orders.append(order)
        return NOTHING

    monkeypatch.setattr(local, "run_worker", call)
    monkeypatch.setattr(shadows, "carry_out", carry_out)
    return orders


def attack(small: Small, count: int = 2, said: list[str] | None = None) -> Found:
    return attack_with_shadows(*small, count, samples=40, say=(said if said is not None else []).append)


def test_shadows_are_the_run_at_the_next_seeds_up_to_its_models(small: Small, finished: Path, asked: list[ShadowsOrder]) -> None:
    said: list[str] = []
    assert attack(small, 2, said) == NOTHING
    (order,) = asked
    assert (order.folder, order.samples) == (str(finished), 40)
    assert [Path(folder).name.rpartition("-")[0] for folder in order.shadows] == ["small-shadow-s1", "small-shadow-s2"]
    for number, folder in enumerate(order.shadows, start=1):
        config = resolve(f"{folder}/config.yaml")
        assert config.seed == number
        assert dataclasses.replace(config, seed=0, name="small") == dataclasses.replace(small[0], embedded_requests=())
        done = {path.stem for path in Path(folder, "receipts").iterdir()}
        assert done == {spec.name for spec in chain_for(config)} - {"evaluate", "release"}
    assert "shadow 2 of 2: retrain: the reference, on retained images only" in said


def test_a_second_attack_trains_only_what_is_missing(
    small: Small, finished: Path, asked: list[ShadowsOrder], monkeypatch: pytest.MonkeyPatch
) -> None:
    attack(small, 2)
    monkeypatch.setenv("FAKE_RETAIN", "data-error")
    said: list[str] = []
    attack(small, 2, said)
    assert said == [] and asked[0] == asked[1]
    with pytest.raises(errors.DataError):
        attack(small, 3, said)
    monkeypatch.delenv("FAKE_RETAIN")
    attack(small, 3, said)
    assert "shadow 3 of 3: forget: up to date" in said and len(asked[-1].shadows) == 3


def test_what_cannot_work_is_refused_before_anything_is_trained(small: Small, finished: Path, asked: list[ShadowsOrder]) -> None:
    config, batch = small
    before = sorted(Path(config.output).iterdir())
    with pytest.raises(ConfigError, match="shows no spread"):
        attack(small, 1)
    for field in ("original", "reference"):
        with pytest.raises(ConfigError, match=f"{field}: weights.safetensors"):
            attack((dataclasses.replace(config, **{field: "weights.safetensors"}), batch))  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="not ended with these settings"):
        attack((dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=99)), batch))
    assert asked == [] and sorted(Path(config.output).iterdir()) == before
