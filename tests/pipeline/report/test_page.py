import html.parser
import json
import re

import pytest

from pipeline.report.page import Material, render
from pipeline.stages.release import run
from tests.pipeline.report.fabricated import build

HOSTILE = '<script src="https://evil.example/x.js"></script>"onload=alert(1) $x_{ </style> | `a` [b](http://c)'


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.headings, self.ids, self.open = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        if tag not in ("meta", "img", "source", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page(tmp_path, **options):
    run(build(str(tmp_path), **options))
    text = (tmp_path / "report.html").read_text()
    reader = Reader()
    reader.feed(text)
    return text, reader


@pytest.mark.parametrize("options", [{}, {"reference": False, "already_unseen": True, "guarded": False}])
def test_page_is_self_contained_and_in_order(tmp_path, options):
    text, reader = page(tmp_path, **options)
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids)
    for tag, attrs in reader.tags:
        assert tag not in ("script", "link", "iframe", "base", "form")
        for name in ("src", "srcset"):
            assert attrs.get(name, "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attrs)
        if tag == "a":
            assert attrs["href"].startswith("#") and attrs["href"][1:] in reader.ids
        if tag == "img":
            assert attrs["alt"]
    assert reader.headings[0] == 1 and reader.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(reader.headings, reader.headings[1:], strict=False))
    assert "url(" not in text and "@import" not in text


def test_hostile_names_are_text(tmp_path):
    text, reader = page(tmp_path, groups=((HOSTILE, "class"), ("b<i>", "images")))
    assert "<script" not in text and "evil.example" in text
    assert reader.open == []
    card = (tmp_path / "weights/README.md").read_text()
    assert "<script" not in card and not re.search(r"(?<!\\)\]\(", card)
    assert card.startswith("---\npipeline_tag: image-to-image\n")


def test_missing_reference_reads_not_computed(tmp_path):
    text, _ = page(tmp_path, reference=False)
    assert "not computed" in text and "there is no retrained model to compare with" in text
    assert "and the retrained model’s answer" not in text


def test_page_says_what_was_already_unseen_and_how_retention_went(tmp_path):
    text, _ = page(tmp_path, already_unseen=True)
    assert "already looked unseen to the original model" in text
    assert "excludes the certified route" in text


@pytest.mark.parametrize("parts", [(), ("retain",), ("forget",), ("calibration", "forget")])
def test_a_method_without_some_phases_reads_right(tmp_path, parts):
    text, reader = page(tmp_path, parts=parts, guarded=False)
    assert reader.open == []
    assert ("This method uses no level" in text) == ("calibration" not in parts)
    assert ("The method has no phase 2" in text) == ("retain" not in parts)
    assert ("The method moves no weight" in text) == (parts == ())
    assert ("Phase 1: forgetting" in text) == ("forget" in parts)
    assert ("0.0 %" in text) == (parts == ()), "what costs nothing says so"
    assert (tmp_path / "weights/model.safetensors").read_bytes() == b"weights" * 1000
    assert ("No phase 2." in (tmp_path / "weights/README.md").read_text()) == ("retain" not in parts)


def test_same_run_same_page(tmp_path):
    assert page(tmp_path)[0] == page(tmp_path)[0]


def test_figures_of_extractors_have_their_tables_and_say_how_they_were_made(tmp_path):
    run(build(str(tmp_path)))
    facts = json.loads((tmp_path / "report.json").read_text())
    note, place = "resize bilinear to 128x128, weights sha256 ab12cd34", {"split": "forget", "group": facts["table"][0]["group"]}
    figure = {"value": 0.125, "low": 0.1, "high": 0.15, "samples": 40, "better": "lower", "note": note}
    facts["figures"].append({"name": "kid_to_retrained_efflite0", "subject": "unlearned", **place, **figure})
    text = render(facts, Material(errors={}, grids={}, metrics={}))
    assert f"kid_to_retrained_efflite0 ({note})" in text
    assert "0.1250" in text
