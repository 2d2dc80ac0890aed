"""Likenesses become keys: of all images within the distance, as a plain comparison of all pairs says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data import alike
from pipeline.data.alike import asks_for_likeness, spell_out
from pipeline.data.batch import Settings, Source, select
from pipeline.data.likeness import perceptual_hash
from pipeline.data.pack import pack
from pipeline.data.sources.webdataset import Config, build
from pipeline.errors import ConfigError
from pipeline.records import DeletionRequest, FileRef, RequestBatch, Selector
from pipeline.requests import parse
from tests.pipeline.data.tars import drawing, write_tar

PART = FileRef(uri="p", sha256="", bytes=0)


def batch(*selectors: tuple[str, list[str]]) -> RequestBatch:
    return parse([{"request_id": f"r{n}", kind: values} for n, (kind, values) in enumerate(selectors)], where="test")


HASHES = st.lists(st.tuples(st.integers(0, 15), st.booleans()), min_size=1, max_size=12)


@given(HASHES, st.lists(st.integers(0, 15), min_size=1, max_size=3), st.integers(0, 4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_keys_are_those_within_the_distance(
    monkeypatch: pytest.MonkeyPatch, there: list[tuple[int, bool]], asked: list[int], bits: int
) -> None:
    monkeypatch.setattr(alike, "read_columns", lambda *_: [pa.table({"key": [f"k{n}" for n in range(len(there))]})])
    column = np.ma.MaskedArray(np.array([value for value, _ in there], dtype=np.uint64), mask=[hidden for _, hidden in there])
    wanted = batch(("likeness", [f"{value:016x}" for value in asked]), ("keys", ["x"]))
    near = [
        {f"k{n}" for n, (value, hidden) in enumerate(there) if not hidden and (value ^ one).bit_count() <= bits} for one in asked
    ]
    if not all(near):
        with pytest.raises(ConfigError, match="request r0: likeness: no training image looks like"):
            spell_out(wanted, parts=[PART], hashes=[column], bits=bits)
        return
    found = spell_out(wanted, parts=[PART], hashes=[column], bits=bits)
    assert found.requests[0].selector == Selector(kind="keys", values=tuple(sorted(set().union(*near))))
    assert found.requests[1] == wanted.requests[1]
    assert dataclasses.replace(found.requests[0], selector=wanted.requests[0].selector) == wanted.requests[0]


def test_a_batch_says_whether_it_asks() -> None:
    assert asks_for_likeness(batch(("keys", ["x"]), ("likeness", ["0" * 16]))) and not asks_for_likeness(batch(("keys", ["x"])))


@pytest.mark.parametrize("value", ["MARKER", "0" * 15, "g" * 16])
def test_what_is_no_hash_is_refused_without_its_text(value: str) -> None:
    with pytest.raises(ConfigError, match="likeness: not a perceptual hash") as refused:
        spell_out(batch(("likeness", [value])), parts=[], hashes=[], bits=3)
    assert value not in str(refused.value)


def test_a_run_forgets_what_looks_alike(tmp_path: Path) -> None:
    images = [("a", drawing(1)), ("b", drawing(1, "JPEG")), ("c", drawing(2)), ("d", drawing(3))]
    members = [(f"{key}.{end}", data) for key, image in images for end, data in (("cls", b"0"), ("png", image))]
    uri = write_tar(tmp_path / "t.tar", members)
    unseen = write_tar(tmp_path / "u.tar", [("u.cls", b"0"), ("u.png", drawing(9))])
    packed, folder = pack(
        build(Config(training=(uri,), unseen=(unseen,), classes=("zero",))), name="w", output=str(tmp_path / "out")
    )
    assert packed is not None
    value = perceptual_hash(drawing(1, side=80), 10**6)
    asked = RequestBatch(
        requests=(DeletionRequest(request_id="r1", selector=Selector(kind="likeness", values=(f"{value:016x}",))),)
    )
    for bits in (None, 3):
        assert select(asked, Source(packed, folder), Settings(near_bits=bits)).chosen.keys == ("a", "b")
