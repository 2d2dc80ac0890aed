"""The table of text: one row a group and model, ASCII, with what is missing and why."""

from pipeline.report.comparison_table import remarks, table


def figure(*values, note=""):
    seeds = [{"seed": n, "value": v, "low": v and v - 0.01, "high": v and v + 0.01, "note": note} for n, v in enumerate(values)]
    found = [value for value in values if value is not None]
    ends = {"low": min(found, default=None), "high": max(found, default=None)}
    return {"mean": sum(found) / len(found) if found else None, **ends, "seeds": seeds, "note": note}


def row(subject, *values, note="", **more):
    own = figure(*values, note=note)
    groups = [{"ks": own, "membership": own}]
    return {"subject": subject, "groups": groups, "error_ratio": own, "cost": own, "seconds": own, **more}


def made(*values, **more):
    method = row("a", *values, number=1, **{"budget": {"within": True, "why": ""}, "tied": False, "failed": [], **more})
    return {
        "seeds": [*range(len(values))],
        "confidence": 0.95,
        "budget": {"cost": 0.2, "loss": 0.03},
        "groups": [{"name": "Trouser", "detectable": 0.05, "note": ""}],
        "methods": [method],
        "references": [row("original", 0.8), row("retrained", 0.5)],
    }


def test_one_seed_shows_its_interval_and_several_their_range():
    one, several = table(made(0.1)), table(made(0.1, 0.3))
    assert one["rows"][0][:7] == [
        "Trouser",
        "1",
        "a",
        "0.100 (0.090 - 0.110)",
        "0.050",
        "0.100 (0.090 - 0.110)",
        "0.500 (0.490 - 0.510)",
    ]
    assert several["rows"][0][3] == "0.200 (0.100 - 0.300)"
    assert one["note"] == "seeds 0; 95 % intervals in parentheses; budget: at most 20 % of retraining, 3 % loss"
    assert "mean over seeds (lowest - highest)" in several["note"]
    assert [len(line) for line in one["rows"]] == [len(one["columns"])] * 3
    assert all(cell.isascii() for line in one["rows"] for cell in line)


def test_what_is_missing_says_why():
    found = table(
        made(None, note="not computed: it failed", failed=[{"seed": 0, "why": "NaN"}], budget={"within": None, "why": "x"})
    )
    assert found["rows"][0][3] == "not computed: it failed" and found["rows"][0][-2] == "not known: x"
    assert found["rows"][0][-1] == "failed at seed 0: NaN"
    assert remarks({"tied": True}) == ["within the interval of the first"]
