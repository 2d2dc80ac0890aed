from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.splits import choose
from pipeline.records import Group

GROUPS = (
    Group(name="class 1", kind="class", labels=(1,), samples=40),
    Group(name="singles", kind="images", labels=(0, 2), samples=12),
)


def tables(seed=0):
    rng = np.random.default_rng(seed)

    def table(prefix, labels, groups):
        return SimpleNamespace(
            keys=[f"{prefix}{n}" for n in range(len(labels))], labels=np.array(labels), groups=np.array(groups)
        )

    holdout = rng.integers(0, 4, 200)
    return {
        "forget": table("f", [1] * 40 + [0] * 9 + [2] * 3, [0] * 40 + [1] * 12),
        "retain": table("r", rng.integers(0, 4, 300), [-1] * 300),
        "holdout": table("h", holdout, [-1] * 200),
    }


def by_name(found):
    return {item.name: item for item in found}


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 250))
def test_slices_are_of_the_right_kind_and_size(seed, limit):
    given_tables = tables(seed)
    found = by_name(choose(given_tables, GROUPS, seed=seed, max_samples=limit))
    assert list(found) == ["forget/class 1", "unseen/class 1", "forget/singles", "unseen/singles", "retain", "unseen_retain"]
    for item in found.values():
        assert len(item.indices) <= limit and len(set(item.indices.tolist())) == len(item.indices)
    holdout = given_tables["holdout"].labels
    assert set(holdout[found["unseen/class 1"].indices]) <= {1}
    assert set(holdout[found["unseen/singles"].indices]) <= {0, 2}
    assert 1 not in holdout[found["unseen_retain"].indices]
    assert len(found["forget/class 1"].indices) == min(limit, 40)
    assert len(found["retain"].indices) == min(limit, 300)


def test_unseen_images_have_the_mix_of_the_forget_images():
    found = by_name(choose(tables(), GROUPS, seed=0, max_samples=40))
    labels = tables()["holdout"].labels[found["unseen/singles"].indices]
    assert ((labels == 0).sum(), (labels == 2).sum()) == (30, 10)


def test_choice_is_a_function_of_seed_and_key_not_of_order():
    plain, turned = tables(), tables()
    for table in turned.values():
        table.keys, table.labels, table.groups = table.keys[::-1], table.labels[::-1], table.groups[::-1]
    for one, other in zip(
        choose(plain, GROUPS, seed=5, max_samples=20), choose(turned, GROUPS, seed=5, max_samples=20), strict=True
    ):
        assert [plain[one.source].keys[i] for i in one.indices] == [turned[one.source].keys[i] for i in other.indices]
    one, other = (choose(plain, GROUPS, seed=seed, max_samples=20)[4].indices for seed in (5, 6))
    assert one.tolist() != other.tolist()


def test_no_held_out_image_of_a_kind_gives_an_empty_slice():
    given_tables = tables()
    given_tables["holdout"].labels[:] = 3
    assert len(by_name(choose(given_tables, GROUPS, seed=0, max_samples=9))["unseen/class 1"].indices) == 0


def test_calibration_images_are_never_asked_for():
    with pytest.raises(KeyError):
        choose({"calibration": tables()["holdout"]}, GROUPS, seed=0, max_samples=9)
