"""Request files: YAML, CSV or JSON lines -> one batch of deletion requests.

YAML or JSON lines entries: `{request_id: r1, label: Trouser}`, `{request_id: r2, keys: [train-00017]}`,
`{request_id: r3, prefix: person-12/}`, `{request_id: r4, digest: 9f86d0...}` (sha256 of the image file),
`{request_id: r5, likeness: 8f1c...}` (16 hexadecimal digits of a perceptual hash: all images that look like it). CSV columns:
`request_id, kind, value` and optionally `copies, subject, received_at, due_at, basis, note`; `kind` is `label`, `key`,
`prefix`, `digest` or `likeness`; rows that share a request_id and kind join.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.decode import decode, digest
from pipeline.errors import ConfigError
from pipeline.records import DeletionRequest, RequestBatch, Selector
from pipeline.storage import read_bytes
from pipeline.written import load_words

__all__ = ["PLANTED", "batch_digest", "parse", "read_requests"]

PLANTED = "planted-"
"""Beginning of the keys of what an audit planted; see `pipeline.data.sources.planted`."""

SELECTORS = {
    **{"label": "label", "labels": "label", "key": "keys", "keys": "keys", "prefix": "prefix", "prefixes": "prefix"},
    **{"digest": "digest", "digests": "digest", "likeness": "likeness", "likenesses": "likeness"},
}


def read_requests(uri: str) -> RequestBatch:
    """Read a request file. In YAML each value is the text that stands there: a key 0017 is no number.

    Raises:
        ConfigError: names file, entry and field.
    """
    kind = uri.rsplit(".", 1)[-1].lower()
    try:
        text = read_bytes(uri).decode("utf-8-sig")  # spreadsheets put a byte order mark first
        if kind in ("yaml", "yml"):
            entries = load_words(text) or []
        elif kind in ("jsonl", "ndjson"):
            # Not by splitlines: U+2028 and its like may stand in a key.
            entries = [_json_entry(line, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        elif kind == "csv":
            entries = _csv_entries(text, uri)
        else:
            raise ConfigError(f"{uri}: request file of unknown kind", "use .yaml, .csv or .jsonl")
    except (ValueError, csv.Error) as fault:
        raise ConfigError(f"{uri}: not readable as {kind}: {' '.join(str(fault).split())}", "correct the file") from None
    if isinstance(entries, Mapping):
        entries = entries.get("requests", [])
    return parse(entries, where=uri)


def _json_entry(line: str, number: int) -> Any:
    """What stands on the line; numbers as they are written, because 1.10 may be a key."""
    try:
        return json.loads(line, object_pairs_hook=_each_once, parse_float=str, parse_int=str)
    except json.JSONDecodeError as fault:
        raise ValueError(f"line {number}, column {fault.colno}: {fault.msg}") from None
    except ValueError as fault:
        raise ValueError(f"line {number}: {fault}") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The entry that is made of these pairs. A second value of one field would push the first one out."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        raise ValueError(f"a field of {', '.join(entry)} stands twice in one entry")
    return entry


def _csv_entries(text: str, where: str) -> list[dict[str, Any]]:
    rows = csv.DictReader(io.StringIO(text))
    columns = [name.strip() for name in rows.fieldnames or ()]
    missing = {"kind", "value"} - set(columns)
    if missing:
        raise ConfigError(f"{where}: no column {', '.join(sorted(missing))}", "columns: request_id, kind, value")
    if len(set(columns)) < len(columns):
        raise ConfigError(f"{where}: two columns of one name", "give each column once")
    rows.fieldnames = columns
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise ConfigError(f"{where}: row {number}: more cells than columns", "put a value that holds a comma in quotes")
        name, kind, value = row.get("request_id") or f"r{number}", (row["kind"] or "").strip(), (row["value"] or "").strip()
        if kind not in SELECTORS or not value:
            raise ConfigError(
                f"{where}: row {number}: kind '{kind}', value '{value}'",
                "kind: label, key, prefix, digest or likeness, with a value",
            )
        entry = entries.setdefault((name, SELECTORS[kind]), {"request_id": name, SELECTORS[kind]: []})
        entry[SELECTORS[kind]].append(value)
        for field, said in row.items():
            if said and field not in ("kind", "value", "request_id") and entry.setdefault(field, said) != said:
                raise ConfigError(f"{where}: row {number}: another {field} than an earlier row of {name}", "say it once")
    return list(entries.values())


def parse(entries: Any, *, where: str) -> RequestBatch:
    """Entries as decoded from a file -> a batch. Raises ConfigError for an empty one or a faulty entry."""
    if not isinstance(entries, Iterable) or isinstance(entries, str | bytes):
        raise ConfigError(f"{where}: requests must be a list", "write a list of entries, each with label, keys or prefix")
    requests = tuple(_request(entry, f"{where}: entry {n}") for n, entry in enumerate(entries, start=1))
    if not requests:
        raise ConfigError(f"{where}: no request in it", "name at least one label, key or prefix")
    return RequestBatch(requests=requests)


def _request(entry: Any, where: str) -> DeletionRequest:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: not a mapping", "write {request_id: r1, label: NAME}")
    chosen = [name for name in SELECTORS if name in entry]
    if len(chosen) != 1:
        raise ConfigError(f"{where}: names {len(chosen)} of label, keys, prefix, digest, likeness", "name exactly one")
    given = entry[chosen[0]]
    values = tuple("" if value is None else str(value) for value in (given if isinstance(given, list) else [given]))
    if not values or not all(values):
        raise ConfigError(f"{where}: {chosen[0]}: empty", "name at least one value")
    rest = {key: str(value) for key, value in entry.items() if key != chosen[0] and value is not None}
    rest.setdefault("request_id", where.rsplit(" ", 1)[-1])
    selector = {"kind": SELECTORS[chosen[0]], "values": list(values)}
    return decode(DeletionRequest, {**rest, "selector": selector}, where=where)


def batch_digest(batch: RequestBatch) -> str:
    """Digest of what is to be forgotten, whatever the order of the requests and of their values."""
    parts = sorted((r.request_id, r.selector.kind, r.copies, *sorted(r.selector.values)) for r in batch.requests)
    return digest(parts)


def selectors(batch: RequestBatch) -> list[Selector]:
    """The selectors of all requests."""
    return [request.selector for request in batch.requests]
