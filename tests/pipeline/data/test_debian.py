"""Folders of Debian packages: installed, in the cache, or fetched with fake tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.debian import cache_folder, package_folder
from pipeline.errors import DataError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any tool; `tools` adds them."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def _tools(root: Path) -> None:
    """Fakes of apt-get and dpkg-deb whose package holds one file; each call is noted in `calls`."""
    tree = f'"$3{root}/installed"'
    scripts = {
        "apt-get": 'test "$1 $2" = "download drawings" && : > drawings_1.0_all.deb',
        "dpkg-deb": f"/bin/mkdir -p {tree} && echo hello > {tree}/file",
    }
    for name, script in scripts.items():
        path = root / "bin" / name
        path.write_text(f"#!/bin/sh\necho {name} >> '{root}/calls'\n{script}\n")
        path.chmod(0o755)


def _folder(root: Path) -> Path:
    return package_folder("drawings", str(root / "installed"), root / "deep" / "cache")


def test_an_installed_package_needs_no_tool(root: Path) -> None:
    (root / "installed").mkdir()
    assert _folder(root) == root / "installed" and not (root / "deep").exists()


def test_a_package_is_fetched_once_and_nothing_else_stays(root: Path) -> None:
    _tools(root)
    for _ in range(2):
        assert (_folder(root) / "file").read_text() == "hello\n"
    assert (root / "calls").read_text().split() == ["apt-get", "dpkg-deb"]
    assert [path.name for path in (root / "deep").iterdir()] == ["cache"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "no apt-get on this machine"),
        ("printf 'E: no such\\npackage' >&2; exit 100", "apt-get ended with 100: E: no such package"),
    ],
)
def test_where_it_cannot_be_fetched_one_line_says_why(root: Path, script: str | None, reason: str) -> None:
    if script is not None:
        (root / "bin" / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
        (root / "bin" / "apt-get").chmod(0o755)
    with pytest.raises(DataError) as caught:
        _folder(root)
    assert reason in caught.value.message and "\n" not in caught.value.message
    assert not (root / "deep" / "cache").exists() and not list((root / "deep").iterdir())


def test_a_package_without_the_folder_leaves_no_cache(root: Path) -> None:
    _tools(root)
    with pytest.raises(DataError, match="could not be fetched"):
        package_folder("drawings", "/somewhere/else", root / "cache")
    assert not (root / "cache").exists()


def test_a_cache_that_another_process_made_meanwhile_is_used(root: Path) -> None:
    _tools(root)
    meanwhile = f"/bin/mkdir -p '{root}/deep/cache' && echo theirs > '{root}/deep/cache/file'"
    with (root / "bin" / "dpkg-deb").open("a") as out:
        out.write(meanwhile + "\n")
    assert (_folder(root) / "file").read_text() == "theirs\n"


def test_the_cache_lies_where_the_user_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("", "x") == tmp_path / "i2i-unlearn" / "x" and cache_folder("/given", "x") == Path("/given/x")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("", "x") == tmp_path / "home" / ".cache" / "i2i-unlearn" / "x"
