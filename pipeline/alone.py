"""The rendezvous of a node that is alone: a store for its ranks, and nobody to wait for.

torch's own first waits up to 0.3 s, at random, so that many nodes do not all ask at once, and for each of its events looks up
where in the code it happened, for which Python goes through all modules that are loaded: half a second a stage.
"""

from __future__ import annotations

from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

__all__ = ["BACKEND", "register"]

BACKEND = "alone"
"""Its name for torchrun's `rdzv_backend`."""


class _Alone(RendezvousHandler):
    """For one node and one attempt: a second one would find the keys of the first."""

    def __init__(self, params: RendezvousParameters) -> None:
        self._name, self._address = params.run_id, params.local_addr or "127.0.0.1"
        # The kernel chooses the port as the store binds to it, so no other run can take it in between.
        self._store = TCPStore(self._address, 0, is_master=True, wait_for_workers=False)

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        place = RendezvousStoreInfo(self._address, self._store.port)
        return RendezvousInfo(self._store, rank=0, world_size=1, bootstrap_store_info=place)

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._name

    def shutdown(self) -> bool:
        return True


def register() -> None:
    """Make it known to torch in this process; once."""
    rendezvous_handler_registry.register(BACKEND, _Alone)
