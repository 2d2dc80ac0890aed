"""The `unlearn` command inside this process: what it says, what it answers as JSON, what it refuses."""

from __future__ import annotations

import json
from typing import Any

import typer.testing

from launch.cli import app


def unlearn(*words: str, given: str = "") -> typer.testing.Result:
    result = typer.testing.CliRunner().invoke(app, list(words), input=given)
    assert "Traceback" not in result.output and (result.exception is None or isinstance(result.exception, SystemExit))
    return result


def said(*words: str, given: str = "") -> str:
    result = unlearn(*words, given=given)
    assert result.exit_code == 0, result.output
    return result.stdout


def told(*words: str) -> Any:
    return json.loads(said(*words, "--json"))


def refused(code: int, *words: str) -> str:
    result = unlearn(*words)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ") and "\n  cure: " in result.stderr and result.stdout == ""
    return result.stderr
