"""Mapping -> frozen record, and record -> canonical JSON.

Unknown keys and wrong types are refused with the dotted path of the fault. Decoding goes through JSON in pydantic's
strict mode, so a YAML list becomes a tuple but the text "12" never becomes the number 12.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from pipeline.errors import ConfigError, UnlearnError

__all__ = ["canonical", "closest", "decode", "digest", "plain", "sha256_text"]

T = TypeVar("T")


@functools.cache
def _adapter(cls: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(cls)


def closest(wrong: str, right: list[str]) -> str:
    """A hint for a mistyped name: the nearest right one, and all of them."""
    near = difflib.get_close_matches(wrong, right, n=1)
    known = ", ".join(sorted(right)) or "none"
    return f"did you mean '{near[0]}'? known: {known}" if near else f"known: {known}"


def decode(cls: type[T], value: Any, *, where: str, error: type[UnlearnError] = ConfigError) -> T:
    """Decode plain data into the record `cls`.

    Args:
        cls: a class made by `pipeline.records.record`.
        value: mappings, lists, strings, numbers, booleans and None, as YAML or JSON give them.
        where: file or section to name in the message.
        error: the class to raise, for callers whose data is not configuration.

    Raises:
        error: one message for all faults, each with its dotted path.
    """
    try:
        text = json.dumps(value, allow_nan=True)
    except (TypeError, ValueError) as fault:
        raise error(f"{where}: {fault}", "use only strings, numbers, booleans, lists and mappings") from None
    try:
        value = _adapter(cls).validate_json(text, strict=True)  # type: ignore[arg-type]
    except pydantic.ValidationError as fault:
        lines = [_fault(cls, dict(item)) for item in fault.errors(include_url=False)]
        raise error(f"{where}: " + "; ".join(dict.fromkeys(lines)), "correct the field and run again") from None
    decoded: T = value
    return decoded


def _fault(cls: type[Any], item: Mapping[str, Any]) -> str:
    path = [str(part) for part in item["loc"]]
    dotted = ".".join(path) or "top level"
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{dotted}: unknown field ({closest(path[-1], _fields(cls, path[:-1]))})"
    if item["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{dotted}: missing"
    return f"{dotted}: {item['msg'][0].lower()}{item['msg'][1:]}, got {json.dumps(item['input'], default=str)[:80]}"


def _fields(cls: type[Any], path: list[str]) -> list[str]:
    """The field names of the record at `path` below `cls`; empty where the path leaves plain records."""
    for part in path:
        hints = {field.name: field for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
        if part not in hints:
            return []
        cls = typing.get_type_hints(cls)[part]
    return [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def plain(value: Any) -> Any:
    """A record as plain JSON data: mappings, lists, strings, numbers, booleans, None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, one final newline. Equal records give equal bytes."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def digest(value: Any) -> str:
    """sha256 of the canonical form, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def sha256_text(text: str) -> str:
    """sha256 of a text's UTF-8 bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()
