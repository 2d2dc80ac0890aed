"""YAML as people write it: laws of reading and writing, and what YAML 1.1 would have made of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.written import NotYAML, dump, load, load_words

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=12)
NUMBER_LIKE = st.from_regex(r"[-+]?[0-9._:]{0,6}([eE][-+]?[0-9]{1,3})?", fullmatch=True)
ODD = st.sampled_from(["no", "Yes", "null", "~", "1e4", "1E-4", "0017", "0x1F", "1:30", "2026-02-31", "<<", "=", ".5e3", "1_000"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | NUMBER_LIKE | ODD
DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS | ODD, inner, max_size=4), max_leaves=12
)


@given(DATA)
def test_what_is_written_is_read_again_here_and_by_yaml_1_1(value: Any) -> None:
    text = dump(value)
    assert load(text) == value
    assert yaml.safe_load(text) == value


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_a_number_is_what_json_makes_of_it(value: float) -> None:
    text = json.dumps(value)
    assert load(text) == json.loads(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E+3", 1000.0), ("-2e3", -2000.0), (".5e1", 5.0), ("1.5e3", 1500.0), ("3.0e-4", 3e-4), ("12", 12)],
)
def test_exponents_need_no_point_and_no_sign(text: str, value: float) -> None:
    assert load(text) == value and type(load(text)) is type(value)
    assert load(f"{{rate: {text}}}") == {"rate": value}


@pytest.mark.parametrize("text", ["1e", "e4", "1e-", "1e4x", "0x1e-4", "'1e-4'", "a1e4", "1e4 5"])
def test_what_only_looks_like_a_number_is_a_word(text: str) -> None:
    assert load(text) == text.strip("'")


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:/+-]{0,10}[A-Za-z0-9]", fullmatch=True).filter(lambda t: t.lower() != "null"))
def test_words_stay_letter_by_letter(word: str) -> None:
    assert load_words(f"[{{key: {word}}}]") == [{"key": word}]


@pytest.mark.parametrize("word", ["0017", "1e4", "no", "on", "1:30", "1.10", "2026-11-24", "0x1F", "1_000", ".inf", "1" * 64])
def test_words_that_yaml_1_1_would_change(word: str) -> None:
    assert str(yaml.safe_load(word)) != word or load(word) != word
    assert load_words(word) == word


def test_nothing_stays_nothing_and_anchors_work() -> None:
    assert load_words("{a: , b: null, c: ~, d: 'null'}") == {"a": None, "b": None, "c": None, "d": "null"}
    merged = "- &x {subject: p1, key: 007}\n- {<<: *x, key: 008}\n- {<<: *x, subject: p2}\n"
    assert load_words(merged) == [
        {"subject": "p1", "key": "007"},
        {"subject": "p1", "key": "008"},
        {"subject": "p2", "key": "007"},
    ]


@pytest.mark.parametrize("text", ["{a: 1, b: 2, a: 1}", "a: 1\nb: 2\na: 3\n", "x:\n  - {a: 1, 'a': 2}\n", "- key: x\n  key: y\n"])
def test_a_key_that_stands_twice_is_refused(text: str) -> None:
    assert yaml.safe_load(text), "YAML 1.1's reader keeps the last of both"
    for read in (load, load_words):
        with pytest.raises(NotYAML, match=r"line \d+, column \d+: '\w+' stands twice in one mapping"):
            read(text)


@pytest.mark.parametrize(
    "text", ["a: [secret", "a: secret: b", "\tsecret: x", "secret\0", "!!python/name:os.system secret", "[&a secret, *b]"]
)
def test_a_fault_says_where_and_repeats_no_line(text: str) -> None:
    with pytest.raises(NotYAML) as caught:
        load(text)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_day_that_is_none_is_a_fault_and_no_traceback() -> None:
    with pytest.raises(NotYAML, match="day"):
        load("since: 2026-02-31")
    assert load_words("since: 2026-02-31") == {"since": "2026-02-31"}
