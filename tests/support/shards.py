"""Tar files by hand, so that a test does not trust the writer that it tests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def make_shard(path: Path, members: dict[str, bytes]) -> None:
    """Write a tar with these members, in this order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
