"""What a signal may say: a list of events, a list of facts, and the form of each. Nothing else gets out.

A fact that is on no list is a fault of the program. A value without its fact's form, such as a message that quotes a label where
one word is wanted, is replaced by `withheld`: a signal is no way out for what a person wrote.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.decode import canonical

__all__ = ["EVENTS", "FIELDS", "WITHHELD", "checked", "event_id"]

WITHHELD = "withheld"

EVENTS: Mapping[str, tuple[str, ...]] = {
    "due_soon": ("request_id", "line", "due_at"),
    "overdue": ("request_id", "line", "due_at"),
    "batch_closed": ("batch_id",),
    "run_started": ("batch_id", "attempt"),
    "run_failed": ("batch_id", "attempt"),
    "evaluated": ("batch_id", "attempt"),
    "released": ("batch_id", "attempt"),
    "rolled_back": ("batch_id", "attempt", "alias", "number"),
    "tick": ("host", "at"),
}
"""The events, and the facts of each that make it this one and no other."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ADDRESS = re.compile(r"(?:[a-z0-9]+://)?[^\s@?#<>\"'\x00-\x1f\x7f][^@?#<>\"'\x00-\x1f\x7f]{0,1023}")
"""Of a folder or run configuration: no user, no password, no query."""


def _text(form: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and form.fullmatch(value) is not None


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


FIELDS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("request_id", "batch_id", "alias", "host"), _text(_NAME)),
    **dict.fromkeys(("reason", "failure", "verdict", "stage", "state"), _text(_WORD)),
    **dict.fromkeys(("due_at", "next_try_at", "at"), _text(_TIME)),
    **dict.fromkeys(("line", "run"), _text(_ADDRESS)),
    "model_id": _text(_SHA256),
    "will_retry": lambda value: isinstance(value, bool),
    **dict.fromkeys(
        ("attempt", "number", "requests", "seconds", "sample_gradients", "images", "closed", "claimed", "failed", "released"),
        _number,
    ),
}
"""Every fact that a signal may have, and what its values look like."""


def checked(event: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a signal as they may go out; those that are None or empty are left out.

    Args:
        event: one of `EVENTS`.
        facts: by names in `FIELDS`.

    Raises:
        ValueError: an unknown event or fact; the message names it, and no value.
    """
    if event not in EVENTS:
        raise ValueError(f"signal {event!r}: not one of {', '.join(EVENTS)}")
    unknown = sorted(set(facts) - set(FIELDS))
    if unknown:
        raise ValueError(f"signal {event}: no such fact: {', '.join(unknown)}")
    given = {name: value for name, value in facts.items() if value is not None and value != ""}
    return {name: value if FIELDS[name](value) else WITHHELD for name, value in given.items()}


def event_id(event: str, facts: Mapping[str, Any], scope: str) -> str:
    """The name of an event, the same on every host and however often it is told.

    Args:
        event: one of `EVENTS`.
        facts: as `checked` returned them.
        scope: what tells ledgers apart.
    """
    mine = {name: facts[name] for name in EVENTS[event] if name in facts}
    return hashlib.sha256(canonical({"event": event, "scope": scope, "facts": mine})).hexdigest()[:32]
