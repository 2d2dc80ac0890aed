"""The act `compare`: reads finished runs through their receipts, and publishes figures, page and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.acts.compare import run
from pipeline.errors import IntegrityError, StorageError
from pipeline.orders import ComparedRun
from tests.pipeline.report import compared


def seeds(folder: Path, *numbers: int) -> tuple[ComparedRun, ...]:
    return tuple(
        ComparedRun(seed=seed, folder=compared.run_folder(f"{folder}/s{seed}", seed, num=20), failed={}) for seed in numbers
    )


def test_it_publishes_figures_page_and_the_pictures_of_each_seed(tmp_path: Path) -> None:
    runs = (*seeds(tmp_path, 0, 1), ComparedRun(seed=2, folder="", failed=dict.fromkeys(compared.METHODS, "forget: NaN")))
    answer = run(compared.order(str(tmp_path / "out"), runs))
    assert set(answer.files) == {
        "compare.json",
        "compare.html",
        *(f"grids/s{seed}_grid_{key}.png" for seed in (0, 1) for key in (0, 1, "retain")),
    }
    facts = json.loads((tmp_path / "out/compare.json").read_bytes())
    assert facts["made_from"] == "ab" * 32
    assert (facts["seeds"], [item["run_id"] for item in facts["runs"]]) == ([0, 1, 2], ["s0", "s1"])
    grid = "evaluation/grid_0.png"
    assert (tmp_path / "out/grids/s1_grid_0.png").read_bytes() == (tmp_path / "s1" / grid).read_bytes()
    assert (tmp_path / "out/compare.html").read_text().count("data:image/png") == 6


@pytest.mark.parametrize("name", ["evaluation.json", "methods/near/phases/retain.json", "evaluation/grid_1.png", "manifest.json"])
def test_a_changed_file_is_named_and_nothing_is_published(tmp_path: Path, name: str) -> None:
    runs = seeds(tmp_path, 0)
    file = tmp_path / "s0" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=name):
        run(compared.order(str(tmp_path / "out"), runs))
    assert not (tmp_path / "out").exists()


def test_a_run_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    runs = seeds(tmp_path, 0)
    (tmp_path / "s0/receipts/evaluate.json").unlink()
    with pytest.raises(StorageError, match="the run has not ended"):
        run(compared.order(str(tmp_path / "out"), runs))
