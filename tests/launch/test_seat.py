"""Where a node sits: its number, address and interface, from what was given, from Slurm, or from the machine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from launch import seat
from launch.seat import find_seat, interface_of, port_for
from pipeline.errors import ConfigError


def scontrol(folder: Path, text: str) -> str:
    """A folder with a program of that name that prints `text`."""
    tool = folder / "scontrol"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    tool.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_given_numbers_and_addresses_count() -> None:
    found = find_seat(nodes=3, rank=2, address="127.0.0.1", env={})
    assert (found.rank, found.nodes, found.address, found.interface, found.attempt) == (2, 3, "127.0.0.1", "lo", "")


def test_slurm_says_number_address_and_attempt(tmp_path: Path) -> None:
    env = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "2", "SLURM_NODEID": "1", "SLURMD_NODENAME": "node2"}
    env["PATH"] = scontrol(tmp_path, "NodeName=node2 Arch=x86_64 NodeAddr=127.0.0.1 NodeHostName=box Port=17002")
    found = find_seat(nodes=2, env=env)
    assert (found.rank, found.address, found.interface, found.attempt) == (1, "127.0.0.1", "lo", "17-2")


def test_one_node_needs_no_address() -> None:
    assert find_seat(nodes=1, env={}).address == "127.0.0.1"


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_number_that_no_node_has_is_refused(rank: int) -> None:
    with pytest.raises(ConfigError, match=f"node rank {rank}: not one of 2 nodes"):
        find_seat(nodes=2, rank=rank, address="127.0.0.1", env={})


def test_an_unknown_interface_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="this machine has no eth99") as caught:
        find_seat(nodes=2, rank=0, interface="eth99", env={})
    assert "lo" in caught.value.cure


def test_a_name_that_means_the_loopback_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seat.socket, "gethostbyname", lambda name: "127.0.1.1")
    with pytest.raises(ConfigError, match="other nodes cannot reach this one by its name"):
        find_seat(nodes=2, rank=0, env={})


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.9") == ""


def test_a_port_that_is_taken_is_not_used() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert port_for("127.0.0.1", taken) not in (0, taken)
    assert port_for("127.0.0.1", 0) > 0
    with pytest.raises(ConfigError, match=r"address 203\.0\.113\.9"):
        port_for("203.0.113.9", 0)
