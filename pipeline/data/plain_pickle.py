"""Old pickles of plain values and byte arrays, read without running anything that is in them.

A pickle is a program: it may name any function and have it called. Here the three names that a pickled NumPy array asks
for are answered with a stand-in that only remembers what it is given; every other name is refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np

from pipeline.errors import DataError

__all__ = ["read_plain_pickle"]

ALLOWED = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}
MOST_REMEMBERED = 1_000_000
"""Values that a pickle may number for later use; the reader makes room up to the largest number it meets."""


class _Stored:
    """A pickled array or kind of numbers: what it was called with, and the state it was then given."""

    __slots__ = ("given", "state")

    def __init__(self, *given: Any) -> None:
        self.given = given
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """The array, if it is one of bytes, row after row."""
        _, shape, kind, by_columns, raw = self.state
        if kind.given[0] not in (b"u1", "u1") or by_columns or not isinstance(raw, bytes):
            raise ValueError("an array that is not of bytes, row after row")
        return np.frombuffer(raw, np.uint8).reshape(shape)


class _Reader(pickle.Unpickler):
    def __init__(self, content: bytes, where: str, cure: str) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._where, self._cure = where, cure

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            message = f"{self._where}: refused: this pickle asks for '{module[:80]}.{name[:80]}', and could run it"
            raise DataError(message, f"do not open it with another program; {self._cure}")
        return _Stored


def read_plain_pickle(content: bytes, where: str, cure: str) -> dict[Any, Any]:
    """A pickled mapping of plain values and arrays of bytes, as Python 2 wrote them.

    Args:
        content: the file; the caller bounds its size.
        where: what to call it in messages.
        cure: where a good one is to be had.

    Returns:
        The mapping; texts are bytes, arrays are uint8.

    Raises:
        DataError: a name that is not allowed, anything but a mapping, arrays of other kinds, or a damaged file.
    """
    try:
        for code, argument, _ in pickletools.genops(content):
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(str(argument)) < MOST_REMEMBERED:
                raise ValueError(f"it numbers a value {argument}")
        found = _Reader(content, where, cure).load()
        if not isinstance(found, dict):
            raise TypeError("not a mapping")
        return {key: value.array() if isinstance(value, _Stored) else value for key, value in found.items()}
    except DataError:
        raise
    except Exception as fault:  # what a damaged pickle raises can be nearly anything
        raise DataError(f"{where}: unreadable: {type(fault).__name__}: {str(fault)[:200]}", cure) from None
