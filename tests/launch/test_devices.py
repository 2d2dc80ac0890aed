"""The device table: complete, plausible, and every number with its source."""

from __future__ import annotations

import re

import pytest

from launch.devices import device_names, read_device
from pipeline.errors import ConfigError
from pipeline.layers import packaged


@pytest.mark.parametrize("name", device_names())
def test_an_entry_decodes_and_is_plausible(name: str) -> None:
    device = read_device(name)
    assert device.memory_bandwidth > device.link_bandwidth > device.network_gbit * 1e9 / 8 / 8
    assert device.bf16_flop is None or device.bf16_flop > device.fp32_flop
    assert device.flop_rate("fp32") == device.fp32_flop * device.reached
    assert device.flop_rate("autocast") == device.flop_rate("bf16")


@pytest.mark.parametrize("name", device_names())
def test_every_number_has_its_source_beside_it(name: str) -> None:
    before = ""
    for line in packaged("device")[name].read_text().splitlines():
        if re.match(r"\w+:", line):
            assert "#" in line or before.startswith("#"), f"{name}: {line}"
        before = line


def test_what_has_no_bf16_arithmetic_says_so() -> None:
    assert read_device("v100").flop_rate("bf16") is None
    assert read_device("v100").flop_rate("fp32") is not None


def test_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no device is called 'h10'") as fault:
        read_device("h10")
    assert "h100" in fault.value.cure
