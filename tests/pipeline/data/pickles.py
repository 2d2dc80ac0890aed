"""Pickles as Python 2 wrote them, protocol 2, opcode by opcode: Python 3 writes another dialect."""

from __future__ import annotations

import struct

import numpy as np


def _text(value: bytes) -> bytes:
    return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<I", len(value))) + value


def _number(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def _array(value: np.ndarray) -> bytes:
    kind = (
        b"cnumpy\ndtype\n"
        + _text(value.dtype.str[1:].encode())
        + b"K\0K\1\x87R(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R"
    shape = b"(" + b"".join(map(_number, value.shape)) + b"t"
    return made + b"(K\1" + shape + kind + b"\x89" + _text(value.tobytes()) + b"tb"


def _value(value: object) -> bytes:
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, int):
        return _number(value)
    if isinstance(value, np.ndarray):
        return _array(value)
    assert isinstance(value, list)
    return b"](" + b"".join(map(_value, value)) + b"e"


def old_pickle(values: dict[bytes, object]) -> bytes:
    """A mapping of byte texts to texts, numbers, lists and arrays; keys are remembered, as the official files do."""
    items = (_text(key) + b"r" + struct.pack("<I", n + 1) + _value(item) for n, (key, item) in enumerate(values.items()))
    return b"\x80\2}q\0(" + b"".join(items) + b"u."
