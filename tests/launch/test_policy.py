"""A policy is decoded strictly, and says what it means in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch.policy import LinePolicy, SchedulePolicy, backoff_seconds, read_policy, run_of, span_seconds
from pipeline.errors import ConfigError
from pipeline.layers import packaged
from tests.support.schedule import write_line


def read(folder: Path, **fields: Any) -> SchedulePolicy:
    (folder / "p.yaml").write_text(yaml.safe_dump(fields))
    return read_policy(str(folder / "p.yaml"))


@pytest.mark.parametrize("name", list(packaged("schedule")))
def test_packaged_policies_say_what_is_so_without_them(name: str) -> None:
    assert name != "standard" or read_policy(name) == SchedulePolicy()


def test_spans_are_seconds() -> None:
    texts = ("0", "45s", "30m", "12h", "7d", "1.5h")
    assert [span_seconds(text) for text in texts] == [0, 45, 1800, 43200, 604800, 5400]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"evry": "7d"}, "evry: unknown field .did you mean 'every'"),
        ({"every": "7 days"}, "every: "),
        ({"every": 7}, "every: "),
        ({"attempts": 0}, "attempts: "),
        ({"submit": "kubernetes"}, "submit: "),
        ({"every": "0", "before_due": "0"}, "all are 0"),
        ({"release": "auto", "release_to": "out"}, "release_key: missing, and release is auto"),
        ({"lines": {"demo": {"original": "released"}}}, "lines.demo.original: released, and no alias says which"),
        ({"lines": {"demo": {"runs": "demo"}}}, "lines.demo.runs: unknown field"),
    ],
)
def test_faults_are_named(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, **fields)


def test_lines_that_are_files_are_called_by_their_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = {"demo": {}, "faces.yaml": {"overrides": ["seed=1"]}}
    assert set(read(tmp_path, lines=lines).lines) == {"demo", str(tmp_path / "faces.yaml")}


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ConfigError, match="no schedule is called 'standart'") as refused:
        read_policy("standart")
    assert "did you mean 'standard'" in refused.value.cure


@given(st.integers(1, 30), st.floats(0, 1), st.floats(0, 1))
def test_pauses_grow_with_failures_and_are_bounded(failures: int, one: float, other: float) -> None:
    policy = SchedulePolicy(backoff="10m", backoff_most="6h")
    first, second = backoff_seconds(policy, failures, one), backoff_seconds(policy, failures + 1, other)
    assert 600 <= first <= 1.5 * 6 * 3600
    assert second >= first / 1.5
    assert backoff_seconds(policy, 1, 0.0) == 600 and backoff_seconds(policy, 2, 0.0) == 1200


def test_a_line_is_a_run_its_own_or_that_which_the_policy_names(tmp_path: Path) -> None:
    line = write_line(tmp_path)
    assert run_of(SchedulePolicy(), line).name == "line"
    policy = SchedulePolicy(lines={"faces": LinePolicy(run=line, overrides=("seed=7",))})
    changed = run_of(policy, "faces", original="s3://bucket/model.safetensors")
    assert (changed.seed, changed.original, changed.methods) == (7, "s3://bucket/model.safetensors", {})
    with pytest.raises(ConfigError, match="line cars: not among the schedule's lines"):
        run_of(policy, "cars")
