"""Parts chosen by name: group + name -> module -> (Config, build). File name = name in configuration; no table.

A dotted path (`mylab.models.unet`) names a part outside this package. Listing reads source text and imports nothing,
so the command line can list models without loading torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.decode import closest, decode
from pipeline.errors import ConfigError

__all__ = ["GROUPS", "build", "decode_config", "load", "module_name", "names", "summary"]

GROUPS: Mapping[str, str] = {
    "model": "pipeline.models",
    "method": "pipeline.methods",
    "source": "pipeline.data.sources",
    "task": "pipeline.data.tasks",
}


def _folder(group: str) -> Path:
    spec = importlib.util.find_spec(GROUPS[group])
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def names(group: str) -> list[str]:
    """Names of the parts in `group`, sorted: its modules except `base`."""
    return sorted(m.name for m in pkgutil.iter_modules([str(_folder(group))]) if m.name != "base" and not m.ispkg)


def summary(group: str, name: str) -> str:
    """First line of the part's docstring, read without importing it."""
    source = (_folder(group) / f"{name}.py").read_text(encoding="utf-8")
    return inspect.cleandoc(ast.get_docstring(ast.parse(source)) or "").split("\n")[0]


def module_name(group: str, name: str) -> str:
    """The full name of the module that part `name` would be, whether or not there is one."""
    return name if "." in name else f"{GROUPS[group]}.{name}"


def load(group: str, name: str) -> ModuleType:
    """The module of part `name`.

    Raises:
        ConfigError: no such part, or a dotted path that does not import or lacks `Config` and `build`.
    """
    if "." not in name and name not in names(group):
        raise ConfigError(f"{group}: no {group} is called '{name}'", closest(name, names(group)))
    path = module_name(group, name)
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as fault:
        raise ConfigError(f"{group}: cannot import '{path}': {fault}", "install the package or correct the name") from None
    if not (hasattr(module, "Config") and hasattr(module, "build")):
        raise ConfigError(f"{group}: '{path}' has no Config and build", "a part is one file with both")
    return module


def decode_config(group: str, section: Mapping[str, Any]) -> Any:
    """The part's own `Config` from a section `{component: NAME, field: value, ...}`."""
    options = {key: value for key, value in section.items() if key != "component"}
    return decode(load(group, section["component"]).Config, options, where=group)


def build(group: str, section: Mapping[str, Any], *args: Any) -> Any:
    """Build the part that a section names: `build(Config, *args)` of its module."""
    return load(group, section["component"]).build(decode_config(group, section), *args)
