"""Two methods side by side for real: one original, two unlearned models, one retrained, one page; on one rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.verify import verify
from pipeline.acts import compare, erase
from pipeline.chain import chain_for
from pipeline.config import read_run
from pipeline.errors import ConfigError
from pipeline.orders import Budget, ComparedRun, CompareOrder, EraseOrder
from tests.support.distributed import run_distributed
from tests.support.runs import TINY, prepare, run_stages

PLAIN = {**TINY["method"], "retention": "plain"}


def _run_all(run: str, names: list[str]) -> None:
    run_stages(run, *names)


def test_two_methods_from_one_original_to_one_page(tmp_path: Path) -> None:
    run = prepare(tmp_path, methods={"guarded": TINY["method"], "plain": PLAIN, "none": None})
    config = read_run(run)
    run_distributed(_run_all, 1, run, [spec.name for spec in chain_for(config)])
    assert verify(run).faults == ()
    order = CompareOrder(
        folder=str(tmp_path / "page"),
        name="tiny",
        methods=config.methods,
        runs=(ComparedRun(seed=0, folder=run, failed={}),),
        budget=Budget(cost=2.0, loss=9.0),
        made_from="",
    )
    compare.run(order)
    facts = json.loads((tmp_path / "page/compare.json").read_bytes())
    rows = {row["subject"]: row for row in facts["methods"]}
    assert rows.keys() == {"guarded", "plain", "none"}
    for row in rows.values():
        assert all(row[name]["mean"] is not None for name in ("score", "error_ratio", "cost", "seconds")), row
    assert rows["guarded"]["phases"] == ["calibrate", "forget", "retain"] and rows["none"]["phases"] == []
    assert rows["none"]["score"] == facts["references"][0]["score"] | {"seeds": rows["none"]["score"]["seeds"]}
    assert rows["guarded"]["error_ratio"]["mean"] != rows["plain"]["error_ratio"]["mean"], "they are two models"
    text = (tmp_path / "page/compare.html").read_text()
    assert "train-000000" not in text and text.count("data:image/png") == 3
    with pytest.raises(ConfigError, match="a comparison, which releases no model"):
        erase.run(EraseOrder(folder=run, do=False))
