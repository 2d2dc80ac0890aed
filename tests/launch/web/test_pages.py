"""Links of a server and of files, and templates that escape whatever they are given."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, unquote, urlsplit

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.web.pages import HERE, file_link, file_name, render, server_link

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60)


@given(NAMES, NAMES)
def test_a_server_link_is_one_path_that_carries_any_name(name: str, text: str) -> None:
    parts = urlsplit(server_link("runs", name, q=text))
    assert parts.netloc == "" and parts.path.count("/") == 2 and unquote(parts.path.split("/")[2]) == name
    assert parse_qs(parts.query, keep_blank_values=True)["q"] == [text] and parts.fragment == ""


def test_the_queue_is_the_root() -> None:
    assert (
        server_link("queue") == "/" and server_link("queue", q="", page=2) == "/?page=2" and server_link("batches") == "/batches"
    )


@given(NAMES, st.integers(1, 9))
def test_a_file_has_a_plain_name_in_the_same_folder(name: str, number: int) -> None:
    found = file_name("runs", name, number)
    assert re.fullmatch(r"runs-[a-z0-9._-]+\.html", found)


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_two_names_have_two_files_even_on_a_disk_without_capitals(names: list[str]) -> None:
    first, second = (file_name("runs", name).lower() for name in names)
    assert first != second


def test_what_has_no_file_has_no_link() -> None:
    assert file_link("trace") == "trace.html" and file_link("trace", q="r-1") == ""
    assert file_link("requests", "r-1") == file_link("queue", due="soon") == file_link("progress", "x") == ""
    assert file_link("queue") == "index.html" and file_link("queue", page=2) == "index.2.html"
    assert file_link("report", "x") == "report-x.html" and file_link("report", "x", pictures=False) == ""
    assert file_link("grid", "x", file="grid_0.png") == "grid-x-grid_0.png"


def test_a_page_escapes_and_is_strict() -> None:
    found = render("fault", {"title": '"><script>x</script>', "words": "&"}, link=server_link, static=False, now="")
    assert "<script>x" not in found and "&#34;&gt;&lt;script&gt;" in found and "&amp;" in found
    with pytest.raises(jinja2.UndefinedError):
        render("fault", {"title": "t"}, link=server_link, static=False, now="")


def test_templates_have_no_inline_script_style_or_safe_mark() -> None:
    for path in sorted((HERE / "templates").glob("*.j2")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\sstyle=|\son[a-z]+=|<style|javascript:|\|\s*safe|autoescape|https?://", text), path.name
        assert not re.search(r"<script(?![^>]*\ssrc=)", text), path.name


def test_scripts_put_no_text_into_html() -> None:
    for path in sorted((HERE / "static").glob("*.js")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|https?://", text), (
            path.name
        )
