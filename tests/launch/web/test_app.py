"""Every address answers, hostile text is text everywhere, and nothing personal of a request is on any page or in any log."""

from __future__ import annotations

import html.parser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from launch.signals.emit import LAST_TICK
from launch.signals.outbox import Outbox
from launch.web.app import create_app, metrics_text, read_only
from launch.web.queue import PAGE
from pipeline.errors import StorageError
from pipeline.ledger import batches, history, requests
from pipeline.ledger.leases import claim
from pipeline.ledger.requests import Submission
from pipeline.ledger.schema import ALIAS, MODEL, MODEL_OBJECT
from pipeline.ledger.store import Ledger, open_ledger
from tests.launch.web.conftest import Work
from tests.support.ledger_page import Clock, many, write_run

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202e{{7*7}}&" + "w" * 120
MARKERS = ("Jane-Marker", "key-marker/001", "note-marker", "basis-marker", "reason-marker")


def reader(ledger: Ledger, runs: Path, **more: str) -> TestClient:
    app = create_app(ledger, runs_at=str(runs), names=frozenset({"localhost"}), **more)
    return TestClient(app, base_url="http://localhost", follow_redirects=False)


@pytest.fixture(scope="module")
def client(work: Work) -> TestClient:
    """A reader of the made-up ledger."""
    return reader(work.ledger, work.folder / "runs")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/", "1 request is overdue"), ("/?q=r-000003&state=all", "1 to 1 of 1 request,"), ("/?q=nobody", "No request matches."),
        ("/?page=x&state=%F0&due=&line=", "request"), ("/requests/r-000003", "Released"), ("/batches", "1 batch is at work"),
        ("/batches?state=failed", "DataError"), ("/batches/b-000004", "Released: "), ("/runs", "runs are at work"),
        ("/releases", "3 aliases name a released model"), ("/trace", "Which requests shaped a model"),
        ("/trace?q=r-000003", "2 models came after it"), ("/cost", "Unlearning takes 18.8 % of retraining (median of 7 runs)"),
        ("/history", "The chain of "), ("/history?before=5", "Newest"), ("/metrics", "# HELP unlearn_requests "),
        ("/static/page.css", "prefers-color-scheme"), ("/static/live.js", "use strict"),
    ],
)  # fmt: skip
def test_every_page_answers(client: TestClient, path: str, words: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200 and words in re.sub(r"\s+", " ", answer.text), answer.text[:2000]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/nope",
            "/requests/nobody",
            "/batches/b-999999",
            "/runs/nobody",
            "/progress/nobody",
            "/report/nobody",
            "/docs",
            "/openapi.json",
        ),
        *(
            "/runs/..%2f..%2fetc",
            "/grid/nobody?file=grid_0.png",
            "/static/../app.py",
            "/static/%2e%2e/app.py",
            "/batches/<script>",
        ),
    ],
)
def test_what_is_not_there_is_one_page_without_its_name(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert (
        answer.status_code == 404 and "Traceback" not in answer.text and "<script>" not in answer.text.replace("<script src", "")
    )


def test_a_run_has_its_page_progress_report_and_pictures(client: TestClient, work: Work) -> None:
    done, running = work.runs[0], work.runs[8]
    assert (
        "In stage 6 of 8" in client.get(f"/runs/{running}").text
        and f'data-progress="/progress/{running}"' in client.get(f"/runs/{running}").text
    )
    assert client.get(f"/progress/{running}").json()["values"] == {"stage.retain.step": 297}
    page = client.get(f"/runs/{done}").text
    assert "data-progress" not in page and f"/grid/{done}?file=grid_0.png" in page
    report = client.get(f"/report/{done}")
    assert (
        report.status_code == 200
        and "sandbox" in report.headers["content-security-policy"]
        and "script-src" not in report.headers["content-security-policy"]
    )
    assert client.get(f"/report/{running}").status_code == 404
    picture = client.get(f"/grid/{done}?file=grid_0.png")
    assert picture.headers["content-type"] == "image/png" and picture.content.startswith(b"\x89PNG")
    for file in ("", "errors.npz", "../config.yaml", "grid_9.png"):
        assert client.get(f"/grid/{done}", params={"file": file}).status_code == 404


def test_every_link_of_every_page_leads_somewhere(client: TestClient) -> None:
    waiting, seen = ["/"], {"/"}
    while waiting:
        answer = client.get(waiting.pop())
        assert answer.status_code == 200, answer.url
        if "text/html" not in answer.headers["content-type"]:
            continue
        for link in re.findall(r'(?:href|src)="(/[^"]*)"', answer.text):
            link = link.replace("&amp;", "&")
            kind = re.sub(r"(r-|b-)\d+|[0-9a-f]{64}|=\d+", "N", link)
            if kind not in seen:  # one of each kind
                seen.add(kind)
                waiting.append(link)
    assert {"/batches/N", "/requests/N", "/releases", "/cost", "/trace?q=N", "/static/page.css"} <= seen


def test_the_ledger_cannot_be_written_through_it(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", clock=Clock()) as ledger:
        read_only(ledger)
        with pytest.raises(StorageError, match="refused"), ledger.write() as tx:
            history.append(tx, "ledger", "n", "e")


def test_metrics_say_when_the_last_round_was(work: Work, tmp_path: Path) -> None:
    outbox = Outbox(str(tmp_path / "out.sqlite"))
    outbox.mark(LAST_TICK, "2026-09-24T00:00:00Z")
    outbox.close()
    families = {family.name: family for family in text_string_to_metric_families(metrics_text(work.ledger, outbox.path))}
    assert families["unlearn_last_tick_timestamp_seconds"].samples[0].value == 1790208000
    assert sum(sample.value for sample in families["unlearn_batches"].samples) == 9
    assert "last_tick" not in metrics_text(work.ledger, str(tmp_path / "none"))


class _Tags(html.parser.HTMLParser):
    """Which tags and attributes a page has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.found.append((tag, dict(attrs)))


def hostile_ledger(folder: Path) -> Ledger:
    """Hostile text in every field that holds text, and markers in those that are nobody's business."""
    ledger = open_ledger(f"sqlite:///{folder}/ledger.sqlite", actor=HOSTILE, clock=Clock())
    with ledger.write() as tx:
        for number in range(3):
            given = {"subject": MARKERS[0], "note": MARKERS[2] + HOSTILE, "basis": MARKERS[3] + HOSTILE}
            values = (MARKERS[1] + HOSTILE, f"{MARKERS[1]}{number}")
            requests.submit(tx, Submission(kind="keys", values=values, line=HOSTILE, **given), checked=True)
        requests.extend(tx, "r-000002", 1, MARKERS[4] + HOSTILE)
        requests.withdraw(tx, "r-000003", MARKERS[4])
        lease = claim(tx, HOSTILE, 600, batch_id=batches.close(tx, HOSTILE))
        assert lease is not None
        batches.note(tx, lease, folder=f"{folder}/runs/hostile {HOSTILE.replace('/', '_')}")
        batches.move(tx, lease.batch_id, "running", lease=lease)
        batches.move(tx, lease.batch_id, "failed", failure=f"DataError: no {MARKERS[1]} in it {HOSTILE}")
        row = {
            "model_id": "a" * 64,
            "line": HOSTILE,
            "batch_id": lease.batch_id,
            "folder": HOSTILE,
            "uri": HOSTILE,
            "made_at": tx.now,
        }
        tx.execute(sa.insert(MODEL).values(**row, verdict="passed", digests={"kind": HOSTILE}))
        shard = {"model_id": "a" * 64, "uri": HOSTILE, "version": HOSTILE, "role": "trained", "sha256": "b" * 64}
        tx.execute(sa.insert(MODEL_OBJECT), shard)
        alias = {"line": HOSTILE, "name": HOSTILE[:60], "version": 1, "model_id": "a" * 64, "changed_at": tx.now}
        tx.execute(sa.insert(ALIAS).values(**alias, by=HOSTILE, reason=MARKERS[4]))
        history.append(tx, "run", HOSTILE, "made", {"line": HOSTILE, "owner": HOSTILE, "reason": MARKERS[4]})
    return ledger


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A reader of a ledger full of hostile text."""
    folder = tmp_path_factory.mktemp("hostile")
    write_run(folder / "runs" / "demo-1", "demo", done=9, seed=0, clock=Clock())
    (folder / "runs" / "demo-1" / "report.json").write_text(
        '{"summary": "<script>alert(1)</script>", "deck": "<b>", "headline": ["<img src=x onerror=alert(2)>"], "cost": {}}'
    )
    with hostile_ledger(folder) as ledger:
        yield reader(ledger, folder / "runs")


PATHS = (
    *(
        "/",
        "/?state=all",
        "/requests/r-000002",
        "/requests/r-000003",
        "/batches",
        "/batches/b-000001",
        "/runs",
        "/runs/demo-1",
        "/releases",
    ),
    *("/trace?q=r-000002", f"/trace?q={'a' * 64}", "/cost", "/history", "/metrics"),
)


@pytest.mark.parametrize(
    "path", [*PATHS, "/?q=%3Cscript%3Ealert(1)%3C/script%3E", "/trace?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E"]
)
def test_hostile_text_is_text(hostile: TestClient, path: str) -> None:
    answer = hostile.get(path)
    assert answer.status_code == 200
    if "text/html" not in answer.headers["content-type"]:
        return
    tags = _Tags()
    tags.feed(answer.text)
    assert "49" not in re.findall(r"\u202e(\d+)", answer.text)
    for tag, attributes in tags.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        assert tag != "script" or re.fullmatch(r"/static/[a-z]+\.js", attributes.get("src") or ""), attributes
        assert tag not in ("img", "iframe", "object", "embed") or (attributes.get("src") or "").startswith("/grid/")
        for name in ("href", "action"):
            assert (attributes.get(name) or "/").startswith(("/", "#", "data:,")), attributes


@pytest.mark.parametrize("path", PATHS)
def test_no_marker_of_a_request_is_on_any_page(
    hostile: TestClient, path: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = hostile.get(path)
    said = answer.text + str(answer.headers) + caplog.text + "".join(capsys.readouterr())
    assert not [marker for marker in MARKERS if marker in said]


def test_ten_thousand_requests_page_by_page(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", clock=Clock()) as ledger:
        many(ledger, PAGE * 2 + 1)
        client = reader(ledger, tmp_path)
        page = client.get("/?page=3").text
        assert "201 to 201 of 201" in page and 'rel="prev"' in page and 'rel="next"' not in page
