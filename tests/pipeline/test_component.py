"""Parts by name, without importing what is only listed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline import component
from pipeline.errors import ConfigError


def test_names_are_files_and_summaries_are_docstrings() -> None:
    assert "autoencoder" in component.names("model")
    assert "base" not in component.names("model")
    assert component.summary("task", "center_crop").startswith("Hide a centred square")


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(ConfigError, match=r"no task is called 'centre_crop'(.|\n)*did you mean 'center_crop'"):
        component.load("task", "centre_crop")


def test_a_part_outside_the_package_by_dotted_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "__init__.py").write_text("")
    (tmp_path / "mylab" / "half.py").write_text(
        "from pipeline.records import record\n@record\nclass Config:\n    share: float = 0.5\n"
        "def build(config):\n    return config.share\n"
    )
    (tmp_path / "mylab" / "empty.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert component.build("task", {"component": "mylab.half", "share": 0.25}) == 0.25
    with pytest.raises(ConfigError, match="task: shar: unknown field"):
        component.build("task", {"component": "mylab.half", "shar": 0.25})
    with pytest.raises(ConfigError, match="no Config and build"):
        component.load("task", "mylab.empty")
    with pytest.raises(ConfigError, match="cannot import"):
        component.load("task", "mylab.absent")
    sys.modules.pop("mylab", None)
