"""What needs a person's word is refused with its number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.ledger.refusals import Looked, refuse_broad, refuse_unknown


def test_an_unknown_value_is_named_by_its_place() -> None:
    with pytest.raises(ConfigError, match=r"a\.csv: unknown key: number 7 means no training image, and 2 more"):
        refuse_unknown(Looked(images=1, training=9, unknown=3, first=7, kind="key"), where="a.csv")
    refuse_unknown(Looked(images=1, training=9))


def test_too_broad_says_the_number() -> None:
    with pytest.raises(ConfigError, match=r"too broad: means 6 of 100 training images \(6.0%, more than 5.0%\)") as refused:
        refuse_broad(["keys"], Looked(images=6, training=100))
    assert "--confirm" in refused.value.cure


@given(st.integers(0, 1000), st.integers(1, 1000), st.floats(0, 1))
def test_the_share_is_the_border(images: int, training: int, share: float) -> None:
    looked = Looked(images=images, training=training)
    if images <= share * training:
        refuse_broad(["label"], looked, share=share)
    else:
        with pytest.raises(ConfigError, match="too broad"):
            refuse_broad(["label"], looked, share=share)


def test_without_an_index_only_what_may_mean_many_is_refused() -> None:
    refuse_broad(["keys", "digest"], None)
    with pytest.raises(ConfigError, match="label and prefix, and no index"):
        refuse_broad(["keys", "prefix", "label"], None)
