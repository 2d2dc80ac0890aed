"""What must hold before a run is released: its verdict passed, or a person whose name is written down let it pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError, GateFailed
from pipeline.records import record

__all__ = ["Approval", "approval", "refuse_unfit"]


@record
class Approval:
    """Who let pass what a rule does not, why, and when (UTC)."""

    approver: str
    reason: str
    at: str
    schema: str = "approval/1"


def approval(approver: str, reason: str, at: str) -> Approval | None:
    """What `--approve NAME --reason TEXT` mean together; None: neither was given.

    Raises:
        ConfigError: one without the other.
    """
    approver, reason = " ".join(approver.split()), " ".join(reason.split())
    if not approver and not reason:
        return None
    if not approver or not reason:
        raise ConfigError("--approve and --reason: one without the other", "an approval names a person and says why")
    return Approval(approver=approver, reason=reason, at=at)


def refuse_unfit(report: Mapping[str, Any], audit: Mapping[str, Any] | None, approved: Approval | None) -> bool:
    """Hold a run's verdict, and its audit's where it has one, against the gate.

    Returns:
        Whether the approval was needed.

    Raises:
        GateFailed: the verdict failed, was not decided or is missing, and nobody let it pass.
    """
    states: dict[str, str] = {}
    for judged in (report.get("verdict") or {}, (audit or {}).get("verdict") or {}):
        states |= {str(rule["metric"]): str(rule["state"]) for rule in judged.get("rules", ())}
    broken = sorted(name for name, state in states.items() if state == "broken")
    unknown = sorted(name for name, state in states.items() if state not in ("broken", "kept"))
    if states and not broken and not unknown:
        return False
    why = "the run has no verdict: it set no rules"
    if states:
        words = [f"{', '.join(broken)} broken"] if broken else []
        words += [f"{', '.join(unknown)} not computed"] if unknown else []
        why = f"the verdict {'failed' if broken else 'is undecided'}: {'; '.join(words)}"
    if approved is None:
        cure = "improve the model, or let a person answer for it: --approve NAME --reason TEXT"
        raise GateFailed(f"not released: {why}", cure)
    return True
