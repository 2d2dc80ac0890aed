"""This machine's seat among the nodes of a job: its number, its address, the interface that has it, a free port.

Nodes under Slurm find all of it in their environment. A node's own name may not resolve, or resolve to the loopback
address, so the address is asked of Slurm, or taken from what the user gave.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping

import psutil

from pipeline.errors import ConfigError
from pipeline.records import record

__all__ = ["Seat", "find_seat", "interface_of", "port_for"]


@record
class Seat:
    """A node's place. `attempt` tells this start of the job from earlier ones."""

    rank: int
    nodes: int
    address: str
    interface: str
    attempt: str


def find_seat(
    *, nodes: int, rank: int | None = None, address: str = "", interface: str = "", env: Mapping[str, str] | None = None
) -> Seat:
    """Where this process sits.

    Args:
        nodes: of the whole job.
        rank: 0-based number of this node; None: what Slurm says, else 0.
        address: that other nodes reach this one by; empty: what Slurm says, else that of `interface`, else the host's.
        interface: network interface; empty: the one that has the address.
        env: environment; of this process by default.

    Raises:
        ConfigError: a rank that is none of the nodes', an unknown interface, no address.
    """
    env = os.environ if env is None else env
    in_slurm = "SLURM_JOB_ID" in env
    found = int(env.get("SLURM_NODEID", "0")) if rank is None else rank
    if not 0 <= found < nodes:
        raise ConfigError(f"node rank {found}: not one of {nodes} nodes", f"give a rank from 0 to {nodes - 1}")
    if nodes == 1:
        address = address or "127.0.0.1"
    address = address or _of_interface(interface) or (_of_slurm(env) if in_slurm else "") or _of_host()
    interface = interface or interface_of(address)
    attempt = f"{env['SLURM_JOB_ID']}-{env.get('SLURM_RESTART_COUNT', '0')}" if in_slurm else ""
    return Seat(rank=found, nodes=nodes, address=address, interface=interface, attempt=attempt)


def interface_of(address: str) -> str:
    """The network interface that has the address; empty where none of this machine's has it."""
    try:
        numeric = {item[4][0] for item in socket.getaddrinfo(address, None)}
    except OSError:
        numeric = {address}
    for name, addresses in psutil.net_if_addrs().items():
        if numeric & {item.address.partition("%")[0] for item in addresses}:
            return name
    return ""


def _of_interface(interface: str) -> str:
    if not interface:
        return ""
    known = psutil.net_if_addrs()
    if interface not in known:
        raise ConfigError(f"interface: this machine has no {interface}", f"known: {', '.join(sorted(known))}")
    found = [item.address for item in known[interface] if item.family == socket.AF_INET]
    if not found:
        raise ConfigError(f"interface: {interface} has no IPv4 address", "name another interface, or the node's address")
    return found[0]


def _of_slurm(env: Mapping[str, str]) -> str:
    """The address that Slurm's controller knows this node by, as digits or a name that resolves; empty without one."""
    tool, name = shutil.which("scontrol", path=env.get("PATH")), env.get("SLURMD_NODENAME", "")
    if tool is None or not name:
        return ""
    done = subprocess.run([tool, "show", "node", "-o", name], capture_output=True, text=True, check=False, env=dict(env))
    match = re.search(r"\bNodeAddr=(\S+)", done.stdout)
    return match.group(1) if match else ""


def _of_host() -> str:
    name = socket.gethostname()
    try:
        found = socket.gethostbyname(name)
    except OSError:
        found = ""
    if not found or found.startswith("127."):
        message = f"{name}: other nodes cannot reach this one by its name ({found or 'it does not resolve'})"
        raise ConfigError(message, "give --address, or interface= in the cluster's file")
    return found


def port_for(address: str, wanted: int) -> int:
    """`wanted` where it is free on the address, else a port that the kernel chooses.

    Raises:
        ConfigError: the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in (wanted, 0):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as fault:
                if port:
                    continue
                raise ConfigError(f"address {address}: {fault.strerror or fault}", "give the address of this node") from None
            return int(probe.getsockname()[1])
    raise AssertionError("unreachable")
