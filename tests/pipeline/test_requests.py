"""Request files in three formats, one batch, one digest; each refusal names file and entry."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.records import DeletionRequest, RequestBatch, Selector
from pipeline.requests import batch_digest, parse, read_requests

YAML = "- {request_id: r1, label: Trouser, subject: p1}\n- {request_id: r2, keys: [a, b]}\n- {request_id: r3, prefix: person/}\n"
CSV = "request_id,kind,value,subject\nr1,label,Trouser,p1\nr2,key,a,\nr2,key,b,\nr3,prefix,person/,\n"
LINES = (
    '{"request_id": "r1", "label": "Trouser", "subject": "p1"}\n\n{"request_id": "r2", "keys": ["a", "b"]}\n'
    '{"request_id": "r3", "prefix": "person/"}\n'
)


def test_three_formats_give_the_same_batch(tmp_path: Path) -> None:
    batches = []
    for name, text in (("r.yaml", YAML), ("r.csv", CSV), ("r.jsonl", LINES), ("m.yml", "requests:\n" + YAML)):
        (tmp_path / name).write_text(text)
        batches.append(read_requests(str(tmp_path / name)))
    assert all(batch == batches[0] for batch in batches)
    assert batches[0].requests[1].selector == Selector(kind="keys", values=("a", "b"))
    assert batches[0].requests[0].subject == "p1"
    assert {request.copies for request in batches[0].requests} == {"stop"}


MARK = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def test_digests_and_what_happens_to_copies_are_read_in_three_formats(tmp_path: Path) -> None:
    texts = {
        "r.yaml": f"- {{request_id: r1, digest: {MARK}, copies: include}}\n"
        f"- {{request_id: r2, digests: [{MARK}, ab], copies: ignore}}\n",
        "r.csv": f"request_id,kind,value,copies\nr1,digest,{MARK},include\nr2,digest,{MARK},ignore\nr2,digest,ab,ignore\n",
        "r.jsonl": f'{{"request_id": "r1", "digest": "{MARK}", "copies": "include"}}\n'
        f'{{"request_id": "r2", "digests": ["{MARK}", "ab"], "copies": "ignore"}}\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        first, second = read_requests(str(tmp_path / name)).requests
        assert (first.selector, first.copies) == (Selector(kind="digest", values=(MARK,)), "include"), name
        assert (second.selector, second.copies) == (Selector(kind="digest", values=(MARK, "ab")), "ignore"), name


def test_a_digest_of_digits_alone_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"- {{request_id: r1, digest: {'1' * 64}}}\n- {{request_id: r2, keys: [17, a]}}\n")
    first, second = read_requests(str(tmp_path / "r.yaml")).requests
    assert first.selector.values == ("1" * 64,) and second.selector.values == ("17", "a")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("r.yaml", "", "no request"),
        ("r.yaml", "[]", "no request"),
        ("r.yaml", "- {request_id: r1}", "entry 1: names 0 of label, keys, prefix"),
        ("r.yaml", "- {label: x, keys: [y]}", "entry 1: names 2"),
        ("r.yaml", "- {digest: x, prefix: y}", "entry 1: names 2"),
        ("r.yaml", "- {digests: []}", "entry 1: digests: empty"),
        ("r.yaml", "- {label: x, copies: maybe}", "entry 1: copies: .*'stop', 'include' or 'ignore'"),
        ("r.csv", "kind,value,copies\nlabel,x,all\n", "entry 1: copies: .*'stop', 'include' or 'ignore'"),
        ("r.yaml", "- {keys: []}", "entry 1: keys: empty"),
        ("r.yaml", "- {label: x, lable: y}", "entry 1: lable: unknown field"),
        ("r.yaml", "- just text", "entry 1: not a mapping"),
        ("r.yaml", "a: [1", "not readable as yaml"),
        ("r.jsonl", "{", "not readable as jsonl"),
        ("r.jsonl", '{"key": "a"}\n\n{"key": }\n', "not readable as jsonl: line 3, column 9"),
        ("r.csv", "id,what\n1,2\n", "no column kind, value"),
        ("r.csv", "kind,value\nlabel,\n", "row 1"),
        ("r.csv", "kind,value\ncolour,red\n", "row 1: kind 'colour'"),
        ("r.txt", "x", "unknown kind"),
        ("r.yaml", "- {request_id: r1, key: a, key: b}", "line 1, column 28: 'key' stands twice"),
        ("r.yaml", "- {request_id: r1, key: }", "entry 1: key: empty"),
        ("r.yaml", "- {request_id: r1, keys: [a, ~]}", "entry 1: keys: empty"),
        ("r.jsonl", '{"request_id": "r1", "key": "a", "key": "b"}', "line 1: a field of request_id, key stands twice"),
        ("r.csv", "kind,value\nkey,a\nkey,b,c.jpg\n", "row 2: more cells than columns"),
        ("r.csv", "kind,value,value\nkey,a,b\n", "two columns of one name"),
        (
            "r.csv",
            "request_id,kind,value,copies\nr1,key,a,stop\nr1,key,b,ignore\n",
            "row 2: another copies than an earlier row of r1",
        ),
    ],
)
def test_faults_are_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_requests(str(tmp_path / name))
    assert name in str(caught.value)


@pytest.mark.parametrize("key", ["0017", "no", "1e4", "1:30", "1.10", "2026-11-24", "0x1F", "1_000", "12345678901234567890123"])
def test_a_key_is_the_text_that_stands_there(tmp_path: Path, key: str) -> None:
    texts = {
        "r.yaml": f"- {{request_id: r1, key: {key}, subject: {key}}}\n- {{request_id: r2, keys: [{key}, a]}}\n",
        "r.csv": f"request_id,kind,value,subject\nr1,key,{key},{key}\nr2,key,{key},\nr2,key,a,\n",
    }
    if key in ("1.10", "12345678901234567890123"):
        texts["r.jsonl"] = (
            f'{{"request_id": "r1", "key": {key}, "subject": {key}}}\n{{"request_id": "r2", "keys": [{key}, "a"]}}\n'
        )
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        first, second = read_requests(str(tmp_path / name)).requests
        assert (first.selector.values, first.subject, second.selector.values) == ((key,), key, (key, "a")), name


def test_a_field_without_a_value_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("- {request_id: r1, key: a, subject: , note: ~, copies: null}\n")
    assert read_requests(str(tmp_path / "r.yaml")) == parse([{"request_id": "r1", "key": "a"}], where="run")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_of_json_ends_where_json_lines_end(tmp_path: Path, end: str) -> None:
    odd = "a\u2028b\x85c"
    (tmp_path / "r.jsonl").write_bytes(
        f'{{"request_id": "r1", "key": "{odd}"}}{end}{{"request_id": "r2", "key": "d"}}{end}'.encode()
    )
    assert [request.selector.values for request in read_requests(str(tmp_path / "r.jsonl")).requests] == [(odd,), ("d",)]


def test_a_spreadsheets_byte_order_mark_and_spaces_in_its_header_hide_no_column(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes("\ufeffrequest_id, kind, value, note\nr7,key,a,\nr7,key,b,later\n".encode())
    (request,) = read_requests(str(tmp_path / "r.csv")).requests
    assert (request.request_id, request.selector.values, request.note) == ("r7", ("a", "b"), "later")


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    for name, text in (("r.csv", "kind,value\nlabel,café\n"), ("r.yaml", "- label: café\n"), ("r.jsonl", '{"label": "café"}')):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=f"{name}: not readable as .*utf-8"):
            read_requests(str(tmp_path / name))


names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=4)
requests = st.builds(
    DeletionRequest,
    request_id=names,
    selector=st.builds(Selector, kind=st.just("keys"), values=st.lists(names, min_size=1, max_size=4).map(tuple)),
)


@given(st.lists(requests, min_size=1, max_size=5), st.randoms())
def test_the_digest_is_of_what_is_forgotten_not_of_its_order(items: list[DeletionRequest], random: object) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert batch_digest(RequestBatch(requests=tuple(items))) == batch_digest(RequestBatch(requests=tuple(shuffled)))
    more = (*items, DeletionRequest(request_id="new!", selector=Selector(kind="label", values=("x",))))
    assert batch_digest(RequestBatch(requests=tuple(items))) != batch_digest(RequestBatch(requests=more))


def test_the_digest_follows_what_happens_to_copies_and_the_kind_of_selector() -> None:
    batches = [
        RequestBatch(requests=(DeletionRequest(request_id="r1", selector=Selector(kind=kind, values=("ab",)), copies=copies),))
        for kind in ("keys", "label", "prefix", "digest")
        for copies in ("stop", "include", "ignore")
    ]
    assert len({batch_digest(batch) for batch in batches}) == len(batches)


def test_requests_must_be_a_list() -> None:
    with pytest.raises(ConfigError, match="must be a list"):
        parse("label: x", where="run")
