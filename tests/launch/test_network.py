"""What ranks exchange and how long it takes, against closed forms done by hand."""

from __future__ import annotations

import pytest

from launch.network import MOST_LIVE, Exchange, Fabric, Link, exchanges, fit_line, fit_link, seconds, sent

FAST = Link(latency=1e-5, bandwidth=1e9)
NODE = Fabric(per_node=4, inside=FAST, between=Link(latency=1e-4, bandwidth=1e8))


def volume(zero: int, ranks: int, *, trained: int = 1000, precision: str = "fp32", paper: bool = False) -> float:
    return sum(sent(item, ranks) for item in exchanges(zero, precision, trained, paper=paper))


def test_by_the_paper_stage_3_sends_one_and_a_half_times_as_much() -> None:
    for ranks in (2, 8, 1024):
        assert volume(0, ranks, paper=True) == volume(1, ranks, paper=True) == volume(2, ranks, paper=True)
        assert volume(3, ranks, paper=True) == pytest.approx(1.5 * volume(2, ranks, paper=True))


def test_as_deepspeed_does_it_stages_1_and_2_send_more_and_stage_3_less_while_weights_fit() -> None:
    paper = volume(2, 8, paper=True)
    assert volume(0, 8) == paper
    assert volume(1, 8) == volume(2, 8) == pytest.approx(1.5 * paper)
    assert volume(3, 8) == pytest.approx(paper)
    many = MOST_LIVE + 1
    assert volume(3, 8, trained=many) == pytest.approx(volume(3, 8, trained=many, paper=True))


def test_low_precision_halves_what_travels() -> None:
    for zero in range(4):
        assert volume(zero, 4, precision="bf16") == volume(zero, 4) / 2
    assert volume(0, 4, precision="autocast") == volume(0, 4)
    assert volume(1, 4, precision="autocast") == pytest.approx(volume(1, 4) * 2 / 3)


def test_one_rank_has_no_network() -> None:
    assert volume(3, 1) == 0
    assert seconds(Exchange(kind="all_reduce", bytes=1e9), 1, Fabric(per_node=1, inside=None, between=None)) == 0.0


def test_a_ring_inside_a_node_is_its_closed_form() -> None:
    # 4 ranks: 2 * 3/4 * 1 MB at 1 GB/s, and 2 * 3 hops of 10 us.
    assert seconds(Exchange(kind="all_reduce", bytes=1e6), 4, NODE) == pytest.approx(1.5e-3 + 6e-5)
    assert seconds(Exchange(kind="all_gather", bytes=1e6), 4, NODE) == pytest.approx(0.75e-3 + 3e-5)


def test_between_nodes_the_slowest_link_counts() -> None:
    # 8 ranks on 2 nodes: 2 * 7/8 * 1 MB at 100 MB/s; hops: 2 * (5 inside + 2 between).
    assert seconds(Exchange(kind="all_reduce", bytes=1e6), 8, NODE) == pytest.approx(17.5e-3 + 2 * (5e-5 + 2e-4))


def test_a_tree_is_taken_where_it_is_faster() -> None:
    tree = Fabric(per_node=4, inside=FAST, between=NODE.between, tree=True)
    small = Exchange(kind="all_reduce", bytes=64)
    assert (seconds(small, 256, tree) or 0) < (seconds(small, 256, NODE) or 0)
    assert seconds(small, 256, tree) == pytest.approx(2 * (3 * 1e-5 + 6 * 1e-4), rel=0.01)


def test_a_link_that_is_not_known_makes_no_number() -> None:
    alone = Fabric(per_node=1, inside=None, between=None)
    assert seconds(Exchange(kind="all_reduce", bytes=1), 2, alone) is None


def test_a_line_and_a_link_are_found_again() -> None:
    assert fit_line([(1.0, 5.0), (2.0, 7.0), (8.0, 19.0)]) == pytest.approx((3.0, 2.0))
    truth = Link(latency=2e-4, bandwidth=5e8)
    fabric = Fabric(per_node=4, inside=truth, between=None)
    sizes = [4**power for power in range(4, 14)]
    measured = [(size, seconds(Exchange(kind="all_reduce", bytes=size), 4, fabric) or 0.0) for size in sizes]
    found = fit_link(measured, 4)
    assert found is not None
    assert (found.latency, found.bandwidth) == pytest.approx((truth.latency, truth.bandwidth))


def test_too_few_sizes_or_no_growth_make_no_link() -> None:
    assert fit_link([(size, 1.0) for size in range(1, 8)], 2) is None
    assert fit_link([(size, 1.0 / size) for size in range(1, 12)], 2) is None
    assert fit_link([], 1) is None


def test_autocast_sends_half_as_much_on_a_gpu_alone() -> None:
    for zero in range(4):
        (fp32, low, wide) = (
            sum(item.bytes for item in exchanges(zero, precision, 1000, gpu=gpu))
            for precision, gpu in (("fp32", True), ("autocast", True), ("autocast", False))
        )
        assert wide == fp32 and (low < fp32) == (zero > 0)
