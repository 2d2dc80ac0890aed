import pytest

from pipeline.report.headline import headline, worst_distance


def facts(rows, ratio=1.01):
    distance = [
        {
            "split": "forget",
            "group": f"g{n}",
            "n": 100,
            "detectable": limit,
            "original": {"value": before},
            "unlearned": {"value": after},
        }
        for n, (before, after, limit) in enumerate(rows)
    ]
    utility = {"unlearned": {"value": ratio, "low": ratio, "high": ratio, "note": ""}}
    cost = {"share": 0.05, "sample_gradients": 5, "retrain_sample_gradients": 100}
    groups = [{"kind": "class", "samples": 10}, {"kind": "images", "samples": 1}]
    asked = {"groups": groups, "splits": {"original": 100}}
    return {
        "distance": distance,
        "utility": utility,
        "cost": cost,
        "asked": asked,
        "claims": {"words": "measured; no certificate"},
        "verdict": {"words": "passed: 2 rules kept"},
    }


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(0.8, 0.03, 0.05)], "cannot be told"),
        ([(0.8, 0.1, 0.05)], "nearly as"),
        ([(0.8, 0.7, 0.05)], "still errs differently"),
        ([(0.04, 0.03, 0.05)], "already looked unseen"),
        ([(0.8, 0.03, 0.05), (0.3, 0.29, 0.05)], "still errs differently"),
        ([], "not known"),
    ],
)
def test_the_sentence_follows_the_figures(rows, words):
    assert words in headline(facts(rows))["summary"]


def test_the_farthest_group_is_measured_in_what_chance_reaches():
    found = worst_distance(facts([(0.8, 0.10, 0.04), (0.2, 0.12, 0.14)]))
    assert found is not None and found["group"] == "g0"


def test_lines_and_deck():
    made = headline(facts([(0.8, 0.1, 0.05)]))
    assert made["deck"] == "To forget: 1 whole class (10 images) and 1 single image, of 100 that the model was trained on."
    assert made["key_figures"][2]["value"] == "5.0 %"
    assert len(made["headline"]) == 5 and made["headline"][3] == "verdict: passed: 2 rules kept"
