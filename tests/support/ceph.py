"""A private Ceph of one node with an S3 gateway: in memory, on the loopback address, all its files below one folder.

Two users: the owner of what is made there, and a stranger whose keys are good and who may do nothing with it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.support.servers import HOST, free_port, listens, server
from tests.support.stores import Keys, S3Store

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool")
# No authentication between the daemons: they speak over loopback only. Users of the gateway do have keys.
# The gateway asks for encryption and cephx by itself, and would wait for ever: hence the two modes of its section.
CONFIG = """
[global]
fsid = {fsid}
mon_host = {mon}
mon_initial_members = a
public_network = 127.0.0.0/8
public_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
log_file = {folder}/$name.log
pid_file = {folder}/$name.pid
admin_socket = {folder}/$name.asok
run_dir = {folder}
crash_dir = {folder}
mon_data = {folder}/mon
mon_cluster_log_to_file = false
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_op_num_shards = 1
[client.rgw.a]
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint={host}:{port}
rgw_enable_apis = s3, admin
ms_mon_client_mode = crc
ms_client_mode = crc
"""


def missing_programs() -> str:
    """What is not installed of Ceph, in words; empty where all is there."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"needs {', '.join(missing)}: make test-services, as root, installs Ceph from Debian packages" if missing else ""


class Cluster:
    """The cluster's files, and the programs that look after it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.fsid = folder, free_port(), str(uuid.uuid4())
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir()
        self.mon = f"[v2:{HOST}:{free_port()},v1:{HOST}:{free_port()}]"
        self.config = folder / "ceph.conf"
        self.config.write_text(CONFIG.format(fsid=self.fsid, mon=self.mon, folder=folder, host=HOST, port=self.port))

    def tool(self, *command: str) -> str:
        """What a program of Ceph prints."""
        done = subprocess.run(
            [command[0], "-c", str(self.config), *command[1:]], capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
        return done.stdout

    def daemon(self, program: str, *arguments: str) -> contextlib.AbstractContextManager[int]:
        """A daemon in the foreground, ready when the cluster says so."""
        command = [program, "-c", str(self.config), *arguments, "-f"]
        return server(command, self.folder / f"{program}.out", lambda: self.up(program), seconds=120)

    def up(self, program: str) -> bool:
        """Whether a daemon does its work."""
        if program == "radosgw":
            return listens(self.port)
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            state = json.loads(self.tool("ceph", "--connect-timeout", "5", "status", "--format", "json"))
            return program == "ceph-mon" or state["osdmap"]["num_up_osds"] == 1
        return False

    def user(self, name: str) -> Keys:
        """Make a user of the gateway."""
        keys = Keys(access=f"KEY{name.upper()}", secret=uuid.uuid4().hex)
        given = (f"--uid={name}", f"--display-name={name}", f"--access-key={keys.access}", f"--secret-key={keys.secret}")
        self.tool("radosgw-admin", "user", "create", *given)
        return keys


@contextlib.contextmanager
def running(folder: Path) -> Iterator[S3Store]:
    """The gateway while the body runs."""
    cluster = Cluster(folder)
    at = ["-i", "a", "--monmap", str(folder / "monmap")]
    cluster.tool("monmaptool", "--create", "--fsid", cluster.fsid, "--addv", "a", cluster.mon, str(folder / "monmap"))
    cluster.tool("ceph-mon", "--mkfs", *at)
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.daemon("ceph-mon", "-i", "a"))
        disk = str(uuid.uuid4())
        cluster.tool("ceph", "osd", "new", disk)
        cluster.tool("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        stack.enter_context(cluster.daemon("ceph-osd", "-i", "0"))
        stack.enter_context(cluster.daemon("radosgw", "-n", "client.rgw.a"))
        users = {name: cluster.user(name) for name in ("owner", "reader", "stranger")}
        endpoint = f"http://{HOST}:{cluster.port}"
        yield stack.enter_context(contextlib.closing(S3Store(name="Ceph RGW", endpoint=endpoint, **users)))
