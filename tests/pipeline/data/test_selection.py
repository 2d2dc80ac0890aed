"""What a batch means, who is refused, and how forgotten images fall into groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.selection import forgotten_rows, group_rows
from pipeline.errors import ConfigError
from pipeline.records import Group
from tests.pipeline.data.tars import batch

KEYS = ["a/1", "a/2", "b/1", "b/10", "c/1", "c/2"]
LABELS = np.array([0, 0, 1, 1, 2, 2])
CLASSES = ["ant", "bee", "1", "fly"]


def _rows(**selectors: list[str]) -> list[int]:
    chosen = forgotten_rows(batch(**selectors), keys=KEYS, labels=LABELS, classes=CLASSES, unseen_keys=["u/1"])
    return np.flatnonzero(chosen).tolist()


def test_each_kind_of_selector_finds_its_images() -> None:
    assert _rows(keys=["b/1", "a/2"]) == [1, 2]
    assert _rows(label=["ant"]) == [0, 1]
    assert _rows(prefix=["b/1", "c/"]) == [2, 3, 4, 5]
    assert _rows(keys=["a/1"], label=["bee"], prefix=["c/2"]) == [0, 2, 3, 5]


def test_a_class_name_wins_over_a_class_number() -> None:
    assert _rows(label=["1"]) == [4, 5]
    assert _rows(label=["0"]) == [0, 1]


REFUSALS = [
    ({"keys": ["a/1", "x/1", "x/2"]}, "key 'x/1' and 1 more: no such training image", "look like 'a/1'"),
    ({"keys": ["u/1"]}, "key 'u/1'", "no model trains on these images"),
    ({"label": ["bea"]}, "label 'bea': no such class", "did you mean 'bee'?"),
    ({"label": ["7"]}, "label '7': no such class", "known:"),
    ({"label": ["²"]}, "label '²': no such class", "known:"),
    ({"label": ["fly"]}, "label 'fly': no training image has it", "take the request out"),
    ({"prefix": ["d/", "a/", "e/"]}, "prefix 'd/' and 1 more", "correct the prefixes"),
    ({"prefix": ["a/", "b/", "c/"]}, "all 6 training images", "ask for less"),
    ({}, "no training image is meant", "name at least one"),
]


@pytest.mark.parametrize(("selectors", "message", "cure"), REFUSALS)
def test_refusals_name_the_fault_and_the_cure(selectors: dict[str, list[str]], message: str, cure: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _rows(**selectors)
    assert message in caught.value.message and cure in caught.value.cure


@given(chosen=st.lists(st.booleans(), min_size=6, max_size=6), prefix=st.sampled_from(["", "a", "b/1", "c/"]))
def test_prefixes_and_keys_mean_what_they_say(chosen: list[bool], prefix: str) -> None:
    keys = [key for key, wanted in zip(KEYS, chosen, strict=True) if wanted]
    expected = [row for row, key in enumerate(KEYS) if key in keys or (prefix and key.startswith(prefix))]
    if 0 < len(expected) < len(KEYS):
        assert _rows(keys=keys, prefix=[prefix] if prefix else []) == expected


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    seed=st.integers(0, 99),
    share=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_groups_partition_the_forgotten_images(labels: list[int], seed: int, share: float) -> None:
    numbers = np.array(labels)
    forgotten = np.random.default_rng(seed).random(len(labels)) < 0.5
    groups, group_of = group_rows(forgotten, labels=numbers, classes=CLASSES, class_share=share)
    assert ((group_of >= 0) == forgotten).all()
    for place, group in enumerate(groups):
        rows = group_of == place
        assert rows.sum() == group.samples and set(numbers[rows]) == set(group.labels)
        if group.kind == "class":
            (label,) = group.labels
            assert (rows == (forgotten & (numbers == label))).all()
            assert rows.sum() >= share * (numbers == label).sum()
        else:
            assert place == len(groups) - 1
            assert all((forgotten & (numbers == n)).sum() < share * (numbers == n).sum() for n in group.labels)


def test_group_names_say_what_they_are() -> None:
    forgotten = np.array([True, True, True, False, False, False])
    numbers = np.array([0, 0, 1, 1, 1, 2])
    groups, _ = group_rows(forgotten, labels=numbers, classes=CLASSES, class_share=0.5)
    assert groups == (
        Group(name="class ant", kind="class", labels=(0,), samples=2),
        Group(name="single images", kind="images", labels=(1,), samples=1),
    )
