"""Facts of a comparison: figures over seeds, the budget, the order and its ties, what is missing and why."""

import pytest

from pipeline.acts.compare import _read
from pipeline.decode import canonical
from pipeline.orders import Budget, ComparedRun
from pipeline.report.comparison import Seed, build
from tests.pipeline.report import compared

WHY = "evaluate: near model: answers with NaN"


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    made = {seed: compared.run_folder(f"{place}/s{seed}", seed, further=("kid_region",)) for seed in (0, 1)}
    lone = compared.run_folder(f"{place}/lone", 0, reference=False)
    less = compared.run_folder(f"{place}/less", 1, methods={"far": compared.METHODS["far"]})
    folders = {**{str(seed): folder for seed, folder in made.items()}, "lone": lone, "less": less}
    return {key: _read(ComparedRun(seed=0 if key in ("0", "lone") else 1, folder=f, failed={}))[0] for key, f in folders.items()}


def facts(*seeds, methods=compared.METHODS, **budget):
    return build("demo", compared.sections(methods), seeds, Budget(**budget))


def rows(made):
    return {row["subject"]: row for row in (*made["methods"], *made["references"])}


def test_figures_over_seeds_and_what_they_are_made_of(read):
    made = facts(read["0"], read["1"])
    near = rows(made)["near"]
    ks = near["groups"][0]["ks"]
    values = [item["value"] for item in ks["seeds"]]
    assert ks["mean"] == pytest.approx(sum(values) / 2) and (ks["low"], ks["high"]) == (min(values), max(values))
    assert all(item["low"] <= item["value"] <= item["high"] for item in ks["seeds"])
    found = read["0"].evaluations.subject("near").find("ks", "forget", "Trouser")
    assert ks["seeds"][0] == {"seed": 0, "value": found.value, "low": found.low, "high": found.high, "note": ""}
    assert near["score"]["mean"] == pytest.approx(sum(group["ks"]["mean"] for group in near["groups"]) / 2)
    assert near["cost"]["mean"] == pytest.approx(0.17) and near["sample_gradients"]["mean"] == 17_000
    assert near["seconds"]["mean"] == pytest.approx(17_000 / 900)
    assert near["phases"] == ["forget", "retain"] and made["groups"][0]["detectable"] > 0


def test_in_budget_first_then_by_distance_and_ties_are_marked(read):
    made = facts(read["0"], read["1"])
    assert [row["subject"] for row in made["methods"]] == ["near", "far", "dear"]
    assert [row["number"] for row in made["methods"]] == [1, 2, 3]
    assert [row["budget"]["within"] for row in made["methods"]] == [True, True, False]
    assert made["methods"][2]["budget"]["why"] == "costs 60 % of retraining"
    assert [row["tied"] for row in made["methods"]] == [False, False, True]
    assert made["summary"] == "Of 3 methods 2 keep to the budget; near comes nearest to the retrained model."
    wide = facts(read["0"], read["1"], cost=1.0)
    assert [row["subject"] for row in wide["methods"]] == ["dear", "near", "far"]
    tight = facts(read["0"], cost=0.0, loss=-0.5)
    assert tight["summary"] == "No method keeps to the budget."
    assert "loses" in rows(tight)["near"]["budget"]["why"]


def test_the_references_are_rows_of_their_own(read):
    original, retrained = facts(read["0"])["references"]
    assert original["cost"]["mean"] == 0 and original["groups"][0]["ks"]["mean"] > 0.5
    assert (retrained["score"]["mean"], retrained["error_ratio"]["mean"], retrained["cost"]["mean"]) == (0, 1, 1)


def test_a_failed_method_says_why_and_is_not_in_budget(read):
    failed = dict.fromkeys(("near", "dear"), WHY)
    less = read["less"]
    seed = Seed(**{**{name: getattr(less, name) for name in less.__dataclass_fields__}, "failed": failed})
    made = facts(read["0"], seed)
    near = rows(made)["near"]
    assert near["failed"] == [{"seed": 1, "why": WHY}] and near["budget"] == {"within": False, "why": "it failed"}
    assert [item["note"] for item in near["score"]["seeds"]] == ["", "not computed: it failed"]
    assert near["score"]["mean"] == near["score"]["seeds"][0]["value"]
    assert rows(facts(seed))["near"]["cost"] == {
        **near["cost"],
        "mean": None,
        "low": None,
        "high": None,
        "note": "not computed: it failed",
        "seeds": near["cost"]["seeds"][1:],
    }
    empty = Seed(seed=2, failed=dict.fromkeys(compared.METHODS, WHY))
    assert rows(facts(read["0"], empty))["original"]["score"]["seeds"][1]["value"] is None


def test_without_a_retrained_model_nothing_is_ordered_and_it_is_said(read):
    made = facts(read["lone"])
    assert made["summary"] == "How near the methods come to retraining is not known."
    near = rows(made)["near"]
    assert near["score"]["note"] == "not computed: no retrained model"
    assert near["cost"]["note"] == "not computed: this run retrained no model"
    assert near["budget"] == {"within": None, "why": "this run retrained no model"}
    assert rows(made)["retrained"]["score"]["mean"] is None
    assert [row["subject"] for row in made["methods"]] == ["dear", "far", "near"]
    assert not any(row["tied"] for row in made["methods"])


def test_further_figures_are_listed(read):
    (table,) = facts(read["0"], read["1"])["further"]
    assert table["name"] == "kid_region"
    assert [(column["group"], column["label"]) for column in table["columns"]] == [
        ("Trouser", "forgotten"),
        ("single images", "forgotten"),
        ("", "kept kinds, unseen"),
    ]
    assert [row["subject"] for row in table["rows"]] == ["near", "far", "dear", "original", "retrained"]
    assert facts(read["lone"])["further"] == []


def test_the_facts_are_plain_and_the_same_each_time(read):
    assert canonical(facts(read["0"], read["1"])) == canonical(facts(read["0"], read["1"]))
