"""Usable images out of a messy folder tree: links, copies, tiny and huge files, broken ones, and far too many of a kind.

What is left out by choice is counted; what the decoder would refuse is named. Nothing depends on the order in which the
disk lists its files, nor on where the tree lies.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from pipeline.data.images import PNG_START, decode_image
from pipeline.decode import closest
from pipeline.errors import DataError
from pipeline.records import record

__all__ = ["Found", "Gathered", "Limits", "gather", "list_tree", "place", "read_found"]


@record
class Found:
    """A file as the disk lists it. `path` is relative to the root; `changed`: its time in whole seconds."""

    path: str
    bytes: int
    changed: int
    label: int

    @property
    def key(self) -> str:
        """The path without extension, `animals__birds__owl_01`."""
        # WebDataset's key ends at the first dot of the last path part, so a key has neither dots nor slashes.
        return os.path.splitext(self.path)[0].replace("/", "__").replace(".", "_")


@record
class Limits:
    """What is usable: see the fields of the same names of `pipeline.data.sources.openclipart.Config`."""

    per_class: int
    min_side: int
    max_pixels: int


@record
class Gathered:
    """The usable files by path, how many were left out for what reason, and the refused paths with their faults."""

    files: tuple[Found, ...]
    left_out: Mapping[str, int]
    quarantined: tuple[tuple[str, str], ...]


def place(key: str, purpose: str) -> float:
    """A number in [0, 1) by hash. The purpose keeps choices apart: what a cap takes says nothing of what is unseen."""
    return int.from_bytes(hashlib.sha256(f"{purpose}|{key}".encode()).digest()[:6], "big") / 2**48


def _unreadable(fault: OSError) -> NoReturn:
    raise DataError(f"{fault.filename}: {fault.strerror}", "correct the folder or its permissions") from None


def read_found(root: Path, file: Found) -> bytes:
    """The whole content. Raises DataError where it cannot be read."""
    try:
        return (root / file.path).read_bytes()
    except OSError as fault:
        _unreadable(fault)


def list_tree(root: Path, classes: Sequence[str]) -> tuple[tuple[Found, ...], int]:
    """Plain files below `root/CLASS` by path, and how many links and devices there are; none is followed or opened.

    Raises:
        DataError: a class without a folder, or a folder that cannot be read.
    """
    files: list[Found] = []
    others = 0
    try:
        for label, name in enumerate(classes):
            if (root / name).is_symlink() or not (root / name).is_dir():
                raise DataError(f"{root}: no folder '{name}' in it", closest(name, [entry.name for entry in root.iterdir()]))
            for folder, folders, names in os.walk(root / name, onerror=_unreadable):
                for path in (Path(folder, entry) for entry in (*folders, *names)):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        inside = path.relative_to(root).as_posix()
                        files.append(Found(path=inside, bytes=status.st_size, changed=int(status.st_mtime), label=label))
                    elif not stat.S_ISDIR(status.st_mode):
                        others += 1
    except OSError as fault:
        _unreadable(fault)
    return tuple(sorted(files, key=lambda file: file.path)), others


def gather(root: Path, files: Sequence[Found], classes: Sequence[str], limits: Limits) -> Gathered:
    """Look into all listed files and choose.

    Of files with the same bytes the first by path stays. A class's share of the cap is taken from its folders in turn.
    The files that are taken have been decoded once, on all cores.

    Args:
        root: folder of the tree.
        files: as `list_tree` gives them.
        classes: their names, in order of the labels.
        limits: what is usable.

    Raises:
        DataError: a class without a usable image, two files with one key, or a file that cannot be read.
    """
    left_out: Counter[str] = Counter()
    refused: dict[str, str] = {}
    marks: set[bytes] = set()
    usable: dict[int, list[Found]] = defaultdict(list)
    for file in files:
        data = read_found(root, file)
        height, width = _png_size(data)
        if not file.path.isprintable() or not file.path.lower().endswith(".png"):
            refused[file.path] = "not named NAME.png in plain letters"
        elif height * width == 0:
            refused[file.path] = "not a PNG"
        elif height * width > limits.max_pixels:
            refused[file.path] = f"{width} x {height} pixels, more than {limits.max_pixels}"
        elif min(height, width) < limits.min_side:
            left_out[f"under {limits.min_side} pixels"] += 1
        elif (mark := hashlib.sha256(data).digest()) in marks:
            left_out["copies of the same bytes"] += 1
        else:
            marks.add(mark)
            usable[file.label].append(file)
    _check_keys(file for some in usable.values() for file in some)
    chosen: list[Found] = []
    for label, name in enumerate(classes):
        taken, broken = _take(root, _evenly(usable[label]), limits)
        if not taken:
            raise DataError(f"{root / name}: no usable image of class '{name}'", "take the class off the list")
        left_out["above the cap"] += len(usable[label]) - len(taken) - len(broken)
        refused |= broken
        chosen += taken
    chosen.sort(key=lambda file: file.path)
    return Gathered(files=tuple(chosen), left_out=+left_out, quarantined=tuple(sorted(refused.items())))


def _png_size(data: bytes) -> tuple[int, int]:
    """Height and width out of a PNG's header; zeros for anything else."""
    if data[:8] != PNG_START or len(data) < 24:
        return 0, 0
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def _check_keys(files: Iterable[Found]) -> None:
    homes: dict[str, str] = {}
    for file in files:
        if file.key in homes:
            raise DataError(f"{file.path} and {homes[file.key]}: both get the key '{file.key}'", "rename one of them")
        homes[file.key] = file.path


def _evenly(files: Sequence[Found]) -> list[Found]:
    """One image of each folder in turn, so that a cap cuts the largest folders and spares the others."""
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, float, Found]] = []
    for spot, file in sorted(((place(file.key, "cap"), file) for file in files), key=lambda pair: pair[0]):
        folder = os.path.dirname(file.path)
        ranked.append((seen[folder], spot, file))
        seen[folder] += 1
    return [file for _, _, file in sorted(ranked, key=lambda row: row[:2])]


def _take(root: Path, files: Sequence[Found], limits: Limits) -> tuple[list[Found], dict[str, str]]:
    """The first files that decode, up to the cap, and the others met on the way with their faults."""
    taken: list[Found] = []
    broken: dict[str, str] = {}
    most = limits.per_class or len(files)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while files and len(taken) < most:
            batch, files = files[: most - len(taken)], files[most - len(taken) :]
            faults = pool.map(lambda file: _fault(root, file, limits), batch)
            for file, fault in zip(batch, faults, strict=True):
                if fault:
                    broken[file.path] = fault
                else:
                    taken.append(file)
    return taken, broken


def _fault(root: Path, file: Found, limits: Limits) -> str:
    """Why the decoder refuses the file; empty where it does not."""
    data = read_found(root, file)
    try:
        decode_image(data, size=8, channels=3, fit="crop", max_pixels=limits.max_pixels, where=file.path)
    except DataError as fault:
        return fault.message.removeprefix(f"{file.path}: ")
    return ""
