import pytest

from pipeline.acts.compare import run
from pipeline.orders import ComparedRun
from tests.pipeline.report import compared
from tests.pipeline.report.test_page import HOSTILE, Reader

METHODS = {"near": compared.METHODS["near"], "broken": (0.5, 1.1, 0.1)}
GOOD = {"near": METHODS["near"]}


def page(tmp_path, *, seeds=1, **options):
    runs = tuple(
        ComparedRun(
            seed=s, folder=compared.run_folder(f"{tmp_path}/s{s}", s, num=20, methods=GOOD, **options), failed={"broken": HOSTILE}
        )
        for s in range(seeds)
    )
    run(compared.order(f"{tmp_path}/out", runs, METHODS))
    text = (tmp_path / "out/compare.html").read_text()
    reader = Reader()
    reader.feed(text)
    return text, reader


@pytest.mark.parametrize(
    "options", [{"seeds": 2, "further": ("fd_features",), "groups": ((HOSTILE, "class"),)}, {"reference": False}]
)
def test_page_is_self_contained_escaped_and_in_order(tmp_path, options):
    text, reader = page(tmp_path, **options)
    assert reader.open == [] and len(set(reader.ids)) == len(reader.ids)
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
    assert "url(" not in text and "@import" not in text and "<script" not in text and "evil.example" in text
    assert "failed at seed 0" in text and "not computed: it failed" in text
    assert ("Further figures" in text) == ("further" in options) and ("fd_features" in text) == ("further" in options)
    assert ("not computed: no retrained model" in text) == (options.get("reference") is False)
    assert ('id="tradeoff"' in text) == ("reference" not in options)
    assert ("<summary>Seed 1</summary>" in text) == ("seeds" in options)
