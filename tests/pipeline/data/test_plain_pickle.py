"""Old pickles are read to the byte; whatever else a pickle may ask for is refused by name and not run."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.plain_pickle import read_plain_pickle
from pipeline.errors import DataError
from tests.pipeline.data.pickles import old_pickle

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3072), dtype=np.uint8)


class _Runs:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_what_python_2_pickled_comes_back() -> None:
    made = {b"batch_label": b"training batch 1 of 5", b"labels": [3, 0, 9, 300, -1], b"data": PIXELS}
    found = read_plain_pickle(old_pickle(made), "here", "cure")
    assert found.pop(b"data").tolist() == PIXELS.tolist()
    assert found == {b"batch_label": made[b"batch_label"], b"labels": made[b"labels"]}


def test_the_hand_written_pickle_is_one_that_python_reads_as_such() -> None:
    found = pickle.loads(old_pickle({b"data": PIXELS, b"labels": [1]}).replace(b"numpy.core.", b"numpy._core."), encoding="bytes")
    assert (found[b"data"] == PIXELS).all() and found[b"labels"] == [1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_a_command_is_refused_by_name_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    content = pickle.dumps({"labels": [1], "data": _Runs(f"touch {mark}")}, protocol)
    with pytest.raises(DataError, match=r"here: refused: this pickle asks for 'posix\.system'") as caught:
        read_plain_pickle(content, "here", "fetch it again")
    assert "fetch it again" in caught.value.cure
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "__builtin__ eval", "numpy load", "numpy.core.multiarray fromfile", "numpy dtype.__init__", "io open"],
)
def test_no_other_name_is_answered(name: str) -> None:
    module, inner = name.split()
    with pytest.raises(DataError, match="refused: this pickle asks for"):
        read_plain_pickle(f"c{module}\n{inner}\n.".encode(), "here", "cure")


@pytest.mark.parametrize(
    "content",
    {
        "empty": b"",
        "no pickle": b"not a pickle",
        "cut": old_pickle({b"data": PIXELS})[:-100],
        "a list": b"\x80\2](K\1e.",
        "endless room": b"\x80\2}r" + struct.pack("<I", 2**31) + b".",
        "huge text": b"\x80\2T\xff\xff\xff\x7fab.",
        "an array of objects": old_pickle({b"data": np.zeros(3, dtype=object)}),
        "an array of floats": old_pickle({b"data": np.zeros((2, 2))}),
        "no state": b"\x80\2}U\1acnumpy\ndtype\n)Rs.",
        "a changed stand-in": b"\x80\2}U\1acnumpy\ndtype\n}bs.",
        "one from elsewhere": b"\x80\2U\3abcQ.",
        "a registered one": b"\x80\2\x82\1.",
        "not hashable": b"\x80\2}]K\1s.",
    }.values(),
)
def test_what_is_damaged_or_strange_is_named(content: bytes) -> None:
    with pytest.raises(DataError, match="here: unreadable: ") as caught:
        read_plain_pickle(content, "here", "fetch it again")
    assert caught.value.cure == "fetch it again"


def test_any_flipped_byte_gives_an_answer_or_a_named_error() -> None:
    content = old_pickle({b"labels": [1, 2], b"data": PIXELS[:1, :20]})
    for place in range(len(content)):
        for change in (1, 0x20, 0x80):
            broken = bytearray(content)
            broken[place] ^= change
            try:
                read_plain_pickle(bytes(broken), "here", "cure")
            except DataError as fault:
                assert fault.message.startswith("here: ")
