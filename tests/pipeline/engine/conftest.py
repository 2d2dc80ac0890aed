"""A store in memory that several ranks, which are threads here, may read at once."""

from __future__ import annotations

import io
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem


@pytest.fixture(autouse=True)
def _readers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec gives every reader of a file in memory the same object, whose place they would move for each other."""
    real = MemoryFileSystem._open

    def opened(self: MemoryFileSystem, path: str, mode: str = "rb", **more: Any) -> Any:
        found = real(self, path, mode, **more)
        return io.BytesIO(found.getvalue()) if mode == "rb" else found

    monkeypatch.setattr(MemoryFileSystem, "_open", opened)
