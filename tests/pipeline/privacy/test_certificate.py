"""Each assumption broken alone: the certificate is withheld, that one is named, and no epsilon is there."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipeline.privacy.certificate import ASSUMPTIONS, judge, noise_bounds
from pipeline.privacy.mechanism import CertifyConfig
from pipeline.records import Manifest, NoisyMeasures

CONFIG = CertifyConfig(epsilon=8.0, declared={"A9": "J. Doe", "A10": "release team"})
MEASURES = NoisyMeasures(
    steps=20,
    planned=20,
    dimension=10_000,
    start_norm=1.0,
    step_norm=0.05,
    noise_low=0.99,
    noise_high=1.01,
    ball_norm=None,
    weights_norm=30.0,
    buffers=(),
    outside=(),
    held_in=(),
    destroyed=True,
    reads=("retain",),
    left=(),
    other_settings="",
)
MANIFEST = Manifest(
    run_id="tiny-1a2b3c4d",
    batch_digest="ab",
    requests=1,
    source="synthetic",
    source_digest="cd",
    source_folder="sources/x",
    classes=(),
    seed=0,
    groups=(),
    splits=(),
    index=(),
    shards_clean=1,
    shards_rewritten=1,
    near_copies=0,
)


def test_all_that_holds_is_certified_at_the_target() -> None:
    found = judge(CONFIG, MEASURES, MANIFEST, retention_reads=["retain"])
    assert found.granted and found.epsilon is not None and 0.997 * 8 < found.epsilon <= 8 and found.delta == 1e-5
    assert [item.name for item in found.assumptions] == list(ASSUMPTIONS)
    assert [item.state for item in found.assumptions] == ["checked"] * 8 + ["declared"] * 2
    assert "declared by J. Doe" in found.assumptions[8].text
    assert found.accountant.startswith("dp-accounting") and found.formula == pytest.approx(found.epsilon, rel=1e-3)
    assert "within 1 of the random initial weights" in found.reference


@pytest.mark.parametrize(
    ("name", "broken", "said"),
    [
        ("A1", {"buffers": ("bn.running_mean",)}, "bn.running_mean"),
        ("A1", {"outside": ("decoder.weight",)}, "decoder.weight"),
        ("A2", {"start_norm": 1.0001}, "above 1"),
        ("A3", {"step_norm": 0.0501}, "above 0.05"),
        ("A4", {"noise_low": 0.9}, "outside"),
        ("A4", {"noise_high": 2.0}, "outside"),
        ("A4", {"steps": 19}, "19 noisy steps of 20"),
        ("A4", {"noise_low": float("nan")}, "outside"),
        ("A5", {"held_in": ("metrics/certify.jsonl",)}, "metrics/certify.jsonl"),
        ("A5", {"destroyed": False}, "not overwritten"),
        ("A6", {"reads": ("retain", "forget")}, "forget"),
        ("A7", {"left": ("checkpoints/certify/state.json",)}, "state.json"),
        ("A8", {"other_settings": "tiny-5e6f7a8b"}, "tiny-5e6f7a8b"),
    ],
)
def test_one_that_fails_withholds_it_and_is_named(name: str, broken: dict[str, Any], said: str) -> None:
    found = judge(CONFIG, dataclasses.replace(MEASURES, **broken), MANIFEST, retention_reads=["retain"])
    assert not found.granted
    assert [item.name for item in found.failed] == [name] and said in found.failed[0].text
    assert (found.epsilon, found.delta, found.formula, found.accountant) == (None, None, None, "")


@pytest.mark.parametrize(
    ("manifest", "reads"),
    [({"exact_copies": 1}, ["retain"]), ({"near_copies": 2}, ["retain"]), ({}, ["retain", "forget"])],
)
def test_copies_and_a_guard_break_a6(manifest: dict[str, int], reads: list[str]) -> None:
    found = judge(CONFIG, MEASURES, dataclasses.replace(MANIFEST, **manifest), retention_reads=reads)
    assert [item.name for item in found.failed] == ["A6"] and found.epsilon is None


def test_near_copies_that_nobody_looked_for_need_a_name() -> None:
    unknown = dataclasses.replace(MANIFEST, near_copies=None)
    assert [item.name for item in judge(CONFIG, MEASURES, unknown, retention_reads=["retain"]).failed] == ["A6"]
    config = dataclasses.replace(CONFIG, declared={**CONFIG.declared, "A6": "data team"})
    found = judge(config, MEASURES, unknown, retention_reads=["retain"])
    assert found.granted and found.assumptions[5].state == "declared" and "data team" in found.assumptions[5].text


@pytest.mark.parametrize("name", ["A9", "A10"])
def test_what_nobody_declared_fails(name: str) -> None:
    declared = {key: who for key, who in CONFIG.declared.items() if key != name}
    found = judge(dataclasses.replace(CONFIG, declared=declared), MEASURES, MANIFEST, retention_reads=["retain"])
    assert [item.name for item in found.failed] == [name] and f"declared.{name}" in found.failed[0].text


def test_a_base_needs_somebody_who_vouches_for_it() -> None:
    config = dataclasses.replace(CONFIG, trains="bottleneck", base="base.safetensors", anchor="base")
    assert [item.name for item in judge(config, MEASURES, MANIFEST, retention_reads=["retain"]).failed] == ["A1"]
    vouched = dataclasses.replace(config, declared={**CONFIG.declared, "base": "data team"})
    found = judge(vouched, MEASURES, MANIFEST, retention_reads=["retain"])
    assert found.granted and "data team" in found.assumptions[0].text


@pytest.mark.parametrize("mechanism", ["noisy_retain", "projected"])
def test_noise_that_promises_nothing_is_no_certificate(mechanism: Any) -> None:
    config = dataclasses.replace(CONFIG, mechanism=mechanism, noise=1e-6)
    found = judge(config, dataclasses.replace(MEASURES, ball_norm=0.5), MANIFEST, retention_reads=["retain"])
    assert [item.name for item in found.failed] == ["A4"] and "promises nothing" in found.failed[0].text


def test_projected_steps_are_accounted_by_their_own_formula() -> None:
    config = dataclasses.replace(CONFIG, mechanism="projected", noise=0.5, step_norm=0.01, steps=42)
    measures = dataclasses.replace(MEASURES, steps=42, planned=42, step_norm=0.01, ball_norm=1.0)
    found = judge(config, measures, MANIFEST, retention_reads=["retain"])
    assert found.granted and found.epsilon == pytest.approx(1.0, abs=0.05)
    outside = judge(config, dataclasses.replace(measures, ball_norm=1.1), MANIFEST, retention_reads=["retain"])
    assert [item.name for item in outside.failed] == ["A3"]


def test_noise_bounds_widen_where_there_are_few_weights() -> None:
    assert noise_bounds(72) == (0.0, pytest.approx(2.0))
    low, high = noise_bounds(7_200_000_000)
    assert 0.9998 < low < 1 < high < 1.0002
