"""Run folders for people: which stage a run is in and how far, its losses, its report, and what it cost.

What is read: receipts, metrics, the line of progress in a stage's log, and a finished run's report. Texts of a log are not shown.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any

from pipeline.addresses import absolute, is_local, join
from pipeline.chain import PHASES, StageSpec, chain_for, read_receipt
from pipeline.config import read_run
from pipeline.errors import UnlearnError
from pipeline.remote import ask
from pipeline.storage import exists, info, read_bytes, read_range, size

__all__ = ["cost_of", "grids", "progress", "report_of", "run_folders", "summary"]

NO_CURVE = ("step", "seconds", "images_per_second", "slowest_rank", "slowest_ratio")
PROGRESS = re.compile(r"^([a-z.]+): step (\d+) of (\d+), ([\d,]+) images/s, (\d+) s left", flags=re.MULTILINE)
QUIET_SECONDS = 15 * 60.0
"""A stage that trains writes a line every quarter of a minute, and the longest others one in some minutes."""
TAIL_BYTES = 64 * 1024
POINTS = 160
WIDTH, HEIGHT = 300, 84
COSTS = ("sample_gradients", "seconds", "retrain_sample_gradients", "retrain_seconds", "share")
GRID = re.compile(r"grid_(?:retain|\d{1,6})\.png")


def run_folders(runs: str, also: Mapping[str, str] | None = None, seen: set[str] | None = None) -> dict[str, str]:
    """Names of the runs directly below a folder, and where each lies.

    Args:
        runs: folder or URI; one that is not there has no runs.
        also: more of them, such as those that a ledger names, which may lie elsewhere.
        seen: folders that were found to be runs before, and are not looked into again; those found now are added.

    Raises:
        StorageError: the store does not answer.
    """
    found = dict(also or {})
    home = absolute(runs)
    if exists(home):
        scheme = "" if is_local(home) else f"{home.split('://', 1)[0]}://"
        for entry in ask(home, "ls", detail=False):
            uri = str(entry) if "://" in str(entry) else f"{scheme}{entry}"
            found[uri.rstrip("/").rsplit("/", 1)[-1]] = uri.rstrip("/")
    seen = set() if seen is None else seen
    seen.update(uri for uri in found.values() if uri not in seen and exists(join(uri, "config.yaml")))
    return {name: uri for name, uri in sorted(found.items()) if uri in seen}


def _json(uri: str) -> dict[str, Any]:
    """A JSON object; empty where it is missing, half written or something else."""
    try:
        found = json.loads(read_bytes(uri)) if exists(uri) else {}
    except (UnlearnError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def report_of(folder: str) -> dict[str, Any]:
    """What is shown of a run's report.json, each in its own type; empty: not written yet."""
    found = _json(join(folder, "report.json"))
    if not found:
        return {}
    lines, verdict, cost = (found.get(name) for name in ("headline", "verdict", "cost"))
    return {
        "summary": str(found.get("summary") or ""),
        "deck": str(found.get("deck") or ""),
        "headline": [str(line) for line in lines] if isinstance(lines, list) else [],
        "verdict": str(verdict.get("outcome", "")) if isinstance(verdict, dict) else "",
        "cost": {name: _figure(cost.get(name)) for name in COSTS} if isinstance(cost, dict) else None,
    }


def _figure(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def grids(folder: str) -> list[str]:
    """Names of the picture grids of a run."""
    place = join(folder, "evaluation")
    if not exists(place):
        return []
    names = [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in ask(place, "ls", detail=False)]
    return sorted(name for name in names if GRID.fullmatch(name))


def _chain(folder: str) -> tuple[tuple[StageSpec, ...], str]:
    """The stages of a run, and its configuration's name; none where that is of another version."""
    try:
        config = read_run(folder)
        return chain_for(config), config.name
    except UnlearnError:
        return (), ""


def _stages(folder: str, chain: tuple[StageSpec, ...]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for spec in chain:
        row: dict[str, Any] = {"name": spec.name, "title": spec.title, "state": "not yet", "facts": {}, "ended_at": ""}
        try:
            receipt = read_receipt(folder, spec.name)
        except UnlearnError:
            receipt, row["state"] = None, "receipt damaged"
        if receipt is not None:
            row |= {"state": "done", "facts": dict(receipt.facts), "ended_at": receipt.ended_at}
        rows.append(row)
    # What has begun and has no receipt yet: the first that is missing after the last that is there.
    done = [number for number, row in enumerate(rows) if row["state"] == "done"]
    after = (done[-1] + 1) if done else 0
    if after < len(rows) and rows[after]["state"] == "not yet":
        rows[after] |= _under_way(folder, rows[after]["name"])
    return rows


def _under_way(folder: str, stage: str) -> dict[str, Any]:
    """How far a stage without receipt is, by its log; `not yet` where it has not begun."""
    log = join(folder, "logs", f"{stage}.log")
    if not exists(log):
        return {}
    said: dict[str, Any] = {"state": "running"}
    written = info(log).get("mtime")  # of files here; other stores name it otherwise
    if isinstance(written, (int, float)) and (quiet := time.time() - written) > QUIET_SECONDS:
        said |= {"state": "silent", "quiet": quiet}
    lines = [found for found in PROGRESS.findall(_tail(log)) if found[0] == stage]
    if lines:
        _, step, steps, rate, left = lines[-1]
        said |= {"step": int(step), "steps": int(steps), "rate": float(rate.replace(",", "")), "left": float(left)}
    return said


def _tail(log: str) -> str:
    try:
        length = size(log)
        return bytes(read_range(log, max(0, length - TAIL_BYTES), length)).decode(errors="replace") if length else ""
    except UnlearnError:  # begun anew meanwhile, and shorter than it was
        return ""


def _curves(folder: str, chain: tuple[StageSpec, ...]) -> list[dict[str, Any]]:
    """Losses of each phase that has metrics: a small line for each."""
    drawn = []
    for spec in chain:
        uri = join(folder, "metrics", f"{spec.name}.jsonl")
        if (spec.module in PHASES or spec.module in ("train", "retrain")) and exists(uri):
            lines = _lines(uri)
            names = dict.fromkeys(name for line in lines for name in line if name not in NO_CURVE)
            drawn += [curve for name in names if (curve := _curve(spec.name, name, lines)) is not None]
    return drawn


def _lines(uri: str) -> list[dict[str, Any]]:
    found = []
    for text in read_bytes(uri).decode(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
    return found


def _curve(stage: str, name: str, lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    pairs = [(line["step"], float(line[name])) for line in lines if isinstance(line.get(name), (int, float))]
    pairs = [pair for pair in pairs if math.isfinite(pair[1])]
    if len(pairs) < 2:
        return None
    last, low, high = pairs[-1], min(value for _, value in pairs), max(value for _, value in pairs)
    kept = pairs[:: max(1, len(pairs) // POINTS)]
    kept = kept if kept[-1] == last else [*kept, last]
    first, span = pairs[0][0], (last[0] - pairs[0][0]) or 1
    height = (high - low) or 1.0
    points = " ".join(
        f"{(step - first) / span * WIDTH:.1f},{4 + (high - value) / height * (HEIGHT - 8):.1f}" for step, value in kept
    )
    title = re.sub(r"_(\d+)$", lambda number: f", group {int(number[1]) + 1}", name).replace("_", " ")
    facts = {"stage": stage, "title": title, "points": points, "first_step": first, "last_step": last[0]}
    return {"id": f"{stage}.{name}", **facts, "last": last[1], "low": low, "high": high}


def progress(name: str, folder: str) -> dict[str, Any]:
    """All that is shown of one run.

    Args:
        name: of the run.
        folder: where it lies.

    Raises:
        StorageError: the store does not answer.
    """
    chain, line = _chain(folder)
    stages = _stages(folder, chain)
    return {
        "name": name,
        "folder": folder,
        "line": line,
        "stages": stages,
        "curves": _curves(folder, chain),
        "report": report_of(folder),
        "page": exists(join(folder, "report.html")),
        "grids": grids(folder),
        **_state(stages),
    }


def _state(stages: list[dict[str, Any]]) -> dict[str, Any]:
    done = sum(row["state"] == "done" for row in stages)
    now = next((row for row in stages if row["state"] in ("running", "silent")), None)
    state = "done" if stages and done == len(stages) else now["state"] if now else "begun"
    return {"state": state, "done": done, "of": len(stages), "now": now}


def summary(name: str, folder: str) -> dict[str, Any]:
    """A run as lists show it: stages done, the one at work, and what the report says above all."""
    chain, line = _chain(folder)
    stages = _stages(folder, chain)
    report = report_of(folder)
    ended = max((row["ended_at"] for row in stages), default="")
    told = {"headline": report.get("summary", ""), "verdict": report.get("verdict", "")}
    told["page"] = exists(join(folder, "report.html"))
    return {
        "name": name,
        "folder": folder,
        "line": line,
        "ended_at": ended,
        **told,
        **_state(stages),
        "cost": cost_of(report, stages),
    }


def cost_of(report: Mapping[str, Any], stages: list[dict[str, Any]]) -> dict[str, float | None]:
    """Sample gradients and seconds of unlearning and of retraining; None: not computed.

    Args:
        report: as `report_of` has it.
        stages: as `progress` has them; their receipts speak where there is no report yet.
    """
    if report.get("cost"):
        return dict(report["cost"])
    spent: dict[str, float | None] = {"share": None}  # of a run that goes on, a share would be too small
    for name in ("sample_gradients", "seconds"):
        figures = {row["name"]: _figure(row["facts"].get(name)) for row in stages}
        mine = [value for stage in PHASES if (value := figures.get(stage)) is not None]
        spent |= {name: sum(mine) if mine else None, f"retrain_{name}": figures.get("retrain")}
    return spent
