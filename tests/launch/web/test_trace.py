"""From a request to the models after it, and from a model to the requests that shaped it."""

from __future__ import annotations

import hashlib

from launch.web.trace import family, trace
from tests.launch.web.conftest import Work


def model(batch: str) -> str:
    return hashlib.sha256(batch.encode()).hexdigest()


def test_a_request_leads_to_its_batch_and_all_later_models_of_the_line(work: Work) -> None:
    with work.ledger.read() as tx:
        found = trace(tx, " r-000003 ")
    assert found["kind"] == "request" and [row["batch_id"] for row in found["batches"]] == ["b-000002"]
    assert [row["model_id"] for row in found["models"]] == [model("b-000002"), model("b-000005")]
    assert [row["aliases"] for row in found["models"]] == [[], ["production"]]


def test_a_model_leads_to_the_requests_of_its_batch_and_of_those_before(work: Work) -> None:
    with work.ledger.read() as tx:
        found = trace(tx, model("b-000005")[:10].upper())
    assert found["kind"] == "model" and [row["model_id"] for row in found["ancestry"]] == [model("b-000002")]
    assert {row["batch_id"] for row in found["requests"]} == {"b-000002", "b-000005"}
    assert found["requests_count"] == len(found["requests"]) and "r-000003" in {row["request_id"] for row in found["requests"]}
    assert found["roles"] == {"trained": 4, "forgotten": 1}


def test_the_whole_family_for_a_search_without_server(work: Work) -> None:
    with work.ledger.read() as tx:
        found, cut = family(tx, 10_000), family(tx, 5)
    assert [row["parent"] for row in found["models"] if row["model_id"] == model("b-000005")] == [model("b-000002")]
    assert ["b-000002", "r-000003", "released"] in found["members"] and len(found["models"]) == 7
    assert len(cut["members"]) == 5 and {row[0] for row in cut["members"]} == {"b-000009"}


def test_nothing_asked_nothing_found_and_too_short(work: Work) -> None:
    with work.ledger.read() as tx:
        assert trace(tx, "  ") == {"kind": ""}
        for text in ("nobody", model("b-000005")[:5], "%", "f" * 64):
            assert trace(tx, text)["kind"] == "nothing", text
