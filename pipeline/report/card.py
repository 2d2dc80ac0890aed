"""README.md of the released weights: a model card in the layout that the Hugging Face Hub reads."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.report.numbers import between, count, decimals

__all__ = ["render"]


def render(facts: dict[str, Any]) -> str:
    """The card as Markdown with front matter. Names that others wrote are escaped."""
    front = yaml.safe_dump(
        {"pipeline_tag": "image-to-image", "tags": ["image-to-image", "machine-unlearning", facts["done"]["component"]["model"]]},
        sort_keys=False,
    )
    claims, retention = facts["claims"], facts["done"]["retention"]
    parts = [
        f"---\n{front}---\n",
        f"# {_plain(facts['name'])}, unlearned\n",
        f"{_plain(facts['summary'])}\n\n{_plain(facts['deck'])} Run `{facts['run_id']}`.\n",
        "## What was measured\n",
        _bullets(facts["headline"][:-1]),
        _table(facts["table"]),
        f"Mean squared error in the hidden region, with {facts['confidence'] * 100:g} % bootstrap intervals.\n",
        "## What may be claimed\n",
        f"**{claims['words']}.** {_retention(retention['mode'])}\n",
        _bullets(claims["reasons"]),
        "Not claimed:\n",
        _bullets(claims["not_claimed"]),
        "## Files\n",
        "`model.safetensors` holds the weights, `config.json` the model section they were built from. "
        f"sha256 of the weights: `{facts['provenance']['weights']['sha256']}`.\n",
    ]
    return "\n".join(parts)


def _retention(mode: str) -> str:
    return "No phase 2." if mode == "none" else f"Retention: {mode}."


def _plain(text: str) -> str:
    """Text in which neither Markdown nor HTML is left to act."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{mark}" if mark in "\\`*_[]|#~" else mark for mark in text)


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| images | n | original | unlearned | retrained |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        name = _plain(f"{row['group']}: {row['label']}" if row["group"] else row["label"])
        cells = [f"{decimals(row[s]['error'], 4)} {_range(row[s])}".strip() for s in ("original", "unlearned", "retrained")]
        lines.append(f"| {name} | {count(row['n'])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _range(cell: dict[str, Any]) -> str:
    return f"({between(cell, 4)})" if cell["low"] is not None else ""
