"""A real OpenStack Swift on loopback: one proxy and one server each for accounts, containers and objects, one device.

Debian's programs (swift-proxy, swift-account, swift-container, swift-object) with a memcached, which tempauth keeps its
tokens in. The seeds of Swift's hashes come from the package's /etc/swift/swift.conf, all else lies in the given folder.
Built as Swift's own documentation builds an all-in-one, "SAIO", with one replica and no background daemons:
https://docs.openstack.org/swift/latest/development_saio.html
"""

import contextlib
import getpass
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import swiftclient

from test.clients import program
from test.databases import free_port
from test.waiting import eventually

USER, PASSWORD, TEMP_URL_KEY = "test:tester", "hunter2", "temp-url-secret"
CONTAINER = "registry"

_SERVERS = ("account", "container", "object", "proxy")
_PIPELINE = "catch_errors gatekeeper healthcheck cache listing_formats bulk tempurl tempauth copy slo dlo"


@contextlib.contextmanager
def swift_server(folder: Path, *, pipeline: str = _PIPELINE) -> Iterator[str]:
    """Give the URL of tempauth of a Swift that runs and keeps its files in `folder`; `pipeline` is the proxy's."""
    ports = {name: free_port() for name in (*_SERVERS, "memcached")}
    (folder / "devices/one").mkdir(parents=True)
    for ring in ("account", "container", "object"):
        for arguments in (
            ["create", "4", "1", "1"],
            ["add", f"r1z1-127.0.0.1:{ports[ring]}/one", "1"],
            ["rebalance"],
        ):
            command = [program("swift-ring-builder"), f"{ring}.builder", *arguments]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        (folder / f"{ring}.conf").write_text(_storage_configuration(folder, ring, ports[ring]))
    (folder / "proxy.conf").write_text(_proxy_configuration(folder, pipeline, ports))
    commands = {f"{kind}": [program(f"swift-{kind}-server"), f"{folder}/{kind}.conf"] for kind in _SERVERS}
    commands["memcached"] = _memcached(ports["memcached"])
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(_process(folder, name, command)) for name, command in commands.items()}
        for name, process in processes.items():
            eventually(partial(_listens, process, folder / f"{name}.log", ports[name]))
        url = f"http://127.0.0.1:{ports['proxy']}/auth/v1.0"
        with contextlib.closing(swift_client(url)) as client:
            client.post_account({"X-Account-Meta-Temp-URL-Key": TEMP_URL_KEY})
            client.put_container(CONTAINER)
        yield url


def swift_client(url: str) -> swiftclient.Connection:
    """Return a client of the Swift whose tempauth is at `url`."""
    return swiftclient.Connection(authurl=url, user=USER, key=PASSWORD, auth_version="1", retries=2)


def _memcached(port: int) -> list[str]:
    return [program("memcached"), "-u", getpass.getuser(), "-l", "127.0.0.1", "-U", "0", "-p", str(port)]


def _storage_configuration(folder: Path, kind: str, port: int) -> str:
    return f"""
[DEFAULT]
{_common(folder, port)}
devices = {folder}/devices
mount_check = false
fallocate_reserve = 0
disable_fallocate = true

[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
"""


def _proxy_configuration(folder: Path, pipeline: str, ports: dict[str, int]) -> str:
    account, user = USER.split(":")
    filters = "\n".join(f"[filter:{name}]\nuse = egg:swift#{name}\n{_MORE.get(name, '')}" for name in pipeline.split())
    filters = filters.replace("MEMCACHED", f"127.0.0.1:{ports['memcached']}").replace(
        "egg:swift#cache", "egg:swift#memcache"
    )
    filters = filters.replace("USER", f"user_{account}_{user} = {PASSWORD} .admin")
    return f"""
[DEFAULT]
{_common(folder, ports["proxy"])}

[pipeline:main]
pipeline = {pipeline} proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true

{filters}
"""


_MORE = {
    "cache": "memcache_servers = MEMCACHED\n",
    "tempauth": "USER\n",
}


def _common(folder: Path, port: int) -> str:
    return f"""
swift_dir = {folder}
user = {getpass.getuser()}
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
log_level = WARNING
eventlet_debug = false
"""


@contextlib.contextmanager
def _process(folder: Path, name: str, command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    with (folder / f"{name}.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _listens(process: "subprocess.Popen[bytes]", log: Path, port: int) -> bool:
    assert process.poll() is None, log.read_text()
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10):
        return True
    return False
