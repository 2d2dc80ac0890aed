"""Requests are found by all that one may ask for, page by page, and nothing personal is read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.web.queue import COLUMNS, PAGE, Found, Search, figures, rows_of, search
from pipeline.ledger import batches, requests
from pipeline.ledger.requests import KINDS
from pipeline.ledger.states import FINAL, REQUEST_MOVES
from pipeline.ledger.store import Ledger, open_ledger
from tests.launch.web.conftest import Work
from tests.support.ledger_page import Clock, ask, many


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """A ledger with some hundred requests."""
    folder, clock = tmp_path_factory.mktemp("crowd"), Clock()
    with open_ledger(f"sqlite:///{folder}/ledger.sqlite", clock=clock) as ledger:
        many(ledger, 330)
        with ledger.write() as tx:
            batches.close(tx, "faces-inpaint", most=30)
            ask(tx, 5, line="odd", request_id="a_b.C")
            ask(tx, 6, line="odd", due_at="2026-09-22")
        clock.move(days=2)
        with ledger.write() as tx:
            requests.withdraw(tx, "req-000001")
        yield ledger


def found(ledger: Ledger, **asked: Any) -> Found:
    with ledger.read() as tx:
        return search(tx, Search(**asked))


def test_open_ones_come_first_by_due_date(crowd: Ledger) -> None:
    page = found(crowd)
    assert page.total == 331 and page.pages == 4 and len(page.rows) == PAGE and page.first == 1
    assert [row["due_at"] for row in page.rows] == sorted(row["due_at"] for row in page.rows)
    assert page.rows[0]["due"] == "overdue" and page.rows[1]["due"] == ""
    assert found(crowd, state="all").total == 332


def test_the_pages_are_a_partition(crowd: Ledger) -> None:
    names = [row["request_id"] for number in range(1, 5) for row in found(crowd, page=number).rows]
    assert len(names) == len(set(names)) == 331
    assert found(crowd, page=99).search.page == 4 and found(crowd, page=-3).search.page == 1


@pytest.mark.parametrize(
    ("asked", "total"),
    [
        ({"q": "00012"}, 11), ({"q": "REQ-000129"}, 1), ({"q": "_"}, 1), ({"q": "%"}, 0), ({"q": "\\"}, 0), ({"q": "a_b.c"}, 1),
        ({"q": "axb"}, 0), ({"line": "odd"}, 2), ({"state": "batched"}, 30), ({"batch": "b-000001"}, 30), ({"kind": "label"}, 0),
        ({"due": "overdue"}, 1), ({"due": "soon"}, 0), ({"state": "withdrawn"}, 1), ({"state": "withdrawn", "q": "000002"}, 0),
        ({"q": "x" * 10_000}, 0), ({"q": "'; DROP TABLE request; --"}, 0), ({"q": "\0"}, 331), ({"state": "nonsense"}, 331),
    ],
)  # fmt: skip
def test_each_field_narrows(crowd: Ledger, asked: dict[str, str], total: int) -> None:
    assert found(crowd, **asked).total == total


def test_figures_are_what_searches_find(work: Work) -> None:
    with work.ledger.read() as tx:
        head = figures(tx)
    assert head["total"] == found(work.ledger, state="all").total == sum(head["by_state"].values())
    assert head["open"] == found(work.ledger).total and head["overdue"] == found(work.ledger, due="overdue").total > 0
    assert head["soon"] == found(work.ledger, due="soon").total > 0
    for state, number in head["by_state"].items():
        assert found(work.ledger, state=state).total == number


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "q": st.sampled_from(["", "r-0001", "9"]),
            "state": st.sampled_from(["open", "all", *REQUEST_MOVES]),
            "kind": st.sampled_from(["", *KINDS]),
            "due": st.sampled_from(["", "soon", "overdue"]),
            "line": st.sampled_from(["", "faces-inpaint", "none"]),
        }
    )
)
def test_what_is_found_is_what_was_asked_for(work: Work, asked: dict[str, str]) -> None:
    for row in found(work.ledger, **asked).rows:
        assert asked["q"] in row["request_id"] and asked["kind"] in ("", row["kind"]) and asked["line"] in ("", row["line"])
        assert asked["due"] in ("", row["due"])
        assert (
            row["state"] == asked["state"] or asked["state"] == "all" or (asked["state"] == "open" and row["state"] not in FINAL)
        )


def test_all_requests_come_in_pieces_once_each(crowd: Ledger) -> None:
    with crowd.read() as tx:
        names, after = list[str](), ("", "")
        while rows := rows_of(tx, is_open=True, after=after, limit=50):
            names += [row["request_id"] for row in rows]
            after = (rows[-1]["due_at"], rows[-1]["request_id"])
        assert len(names) == len(set(names)) == 331
        assert [row["request_id"] for row in rows_of(tx, is_open=False)] == ["req-000001"]


def test_no_personal_column_is_read() -> None:
    assert not {column.name for column in COLUMNS} & {"subject", "note", "basis", "fingerprint", "values_digest"}


def test_a_search_as_a_link_says_only_what_differs() -> None:
    assert Search().as_query() == {} and Search(q="a", page=3).as_query(page=2) == {"q": "a", "page": "2"}
    assert Search(state="all").as_query(page=1) == {"state": "all"}


def test_ten_thousand_requests_are_searched_at_once(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", clock=Clock()) as ledger:
        many(ledger, 10_000)
        start = time.perf_counter()
        assert found(ledger, q="00777").total == 11 and found(ledger, page=100).rows[-1]["request_id"] == "req-009999"
        assert time.perf_counter() - start < 1.0
