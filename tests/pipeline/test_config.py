"""Layers: defaults < packaged files < run file < key=value; faults are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.chain import CHAIN
from pipeline.config import (
    ReadingConfig,
    ShardsConfig,
    StreamConfig,
    packaged,
    read_batch,
    resolve,
    run_folder,
    run_id,
    section_digest,
)
from pipeline.errors import ConfigError, StorageError
from tests.support.runs import TINY, write_run_file


def test_layers_and_their_order(tmp_path: Path) -> None:
    file = str(write_run_file(tmp_path, engine={"zero_stage": 2}))
    assert resolve(file).engine.zero_stage == 2
    assert resolve(file, ["engine.zero_stage=3"]).engine.zero_stage == 3
    assert resolve(file).engine.precision == "fp32"
    assert resolve(file).task == {"component": "center_crop", "hidden_share": 0.25, "fill": 0.5}
    assert resolve(file, ["task.fill=0.1"]).task["fill"] == 0.1
    assert resolve(file).model["latent"] == 16


def test_every_packaged_run_decodes_and_the_demo_has_its_batch() -> None:
    for name in packaged("run"):
        resolve(name)
    demo = resolve("demo")
    batch = read_batch(demo)
    assert len(batch.requests) == 201
    assert run_id(demo, batch) == run_id(demo, read_batch(resolve("demo", ["seed=5"])))
    assert run_folder(demo, batch).endswith(run_id(demo, batch))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("engine.zero=2", r"engine\.zero: unknown field"),
        ("engine.zero_stage=four", r"engine\.zero_stage"),
        ("engine.zero_stage=4", r"engine\.zero_stage"),
        ("modle=x", "modle: unknown field"),
        ("model=autoencodr", "did you mean 'autoencoder'"),
        ("model=3", "model: no part named"),
        ("model.component=autoencodr", "no model is called 'autoencodr'"),
        ("train.epochs=0", r"train\.epochs: .*greater than 0"),
        ("train.epochs=true", r"train\.epochs"),
        ("evaluation.confidence=1.0", "confidence"),
        ("name=../escape", "name"),
        ("seed", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("launch.ranks=-1", "launch"),
        ("shards.on_error=skip", r"shards\.on_error: .*'stop' or 'quarantine'"),
        ("shards.max_quarantined=-1", r"shards\.max_quarantined"),
        ("shards.near_bits=16", r"shards\.near_bits"),
        ("shards.near_bits=-1", r"shards\.near_bits"),
        ("shards.near_bit=3", "near_bit: unknown field .*did you mean 'near_bits'"),
        ("train.slices=12", r"train\.slices: 12 slices of 2 epochs"),
        ("stream.lanes=0", r"stream\.lanes"),
        ("stream.block_bytes=0", r"stream\.block_bytes"),
        ("stream.window=0", r"stream\.window"),
        ("stream.window=1.5", r"stream\.window"),
        ("reading.threads=-1", r"reading\.threads"),
        ("reading.ahead=0", r"reading\.ahead"),
        ("reading.in_flight=0", r"reading\.in_flight"),
        ("reading.attempt_seconds=0", r"reading\.attempt_seconds"),
        ("reading.deadline_seconds=-1", r"reading\.deadline_seconds"),
        ("reading.cache_bytes=-1", r"reading\.cache_bytes"),
        ("reading.cache_folder=3", r"reading\.cache_folder"),
    ],
)
def test_wrong_values_are_refused_by_name(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(str(write_run_file(tmp_path)), [override])


def test_shards_stream_and_reading_have_their_fields(tmp_path: Path) -> None:
    file = str(write_run_file(tmp_path, shards={"near_bits": None, "on_error": "quarantine"}, stream={"lanes": 4}))
    config = resolve(file, ["shards.max_quarantined=0", "stream.window=3", "reading.cache_folder=/cache", "reading.threads=2"])
    assert config.shards == ShardsConfig(near_bits=None, on_error="quarantine", max_quarantined=0)
    assert config.stream == StreamConfig(lanes=4, window=3)
    assert config.reading == ReadingConfig(cache_folder="/cache", threads=2)
    assert resolve(file, ["shards.near_bits=0"]).shards.near_bits == 0


def test_how_samples_are_read_is_no_part_of_what_a_stage_depends_on(tmp_path: Path) -> None:
    file = str(write_run_file(tmp_path))
    one, other = resolve(file), resolve(file, ["reading.threads=7", "reading.cache_folder=/cache"])
    for spec in CHAIN:
        assert "reading" not in spec.sections
        assert section_digest(one, spec.sections) == section_digest(other, spec.sections), spec.name
    changed = {name: resolve(file, [text]) for name, text in (("shards", "shards.near_bits=0"), ("stream", "stream.lanes=3"))}
    depends = {
        name: {spec.name for spec in CHAIN if section_digest(one, spec.sections) != section_digest(config, spec.sections)}
        for name, config in changed.items()
    }
    assert "shard" in depends["shards"] and "shard" not in depends["stream"] and "train" in depends["stream"]


def test_wrong_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run is called 'dmo'"):
        resolve("dmo")
    with pytest.raises(StorageError, match="not found"):
        resolve(str(tmp_path / "absent.yaml"))
    for text in ("a: [", "- 1", "\xff"):
        (tmp_path / "bad.yaml").write_text(text, encoding="latin-1")
        with pytest.raises(ConfigError, match=r"bad\.yaml"):
            resolve(str(tmp_path / "bad.yaml"))
    (tmp_path / "none.yaml").write_text(yaml.safe_dump({key: value for key, value in TINY.items() if key != "requests"}))
    with pytest.raises(ConfigError, match="no requests"):
        read_batch(resolve(str(tmp_path / "none.yaml")))


def test_a_digest_sees_only_its_sections(tmp_path: Path) -> None:
    file = str(write_run_file(tmp_path))
    one, other = resolve(file), resolve(file, ["evaluation.bootstrap=7"])
    assert section_digest(one, ("model", "train")) == section_digest(other, ("model", "train"))
    assert section_digest(one, ("evaluation",)) != section_digest(other, ("evaluation",))


@pytest.mark.parametrize("text", ["source.per_class=.nan", "source.classes=[a, .inf]", "method.forget.learning_rate=-.inf"])
def test_numbers_that_are_not_finite_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="not a finite number") as caught:
        resolve("clipart", [text])
    assert text.partition("=")[0].rpartition(".")[2] in caught.value.message


@pytest.mark.parametrize("rate", ["1e-4", "1E-4", "1.0e-4", "0.0001"])
def test_a_rate_may_be_written_as_people_write_it(tmp_path: Path, rate: str) -> None:
    config = resolve(str(write_run_file(tmp_path)), [f"train.learning_rate={rate}", f"method.forget.learning_rate={rate}"])
    assert config.train.learning_rate == config.method["forget"]["learning_rate"] == 1e-4
    file = write_run_file(tmp_path)
    file.write_text(file.read_text().replace("learning_rate: 0.003", f"learning_rate: {rate}"))
    assert resolve(str(file)).train.learning_rate == 1e-4


def test_requests_in_a_run_file_and_on_the_command_line_are_words(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "requests": "HERE"}, sort_keys=True))
    text = "[{request_id: 007, keys: [0017, 1e4, 1.10], subject: }, {label: no}]"
    file.write_text(file.read_text().replace("HERE", text))
    for config in (resolve(str(file)), resolve(str(write_run_file(tmp_path)), [f"requests={text}"])):
        first, second = read_batch(config).requests
        assert (first.request_id, first.selector.values, first.subject) == ("007", ("0017", "1e4", "1.10"), "")
        assert second.selector.values == ("no",)


def test_a_field_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    file.write_text(f"{file.read_text()}seed: 1\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: not YAML: line \d+, column 1: 'seed' stands twice"):
        resolve(str(file))


@pytest.mark.parametrize("turned", [False, True])
def test_another_part_and_its_field_may_be_given_in_either_order(tmp_path: Path, turned: bool) -> None:
    overrides = ["task=outpaint", "task.hidden_share=0.5"]
    task = resolve(str(write_run_file(tmp_path)), overrides[::-1] if turned else overrides).task
    assert (task["component"], task["hidden_share"]) == ("outpaint", 0.5)
