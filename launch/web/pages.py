"""The templates, and how their links look: addresses of a server, or files beside each other."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jinja2

from launch.web import words

__all__ = ["HERE", "NAVIGATION", "file_link", "file_name", "render", "server_link"]

HERE = Path(__file__).parent
NAVIGATION = (
    ("queue", "Queue"),
    ("batches", "Batches"),
    ("runs", "Runs"),
    ("releases", "Releases"),
    ("trace", "Lineage"),
    ("cost", "Cost"),
    ("history", "History"),
)
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}")
FILTERS = ("clock", "count", "day", "decimals", "duration", "share", "short", "short_line", "until")

Link = Callable[..., str]
"""Page, name of what it is about, fields of a search -> address; empty: there is no such page."""


def server_link(page: str, name: str = "", /, **query: Any) -> str:
    """The address of a page on the server."""
    path = "/" if page == "queue" and not name else "/".join(("", page, *([quote(name, safe="")] if name else [])))
    given = {key: value for key, value in query.items() if value not in ("", None)}
    return f"{path}?{urlencode(given)}" if given else path


def file_name(page: str, name: str = "", number: int = 1) -> str:
    """The file of a page: letters, digits, `.`, `_` and `-` alone."""
    stem = "index" if page == "queue" and not name else page
    if name:
        # What could be no file's name, or another's on a disk without capitals, is told apart by a digest.
        plain = SAFE.fullmatch(name) and name == name.lower()
        stem += f"-{name if plain else hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"{stem}.html" if number <= 1 else f"{stem}.{number}.html"


def file_link(page: str, name: str = "", /, *, pictures: bool = True, **query: Any) -> str:
    """The file of a page among files; empty for searches, and for what has no page of its own there.

    Args:
        page: as for the server.
        name: of what it is about.
        pictures: whether reports and picture grids lie there, too.
        query: fields of a search, of which only `page` and a grid's `file` have files.
    """
    if page in ("requests", "progress", "metrics") or (page in ("report", "grid") and not pictures):
        return ""
    if page == "grid":
        return quote(f"{file_name(page, name).removesuffix('.html')}-{query['file']}")
    number = int(query.pop("page", 1) or 1)
    return "" if any(query.values()) else quote(file_name(page, name, number))


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {name: getattr(words, name) for name in FILTERS}
    made.globals |= {"marks": words.MARKS}
    return made


def render(template: str, context: Mapping[str, Any], *, link: Link, static: bool, now: str) -> str:
    """A page as HTML.

    Args:
        template: its name, without ending.
        context: what it shows.
        link: how addresses are made.
        static: whether it is a file: without searches of the server, and not renewed.
        now: the time that due dates are seen from.
    """
    own = {"link": link, "static": static, "now": now, "navigation": NAVIGATION, "page": template}
    return _environment().get_template(f"{template}.html.j2").render({**own, **context})
