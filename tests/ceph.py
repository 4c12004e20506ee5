"""Ceph's RADOS gateway on one node, all in a temporary folder and in memory; `python -m tests.ceph` starts it by hand,
and Ctrl-C stops it.

It needs the programs of the Debian packages radosgw, ceph-mon, ceph-osd and ceph-common.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.s3 import S3Server

_PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_START_S = 120
_TRIES = 3
_CONFIGURATION = """
[global]
fsid = {fsid}
monmap = {folder}/monmap
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr2 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_objectstore = memstore
memstore_device_bytes = 8589934592
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_crush_update_on_start = false
osd_class_update_on_start = false
mon_allow_pool_size_one = true
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
mon_data = {folder}/mon
osd_data = {folder}/osd
rgw_data = {folder}/rgw
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
pid_file = {folder}/$name.pid
rgw_frontends = beast endpoint=127.0.0.1:{gateway}
rgw_thread_pool_size = 32
"""


def wanted() -> bool:
    """Tells whether tests run on it: where it is installed, and where LORATREE_TEST_CEPH=1 says that it must be."""
    return os.environ.get("LORATREE_TEST_CEPH") == "1" or not _missing()


@contextmanager
def ceph() -> Iterator[S3Server]:
    """Starts a monitor, an object store daemon and a gateway on free ports of 127.0.0.1, and stops and removes them."""
    if missing := _missing():
        raise RuntimeError(
            f"Ceph's programs {', '.join(missing)} are not installed: install the Debian packages "
            "radosgw, ceph-mon, ceph-osd and ceph-common, or unset LORATREE_TEST_CEPH"
        )
    with ExitStack() as started:
        yield _start_cluster(started)


def _start_cluster(started: ExitStack) -> S3Server:
    """Start a cluster, again where that fails: another process may take a free port before the monitor does."""
    for _ in range(_TRIES - 1):
        with ExitStack() as one_try:
            try:
                server = _start_once(one_try)
            except RuntimeError:
                continue
            started.push(one_try.pop_all())
            return server
    return _start_once(started)


def _start_once(started: ExitStack) -> S3Server:
    folder = Path(tempfile.mkdtemp(prefix="ceph"))  # a socket's path may have 107 bytes, so no test's own folder
    started.callback(shutil.rmtree, folder, ignore_errors=True)
    monitor, gateway = _free_ports(2)
    fsid = str(uuid.uuid4())
    (folder / "ceph.conf").write_text(_CONFIGURATION.format(fsid=fsid, gateway=gateway, folder=folder))
    cluster = _Cluster(folder, started)
    cluster.start_monitor(fsid, monitor)
    cluster.start_store()
    return cluster.start_gateway(f"http://127.0.0.1:{gateway}")


class _Cluster:
    """The programs of one cluster, each of which reads the folder's ceph.conf."""

    def __init__(self, folder: Path, started: ExitStack) -> None:
        self._folder, self._started = folder, started

    def start_monitor(self, fsid: str, port: int) -> None:
        names = self._folder / "monmap"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{port}]", str(names))
        self._run("ceph-mon", "--mkfs", "-i", "a")
        self._start("ceph-mon", "-i", "a")

    def start_store(self) -> None:
        (self._folder / "osd").mkdir()
        name = str(uuid.uuid4())
        self._run("ceph", "osd", "new", name, "0")
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", name)
        # Where the daemon does this as it starts, one time in four the monitor says "wrong fsid" and it ends.
        self._run("ceph", "osd", "crush", "add", "osd.0", "1", "root=default", "host=here")
        self._start("ceph-osd", "-i", "0")

    def start_gateway(self, endpoint: str) -> S3Server:
        gateway = self._start("radosgw", "-n", "client.gateway")
        self._wait(endpoint, gateway)
        server = S3Server(endpoint, "key", "secret")
        keys = ("--access-key", server.access_key, "--secret-key", server.secret_key)
        self._run("radosgw-admin", "user", "create", "--uid", "owner", "--display-name", "owner", *keys)
        return server

    def _wait(self, endpoint: str, gateway: subprocess.Popen[bytes]) -> None:
        for _ in range(_START_S * 10):
            try:
                urllib.request.urlopen(endpoint, timeout=5).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
            if gateway.poll() is not None:
                break
        raise RuntimeError(f"radosgw did not start:\n{self._said()}")

    def _run(self, program: str, *arguments: str) -> None:
        command = [program, "--conf", str(self._folder / "ceph.conf"), *arguments]
        if program == "monmaptool":
            command = [program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_START_S)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}{self._said()}")

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [program, "--conf", str(self._folder / "ceph.conf"), "--foreground", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._started.callback(_stop, process)
        return process

    def _said(self) -> str:
        """The end of every log."""
        return "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in sorted(self._folder.glob("*.log")))


def _missing() -> list[str]:
    return [program for program in _PROGRAMS if not shutil.which(program)]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # there is nothing to keep, and a daemon that says goodbye takes seconds
    process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it stops what it started, as after Ctrl-C
    with ceph() as running:
        print(f"LORATREE_S3_ENDPOINT={running.endpoint}")
        print(f"AWS_ACCESS_KEY_ID={running.access_key}")
        print(f"AWS_SECRET_ACCESS_KEY={running.secret_key}", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()
