import dataclasses

import pytest

from pipeline.errors import ConfigError
from pipeline.privacy.gaussian import epsilon_of
from pipeline.privacy.mechanism import CertifyConfig, certify_config, mechanism_of


def test_off_and_nothing_ask_for_nothing() -> None:
    assert [certify_config(value) for value in (None, False, "off")] == [None] * 3


def test_a_name_asks_for_its_defaults_and_a_mapping_for_its_fields() -> None:
    assert certify_config("noisy_retain") == CertifyConfig()
    assert certify_config({"epsilon": 4}) == CertifyConfig(epsilon=4.0)
    with pytest.raises(ConfigError, match=r"method\.certify: epsilo"):
        certify_config({"epsilo": 4})


def test_noise_follows_from_the_target() -> None:
    config = CertifyConfig(epsilon=3.0, delta=1e-6, decay=0.1)
    assert 0.998 * 3 < epsilon_of(mechanism_of(config).mu(config.steps), config.delta) < 3.0


def test_noise_that_is_given_stays() -> None:
    assert mechanism_of(CertifyConfig(noise=0.25)).noise == 0.25


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mechanism": "projected"}, "takes? the noise as it is given"),
        ({"anchor": "base"}, "anchor: base without base"),
        ({"trains": "bottleneck"}, "trains: bottleneck without base"),
    ],
)
def test_fields_that_cannot_work_together_are_refused(fields: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        mechanism_of(dataclasses.replace(CertifyConfig(), **fields))


def test_noise_in_a_ball_is_no_larger_than_the_ball() -> None:
    rule = mechanism_of(CertifyConfig(mechanism="projected", noise=0.5, ball=0.7))
    assert rule.noise_norm(1_000_000) == 1.4
    assert rule.projected_epsilon(1e-5, rule.steps) > 0
