"""The checker: a certificate is granted when every assumption was measured to hold, or declared by somebody by name.

One that fails withholds it, and then there is no epsilon. All inputs are records that stages wrote; nothing is typed in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from pipeline.privacy.accountant import AGREEMENT, account
from pipeline.privacy.gaussian import epsilon_of
from pipeline.privacy.mechanism import CertifyConfig, Mechanism, mechanism_of
from pipeline.records import Assumption, Certificate, Manifest, NoisyMeasures

__all__ = ["ASSUMPTIONS", "DEVIATIONS", "judge", "noise_bounds"]

DEVIATIONS = 6.0
"""Standard deviations by which a step's mean square noise may miss its expectation: chance goes beyond once in 5e8 steps."""

MOST = 1000.0
"""Epsilons above this are not printed."""

ASSUMPTIONS = {
    "A1": "all that forget images could have shaped is inside the noised vector",
    "A2": "the start lies in the ball of radius C0, by the norm of the whole vector",
    "A3": "no step was longer than c",
    "A4": "fresh Gaussian noise went onto the fp32 weights at each step",
    "A5": "the key of the noise was kept nowhere and is destroyed",
    "A6": "nothing after the ascent read a forget image",
    "A7": "only the last weights leave the phase",
    "A8": "the settings were fixed before these requests were served",
    "A9": "requests do not depend on models published before",
    "A10": "the model from before the deletion is not available any more",
}


def noise_bounds(dimension: int) -> tuple[float, float]:
    """Least and largest mean square that the noise of one step may have, in s^2, at this many weights."""
    spread = DEVIATIONS * math.sqrt(2 / max(1, dimension))
    return max(0.0, 1 - spread), 1 + spread


def judge(
    config: CertifyConfig,
    measures: NoisyMeasures,
    manifest: Manifest,
    *,
    retention_reads: Sequence[str],
) -> Certificate:
    """Check all assumptions and, where they hold, account.

    Args:
        config: of the certified phase.
        measures: what it did.
        manifest: of the run.
        retention_reads: splits that the phase after it read.

    Raises:
        ValueError: the accountant and our formula differ.
        ConfigError: the accountant is not installed.
    """
    mechanism = mechanism_of(config)
    found = (
        _state(config, measures),
        _start(mechanism, measures),
        _steps(mechanism, measures),
        _noise(config, mechanism, measures),
        _key(measures),
        _reading(config, measures, manifest, retention_reads),
        _leaving(measures),
        _fixed(measures),
        _declared("A9", config),
        _declared("A10", config),
    )
    granted = all(item.state != "failed" for item in found)
    epsilon = formula = None
    accountant = ""
    if granted:
        epsilon, formula, accountant = _account(config, mechanism, measures)
    return Certificate(
        granted=granted,
        epsilon=epsilon if granted else None,
        delta=config.delta if granted else None,
        mechanism=mechanism.kind,
        reference=_reference(config),
        accountant=accountant if granted else "",
        formula=formula if granted else None,
        assumptions=found,
    )


def _account(config: CertifyConfig, mechanism: Mechanism, measures: NoisyMeasures) -> tuple[float, float, str]:
    if mechanism.kind == "projected":
        epsilon = mechanism.projected_epsilon(config.delta, measures.steps)
        return epsilon, epsilon, "formula of Koloskova et al. 2025 (no library has it)"
    figure = account(mechanism.mu(measures.steps), config.delta)
    return figure.epsilon, figure.formula, figure.made_by


def _reference(config: CertifyConfig) -> str:
    start = {"initial": "the random initial weights", "zero": "zero", "base": "the declared base"}[config.anchor]
    return (
        f"the same noisy steps and the same retention, begun at any weights within {config.radius:g} of {start}, such as weights "
        "that never saw a forgotten image; not the distribution of ordinary retraining"
    )


def _made(name: str, faults: Sequence[str], measured: str) -> Assumption:
    text = f"{ASSUMPTIONS[name]}: {'; '.join(faults) if faults else measured}"
    return Assumption(name=name, state="failed" if faults else "checked", text=text)


def _state(config: CertifyConfig, measures: NoisyMeasures) -> Assumption:
    faults = []
    if measures.buffers:
        faults.append(f"buffers hold what training left: {_listed(measures.buffers)}")
    if measures.outside:
        faults.append(f"weights outside the vector that are not the base's: {_listed(measures.outside)}")
    if config.base and not config.declared.get("base"):
        faults.append("nobody declared that the base is free of forget images (method.certify.declared.base)")
    base = f", all others those of a base that {config.declared.get('base', '')} declared free of them" if config.base else ""
    return _made("A1", faults, f"{measures.dimension} weights in it{base}; buffers as built")


def _start(mechanism: Mechanism, measures: NoisyMeasures) -> Assumption:
    good = measures.start_norm <= mechanism.radius
    return _made(
        "A2", [] if good else [f"norm {measures.start_norm:.6g} above {mechanism.radius:g}"], f"{measures.start_norm:.6g}"
    )


def _steps(mechanism: Mechanism, measures: NoisyMeasures) -> Assumption:
    faults = []
    if not measures.step_norm <= mechanism.step_norm:
        faults.append(f"length {measures.step_norm:.6g} above {mechanism.step_norm:g}")
    if mechanism.ball is not None and not (measures.ball_norm is not None and measures.ball_norm <= mechanism.ball):
        faults.append(f"distance {measures.ball_norm} after a projection, above {mechanism.ball:g}")
    return _made("A3", faults, f"at most {measures.step_norm:.6g} in {measures.steps} steps")


def _noise(config: CertifyConfig, mechanism: Mechanism, measures: NoisyMeasures) -> Assumption:
    low, high = noise_bounds(measures.dimension)
    faults = []
    if measures.steps != measures.planned or measures.planned != mechanism.steps:
        faults.append(f"{measures.steps} noisy steps of {mechanism.steps}")
    if not (mechanism.noise > 0 and low <= measures.noise_low <= measures.noise_high <= high):
        faults.append(
            f"mean squares {measures.noise_low:.6g} to {measures.noise_high:.6g} of the variance, outside {low:.6g} to {high:.6g}"
        )
    if not faults and not _promised(config, mechanism, measures.steps) <= MOST:
        faults.append(f"so little of it that epsilon would be above {MOST:g}, which promises nothing")
    return _made("A4", faults, f"mean squares {measures.noise_low:.6g} to {measures.noise_high:.6g} of the variance")


def _promised(config: CertifyConfig, mechanism: Mechanism, steps: int) -> float:
    if mechanism.kind == "projected":
        return mechanism.projected_epsilon(config.delta, steps)
    return epsilon_of(mechanism.mu(steps), config.delta) * (1 - AGREEMENT)


def _key(measures: NoisyMeasures) -> Assumption:
    faults = [f"it stands in {_listed(measures.held_in)}"] if measures.held_in else []
    if not measures.destroyed:
        faults.append("it was not overwritten")
    return _made("A5", faults, "made by the system, found in no file of the run, overwritten")


def _reading(config: CertifyConfig, measures: NoisyMeasures, manifest: Manifest, retention_reads: Sequence[str]) -> Assumption:
    faults = []
    if set(measures.reads) - {"retain"}:
        faults.append(f"the noisy phase read {_listed(measures.reads)}")
    if set(retention_reads) - {"retain"}:
        faults.append(f"retention read {_listed(retention_reads)}")
    if manifest.exact_copies:
        faults.append(f"{manifest.exact_copies} retained images are copies of forgotten ones")
    if manifest.near_copies:
        faults.append(f"{manifest.near_copies} retained images look like forgotten ones")
    who = config.declared.get("A6", "")
    if manifest.near_copies is None and not who:
        faults.append("near copies were not looked for (shards.near_bits), nor declared absent (method.certify.declared.A6)")
    looked = f"near ones not looked for, declared absent by {who}" if manifest.near_copies is None else "no near one"
    found = _made("A6", faults, f"both phases read retained images only; no exact copy among them, {looked}")
    absent = manifest.near_copies is None and found.state == "checked"
    return dataclasses.replace(found, state="declared") if absent else found


def _leaving(measures: NoisyMeasures) -> Assumption:
    faults = [f"left beside them: {_listed(measures.left)}"] if measures.left else []
    return _made("A7", faults, "intermediate weights are removed, and losses of the phase were not logged")


def _fixed(measures: NoisyMeasures) -> Assumption:
    faults = []
    if measures.other_settings:
        faults.append(f"run {measures.other_settings} served the same batch with others before")
    return _made("A8", faults, "no other settings were used for this batch below this output folder")


def _declared(name: str, config: CertifyConfig) -> Assumption:
    who = config.declared.get(name, "")  # type: ignore[call-overload]
    text = ASSUMPTIONS[name]
    if not who:
        return Assumption(name=name, state="failed", text=f"{text}: nobody declared it (method.certify.declared.{name})")
    return Assumption(name=name, state="declared", text=f"{text}: declared by {who}")


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
