"""What `unlearn plan` says of time, memory and cost."""

from __future__ import annotations

from collections.abc import Sequence

from launch.advice import WORTH, Advice
from launch.estimate import StageEstimate
from launch.outlook import Outlook
from launch.plan import NOT_COMPUTED
from launch.show import print_table, size_text

__all__ = ["advice_lines", "estimate_rows", "outlook_lines", "print_outlook", "time_text"]

COLUMNS = (
    "stage",
    "nodes",
    "ranks",
    "steps",
    "a step",
    "time",
    "memory a rank",
    "sent a step",
    "checkpoint",
    "node-hours",
    "longest",
)
HINTS = {
    "loading": "loading (name node.cpus, the cores of a node)",
    "saving": "saving (how fast its storage is, is not known)",
    "network": "network (name node.network_gbit)",
}


def time_text(seconds: float | None) -> str:
    """Seconds for people: `340 ms`, `12 s`, `3.4 min`, `2.1 h`, `5.0 d`."""
    if seconds is None:
        return NOT_COMPUTED
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 or not seconds else f"{seconds * 1000:.3g} ms"


def estimate_rows(stages: Sequence[StageEstimate], price: float) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the estimates."""
    columns = [*COLUMNS, *(["cost"] if price else [])]
    rows = []
    for item in stages:
        most, hours = "<= " if item.at_most else "", item.node_hours
        steps = NOT_COMPUTED if item.steps is None else f"{item.steps:,}"
        memory = f"{size_text(round(item.memory.total))} ({item.memory.moment})" if item.memory else "-"
        trains = item.samples > 0
        row = [
            *(item.stage, str(item.nodes), str(item.ranks), steps if trains else "-"),
            time_text(item.step_seconds) if trains else "-",
            most * (item.seconds is not None) + time_text(item.seconds),
            *(memory, size_text(round(item.sent_step)) if trains else "-"),
            size_text(round(item.checkpoint_bytes)) if trains else "-",
            NOT_COMPUTED if hours is None else f"{hours:.3g}",
            item.bottleneck or "-",
        ]
        rows.append([*row, *([NOT_COMPUTED if hours is None else f"{hours * price:.2f}"] if price else [])])
    return columns, rows


def outlook_lines(outlook: Outlook) -> list[tuple[str, str]]:
    """What stands above and below the table, as labels and texts."""
    machine, total = outlook.machine, time_text(outlook.seconds)
    if machine is None:
        source = f"{outlook.device} by the device table, at the share of its peak that training reaches there"
    else:
        source = (
            f"this machine, measured just now: {machine.ranks} ranks of {machine.threads} threads, "
            f"{machine.load:.1f} processes at work before"
        )
    found = [("computed with", source), ("cluster", f"{outlook.nodes} nodes of {outlook.per_node} ranks")]
    if outlook.node_hours is not None:
        money = f", {outlook.node_hours * outlook.price:.2f} in money" if outlook.price else ""
        found.append(("all stages", f"{total} one after the other, {outlook.node_hours:.3g} node-hours{money}"))
    if outlook.missing:
        found.append(("in no time", "; ".join(HINTS.get(name, name) for name in outlook.missing)))
    found += [("nodes", text) for text in advice_lines(outlook.advice)]
    if outlook.curve:
        found.append(("curve", outlook.curve))
    return found


def advice_lines(advice: Sequence[Advice]) -> list[str]:
    """One line a stage: how many nodes are worth it, and why not more."""
    found = []
    for item in advice:
        if not item.known:
            why = "of more the time is not known: name node.network_gbit"
        elif item.gain is not None:
            why = f"twice as many make it {item.gain:.2f} times as fast, less than {WORTH}"
        else:
            why = f"more are not allowed: {item.bound.by} bounds it to {item.bound.ranks} ranks"
        fits = (
            ""
            if item.least == 1
            else f"; fits in memory from {item.least} nodes on"
            if item.least
            else "; does not fit in memory"
        )
        found.append(f"{item.stage}: up to {item.nodes} ({why}); fewest node-hours on {item.cheapest}{fits}")
    return found


def print_outlook(outlook: Outlook) -> None:
    """Print it all."""
    print_table(*estimate_rows(outlook.stages, outlook.price))
    print()
    for label, text in outlook_lines(outlook):
        print(f"{label + ':':<19}{text}")
