"""Requests that mean no training image are named, by whatever kind of value; the others are not."""

from __future__ import annotations

from pathlib import Path

from pipeline.acts import sift
from pipeline.config import resolve
from pipeline.data.progress import in_lines
from pipeline.records import DeletionRequest, RequestBatch, Selector
from pipeline.schedule_orders import SiftAnswer, SiftOrder
from pipeline.stages.shard import packed_source
from tests.support.runs import write_run_file


def order(folder: Path, **requests: tuple[str, *tuple[str, ...]]) -> SiftOrder:
    batch = tuple(
        DeletionRequest(request_id=name, selector=Selector(kind=kind, values=tuple(values)))  # type: ignore[arg-type]
        for name, (kind, *values) in requests.items()
    )
    return SiftOrder(config=resolve(str(write_run_file(folder))), batch=RequestBatch(requests=batch))


def test_each_kind_of_value_is_judged(tmp_path: Path) -> None:
    asked = order(
        tmp_path,
        good=("keys", "train-000000", "train-000001"),
        half=("keys", "train-000002", "train-999999"),
        unseen=("keys", "test-000001"),
        label=("label", "shape 1"),
        number=("label", "3"),
        nolabel=("label", "shape 9"),
        prefix=("prefix", "train-00001"),
        noprefix=("prefix", "trein"),
        nodigest=("digest", "0" * 64),
        malformed=("digest", "xyz"),
        unlike=("likeness", "0f" * 8),
    )
    assert sift.run(asked) == SiftAnswer(indexed=False)
    packed_source(asked.config, in_lines(lambda line: None))
    answer = sift.run(asked)
    assert answer.indexed
    assert set(answer.unmatched) == {"half", "unseen", "nolabel", "noprefix", "nodigest", "malformed", "unlike"}


def test_where_all_mean_something_none_is_named(tmp_path: Path) -> None:
    asked = order(tmp_path, r1=("keys", "train-000000"), r2=("keys", "train-000000"))
    packed_source(asked.config, in_lines(lambda line: None))
    assert sift.run(asked) == SiftAnswer(indexed=True)
