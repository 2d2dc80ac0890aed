"""The house stays tidy: tests mirror sources, files stay short, nothing names the machine it was written on."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST_FILE = 400
# Modules whose behaviour only shows in whole runs, with the tests that show it.
TESTED_ELSEWHERE = {
    f"pipeline/stages/{name}.py": "tests/pipeline/stages/test_phases.py"
    for name in ("calibrate", "forget", "phase", "retain", "train", "runner")
} | {
    "pipeline/stages/sliced.py": "tests/pipeline/stages/test_rewind.py",
    "pipeline/__main__.py": "tests/journeys/test_faults.py",
    "pipeline/engine/probe.py": "tests/pipeline/engine/test_distributed.py",
    "pipeline/methods/base.py": "tests/pipeline/methods/test_decouple.py",
    "pipeline/models/base.py": "tests/pipeline/models/test_autoencoder.py",
    "pipeline/ledger/migrations/versions/v0001_ledger.py": "tests/pipeline/ledger/test_store.py",
    "pipeline/records.py": "tests/pipeline/test_decode.py",
}
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".cfg", ".txt", ".csv", ".j2", ""}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def texts() -> Iterator[Path]:
    """The text files of the tree, without what installing and running leave in it."""
    folders = ("pipeline", "launch", "configs", "tests", "benchmarks", ".ci")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    for path in [*inside, *ROOT.iterdir()]:
        if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts and path.name != ".coverage":
            yield path


def public_functions(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def test_every_module_with_public_functions_has_its_tests() -> None:
    missing = []
    for path in sources("pipeline", "launch"):
        name = str(path.relative_to(ROOT))
        long = len(path.read_text(encoding="utf-8").splitlines()) > 30
        test = ROOT / "tests" / path.relative_to(ROOT).with_name(f"test_{path.stem.strip('_')}.py")
        if long and public_functions(path) and name not in TESTED_ELSEWHERE and not test.exists():
            missing.append(f"{name}: no {test.relative_to(ROOT)}")
    assert not missing, "\n".join(missing)


def test_the_exceptions_are_real() -> None:
    for name, tests in TESTED_ELSEWHERE.items():
        assert (ROOT / name).exists(), name
        assert (ROOT / tests).exists(), tests


def test_every_folder_of_tests_is_a_package() -> None:
    for path in sources("tests"):
        assert (path.parent / "__init__.py").exists(), path.parent


def test_no_file_is_long() -> None:
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources("pipeline", "launch", "tests", "benchmarks")
    }
    assert not {str(path): length for path, length in lengths.items() if length > LONGEST_FILE}


def test_every_module_says_what_it_is() -> None:
    for path in sources("pipeline", "launch"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_nothing_names_a_machine() -> None:
    machine = re.compile(r"(?<![\w.~-])/(?:home|Users|root|work|workspace|mnt)/\w")
    for path in texts():
        content = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(content.splitlines(), start=1):
            assert not machine.search(line) or path == Path(__file__), f"{path}:{number}: {line.strip()}"


def test_no_room_without_a_purpose() -> None:
    names = {path.stem for path in sources("pipeline", "launch", "tests")} | {
        p.parent.name for p in sources("pipeline", "launch")
    }
    assert not names & {"utils", "util", "helpers", "misc", "common", "legacy"}


@pytest.mark.parametrize("package", ["torchvision", "timm", "torch-fidelity"])
def test_packages_that_break_others_are_absent(package: str) -> None:
    """The first two want their own torch, the third breaks every image metric of torchmetrics without torchvision."""
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version(package)


def test_the_wheel_holds_every_module_and_every_configuration(tmp_path: Path) -> None:
    copy = tmp_path / "a space"
    for folder in ("pipeline", "launch", "configs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    program = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", program], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    wanted = {
        str(path.relative_to(copy))
        for folder in ("pipeline", "launch", "configs")
        for path in (copy / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert not wanted - inside
    assert any(name.endswith("/licenses/LICENSE") for name in inside)
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in inside)
