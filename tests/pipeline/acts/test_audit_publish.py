"""The page gets curves of every kind of figures, the pictures that are there, and planted ones only where they count."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.acts import audit_publish
from pipeline.findings import Audit, Series

AUDIT = Audit(run_id="r", weights_sha256="0", findings=(), passed=None, words="", confidence=0.95)
FIGURES = Series(attack="relearn", group="g", subject="unlearned", score="s", own=(3.0, 1.0), other=(2.0, 0.0))


@pytest.mark.parametrize("planted", [True, False])
def test_the_page_is_made_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: bool) -> None:
    job: Any = SimpleNamespace(path=lambda *parts: "/".join([str(tmp_path), *parts]))
    groups = (SimpleNamespace(name="g"), SimpleNamespace(name="h"))
    monkeypatch.setattr(audit_publish, "read_manifest", lambda given: SimpleNamespace(groups=groups))
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit/images-1.png").write_bytes(b"kind of h")
    (tmp_path / "audit/planted.png").write_bytes(b"canaries")
    given: list[Any] = []
    monkeypatch.setattr(audit_publish.audit_page, "render", lambda *parts: given.extend(parts) or "the page")
    alone = Series(attack="a", group="g", subject="unlearned", score="s", own=(1.0,), other=())
    audit_publish.publish_page(job, AUDIT, [FIGURES, alone], planted=planted)
    audit, (drawn, without), images, shown = given
    assert audit == AUDIT and images == {"h": b"kind of h"} and shown == (b"canaries" if planted else None)
    # Highest first: 3 of a member, 2 of none, 1 of a member, 0 of none.
    assert [part.tolist() for part in drawn.rates] == [[0.5, 1.0], [1.0, 1.0]]
    assert without.rates is None and without.series == alone
    assert (tmp_path / "audit.html").read_text() == "the page"
