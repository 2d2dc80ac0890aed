"""Decoding is strict and names the fault; the canonical form is one form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decode import canonical, closest, decode, digest, plain
from pipeline.errors import ConfigError, IntegrityError
from pipeline.records import Coverage, FileRef, Receipt, record


@record
class Inner:
    steps: int = 1
    rate: float = 0.5


@record
class Outer:
    inner: Inner = Inner()
    names: tuple[str, ...] = ()
    table: Mapping[str, int] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"inner": {"step": 2}}, r"inner\.step: unknown field \(did you mean 'steps'"),
        ({"inner": {"steps": "2"}}, r"inner\.steps: .*integer.*got \"2\""),
        ({"inner": {"steps": 2.5}}, r"inner\.steps"),
        ({"names": "abc"}, "names"),
        ({"names": ["a", 3]}, r"names\.1"),
        ([1], "top level"),
        ({"other": 1}, "other: unknown field"),
    ],
)
def test_faults_are_named_by_their_dotted_path(value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        decode(Outer, value, where="file.yaml")


def test_numbers_lists_and_defaults_decode() -> None:
    got = decode(Outer, {"inner": {"rate": 2}, "names": ["a"], "table": {"x": 1}}, where="f")
    assert got == Outer(inner=Inner(rate=2.0), names=("a",), table={"x": 1})
    with pytest.raises(IntegrityError, match="f: bytes: missing"):
        decode(FileRef, {"uri": "a", "sha256": "b"}, where="f", error=IntegrityError)
    with pytest.raises(ConfigError, match="not JSON serializable"):
        decode(Outer, {"names": {1, 2}}, where="f")


texts = st.text(max_size=8)
receipts = st.builds(
    Receipt,
    stage=texts,
    inputs=st.dictionaries(texts, texts, max_size=3),
    outputs=st.lists(st.builds(FileRef, uri=texts, sha256=texts, bytes=st.integers(0, 2**40)), max_size=3).map(tuple),
    config_digest=texts,
    code_version=texts,
    world_size=st.integers(1, 9),
    started_at=texts,
    ended_at=texts,
    facts=st.dictionaries(texts, st.one_of(st.integers(-5, 5), texts, st.booleans(), st.none()), max_size=3),
)


@given(receipts)
def test_a_record_survives_json_and_its_digest_is_a_function_of_its_content(receipt: Receipt) -> None:
    import json

    again = decode(Receipt, json.loads(canonical(receipt)), where="r")
    assert again == receipt
    assert digest(again) == digest(receipt)
    assert canonical(dict(reversed(plain(receipt).items()))) == canonical(receipt)


def test_records_are_frozen_and_names_are_suggested() -> None:
    with pytest.raises(AttributeError):
        Inner().steps = 3  # type: ignore[misc]
    assert "did you mean 'alpha'" in closest("alhpa", ["alpha", "beta"])
    assert closest("zzz", []) == "known: none"
    assert Coverage(
        split="f", passes=1, samples_expected=1, samples_seen=1, keys_digest="", expected_digest="", complete=True
    ).complete
