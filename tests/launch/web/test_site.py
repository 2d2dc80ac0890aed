"""The contexts of pages: ledger, run folders and storage put together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.web.app import metrics_text, read_only
from launch.web.export import export
from launch.web.pages import server_link
from launch.web.queue import Search
from launch.web.site import Site
from pipeline.errors import ConfigError
from pipeline.ledger.store import open_ledger
from tests.launch.web.conftest import Work
from tests.support.ledger_page import Clock, months_of_work


def test_runs_of_the_latest_batches_come_first(work: Work) -> None:
    found = work.site.runs(server_link)
    assert [row["name"] for row in found["rows"]] == work.runs[::-1] and found["at_work"] == 2


def test_a_run_of_a_batch_is_known_wherever_it_lies(work: Work, tmp_path: Path) -> None:
    site = Site(work.ledger, runs=str(tmp_path / "nowhere"))
    assert sorted(site.folders()) == sorted(work.runs)
    assert site.run(work.runs[8], server_link)["batch_id"] == "b-000009"
    for name in ("..", "nobody", f"../{work.runs[0]}", ""):
        with pytest.raises(ConfigError, match="no run is called so"):
            site.folder(name)


def test_pictures_of_a_run_have_titles_and_links(work: Work) -> None:
    found = work.site.run(work.runs[0], server_link)["pictures"]
    assert found == [("Forgotten, group 1", f"/grid/{work.runs[0]}?file=grid_0.png")]


def test_cost_is_the_median_of_what_is_known(work: Work) -> None:
    found = work.site.cost(server_link)
    assert found["known"] == 7 and found["middle"] == pytest.approx(0.188, abs=0.002)


def test_an_alias_is_compared_with_what_lies_on_storage(work: Work, tmp_path: Path) -> None:
    assert work.site.releases()["stored"] is None
    (tmp_path / "faces-inpaint" / "aliases").mkdir(parents=True)
    (tmp_path / "products-mae" / "aliases").mkdir(parents=True)
    (tmp_path / "faces-inpaint" / "aliases" / "production.json").write_text(json.dumps({"weights": "f" * 64}))
    (tmp_path / "products-mae" / "aliases" / "production.json").write_text("half")
    stored = Site(work.ledger, runs="runs", releases=str(tmp_path)).releases()["stored"]
    assert stored == {
        ("faces-inpaint", "production"): "f" * 64,
        ("products-mae", "production"): None,
        ("streets-vqgan", "production"): None,
    }


def test_the_queue_says_its_order_and_links_to_its_pages(work: Work) -> None:
    found = work.site.queue(Search(line="faces-inpaint"), server_link)
    assert found["order"] == "nearest due date first" and found["address"](2) == "/?line=faces-inpaint&page=2"
    assert work.site.queue(Search(state="all"), server_link)["order"] == "latest due date first"


def test_every_page_is_made_on_each_kind_of_database(ledger_url: str, tmp_path: Path) -> None:
    clock = Clock()
    with open_ledger(ledger_url, clock=clock) as ledger:
        months_of_work(ledger, clock, tmp_path / "runs")
        read_only(ledger)
        site = Site(ledger, runs=str(tmp_path / "runs"))
        assert export(site, str(tmp_path / "out")) > 40
        assert site.queue(Search(q="R-0000", state="all", page=2), server_link)["found"].total > 20
        assert site.trace("r-000003")["found"]["kind"] == "request"
        assert 'unlearn_batches{line="faces-inpaint",state="released"} 3' in metrics_text(ledger)
