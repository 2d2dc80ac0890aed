"""YAML as people write it: numbers like 1e-4 are numbers, what names images stays as it is written, and no key is given twice.

YAML 1.1, which PyYAML reads, takes 1e-4 for a word, 0017 for the number 15, `no` for false and 1:30 for 90, and of a key that
stands twice it keeps the last. In a request each of these would mean another image than the one that was asked for.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.composer import ComposerError

__all__ = ["NotYAML", "dump", "load", "load_words"]

POWER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+\Z")
"""A number with an exponent, as JSON and YAML 1.2 have it."""
FLOAT, NULL, MERGE = "tag:yaml.org,2002:float", "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"


class NotYAML(ValueError):
    """Where and what. The line itself is not repeated: it may name a person."""


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if key.value in seen:
                    raise ComposerError(None, None, f"'{key.value}' stands twice in one mapping", key.start_mark)
                seen.add(key.value)
        return node


class _Words(_Loader):
    """Every value is a text, or nothing."""


class _Dumper(yaml.SafeDumper):
    """Puts a text that looks like a number in quotes."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(FLOAT, POWER, list("-+.0123456789"))
_Words.yaml_implicit_resolvers = {
    first: kept
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, pattern) for tag, pattern in found if tag in (NULL, MERGE)])
}


def dump(value: Any) -> str:
    """Plain data as YAML, keys sorted, which `load` and any YAML 1.1 reader turn into the same data."""
    written: str = yaml.dump(value, Dumper=_Dumper, sort_keys=True, allow_unicode=True)
    return written


def load(text: str) -> Any:
    """Mappings, lists, texts, numbers, booleans and None.

    Raises:
        NotYAML: no YAML, or a key that stands twice in one mapping.
    """
    return _read(text, _Loader)


def load_words(text: str) -> Any:
    """As `load`, but every number, boolean and date is the text that stands there: a key 0017 is "0017".

    Raises:
        NotYAML: as `load`.
    """
    return _read(text, _Words)


def _read(text: str, kind: type[_Loader]) -> Any:
    try:
        loader = kind(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise NotYAML(f"{where}{fault.problem or fault.context}") from None
    except (yaml.YAMLError, ValueError) as fault:  # ValueError: the 31st of February
        raise NotYAML(" ".join(str(fault).split())) from None
