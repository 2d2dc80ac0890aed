import yaml

from pipeline.stages.release import run
from tests.pipeline.report.fabricated import build


def test_card_has_front_matter_table_and_claims(tmp_path):
    run(build(str(tmp_path)))
    text = (tmp_path / "weights" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "image-to-image"
    assert "**measured; no certificate.**" in body
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert len(rows) == 7 and all(line.count("|") == 6 for line in rows)
