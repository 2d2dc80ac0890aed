"""Data that Debian packages carry: fetched and unpacked without root, and kept in a cache."""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import DataError

__all__ = ["cache_folder", "package_folder", "unpacked"]

log = logging.getLogger("unlearn")

TIMEOUT_SECONDS = 600


def cache_folder(configured: str, name: str) -> Path:
    """Where fetched files of `name` are kept; `configured` empty: below i2i-unlearn in $XDG_CACHE_HOME or ~/.cache."""
    if configured:
        return Path(configured).expanduser() / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "i2i-unlearn" / name


@contextmanager
def unpacked(package: str, parent: Path | None = None) -> Iterator[Path]:
    """The files of a Debian package, fetched and unpacked without root; apt checks its signature chain.

    Args:
        package: its name.
        parent: folder on whose disk it is unpacked; None: the system's place for temporary files.

    Yields:
        A folder with the package's tree, `usr` and all; gone afterwards.

    Raises:
        DataError: not a Debian machine, no such package, or no way to a mirror. One line, without a cure: the caller
            knows what else can be done.
    """
    with tempfile.TemporaryDirectory(prefix=f".{package}-", dir=parent) as work:
        tree = Path(work) / "tree"
        try:
            _call(["apt-get", "download", package], work)
        except DataError:
            # A fresh machine has no package lists, and only root may fill the system's own: fill private ones.
            lists = Path(work) / "lists"
            (lists / "partial").mkdir(parents=True)
            private = ["apt-get", "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={work}/apt"]
            _call([*private, "update"], work)
            _call([*private, "download", package], work)
        for archive in sorted(Path(work).glob(f"{package}_*.deb")):
            _call(["dpkg-deb", "-x", str(archive), str(tree)], work)
        yield tree


def package_folder(package: str, installed: str, cache: Path) -> Path:
    """A folder of a package: where it is installed, else in the cache, else fetched into the cache.

    Args:
        package: its name.
        installed: where the package puts the folder.
        cache: where a fetched copy of the folder lies, or is to lie.

    Raises:
        DataError: it is nowhere and cannot be fetched; without a cure, as `unpacked`.
    """
    for folder in (Path(installed), cache):
        if folder.is_dir():
            return folder
    log.info("fetching the Debian package %s into %s", package, cache)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with unpacked(package, cache.parent) as tree:
            _move(tree / installed.lstrip("/"), cache)
    except (OSError, DataError) as fault:
        reason = getattr(fault, "message", fault)
        raise DataError(f"neither in {installed} nor in {cache}, and could not be fetched: {reason}") from None
    return cache


def _move(folder: Path, target: Path) -> None:
    """Rename a folder, unless another process has just put the same one there."""
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _call(command: list[str], folder: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=TIMEOUT_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.CalledProcessError as fault:
        tail = " ".join(fault.stderr.decode(errors="replace").split())[-150:]
        raise DataError(f"{command[0]} ended with {fault.returncode}: {tail}") from None
    except subprocess.TimeoutExpired:
        raise DataError(f"{command[0]} did not end within {TIMEOUT_SECONDS} seconds") from None
    except FileNotFoundError:
        raise DataError(f"no {command[0]} on this machine") from None
