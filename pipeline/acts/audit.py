"""The attack battery on a finished run: relearning, a second decoder, extraction; beside the retrained model and two controls.

What was found of a group and an attack is kept: an audit that was broken off goes on, and does nothing again for the same
weights. Further attacks, which cost a training of their own, add what they left in the run's folder; shadow runs lend their
retrained models, too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging

from pipeline.acts.audit_publish import publish_page
from pipeline.acts.audit_store import further_parts, kept_part, kept_picture
from pipeline.acts.battery import ATTACKS, Battery
from pipeline.acts.trainings import other_trainings
from pipeline.audit_orders import AuditOrder
from pipeline.chain import stage
from pipeline.config import RuleConfig
from pipeline.decode import canonical, digest
from pipeline.errors import ConfigError, StorageError
from pipeline.evaluation.summary import REFERENCE
from pipeline.findings import Audit, Finding, Found, Tier, Verdict
from pipeline.report.verdict import audit_figures, judge
from pipeline.stages.evaluate import load_subjects
from pipeline.stages.phase import Phase
from pipeline.stages.runner import Job
from pipeline.storage import exists, publish_bytes, read_bytes

__all__ = ["run"]

log = logging.getLogger("unlearn")

BATTERY = "battery/3"
"""Raised with every change to what is found, so that no older finding stands for a new one."""
NONE_FOUND = RuleConfig(at_most=0, reason="an attack that finds the images refutes that they are forgotten")
"""Where the run sets no rule of its own."""


def run(order: AuditOrder) -> Audit:
    """Attack, and publish `audit.json` and its page.

    Raises:
        StorageError: the run has not ended.
        ConfigError: the run has no retrained model, which is the measure of every attack here.
    """
    job = Job(spec=stage("evaluate", order.config), config=order.config, folder=order.folder)
    if not exists(job.path("receipts/release.json")):
        raise StorageError(f"{job.folder}: the run has not ended", "run it first")
    phase = Phase(job, "audit")
    models, marks = load_subjects(job, phase.group.device)
    if REFERENCE not in models:
        raise ConfigError(
            "audit: no retrained model to compare with", "set reference=retrain, or name its weights, and run again"
        )
    others, other_marks = other_trainings(job, marks["unlearned"], phase.group.device)
    battery = Battery(phase, models, order.samples, others)
    parts: list[Found] = []
    for number, group in enumerate(phase.manifest.groups):
        mark = digest([BATTERY, marks, other_marks, order.samples, order.config.seed, phase.manifest.batch_digest, number])
        for attack in ATTACKS:
            parts.append(kept_part(job, attack, number, mark, functools.partial(battery.attack, attack, number)))
        kept_picture(job, number, mark, functools.partial(battery.picture, number))
        log.info("audit: %s done", group.name)
    further = further_parts(job, marks["unlearned"])
    parts += further.values()
    found = [item for part in parts for item in part.findings]
    passed, words = _verdict(found)
    answer = Audit(
        run_id=phase.manifest.run_id,
        weights_sha256=marks["unlearned"],
        findings=tuple(found),
        passed=passed,
        tier=_tier(job, passed),
        words=words,
        confidence=order.config.evaluation.confidence,
        verdict=Verdict(outcome="no rules"),
    )
    rules = {"attacks": NONE_FOUND, **order.config.verdict}
    answer = dataclasses.replace(answer, verdict=judge(rules, audit_figures(answer)))
    publish_bytes(job.path("audit.json"), canonical(answer))
    publish_page(job, answer, [item for part in parts for item in part.series], planted="planted" in further)
    battery.close()
    return answer


def _tier(job: Job, passed: bool | None) -> Tier:
    """The tier of the run's report, where nothing refutes it; else audited, if an attack had power and none found anything."""
    if passed is False:
        return ""
    reported: Tier = json.loads(read_bytes(job.path("report.json")))["claims"]["tier"]
    return reported or ("A" if passed else "")


def _verdict(found: list[Finding]) -> tuple[bool | None, str]:
    own = [item for item in found if item.subject == "unlearned"]
    flagged = [item for item in own if item.says in ("still there", "over-forgotten")]
    powerful = [item for item in own if item.says == "not told apart"]
    if flagged:
        names = ", ".join(f"{item.attack} ({item.group}): {item.says}" for item in flagged)
        return False, f"found by {len(flagged)} of {len(own)} attacks: {names}"
    if not powerful:
        return None, "no attack had the power to find these images, even in the original model"
    blind = len(own) - len(powerful)
    rest = f"; {blind} more had no power here" if blind else ""
    return True, f"not told apart from the retrained model by {len(powerful)} attacks{rest}; no upper bound follows"
