"""Which methods a run names, what their sections hold, and which of them a comparison takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig, resolve
from pipeline.errors import ConfigError
from pipeline.layers import packaged
from tests.support.runs import TINY, write_run_file

PLAIN = {"component": "decouple", "retention": "plain"}


def methods(folder: Path, *overrides: str, compare: list[str] | None = None, **over: Any) -> RunConfig:
    return resolve(str(write_run_file(folder, **over)), [*overrides], compare=compare)


def test_without_a_word_all_packaged_methods_are_compared_and_a_run_has_none(tmp_path: Path) -> None:
    assert list(methods(tmp_path, compare=[]).methods) == sorted(packaged("method"))
    assert methods(tmp_path).methods == {}
    assert list(methods(tmp_path, "methods.decouple.retention=plain", compare=[]).methods) == sorted(packaged("method"))


@pytest.mark.parametrize("given", [["decouple", "none"], {"decouple": None, "none": "none"}, {"decouple": {}, "none": {}}])
def test_a_list_and_a_mapping_say_the_same(tmp_path: Path, given: Any) -> None:
    config = methods(tmp_path, compare=[], methods=given)
    assert list(config.methods) == ["decouple", "none"]
    assert config.methods["none"] == {"component": "none"}
    assert methods(tmp_path, methods=given).methods == config.methods


def test_the_runs_own_fields_are_those_of_the_method_of_that_name_alone(tmp_path: Path) -> None:
    config = methods(tmp_path, compare=[], methods={"decouple": None, "plain": PLAIN})
    own, plain = config.methods["decouple"], config.methods["plain"]
    assert own["level"] == TINY["method"]["level"] and own["forget"]["clip"] == 1.0
    assert (plain["retention"], plain["level"], plain["forget"]["batch_size"]) == ("plain", "calibrate", 128)


def test_chosen_methods_are_packaged_ones_or_the_runs(tmp_path: Path) -> None:
    config = methods(
        tmp_path, "methods.plain.forget.passes=5", compare=["plain", "finetune"], methods={"plain": PLAIN, "x": PLAIN}
    )
    assert list(config.methods) == ["finetune", "plain"], "sorted: their order changes nothing"
    assert config.methods["plain"]["forget"]["passes"] == 5
    assert "share" in config.methods["finetune"]["retain"]


def test_overrides_add_change_and_replace(tmp_path: Path) -> None:
    given = {"methods": {"plain": PLAIN}, "compare": []}
    assert list(methods(tmp_path, "methods.other.component=none", **given).methods) == ["other", "plain"]
    assert methods(tmp_path, "methods.plain={component: none}", **given).methods == {"plain": {"component": "none"}}
    assert list(methods(tmp_path, "methods=[none, plain]", **given).methods) == ["none", "plain"]
    assert methods(tmp_path, "methods=[none, plain]", **given).methods["plain"]["retention"] == "plain"


def test_a_run_file_for_comparisons_needs_no_method_of_its_own(tmp_path: Path) -> None:
    file = write_run_file(tmp_path, methods=["none"])
    file.write_text("\n".join(line for line in file.read_text().replace("method:\n", "unused:\n").splitlines()))
    text = file.read_text()
    start = text.index("unused:")
    end = text.index("methods:")
    file.write_text(text[:start] + text[end:])
    assert resolve(str(file), compare=[]).method == {"component": "none"}
    with pytest.raises(ConfigError, match="method: missing"):
        resolve(str(file))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("decouple", "neither a list of names nor a mapping"),
        ({"../x": PLAIN}, "'../x' cannot be a folder's name"),
        ({"mylab.unet": None}, "cannot be a folder's name"),
        ([{"a": 1}], "cannot be a folder's name"),
        ({"a" * 65: PLAIN}, "cannot be a folder's name"),
        ({"original": PLAIN}, "the name of another model"),
        ({"plain": 3}, r"methods\.plain: not a section"),
        ({"plain": None}, "no method is called 'plain'"),
        (["decuple"], "did you mean 'decouple'"),
    ],
)
def test_other_forms_are_refused_by_name(tmp_path: Path, given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        methods(tmp_path, methods=given)
