"""What stops a phase before it does harm: non-finite or runaway losses, bad gradients, a failed probe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

from pipeline.records import record

__all__ = ["Guard", "Verdict"]


@record
class Verdict:
    """A probe's answer: go on, stop here (this state is good), or stop and return to the last good state."""

    act: Literal["go", "stop", "back"]
    reason: str = ""


class Guard:
    """Refuses a step before the optimizer moves, and probes the state between steps.

    Args:
        bounds: largest allowed value of each named measure; a measure above it is a runaway.
        probe: called after each step with the number of steps done; None when no probe is due. It must answer the same
            on every rank.
    """

    def __init__(
        self, *, bounds: Mapping[str, float] | None = None, probe: Callable[[int], Verdict | None] = lambda step: None
    ) -> None:
        self._bounds, self.probe = dict(bounds or {}), probe

    def refuse(self, measures: Mapping[str, float]) -> str:
        """Why these losses (equal on all ranks) must not be followed; empty if they may."""
        for name, value in measures.items():
            if not math.isfinite(value):
                return f"non-finite {name}"
            if value > self._bounds.get(name, math.inf):
                return f"runaway {name}: {value:.4g} above {self._bounds[name]:.4g}"
        return ""
