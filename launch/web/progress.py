"""The words of a run's page that change while it goes on, by name, so that a script can replace them one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.web.words import MARKS, clock, count, decimals, duration

__all__ = ["as_json", "texts_of"]


def texts_of(run: Mapping[str, Any]) -> dict[str, str]:
    """Each changing text of a run, as `launch.web.runs.progress` gives it, by the name that the page knows it by."""
    texts = {"title": _title(run), "lede": _lede(run)}
    for row in run["stages"]:
        mine, facts = f"stage.{row['name']}", row["facts"]
        texts[f"{mine}.state"], texts[f"{mine}.mark"] = row["state"], MARKS.get(row["state"], "")
        texts[f"{mine}.far"] = _far(row)
        texts[f"{mine}.gradients"] = count(facts["sample_gradients"]) if _is_number(facts.get("sample_gradients")) else ""
        texts[f"{mine}.time"] = duration(facts["seconds"]) if _is_number(facts.get("seconds")) else ""
        texts[f"{mine}.ended"] = clock(row["ended_at"])
    for curve in run["curves"]:
        span = f"now {decimals(curve['last'])}, between {decimals(curve['low'])} and {decimals(curve['high'])}"
        texts[f"curve.{curve['id']}.words"] = span
        texts[f"curve.{curve['id']}.end"] = f"step {count(curve['last_step'])}"
    return texts


def as_json(run: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's script asks for again and again: texts, values of bars, points of curves, and whether it is over."""
    values = {f"stage.{row['name']}.step": row["step"] for row in run["stages"] if "step" in row}
    points = {f"curve.{curve['id']}.points": curve["points"] for curve in run["curves"]}
    return {"texts": texts_of(run), "values": values, "points": points, "done": run["state"] == "done"}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _title(run: Mapping[str, Any]) -> str:
    if run["state"] == "done":
        return str(run["report"].get("summary") or f"All {run['of']} stages are done")
    if run["now"] is None:
        return f"{run['done']} of {run['of']} stages are done" if run["of"] else "A run of another version"
    words = f"{'Stopped in' if run['state'] == 'silent' else 'In'} stage {run['done'] + 1} of {run['of']}: {run['now']['name']}"
    return f"{words}, step {count(run['now']['step'])} of {count(run['now']['steps'])}" if "step" in run["now"] else words


def _lede(run: Mapping[str, Any]) -> str:
    now = run["now"]
    if run["state"] == "done":
        return str(run["report"].get("deck") or "")
    if now is None:
        return "Nothing is at work in this folder now."
    if "quiet" in now:
        return f"No sign of life for {duration(now['quiet'])}."
    if "left" in now:
        return f"{count(now['rate'])} images a second; about {duration(now['left'])} left in this stage."
    return str(now["title"])


def _far(row: Mapping[str, Any]) -> str:
    if "step" in row:
        return f"step {count(row['step'])} of {count(row['steps'])}"
    facts = row["facts"]
    if row["state"] == "done" and _is_number(facts.get("steps")):
        return f"{count(facts['steps'])} steps"
    return ""
