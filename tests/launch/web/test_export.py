"""The pages as files: whole, linked among themselves, the same text as the server's, and nothing left of an earlier export."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from urllib.parse import unquote

import pytest

from launch.web import export as module
from launch.web.export import LIST, SHARD, export
from launch.web.site import Site
from pipeline.errors import ConfigError, StorageError
from pipeline.ledger.store import open_ledger
from tests.launch.web.conftest import Work
from tests.launch.web.test_app import MARKERS, hostile_ledger
from tests.support.ledger_page import Clock, many


@pytest.fixture(scope="module")
def out(work: Work, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up ledger's pages."""
    folder = tmp_path_factory.mktemp("files") / "out"
    export(work.site, str(folder))
    return folder


def index_of(out: Path) -> dict[str, list[list[str]]]:
    text = (out / "index.js").read_text()
    return json.loads(text.removeprefix("globalThis.unlearnRequests = ").removesuffix(";\n"))  # type: ignore[no-any-return]


def test_all_files_are_there_for_their_owner_alone(out: Path, work: Work) -> None:
    names = {path.name for path in out.iterdir()}
    assert names == set(json.loads((out / LIST).read_text())) | {LIST}
    assert {
        "index.html",
        "index.js",
        "page.css",
        "files.js",
        "batches.html",
        "runs.html",
        "releases.html",
        "cost.html",
        "history.html",
    } <= names
    assert {f"runs-{name}.html" for name in work.runs} <= names and f"report-{work.runs[0]}.html" in names
    assert stat.S_IMODE(out.stat().st_mode) == 0o700


def test_every_link_leads_to_a_file_beside_it(out: Path) -> None:
    for page in out.glob("*.html"):
        if page.name.startswith("report-"):
            continue
        for link in re.findall(r'(?:href|src)="([^"]*)"', page.read_text()):
            if not link.startswith(("#", "data:")):
                assert "/" not in link and (out / unquote(link)).is_file(), (page.name, link)


def test_the_list_is_cut_and_the_index_whole(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", clock=Clock()) as ledger:
        many(ledger, SHARD * 2 + 3)
        export(Site(ledger, runs=str(tmp_path / "runs")), str(tmp_path / "out"))
    pages = [tmp_path / "out" / name for name in ("index.html", "index.2.html", "index.3.html")]
    names = [name for page in pages for name in re.findall(r"<bdi>(req-\d+)</bdi>", page.read_text())]
    assert len(names) == len(set(names)) == SHARD * 2 + 3 and not (tmp_path / "out" / "index.4.html").exists()
    assert sorted(row[0] for row in index_of(tmp_path / "out")["rows"]) == sorted(names)


def test_without_pictures_there_are_none(work: Work, tmp_path: Path) -> None:
    export(work.site, str(tmp_path / "out"), pictures=False)
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert not [name for name in names if name.startswith(("report-", "grid-"))]
    assert "report-" not in (tmp_path / "out" / "runs.html").read_text()


def test_the_next_export_removes_what_is_no_more_and_other_folders_are_left_alone(work: Work, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(work.site, str(out))
    (out / "notes.txt").write_text("mine")
    export(work.site, str(out), pictures=False)
    assert (out / "notes.txt").exists() and not list(out.glob("report-*"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="other files"):
        export(work.site, str(tmp_path / "full"))
    with pytest.raises(StorageError, match="no folder to write to"):
        export(work.site, str(tmp_path / "full" / "notes.txt"))


def test_a_large_index_keeps_the_open_ones(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INDEXED", 10)
    export(work.site, str(tmp_path / "out"))
    index = index_of(tmp_path / "out")
    states = {row[index["columns"].index("state")] for row in index["rows"]}  # type: ignore[arg-type]
    assert len(index["rows"]) == 10 and not states & {"released", "withdrawn"}


def test_nothing_personal_and_no_hostile_tag_is_in_any_file(tmp_path: Path) -> None:
    with hostile_ledger(tmp_path) as ledger:
        export(Site(ledger, runs=str(tmp_path / "runs")), str(tmp_path / "out"))
    for path in (tmp_path / "out").iterdir():
        text = path.read_text()
        assert not [marker for marker in MARKERS if marker in text], path.name
        assert path.suffix != ".html" or "<script>" not in text
