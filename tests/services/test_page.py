"""The page in a real Chromium: quiet, to itself, fit for a phone and a keyboard, light and dark, quick with 10,000 requests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvicorn

from launch.web.app import create_app
from launch.web.export import export
from launch.web.site import Site
from pipeline.ledger.store import Ledger, open_ledger
from tests.launch.web.test_app import PATHS, hostile_ledger
from tests.support import chromium
from tests.support.chromium import Page
from tests.support.ledger_page import Clock, many, months_of_work, write_run

pytestmark = pytest.mark.services
PAGES = ("/", "/?state=all", "/batches", "/batches/b-000004", "/runs", "/releases", "/trace?q=r-000003", "/cost", "/history")
DARK, LIGHT = "rgb(20, 22, 26)", "rgb(252, 252, 251)"
ALERTS = "globalThis.alerted = []; globalThis.alert = (text) => globalThis.alerted.push(text);"


@contextlib.contextmanager
def serving(ledger: Ledger, runs: Path, token: str = "") -> Iterator[str]:
    """The page of a ledger on a free port; its address."""
    app = create_app(ledger, runs_at=str(runs), token=token, names=frozenset({"localhost"}))
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A tab of a fresh browser."""
    if chromium.program() is None:
        pytest.skip("Debian's package chromium is not installed")
    with chromium.browsing(tmp_path / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ledger and runs lie."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def ledger(folder: Path) -> Iterator[Ledger]:
    """Two months of made-up work."""
    clock = Clock()
    with open_ledger(f"sqlite:///{folder}/ledger.sqlite", actor="ops@node-1", clock=clock) as opened:
        months_of_work(opened, clock, folder / "runs")
        yield opened


@pytest.fixture(scope="module")
def home(ledger: Ledger, folder: Path) -> Iterator[str]:
    """Its address."""
    with serving(ledger, folder / "runs") as address:
        yield address


def quiet(page: Page, home: str) -> None:
    """Nothing was complained of, and nobody else was asked for anything."""
    assert page.said == []
    assert {urlsplit(address).netloc for address in page.asked if not address.startswith(("data:", "about:"))} <= {
        urlsplit(home).netloc
    }


def runs(folder: Path) -> list[str]:
    return sorted(f"/runs/{path.name}" for path in (folder / "runs").iterdir())


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True), (360, False)])
def test_every_page_is_quiet_to_itself_and_no_wider_than_the_screen(
    page: Page, home: str, folder: Path, width: int, dark: bool
) -> None:
    page.look(width, 800, dark=dark, phone=width < 500)
    for path in (*PAGES, "/requests/r-000003", "/nope", *runs(folder)[:4]):
        page.open(home + path)
        assert page.js("document.documentElement.scrollWidth") <= width, path
        assert page.js("getComputedStyle(document.body).backgroundColor") == (DARK if dark else LIGHT)
        assert page.js("document.querySelectorAll('h1').length") == 1 and page.js("document.documentElement.lang") == "en"
        assert page.js("[...document.querySelectorAll('th')].every((cell) => cell.scope)")
    page.said = [line for line in page.said if "404" not in line or "/nope" not in line]
    quiet(page, home)


def test_a_picture_of_it_is_not_empty(page: Page, home: str, tmp_path: Path) -> None:
    for name, width, dark in (("light", 1200, False), ("dark", 360, True)):
        page.look(width, 900, dark=dark)
        page.open(home)
        page.picture(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 15_000


def test_one_can_walk_it_by_keyboard(page: Page, home: str) -> None:
    page.look(1200, 900)
    page.open(home)
    focus = "(() => { const at = document.activeElement; return [at.tagName, at.textContent.trim(), at.name || '']; })()"
    walked = []
    for _ in range(24):
        page.press("Tab")
        at = page.js(focus)
        walked.append(at[1] or at[2])
        ring = page.js("getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none", at
    assert walked[:8] == ["Skip to the content", "Queue", "Batches", "Runs", "Releases", "Lineage", "Cost", "History"]
    assert {"q", "open", "Search"} & set(walked) and "r-000029" in walked
    page.open(home)
    page.press("Tab")
    assert page.js("document.activeElement.getBoundingClientRect().left") >= 0  # it is seen when it has the focus
    page.press("Enter")
    assert page.js("document.activeElement.id") == "content"
    page.open(home)
    for _ in range(3):
        page.press("Tab")
    page.press("Enter")
    page.wait("location.pathname === '/batches'")
    quiet(page, home)


def test_searching_finds_while_one_types(page: Page, tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", clock=Clock()) as ledger:
        many(ledger, 10_000)
        with serving(ledger, tmp_path / "runs") as home:
            page.open(home)
            assert "10,000" in page.js("document.querySelector('#results p').textContent")
            page.js("document.querySelector('[name=q]').focus()")
            page.type("00777")
            seconds = page.wait("document.querySelector('#results p').textContent.startsWith('1 to 11 of 11 ')")
            assert seconds < 1.0
            assert page.js("document.activeElement.name") == "q" and page.js("location.search") == "?q=00777"
            page.open(f"{home}/?page=100")
            assert "9,901 to 10,000 of 10,000" in page.js("document.querySelector('#results p').textContent")
            quiet(page, home)
        export(Site(ledger, runs=str(tmp_path / "runs")), str(tmp_path / "out"))
    page.open((tmp_path / "out" / "index.html").as_uri())
    # A keystroke in the file's own search, until the list is drawn.
    keystroke = """(async () => {
      const box = document.querySelector('[name=q]');
      const times = [];
      for (const text of ['0', '00', '007', '0077', '00777', '0077', '']) {
        const start = performance.now();
        box.value = text;
        box.dispatchEvent(new Event('input', {bubbles: true}));
        document.body.getBoundingClientRect();
        times.push(performance.now() - start);
        if (text === '00777') globalThis.found = document.querySelector('#results p').textContent;
      }
      return Math.max(...times);
    })()"""
    assert page.js(keystroke) < 200
    assert page.js("globalThis.found") == "11 of 10,000 requests"
    assert page.said == [] and {urlsplit(address).scheme for address in page.asked[-4:]} <= {"file", "data"}


def test_lineage_is_searched_without_a_server(page: Page, ledger: Ledger, folder: Path, tmp_path: Path) -> None:
    export(Site(ledger, runs=str(folder / "runs")), str(tmp_path / "out"))
    page.open((tmp_path / "out" / "trace.html").as_uri())
    page.js("document.querySelector('[name=q]').focus()")
    page.type("r-000003")
    found = page.js("document.getElementById('results').innerText")
    assert "b-000002" in found and found.count("products-mae") == 2 and "production" in found
    newest = page.js("globalThis.unlearnLineage.models.find((model) => model.batch_id === 'b-000005').model_id")
    page.js("document.querySelector('[name=q]').value = ''")
    page.type(newest[:9].upper())
    found = page.js("document.getElementById('results').innerText")
    assert "r-000003" in found and "b-000005" in found and "b-000004" not in found
    page.look(360, 800, phone=True)
    for name in ("index.html", "runs.html", "history.html", "batches-b-000004.html"):
        page.open((tmp_path / "out" / name).as_uri())
        assert (
            page.js("document.documentElement.scrollWidth") <= 360
            and page.js("getComputedStyle(document.body).marginTop") == "0px"
        )
    assert page.said == [] and {urlsplit(address).scheme for address in page.asked} <= {"file", "data", "about"}


def test_a_run_is_followed_without_reloading(page: Page, ledger: Ledger, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "demo-1"
    write_run(run, "demo", done=5, seed=0, clock=Clock(), at_step=0.25)
    with serving(ledger, tmp_path / "runs") as home:
        page.open(f"{home}/runs/demo-1")
        page.js("globalThis.same = true")
        before = page.js("document.querySelector('[data-points^=\"curve.retain\"]').getAttribute('points')")
        assert "step 120 of 480" in page.js("document.querySelector('h1').textContent")
        write_run(run, "demo", done=5, seed=0, clock=Clock(), at_step=0.75)
        page.wait("document.querySelector('h1')?.textContent.includes('step 360 of 480')", 15)
        assert page.js("document.querySelector('progress[data-value]').value") == 360
        assert page.js("document.querySelector('[data-points^=\"curve.retain\"]').getAttribute('points')") != before
        assert page.js("globalThis.same") is True
        write_run(run, "demo", done=6, seed=0, clock=Clock())
        page.wait("document.querySelector('[data-text=\"stage.retain.state\"]')?.textContent === 'done'", 15)
        write_run(run, "demo", done=9, seed=0, clock=Clock())
        page.wait("document.querySelector('#h-pictures') !== null", 15)
        quiet(page, home)


def test_hostile_text_does_nothing(page: Page, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "demo-1", "demo", done=9, seed=0, clock=Clock())
    with hostile_ledger(tmp_path) as ledger, serving(ledger, tmp_path / "runs") as home:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=ALERTS)
        for width, path in [(width, path) for width in (1200, 360) for path in PATHS[:-1]]:
            page.look(width, 800, phone=width == 360)
            page.open(home + path)
            assert page.js("globalThis.alerted") == [], path
            assert page.js("document.documentElement.scrollWidth") <= width, path
            assert page.js("[...document.images].every((image) => image.src.includes('/grid/'))"), path
        assert page.js("document.body.innerText.includes('<script>alert(1)</script>')")
        quiet(page, home)


def test_signing_in_by_the_form(page: Page, ledger: Ledger, folder: Path) -> None:
    with serving(ledger, folder / "runs", token="correct-horse-battery") as home:
        page.open(home)
        assert page.js("location.pathname") == "/login"
        for token, path in (("wrong", "/login"), ("correct-horse-battery", "/")):
            page.js("document.querySelector('[name=token]').focus()")
            page.type(token)
            page.press("Enter")
            said = "not the token" if path == "/login" else "overdue"
            page.wait(f"location.pathname === '{path}' && (document.querySelector('h1')?.textContent ?? '').includes('{said}')")
        assert page.js("document.cookie") == "" and not [address for address in page.asked if "correct-horse" in address]
