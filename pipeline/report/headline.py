"""The sentence, the three key figures and the plain lines that sum up a run. They follow the figures, good or bad."""

from __future__ import annotations

from typing import Any

from pipeline.report.numbers import NOT_COMPUTED, between, count, decimals, ratio, share

__all__ = ["deck", "headline", "worst_distance"]


def worst_distance(facts: dict[str, Any]) -> dict[str, Any] | None:
    """The forget group that ended farthest from the retrained model, measured in what chance reaches at its number of
    images, or None where no distance was computed."""
    return max(_compared(facts), key=lambda row: row["unlearned"]["value"] / row["detectable"], default=None)


def _compared(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in facts["distance"] if row["split"] == "forget" and row["unlearned"]["value"] is not None]


def headline(facts: dict[str, Any]) -> dict[str, Any]:
    """`summary` (one sentence), `deck` (what was asked), `key_figures` (three) and `headline` (lines for a terminal)."""
    figures = [_distance(facts), _utility(facts), _cost(facts)]
    lines = [f"{figure['label']}: {figure['value']} ({figure['detail']})" for figure in figures]
    return {
        "summary": _summary(facts),
        "deck": deck(facts),
        "key_figures": figures,
        "headline": [*lines, f"verdict: {facts['verdict']['words']}", f"what may be claimed: {facts['claims']['words']}"],
    }


def _summary(facts: dict[str, Any]) -> str:
    row = worst_distance(facts)
    if row is None:
        return "Without a retrained model, how far the forgetting reached is not known."
    after, before = row["unlearned"]["value"], row["original"]["value"]
    if all(other["original"]["value"] <= other["detectable"] for other in _compared(facts)):
        return "The images to forget already looked unseen to the original model."
    if after <= row["detectable"]:
        return "On forgotten images, the model’s errors cannot be told from those of a model retrained without them."
    if after <= before / 2:
        return "On forgotten images, the model now errs nearly as a model retrained without them does."
    return "On forgotten images, the model still errs differently from a model retrained without them."


def deck(facts: dict[str, Any]) -> str:
    """What was asked, in one line."""
    asked = facts["asked"]
    classes = [group for group in asked["groups"] if group["kind"] == "class"]
    singles = sum(group["samples"] for group in asked["groups"] if group["kind"] == "images")
    parts = []
    if classes:
        noun = "1 whole class" if len(classes) == 1 else f"{len(classes)} whole classes"
        parts.append(f"{noun} ({count(sum(group['samples'] for group in classes))} images)")
    if singles:
        parts.append(f"{count(singles)} single image{'s' if singles > 1 else ''}")
    trained_on = asked["splits"].get("original")
    of_all = f", of {count(trained_on)} that the model was trained on" if trained_on else ""
    return f"To forget: {' and '.join(parts)}{of_all}."


def _distance(facts: dict[str, Any]) -> dict[str, str]:
    label, row = "distance to a retrained model on forgotten images", worst_distance(facts)
    if row is None:
        return {"label": label, "value": NOT_COMPUTED, "detail": "no retrained model"}
    which = f"farthest group: {row['group']}; " if len(_compared(facts)) > 1 else ""
    detail = f"{which}was {decimals(row['original']['value'], 2)}; chance reaches {decimals(row['detectable'], 2)}"
    return {"label": label, "value": decimals(row["unlearned"]["value"], 2), "detail": detail}


def _utility(facts: dict[str, Any]) -> dict[str, str]:
    label, figure = "error on all else, beside the retrained model’s", facts["utility"]["unlearned"]
    if figure["value"] is None:
        return {"label": label, "value": NOT_COMPUTED, "detail": figure["note"].removeprefix("not computed: ")}
    return {"label": label, "value": ratio(figure["value"]), "detail": f"{between(figure)}, on unseen images of kept kinds"}


def _cost(facts: dict[str, Any]) -> dict[str, str]:
    label, cost = "cost, beside retraining", facts["cost"]
    if cost["share"] is None:
        return {"label": label, "value": NOT_COMPUTED, "detail": f"{count(cost['sample_gradients'])} sample gradients"}
    spent, whole = count(cost["sample_gradients"]), count(cost["retrain_sample_gradients"])
    return {"label": label, "value": share(cost["share"]), "detail": f"{spent} of {whole} sample gradients"}
