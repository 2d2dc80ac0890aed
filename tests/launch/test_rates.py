"""Rates: from the table with the cluster's numbers above it, and from a probe taken apart."""

from __future__ import annotations

import dataclasses

import pytest

from launch.cluster import read_cluster
from launch.devices import LINK_SHARE, read_device
from launch.estimate import step_parts
from launch.memory import Layout, Reading, memory_of
from launch.rates import DECODES, measured_rates, measured_slack, table_rates
from launch.work import StageWork
from pipeline.config import resolve
from pipeline.errors import ConfigError
from tests.support.planning import ANSWER, FACTS, MACHINE

CONFIG = resolve("demo", ["engine.zero_stage=1"])
HERE = read_cluster("")


def test_a_device_of_the_table_in_a_cluster() -> None:
    cluster = read_cluster("h100", {"node": {"network_gbit": 800}})
    config, device = resolve("demo", ["engine.precision=bf16"]), read_device("h100")
    rates = table_rates(device, cluster, config, ANSWER, 8)
    assert rates.flop_seconds == pytest.approx(1 / (device.reached * (device.bf16_flop or 0)))
    assert rates.fabric.between is not None
    assert rates.fabric.between.bandwidth == pytest.approx(LINK_SHARE * 1e11)
    assert rates.decode_seconds == pytest.approx(1 / (DECODES * 96 / 8))
    assert rates.checkpoint_seconds is None


def test_cores_that_are_not_named_make_no_loading() -> None:
    cluster = read_cluster("", {"node": {"gpus": 8, "device": "h100"}})
    assert table_rates(read_device("h100"), cluster, CONFIG, ANSWER, 8).decode_seconds is None


def test_a_precision_that_the_device_lacks_is_refused() -> None:
    cluster = read_cluster("", {"node": {"gpus": 8, "device": "v100"}})
    with pytest.raises(ConfigError, match="bf16 on v100"):
        table_rates(read_device("v100"), cluster, resolve("demo", ["engine.precision=bf16"]), ANSWER, 8)


def test_a_probe_is_put_together_again() -> None:
    rates = measured_rates(MACHINE, HERE, CONFIG, ANSWER)
    layout = Layout(zero=1, precision="fp32", ranks=2)
    for samples, seconds in MACHINE.step_seconds.items():
        work = StageWork(facts=FACTS, steps=1, samples=2 * int(samples))
        parts = step_parts(work, rates, layout, samples=int(samples))
        assert sum(value or 0.0 for value in parts.values()) == pytest.approx(seconds + MACHINE.update_seconds, rel=1e-6)
    # 12.5 ms a sample and 0.1 s fixed, of which the exchanges of the backward pass are the network's.
    assert rates.flop_seconds == pytest.approx(0.0125 / FACTS.flop.each)
    assert 0 < rates.fixed_seconds < 0.1


def test_update_and_network_change_with_the_ranks() -> None:
    rates = measured_rates(MACHINE, HERE, CONFIG, ANSWER)
    work = StageWork(facts=FACTS, steps=1, samples=64)
    one, two = (step_parts(work, rates, Layout(zero=1, precision="fp32", ranks=ranks), samples=32) for ranks in (1, 2))
    assert one["network"] == 0.0
    assert (one["update"] or 0) == pytest.approx(2 * (two["update"] or 0))


def test_several_nodes_need_a_network_that_is_named() -> None:
    assert measured_rates(MACHINE, HERE, CONFIG, ANSWER).fabric.between is None
    named = read_cluster("", {"node": {"network_gbit": 10}})
    between = measured_rates(MACHINE, named, CONFIG, ANSWER).fabric.between
    assert between is not None
    assert between.bandwidth == pytest.approx(LINK_SHARE * 1.25e9)


def test_an_offset_below_nothing_goes_to_the_samples() -> None:
    odd = dataclasses.replace(MACHINE, step_seconds={"16": 0.1, "32": 0.5})
    rates = measured_rates(odd, HERE, CONFIG, ANSWER)
    assert rates.fixed_seconds == 0.0
    assert (rates.flop_seconds or 0) > 0


def test_slack_explains_the_probes_peaks() -> None:
    machine = dataclasses.replace(MACHINE, peak_bytes={"16": 500_000_000, "32": 532_000_000}, look=10, look_bytes=4)
    slack = measured_slack(machine, CONFIG, ANSWER)
    assert slack.factor == pytest.approx(2.0)
    assert slack.forward == 1.0  # less than was traced is noise
    assert measured_slack(MACHINE, CONFIG, ANSWER).forward == pytest.approx(1.2)  # 12 MB beside 100 times 100 kB
    found = memory_of(
        FACTS,
        Layout(zero=1, precision="fp32", ranks=2),
        samples=32,
        reading=Reading(cache=0.0, ahead=0.0),
        process=machine.process_bytes,
        gpu=False,
        slack=slack,
        publishing=False,
    )
    assert found.total == pytest.approx(532_000_000)
