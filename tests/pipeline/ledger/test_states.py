"""The tables of moves are whole, and every other move is refused."""

from __future__ import annotations

import itertools

import pytest

from pipeline.ledger.states import BATCH_MOVES, FINAL, REQUEST_MOVES, ForbiddenMove, refuse_move, sources

TABLES = {"request": REQUEST_MOVES, "batch": BATCH_MOVES}


@pytest.mark.parametrize("what", TABLES)
def test_each_pair_is_allowed_by_the_table_or_refused(what: str) -> None:
    moves = TABLES[what]
    for before, after in itertools.product(moves, repeat=2):
        if after in moves[before]:
            refuse_move(what, "x", before, after)
        else:
            with pytest.raises(ForbiddenMove, match=f"{what} x: is {before} and cannot become {after}"):
                refuse_move(what, "x", before, after)


@pytest.mark.parametrize("what", TABLES)
def test_every_state_is_known_and_can_be_reached(what: str) -> None:
    moves = TABLES[what]
    assert set().union(*moves.values()) <= set(moves)
    start = {"request": "received", "batch": "closed"}[what]
    reached, frontier = {start}, [start]
    while frontier:
        for after in moves[frontier.pop()] - reached:
            reached.add(after)
            frontier.append(after)
    assert reached == set(moves)


def test_sources_turn_the_table_round() -> None:
    for after in REQUEST_MOVES:
        assert set(sources(REQUEST_MOVES, after)) == {before for before, afters in REQUEST_MOVES.items() if after in afters}


def test_only_a_roll_back_opens_a_final_request() -> None:
    assert {state: REQUEST_MOVES[state] for state in FINAL} == {
        "released": frozenset({"queued"}),
        "withdrawn": frozenset(),
        "refused": frozenset(),
    }
