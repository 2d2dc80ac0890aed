import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.privacy.mechanism import CertifyConfig, mechanism_of
from pipeline.privacy.price import noise_ratio, refuse_price

CONFIG = CertifyConfig(epsilon=8.0)


def test_the_ratio_is_the_noise_over_the_radius() -> None:
    wide = dataclasses.replace(CONFIG, radius=4.0)
    assert noise_ratio(wide, 1000) == pytest.approx(mechanism_of(wide).noise_norm(1000) / 4.0)


@given(st.integers(min_value=1, max_value=10**10))
def test_what_is_refused_can_be_confirmed_as_the_message_says(dimension: int) -> None:
    if noise_ratio(CONFIG, dimension) <= CONFIG.price_limit:
        refuse_price(CONFIG, dimension)
        return
    with pytest.raises(ConfigError, match="times as long as what they may keep") as caught:
        refuse_price(CONFIG, dimension)
    limit = float(caught.value.cure.split("price_limit=")[1].split(";")[0])
    refuse_price(dataclasses.replace(CONFIG, price_limit=limit), dimension)
