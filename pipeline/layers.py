"""The layers of a run's configuration as plain mappings, before they are decoded: packaged files, run file, `key=value`.

`pipeline.config` puts them together. What `methods` may look like in a run file, and which of them a comparison takes, is
said here.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.decode import closest
from pipeline.errors import ConfigError
from pipeline.records import record
from pipeline.storage import read_bytes
from pipeline.written import NotYAML, load, load_words

__all__ = [
    "CONFIGS",
    "SAFE_NAME",
    "Named",
    "assignments",
    "compared",
    "merge",
    "method_sections",
    "named_methods",
    "packaged",
    "packaged_section",
    "read_yaml",
    "rules_section",
]

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Method names are folder names and parts of stage names."""
TAKEN = ("original", "unlearned", "retrained")
"""Names of the models beside the methods."""


def packaged(group: str) -> dict[str, Path]:
    """Names and files of the configurations that come with the package, e.g. of group `run`."""
    return {path.stem: path for path in sorted((CONFIGS / group).glob("*.yaml"))}


def read_yaml(uri: str) -> dict[str, Any]:
    """A YAML file whose top level is a mapping. What stands below `requests` are words: a key 0017 is no number."""
    try:
        text = read_bytes(uri).decode()
        content = load(text)
        if isinstance(content, dict) and "requests" in content:
            content["requests"] = load_words(text)["requests"]
    except ValueError as fault:  # no UTF-8, no YAML
        raise ConfigError(f"{uri}: not YAML: {fault}", "correct the file") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{uri}: the top level must be a mapping", "write key: value lines")
    return content


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the nested mappings of `over` laid on top."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def assignments(overrides: list[str], groups: Collection[str] = ()) -> dict[str, Any]:
    """`["engine.zero_stage=2"]` -> `{"engine": {"zero_stage": 2}}`; values are YAML, those of `groups` parts."""
    result: dict[str, Any] = {}
    for text in overrides:
        path, mark, value = text.partition("=")
        if not mark or not all(path.split(".")):
            raise ConfigError(f"'{text}': not of the form key=value", "write e.g. engine.zero_stage=2")
        try:
            nested: Any = load_words(value) if path == "requests" else load(value)
        except NotYAML:
            nested = value
        for key in reversed(path.split(".")):
            nested = {key: nested}
        for group in set(groups) & set(nested):
            if isinstance(nested[group], str):  # model=mae model.channels=3 in either order
                nested[group] = {"component": nested[group]}
        result = merge(result, nested)
    return result


def _refuse_not_finite(value: Any, where: str) -> None:
    """ConfigError for `.nan` and `.inf`, which YAML knows and JSON does not; no field means anything by them."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_not_finite(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            _refuse_not_finite(item, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {value} is not a finite number", "write a number")


def packaged_section(group: str, value: Any, where: str) -> dict[str, Any]:
    """A part's section with the packaged file's fields below the run's own; of a dotted path, the file's beside its module."""
    if isinstance(value, str):
        value = {"component": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("component"), str):
        raise ConfigError(f"{where}: {group}: no part named", f"write {group}: NAME, or a mapping with component: NAME")
    name, files = value["component"], packaged(group)
    _refuse_not_finite(value, f"{where}: {group}")
    if name in files:
        base = {"component": name, **read_yaml(str(files[name]))}  # a size of a model names its component
        return merge(base, {key: item for key, item in value.items() if key != "component"})
    if "." not in name:
        raise ConfigError(f"{where}: {group}: no {group} is called '{name}'", closest(name, list(files)))
    return merge(_beside(name), value)


def rules_section(value: Any, where: str) -> Any:
    """The rules of a verdict: a mapping as it is, those of a packaged set by its name, of `none` no rule."""
    if not isinstance(value, str):
        _refuse_not_finite(value, f"{where}: verdict")
        return value
    files = packaged("verdict")
    if value == "none":
        return {}
    if value not in files:
        raise ConfigError(f"{where}: verdict: no set of rules is called '{value}'", closest(value, [*files, "none"]))
    return read_yaml(str(files[value]))


def _beside(name: str) -> dict[str, Any]:
    """The fields in the YAML file beside the module of a dotted path; none without one. Nothing of it is imported."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top) if all(part.isidentifier() for part in (top, *rest)) else None
    except ValueError:  # a module that was put together by hand
        spec = None
    for folder in spec.submodule_search_locations or () if spec else ():
        module = Path(folder, *rest)
        if module.with_suffix(".py").is_file() and module.with_suffix(".yaml").is_file():
            return read_yaml(str(module.with_suffix(".yaml")))
    return {}


@record
class Named:
    """The methods that a run names: what it says of each, and which of them it asks for (none: it leaves that open)."""

    sections: Mapping[str, Mapping[str, Any]]
    asked: tuple[str, ...]


def named_methods(given: Any, assigned: Any, where: str) -> Named:
    """What a run file's `methods` and those of the command line name together.

    Args:
        given: of the run file: a list of names, or a mapping NAME -> section (or component, or nothing: the name itself).
        assigned: of the command line. A list asks for these alone; a mapping lies above the run file's.
        where: the run, for messages.

    Raises:
        ConfigError: another form, or a name that cannot be a folder's.
    """
    below, above = (_named(value, where) for value in (given, assigned))
    sections = {**below}
    for name, section in above.items():
        replaced = "component" in section  # another part: the run file's fields are not its fields
        sections[name] = section if replaced else merge(below.get(name, {}), section)
    asked = tuple(dict.fromkeys((*below, *above))) if below else ()
    return Named(sections=sections, asked=tuple(above) if isinstance(assigned, list) else asked)


def _named(value: Any, where: str) -> dict[str, dict[str, Any]]:
    form = "write a list of names, or NAME: {field: value}"
    if value is None:
        return {}
    if isinstance(value, list):
        value = dict.fromkeys(map(_text, value))
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: methods: neither a list of names nor a mapping", form)
    found = {}
    for key, section in value.items():
        name = _refuse_unsafe(_text(key), where)
        if section is not None and not isinstance(section, str | Mapping):
            raise ConfigError(f"{where}: methods.{name}: not a section", form)
        found[name] = {"component": section} if isinstance(section, str) else dict(section or {})
    return found


def _text(name: Any) -> str:
    return name if isinstance(name, str) else repr(name)


def _refuse_unsafe(name: str, where: str) -> str:
    """The name of a method, where it can be a folder's and is not another model's; ConfigError otherwise."""
    if not SAFE_NAME.fullmatch(name):
        cure = "use letters, digits, '-' and '_'; a part of your own package: methods: {NAME: {component: its.dotted.path}}"
        raise ConfigError(f"{where}: methods: '{name}' cannot be a folder's name", cure)
    if name in TAKEN:
        raise ConfigError(f"{where}: methods: '{name}' is the name of another model beside them", "choose another name")
    return name


def method_sections(named: Named, names: Sequence[str], own: Any, where: str) -> dict[str, dict[str, Any]]:
    """The whole section of each of these methods, sorted by name, so that their order changes nothing.

    Args:
        named: what the run says of methods.
        names: of the methods that are wanted.
        own: the run's `method`: its fields are those of the method of that name, too.
        where: the run, for messages.

    Raises:
        ConfigError: a name that is neither packaged nor named by the run.
    """
    own = own if isinstance(own, Mapping) else {}
    known = {*packaged("method"), *named.sections}
    found = {}
    for name in sorted(set(names)):
        if _refuse_unsafe(name, where) not in known:
            raise ConfigError(f"{where}: methods: no method is called '{name}'", closest(name, [*known]))
        section = {"component": name, **named.sections.get(name, {})}
        if own.get("component") == section["component"] == name:
            section = merge(own, section)
        found[name] = packaged_section("method", section, f"{where}: methods.{name}")
    return found


def compared(named: Named, chosen: Sequence[str]) -> tuple[str, ...]:
    """The methods that a comparison takes: those chosen, else those that the run asks for, else all there are."""
    return tuple(chosen) or named.asked or (*packaged("method"), *named.sections)
