"""CIFAR-10 from all four forms of its official files, on small ones of the same format."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.images import decode_image
from pipeline.data.pack import pack
from pipeline.data.sources import cifar10
from pipeline.data.sources.cifar10 import CLASSES, PARTS, Config, build
from pipeline.errors import ConfigError, DataError
from tests.pipeline.data.pickles import old_pickle

ROWS = 4
PIXELS = np.random.default_rng(0).integers(0, 256, (6 * ROWS, 3, 32, 32), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 10, 6 * ROWS)
FORMS = ("cifar-10-batches-bin", "cifar-10-binary.tar.gz", "cifar-10-batches-py", "cifar-10-python.tar.gz")
NAMES = (*PARTS["train"], *PARTS["test"])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "ROWS", ROWS)


def _files(form: str) -> dict[str, bytes]:
    """The official files by name; pixels lie plane by plane."""
    made: dict[str, bytes] = {"readme.html": b"words"}
    for number, name in enumerate(NAMES):
        rows = slice(number * ROWS, (number + 1) * ROWS)
        pixels, labels = PIXELS[rows].reshape(ROWS, 3072), LABELS[rows]
        if "bin" in form:
            made[f"{name}.bin"] = b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, pixels, strict=True))
        else:
            listed = [b"some_file.png"] * ROWS
            made[name] = old_pickle(
                {b"batch_label": name.encode(), b"labels": labels.tolist(), b"data": pixels, b"filenames": listed}
            )
    if "bin" in form:
        made["batches.meta.txt"] = "\n".join([*CLASSES, "", ""]).encode()
    else:
        made["batches.meta"] = old_pickle({b"num_cases_per_batch": ROWS, b"label_names": [name.encode() for name in CLASSES]})
    return made


def _put(root: Path, form: str, changes: Mapping[str, bytes | None] | None = None) -> str:
    files = {name: content for name, content in (_files(form) | dict(changes or {})).items() if content is not None}
    root.mkdir(parents=True, exist_ok=True)
    if not form.endswith(".tar.gz"):
        (root / form).mkdir()
        for name, content in files.items():
            (root / form / name).write_bytes(content)
        return str(root)
    with tarfile.open(root / form, "w:gz") as tar:
        folder = "cifar-10-batches-py" if "python" in form else "cifar-10-batches-bin"
        top = tarfile.TarInfo(folder)
        top.type = tarfile.DIRTYPE
        tar.addfile(top)
        for name, content in sorted(files.items(), reverse=True):
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(root)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_images_their_labels_and_keys(tmp_path: Path, form: str) -> None:
    source = build(Config(folder=_put(tmp_path, form)))
    items = [*source.training(), *source.unseen()]
    assert [item.key for item in items] == [f"train-{n:06d}" for n in range(20)] + [f"test-{n:06d}" for n in range(4)]
    assert [item.label for item in items] == LABELS.tolist()
    for item, pixels in zip(items, PIXELS, strict=True):
        found = decode_image(item.image, size=32, channels=3, fit="crop", max_pixels=10**4, where=item.key)
        assert (found == pixels.transpose(1, 2, 0)).all()
    assert source.classes == CLASSES


def test_the_folder_may_be_the_unpacked_one_itself(tmp_path: Path) -> None:
    _put(tmp_path, FORMS[2])
    assert len(list(build(Config(folder=str(tmp_path / FORMS[2]))).training())) == 20


def test_limits_take_the_first_images_and_read_no_further(tmp_path: Path) -> None:
    root = _put(tmp_path, FORMS[0], {"data_batch_3.bin": b"short"})
    source = build(Config(folder=root, limit=6, unseen_limit=1))
    assert [item.key for item in source.training()] == [f"train-{n:06d}" for n in range(6)]
    assert [item.key for item in source.unseen()] == ["test-000000"]


def test_it_packs(tmp_path: Path) -> None:
    packed, _ = pack(build(Config(folder=_put(tmp_path / "in", FORMS[3]))), name="cifar10", output=str(tmp_path / "out"))
    assert packed is not None and packed.classes == CLASSES
    assert [ref.samples for ref in packed.shards] == [20, 4]


@pytest.mark.parametrize("form", [FORMS[0], FORMS[1]])
def test_identity_follows_the_files_and_the_limits_but_not_the_place(tmp_path: Path, form: str) -> None:
    _put(tmp_path / "one", form)
    before = build(Config(folder=str(tmp_path / "one"))).identity()
    if (tmp_path / "one" / form).is_dir():
        shutil.copytree(tmp_path / "one" / form, tmp_path / "two" / form)
    else:
        (tmp_path / "two").mkdir()
        shutil.copy2(tmp_path / "one" / form, tmp_path / "two" / form)
    assert build(Config(folder=str(tmp_path / "two"))).identity() == before
    assert build(Config(folder=str(tmp_path / "one"), limit=3)).identity() != before
    path = tmp_path / "two" / form
    os.utime(path / "test_batch.bin" if path.is_dir() else path, (1, 1))
    assert build(Config(folder=str(tmp_path / "two"))).identity() != before


class _Runs:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", [FORMS[2], FORMS[3]])
@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta"])
def test_a_malicious_batch_is_refused_by_name_and_not_run(tmp_path: Path, form: str, name: str) -> None:
    mark = tmp_path / "ran"
    evil = pickle.dumps({"labels": [1], "data": _Runs(f"touch {mark}")})
    source = build(Config(folder=_put(tmp_path, form, {name: evil})))
    with pytest.raises(DataError, match=rf"{name}: refused: this pickle asks for 'posix\.system'") as caught:
        list(source.training())
    assert "restore the official file" in caught.value.cure
    assert not mark.exists()


def _swap(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new, 1)


PYTHON, BINARY = _files(FORMS[2]), _files(FORMS[0])
FAULTS = [
    (FORMS[0], "data_batch_2.bin", None, "not found"),
    (FORMS[0], "data_batch_2.bin", BINARY["data_batch_2.bin"][:-1], "12291 bytes, not 12292"),
    (FORMS[0], "data_batch_2.bin", b"\x0a" + BINARY["data_batch_2.bin"][1:], "a label that is not 0 to 9"),
    (FORMS[0], "batches.meta.txt", b"apple\nbaby\n", "names other classes: apple, baby"),
    (FORMS[1], "data_batch_2.bin", None, "no data_batch_2.bin in it"),
    (FORMS[1], "data_batch_2.bin", b"", "0 bytes, not 12292"),
    (FORMS[2], "data_batch_2", PYTHON["data_batch_2"][:-500], "unreadable"),
    (FORMS[2], "data_batch_2", old_pickle({b"labels": [1], b"data": PIXELS[:1]}), "1 labels and 1 images, not 4"),
    (FORMS[2], "data_batch_2", old_pickle({b"labels": [1, 2, 3, 10], b"data": PIXELS[:4]}), "a label that is not 0 to 9"),
    (FORMS[2], "data_batch_2", old_pickle({b"labels": [1, 2, 3, 4], b"data": PIXELS[:4]}), "4 labels and 4 images"),
    (FORMS[2], "data_batch_2", old_pickle({b"labels": b"1234"}), "no labels and data"),
    (FORMS[2], "batches.meta", old_pickle({b"fine_label_names": []}), "no label_names"),
    (FORMS[2], "batches.meta", old_pickle({b"label_names": 3}), "no label_names"),
    (FORMS[2], "batches.meta", None, "not found"),
]


@pytest.mark.parametrize(("form", "name", "content", "message"), FAULTS)
def test_missing_short_and_damaged_files_are_named(
    tmp_path: Path, form: str, name: str, content: bytes | None, message: str
) -> None:
    source = build(Config(folder=_put(tmp_path, form, {name: content})))
    with pytest.raises(DataError, match=message) as caught:
        list(source.training())
    assert name in caught.value.message
    assert "restore the official file" in caught.value.cure


@pytest.mark.parametrize("form", [FORMS[1], FORMS[3]])
def test_a_damaged_archive_is_named(tmp_path: Path, form: str) -> None:
    path = Path(_put(tmp_path, form)) / form
    whole = path.read_bytes()
    broken = {
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:],
        "empty": b"",
        "plain": b"not an archive at all" * 100,
    }
    for what, content in broken.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=form.replace(".", r"\.")) as caught:
            list(build(Config(folder=str(tmp_path))).training())
        assert caught.value.cure, what


def test_an_archive_of_something_else_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "LARGEST_BYTES", 13_000)
    for form, name in ((FORMS[1], "z_huge_file.bin"), (FORMS[0], "data_batch_1.bin")):
        source = build(Config(folder=_put(tmp_path / form, form, {name: bytes(13_001)})))
        with pytest.raises(DataError, match=name):
            list(source.training())


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "MOST_BYTES", 10_000)
    with pytest.raises(DataError, match="more than 10000 bytes unpacked"):
        list(build(Config(folder=_put(tmp_path, FORMS[1]))).unseen())


def test_what_is_not_there_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder: not set"):
        build(Config())
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="none of cifar-10-batches-bin, cifar-10-binary") as caught:
            build(Config(folder=str(folder)))
        assert "source.folder" in caught.value.cure
