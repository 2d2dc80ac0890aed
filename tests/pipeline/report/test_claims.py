from pipeline.report.claims import claims


def facts(mode, value):
    none = {"value": None, "note": "not computed: no retrained model", "low": None, "high": None}
    own = {"value": value, "low": value, "high": value, "note": "indistinguishable at n=9"}
    return {
        "distance": [{"split": "forget", "group": "g", "n": 9, "detectable": 0.5, "original": own, "unlearned": own}],
        "membership": [{"group": "g", "original": own, "unlearned": own, "power": False}],
        "utility": {"unlearned": none},
        "levels": [],
        "done": {"retention": {"mode": mode, "excludes": "a guard reads forget images"}, "phases": [{"phase": "retain"}]},
    }


def test_words_never_promise_a_certificate():
    made = claims(facts("guarded", 0.4))
    assert made["words"] == "measured; no certificate"
    assert any("guard" in reason for reason in made["reasons"])
    assert not any("guard" in reason for reason in claims(facts("plain", 0.4))["reasons"])


def test_a_method_that_moves_nothing_is_not_said_to_have_moved_something():
    done = {**facts("none", 0.4), "done": {"retention": {"mode": "none", "excludes": ""}, "phases": [{"phase": "retrain"}]}}
    (reason,) = claims(done)["reasons"]
    assert "the released model is the original" in reason


def test_a_test_that_is_blind_is_called_blind():
    made = claims(facts("plain", 0.4))
    assert any("passing it shows nothing" in line for line in made["limits"])
    assert any("little to forget" in line for line in made["limits"])
    assert any("main test of forgetting is missing" in line for line in made["limits"])
    assert len(made["may_say"]) == 2


CERTIFICATE = {
    "granted": True,
    "epsilon": 8.0,
    "delta": 1e-5,
    "reference": "the same steps",
    "assumptions": [{"name": "A10", "state": "failed", "text": "nobody declared it"}],
}
ROW = {"split": "unseen_retain", "group": "", "original": {"error": 0.04}, "unlearned": {"error": 0.36}}


def test_a_certificate_says_what_its_epsilon_allows_and_what_it_cost():
    made = claims({**facts("plain", 0.4), "certificate": CERTIFICATE, "table": [ROW]})
    assert made["tier"] == "C" and made["words"].startswith("certified at (ε = 8, δ = 1e-05)") and not made["reasons"]
    assert any("2.98e+03 times as likely" in line for line in made["limits"])
    assert any("9.000×" in line for line in made["limits"])
    weak = claims({**facts("plain", 0.4), "certificate": {**CERTIFICATE, "epsilon": 1000.0}, "table": []})
    assert any("10^434 times" in line and "next to nothing" in line for line in weak["limits"])


def test_a_certificate_that_is_withheld_names_the_assumption_and_no_epsilon():
    made = claims({**facts("plain", 0.4), "certificate": {**CERTIFICATE, "granted": False}, "table": [ROW]})
    assert made["tier"] == "" and made["words"] == "measured; no certificate"
    assert made["reasons"] == ["A certificate was asked for and is withheld. A10, nobody declared it."]
    assert not any("ε =" in line for line in (*made["limits"], *made["reasons"]))


EXACT = {
    "granted": True,
    "words": "trained without these samples",
    "conditions": [
        {"name": "E1", "state": "checked", "text": "every stage"},
        {"name": "E4", "state": "failed", "text": "model.folder may hold some"},
    ],
}


def test_exactness_comes_before_a_certificate_and_without_it_its_failed_conditions_are_reasons():
    made = claims({**facts("plain", 0.4), "exactness": EXACT, "certificate": CERTIFICATE, "table": []})
    assert (made["tier"], made["words"], made["reasons"]) == ("E", "trained without these samples", [])
    made = claims({**facts("plain", 0.4), "exactness": {**EXACT, "granted": False, "words": ""}})
    assert made["tier"] == "" and made["words"] == "measured; no certificate"
    assert "E4, model.folder may hold some." in made["reasons"][0] and not any("E1" in reason for reason in made["reasons"])
