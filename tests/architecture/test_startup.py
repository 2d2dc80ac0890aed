"""The front desk answers at once: nothing heavy is loaded before a worker starts."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import launch

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "deepspeed", "accelerate", "torchmetrics", "webdataset", "matplotlib", "pyarrow", "tensorboard", "s3fs")
REPORT = "print(sorted(set(sys.modules) & {heavy!r}), f'{{time.perf_counter() - started:.3f}} s', file=sys.stderr)"


def loaded(program: str, heavy: tuple[str, ...]) -> str:
    """Which of the heavy modules a fresh interpreter has loaded after the program, as it prints them."""
    text = f"import sys, time\nstarted = time.perf_counter()\n{program}\n{REPORT.format(heavy=set(heavy))}"
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(program, done.stderr.strip())
    return done.stderr.strip().splitlines()[-1].rpartition("]")[0] + "]"


def test_help_loads_neither_torch_nor_the_pipeline_beyond_its_errors() -> None:
    program = "from launch.cli import app\ntry:\n    app(['--help'])\nexcept SystemExit:\n    pass"
    # Time is printed, not asserted: a test machine under load would make it a coin toss.
    assert loaded(program, (*HEAVY, "fsspec", "yaml", "pydantic", "pipeline.config", "launch.local")) == "[]"


def test_no_module_of_the_front_desk_loads_a_heavy_library() -> None:
    names = [f"launch.{module.name}" for module in pkgutil.iter_modules(launch.__path__)]
    assert "launch.cli" in names
    assert loaded(f"import {', '.join(names)}", HEAVY) == "[]"


def test_listing_the_parts_imports_none_of_them() -> None:
    program = "from launch.cli import app\ntry:\n    app(['list'])\nexcept SystemExit:\n    pass"
    assert loaded(program, HEAVY) == "[]"
