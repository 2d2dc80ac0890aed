"""Findings of three attacks on data that was planted before training: canaries, secret noise, and a trigger with its pattern.

All follow the sign of `Finding`: below 0 what was planted is still there, above it the model avoids it. That a model is not told
apart says nothing where the original isn't found either: `with_power` sees to that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.evaluation.base import Floats, Interval, exact_rate
from pipeline.evaluation.epsilon_bound import one_run_epsilon, power
from pipeline.evaluation.extraction import completions
from pipeline.evaluation.poison_score import poison_score
from pipeline.evaluation.rates import difference_of_rates
from pipeline.evaluation.relearn import Views
from pipeline.evaluation.summary import REFERENCE
from pipeline.findings import Finding, Found, Says, Series
from pipeline.models.base import ImageModel

__all__ = ["backdoor_scores", "canary_scores", "poison_scores", "with_power"]

Bools = NDArray[np.bool_]

NULL = 400
"""Draws of a statistic without a trace, for its picture."""
MOST_CANARIES = 2000
"""Where more would be needed it isn't the number that is wrong."""


def canary_scores(heads: Floats, tails: Floats, *, group: str, subject: str, delta: float, confidence: float = 0.95) -> Found:
    """Guess from its loss whether each canary was trained on (Steinke, Nasr & Jagielski, Privacy Auditing with One (1) Training
    Run, 2023).

    Half of the m canaries are guessed, as fixed beforehand: the r/2 lowest losses "in" and the r/2 highest "out". The other way
    round is a second test, so each has half the error. Equal losses count as wrong guesses both ways.

    Each canary's coin must have been fair and its own; heads that are exactly half of all canaries only weaken the bound. The
    bound is for the game between two runs: see `epsilon_bound` for claims of closeness to a common reference.

    Args:
        heads: losses of canaries that were trained on (and, in the unlearned model, forgotten), float64 [h].
        tails: losses of canaries that were not, float64 [t].
        group, subject: of the finding.
        delta: of the claim that is attacked, in [0, 1).
        confidence: in (0, 1), of interval and bound.

    Returns:
        The finding: value = 0.5 - share of right guesses, with its Clopper-Pearson interval, and `epsilon_low` of the better
        direction. Not computed where r right guesses would not even refute epsilon = 0.

    Raises:
        CheckpointError: a loss that is not finite.
        ConfigError: delta or confidence outside its range.
    """
    num, level = len(heads) + len(tails), 1 - (1 - confidence) / 2
    guesses = _guesses(num)
    if not (np.isfinite(heads).all() and np.isfinite(tails).all()):
        raise CheckpointError(f"canaries: a loss of the {subject} model is not finite", "train it again, in fp32")
    if not _can_refute(num, delta, level):
        needed = next((few for few in range(4 * (num // 4), MOST_CANARIES, 4) if _can_refute(few, delta, level)), None)
        why = f"it takes {needed}" if needed else f"at delta {delta:g} no number of them shows anything"
        return _not_computed("canary", group, subject, f"{num} canaries, and {why}")
    losses = np.concatenate([heads, tails])
    trained = np.arange(num) < len(heads)
    low, high = _right(losses, trained, guesses), _right(-losses, trained, guesses)
    share = Interval(
        value=(low + guesses - high) / (2 * guesses),
        low=exact_rate(low, guesses, confidence).low,
        high=exact_rate(guesses - high, guesses, confidence).high,
    )
    bounds = [
        one_run_epsilon(canaries=num, guesses=guesses, right=right, delta=delta, confidence=level)
        for right in (max(low, high), guesses)
    ]
    what = f"of {guesses} guesses about {num} canaries right, taking {'lower' if low >= high else 'higher'} losses for trained on"
    finding = _finding(
        Finding(
            attack="canary",
            group=group,
            subject=subject,
            measure=f"half less the share of right guesses of {guesses} about {num} canaries",
            says="not told apart",
            samples=num,
            epsilon_low=bounds[0],
            note=f"{max(low, high)} {what}; all right would show epsilon {bounds[1]:.2f}",
        ),
        _turned(share, 0.5),
    )
    series = Series(
        attack="canary",
        group=group,
        subject=subject,
        score="loss, turned",
        own=_numbers(-heads),
        other=_numbers(-tails),
        statistic="share of right guesses",
        null=_numbers(np.random.Generator(np.random.Philox(guesses)).binomial(guesses, 0.5, NULL) / guesses),
        observed=share.value,
    )
    return Found(findings=(finding,), series=(series,))


def poison_scores(
    model: ImageModel,
    views: Views,
    noise_BCHW: Tensor,
    *,
    tau: float,
    group: str,
    subject: str,
    confidence: float = 0.95,
    seed: int,
    batch_size: int = 32,
) -> Found:
    """Does the loss still fall along the noise that was added to the images before training? See `poison_score`.

    The gradient at the clean image is that of the target plus that of the visible pixels outside the region. Where a task shows
    something else of an image than its pixels that is not the whole derivative; it costs power only, because without a trace any
    function of clean image and model is as good.

    Args:
        model: in eval mode; left as it is.
        views: the CLEAN images, k of them.
        noise_BCHW: the noise as it was drawn, before any clipping or rounding, fp32 [k, C, H, W], in the order of `views`.
        tau: standard deviation that it was drawn with.
        group, subject: of the finding.
        confidence: in (0, 1).
        seed: of further draws of the images (models with `probe_draws`) and of permutations.
        batch_size: images at once.

    Returns:
        The finding: value = mean of I_i, between value -+ quantile / sqrt(k). Not computed where fewer than 2 images have a
        gradient.

    Raises:
        CheckpointError: a gradient that is not finite.
        ConfigError: a confidence outside its range.
    """
    gradients = np.concatenate([_gradients(model, part, seed) for part in views.batches(batch_size)])
    if not np.isfinite(gradients).all():
        raise CheckpointError(f"poison: a gradient of the {subject} model is not finite", "train it again, in fp32")
    moving = int(gradients.any(axis=1).sum())
    if moving < 2:
        return _not_computed("poison", group, subject, f"{moving} of {len(views)} images have a gradient, and it takes 2")
    noise = noise_BCHW.flatten(1).cpu().numpy()
    found = poison_score(noise, gradients, tau=tau, seed=seed, confidence=confidence, zeros="leave out")
    finding = _finding(
        Finding(
            attack="poison",
            group=group,
            subject=subject,
            measure="mean correlation of noise and gradient, standard normal for one image without a trace",
            says="not told apart",
            samples=found.pairs,
            note=f"z {found.z:+.2f} along the noise; p {found.p_exact:.2g}, with noises exchanged {found.p_permuted:.2g}",
        ),
        Interval(value=found.mean, low=found.mean - found.detectable, high=found.mean + found.detectable),
    )
    series = Series(
        attack="poison",
        group=group,
        subject=subject,
        score="fall of the loss along an image's noise (other: along another image's)",
        own=_numbers(-np.array(found.scores)),
        other=_numbers(-np.array(found.exchanged)),
        statistic="mean correlation of noise and gradient",
        null=_numbers(np.random.Generator(np.random.Philox(seed)).normal(0, 1 / math.sqrt(found.pairs), NULL)),
        observed=found.mean,
    )
    return Found(findings=(finding,), series=(series,))


def backdoor_scores(
    models: Mapping[str, ImageModel], stamped: Views, pattern_BCHW: Tensor, *, group: str, confidence: float = 0.95
) -> Found:
    """How often does the trigger still bring back the pattern that was trained with it, compared with the retrained model?

    A completion regenerates the pattern where its mean squared error in the region is smaller to the pattern than to the truth.

    Args:
        models: by subject, in eval mode.
        stamped: n images whose visible part has the trigger; targets are the clean truths.
        pattern_BCHW: fp32 in [0, 1], [n, C, H, W] or [1, C, H, W].
        group: of the findings.
        confidence: in (0, 1).

    Returns:
        A finding for each model but the retrained one: value = retrained rate - own rate, with the interval of
        `difference_of_rates`. Not computed without a retrained model, or where no count of images could differ significantly.

    Raises:
        CheckpointError: an answer that is not finite.
    """
    num, needed = len(stamped), 1 + math.ceil(-math.log2(1 - confidence))
    if REFERENCE not in models or num < needed:
        why = f"{num} images, and it takes {needed}" if num < needed else "no retrained model to compare with"
        parts = [_not_computed("backdoor", group, name, why) for name in models if name != REFERENCE]
        return Found(findings=tuple(finding for part in parts for finding in part.findings))
    scores = {name: _nearness(model, stamped, pattern_BCHW) for name, model in models.items()}
    other = scores[REFERENCE]
    findings, series = [], []
    for name, own in scores.items():
        if name == REFERENCE:
            continue
        said = [_rate_words(values > 0, confidence) for values in (own, other)]
        finding = Finding(
            attack="backdoor",
            group=group,
            subject=name,
            measure="rate of completions nearer to the pattern, less of them than by the retrained model",
            says="not told apart",
            samples=num,
            note=f"pattern regenerated: {said[0]}, retrained {said[1]}",
        )
        findings.append(_finding(finding, difference_of_rates(other > 0, own > 0, confidence)))
        discordant = int(((own > 0) != (other > 0)).sum())
        draws = np.random.Generator(np.random.Philox(num)).binomial(discordant, 0.5, NULL)
        series.append(
            Series(
                attack="backdoor",
                group=group,
                subject=name,
                score="log of the error to the truth over the error to the pattern",
                own=_numbers(own),
                other=_numbers(other),
                statistic="regeneration rate less the retrained model's",
                null=_numbers((2 * draws - discordant) / num),
                observed=float((own > 0).mean() - (other > 0).mean()),
            )
        )
    return Found(findings=tuple(findings), series=tuple(series))


def with_power(found: Mapping[str, Found] | Found) -> Found:
    """All of it as one, where "not told apart" is left only to attacks that find the original; otherwise they had no power.

    Args:
        found: of one attack or several, in one piece or by subject; the original's findings among them.
    """
    parts = tuple(found.values()) if isinstance(found, Mapping) else (found,)
    findings = [finding for part in parts for finding in part.findings]
    able = {(item.attack, item.group) for item in findings if item.subject == "original" and item.says == "still there"}

    def judged(item: Finding) -> Finding:
        blind = item.subject != "original" and item.says == "not told apart" and (item.attack, item.group) not in able
        return dataclasses.replace(item, says="no power") if blind else item

    return Found(findings=tuple(map(judged, findings)), series=tuple(series for part in parts for series in part.series))


def _guesses(num: int) -> int:
    """Half of the canaries, rounded down to an even number."""
    return 2 * (num // 4)


def _can_refute(num: int, delta: float, level: float) -> bool:
    return _guesses(num) > 0 and power(epsilon=0, canaries=num, guesses=_guesses(num), delta=delta, confidence=level) is not None


def _right(losses: Floats, trained: Bools, guesses: int) -> int:
    """Right guesses that low losses were trained on and high ones were not; equal losses are ordered so that fewest are right."""
    order, half = np.lexsort((trained, losses)), guesses // 2
    return int(trained[order[:half]].sum() + (~trained[order[-half:]]).sum())


def _gradients(model: ImageModel, part: Views, seed: int) -> Floats:
    """Of the loss, summed over the probe's draws, with respect to the image: fp64 [B, C * H * W], 0 where it has none."""
    visible, target = (image.detach().clone().requires_grad_() for image in (part.visible_BCHW, part.target_BCHW))
    with torch.enable_grad():
        draws = [part.redrawn(seed, -number) if number else part.draws_B for number in range(model.probe_draws)]
        loss = torch.stack([model(visible, target, part.region_B1HW, drawn).sum() for drawn in draws]).sum()
        # A loss of codes depends on no pixel.
        shown, asked = torch.autograd.grad(loss, (visible, target), allow_unused=True) if loss.requires_grad else (None, None)
    whole = torch.zeros_like(target) if asked is None else asked
    if shown is not None:
        whole = whole + shown.masked_fill(part.region_B1HW, 0)
    return whole.flatten(1).double().cpu().numpy()


def _nearness(model: ImageModel, stamped: Views, pattern_BCHW: Tensor) -> Floats:
    """log(error to the truth / error to the pattern) in the region, fp64 [n]: above 0 where the pattern is nearer."""
    answers, region = completions(model, stamped), stamped.region_B1HW.double()

    def errors(image_BCHW: Tensor) -> Tensor:
        return ((answers.double() - image_BCHW.double()).square() * region).flatten(1).sum(1) + 1e-12

    return (errors(stamped.target_BCHW) / errors(pattern_BCHW.to(answers.device))).log().cpu().numpy()


def _rate_words(hits: Bools, confidence: float) -> str:
    rate = exact_rate(int(hits.sum()), len(hits), confidence)
    return f"{rate.value:.3f} ({rate.low:.3f} to {rate.high:.3f})"


def _turned(interval: Interval, around: float) -> Interval:
    return Interval(value=around - interval.value, low=around - interval.high, high=around - interval.low)


def _finding(finding: Finding, found: Interval) -> Finding:
    says: Says = "still there" if found.high < 0 else "over-forgotten" if found.low > 0 else "not told apart"
    return dataclasses.replace(finding, says=says, value=found.value, low=found.low, high=found.high)


def _not_computed(attack: str, group: str, subject: str, why: str) -> Found:
    return Found(findings=(Finding(attack=attack, group=group, subject=subject, measure="", says="not computed", note=why),))


def _numbers(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
