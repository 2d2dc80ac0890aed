"""A node that is alone meets itself at once: ranks of a real agent find each other, two runs never share a store."""

from __future__ import annotations

import subprocess
import sys

from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry

from pipeline import alone

AGENT = """
import os, sys, torch, torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from pipeline import alone

def rank(word):
    dist.init_process_group("gloo")
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, (word, dist.get_rank()))
    dist.destroy_process_group()
    if word == "fail" and found[1] == ("fail", 1):
        sys.exit(7)
    return found

alone.register()
config = LaunchConfig(1, 1, 2, run_id="x", rdzv_backend=alone.BACKEND, rdzv_endpoint="", max_restarts=0, start_method="fork",
    local_addr="127.0.0.1")
print(elastic_launch(config, rank)(sys.argv[1]))
"""


def _agent(word: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run((sys.executable, "-c", AGENT, word), capture_output=True, text=True, timeout=120, check=False)


def test_ranks_of_one_node_find_each_other() -> None:
    done = _agent("well")
    assert done.stdout.splitlines()[-1] == str({rank: [("well", 0), ("well", 1)] for rank in (0, 1)}), done.stderr


def test_a_rank_that_fails_fails_its_agent() -> None:
    done = _agent("fail")
    assert done.returncode == 1
    assert "exitcode  : 7" in done.stderr


def test_each_run_has_a_store_of_its_own() -> None:
    alone.register()
    handlers = [
        rendezvous_handler_registry.create_handler(RendezvousParameters(alone.BACKEND, "", name, 1, 1, local_addr="127.0.0.1"))
        for name in ("first", "second")
    ]
    found = [handler.next_rendezvous() for handler in handlers]
    stores = [item.bootstrap_store_info for item in found]
    places = {(store.master_addr, store.master_port) for store in stores if store}
    assert len(places) == 2 and {address for address, _ in places} == {"127.0.0.1"}
    found[0].store.set("key", "value")
    assert not found[1].store.check(["key"])
    assert [(item.rank, item.world_size) for item in found] == [(0, 1)] * 2
    assert [handler.get_run_id() for handler in handlers] == ["first", "second"]
    assert not any(handler.is_closed() or handler.num_nodes_waiting() for handler in handlers)
    assert all(handler.use_agent_store and handler.shutdown() for handler in handlers)
