"""Requests come in by command: each refusal is one message with its exit code, and the index is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.cli_intake import chosen_values, line_name
from pipeline.acts import index
from pipeline.errors import ConfigError
from pipeline.ledger.refusals import Looked
from pipeline.orders import IndexOrder
from tests.support.finished import tar_run_file, tar_source
from tests.support.ledger_commands import refused, said, told, unlearn

pytestmark = pytest.mark.usefixtures("own_folder")


def test_refusals_have_names_and_numbers(looked: list[Looked | None]) -> None:
    add = ("requests", "add", "demo")
    assert "empty: no value is given" in refused(2, *add)
    assert "2 kinds of values" in refused(2, *add, "--key", "a", "--label", "b")
    assert "may be too broad: label" in refused(2, *add, "--label", "Trouser")
    assert "no run is called 'demoo'" in refused(2, "requests", "add", "demoo", "--key", "a")
    assert "No such file" in refused(3, *add, "--image", "none.png")
    assert "--like: file 2: no image" in refused(3, *add, "--like", "a.png", "--like", "b.txt")
    looked.append(Looked(images=60, training=1000))
    assert "too broad: means 60 of 1000 training images (6.0%, more than 5.0%)" in refused(2, *add, "--label", "Trouser")
    assert told(*add, "--label", "Trouser", "--share", "0.07")["images"] == 60
    assert "no ledger there" in refused(2, "requests", "list", "--ledger", "sqlite:///other.sqlite")
    assert "no such state" in refused(2, "requests", "list", "--state", "releasd")
    assert "none of this name" in refused(2, "requests", "show", "r-9")
    assert "none.csv: No such file" in refused(3, "requests", "import", "none.csv", "--line", "demo")
    Path("a.csv").write_text("key,line\na,demo\nb,nowhere\n")
    assert "a.csv: row 2: line: no run is called 'nowhere'" in refused(2, "requests", "import", "a.csv")
    assert "no --line whose index" in refused(2, "requests", "import", "a.csv", "--lookup")
    looked.append(None)
    assert "not indexed yet" in refused(3, "requests", "import", "a.csv", "--lookup", "--line", "demo")


def test_values_come_from_standard_input_and_images_by_their_bytes(looked: list[Looked | None], tmp_path: Path) -> None:
    result = unlearn("requests", "add", "demo", "--key", "-", "--json", given="a\n\nb\n")
    assert told("requests", "show", json.loads(result.stdout)["request"], "--values")["values"] == ["a", "b"]
    (tmp_path / "x.png").write_bytes(b"abc")
    name = told("requests", "add", "demo", "--image", "x.png")["request"]
    assert told("requests", "show", name, "--values")["values"][0].startswith("ba7816bf8f01cfea")
    name = told("requests", "add", "demo", "--like", "x.png", "--confirm")["request"]
    found = told("requests", "show", name, "--values")
    assert (found["kind"], found["values"]) == ("likeness", ["0f" * 8])


def test_an_import_is_told_and_looked_up(looked: list[Looked | None]) -> None:
    Path("a.csv").write_text("key\na\nb\na\n")
    assert said("requests", "import", "a.csv", "--line", "demo").startswith("3 rows: 2 new requests with 2 values, 1 known")
    looked.append(Looked(images=2, training=1000))
    assert told("requests", "import", "a.csv", "--line", "demo", "--lookup")["repeats"] == 3
    looked.append(Looked(images=900, training=1000))
    assert "a.csv: too broad" in refused(2, "requests", "import", "a.csv", "--line", "demo", "--lookup")


def test_a_line_is_a_packaged_run_or_the_whole_path_of_a_file(tmp_path: Path) -> None:
    run = tar_run_file(tmp_path)
    assert (line_name("demo"), line_name(""), line_name(run.name)) == ("demo", "", str(run))
    with pytest.raises(ConfigError, match="no run is called"):
        line_name("demoo")


def test_one_kind_of_values_is_chosen() -> None:
    assert chosen_values(keys=None, label=["a", "b"], digest=[]) == ("label", ("a", "b"))


def test_a_real_index_is_asked(tmp_path: Path) -> None:
    run = tar_run_file(tmp_path)
    index.run(IndexOrder(source=tar_source(tmp_path), output=str(tmp_path / "out")))
    assert told("requests", "add", str(run), "--label", "two", "--confirm")["images"] == 3
    assert "unknown key: number 1 means no training image" in refused(2, "requests", "add", str(run), "--key", "nobody")
