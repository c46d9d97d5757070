"""What the fault suite is made of: servers whose storage fails when it is told to, clients that check every byte, and
what must not be left behind.

The law: whatever a client is handed is compared with what is right while it comes, so that nothing wrong goes unseen
behind a cut. Faults are real where they can be: processes are killed, connections are cut, databases are stopped.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import sqlalchemy

from data.database import create_tables, make_engine
from data.derivedimages import DerivedRecord, State
from data.importer import import_image
from data.storage.base import OWN
from endpoints.access import everything
from endpoints.services import Services, make_services
from endpoints.settings import Settings
from test.faultystorage import FaultyStorage, Orders
from test.images import Image, Layer, Layout
from test.layers import file
from test.place import Place
from test.server import Running, served
from test.waiting import eventually

LEASE_SECONDS = 2
"""How long a maker need not be heard of, where a test waits for that: half a minute would be too long."""

SHORT_LEASES = {"VERBS_LEASE_SECONDS": str(LEASE_SECONDS)}

_MORE = {"VERBS_MAX_MAKINGS": "32"}
_PIECE = 64 << 10


# --- Servers ----------------------------------------------------------------------------------------------------------

SERVER = "from test import faults; faults.main()"


def main() -> None:
    """Run the command line as it is, but for a driver that can fail, and with a name that only this host has."""
    import app

    name = os.environ.pop("FAULTS_HOST")
    socket.gethostname = lambda: name
    app.main()


@dataclass(frozen=True)
class Site:
    """A registry on one database and one storage, SQLite and a folder where nothing is said."""

    folder: Path
    database: str | None = None
    inner: Sequence[Any] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def orders(self) -> Orders:
        return Orders(self.folder / "orders")

    @cached_property
    def place(self) -> Place:
        inner = self.inner or ["LocalStorage", {"storage_path": str(self.folder / "var" / "storage")}]
        storage = {"default": ["FaultyStorage", {"inner": inner, "orders": str(self.orders.folder)}]}
        database = {} if self.database is None else {"DB_URI": self.database}
        place = Place(
            self.folder,
            {**_MORE, "DISTRIBUTED_STORAGE_CONFIG": json.dumps(storage), **database, **self.more},
        )
        if self.database is not None:
            engine = make_engine(self.database)
            create_tables(engine)
            engine.dispose()
        return place

    @cached_property
    def services(self) -> Services:
        """The test's own way to the rows and the storage."""
        return make_services(Settings.parse(self.place.configuration), permission=everything)

    def push(self, name: str, image: Image) -> None:
        """Import `image` under `name`."""
        layout = Layout(Path(tempfile.mkdtemp(dir=self.folder)))
        (namespace, repository), tag = name.rsplit(":", 1)[0].split("/", 1), name.rsplit(":", 1)[1]
        services = self.services
        import_image(
            layout.tag("image", layout.image(image)),
            namespace,
            repository,
            tag,
            engine=services.engine,
            storage=services.storage,
            indexes=services.indexes,
        )
        shutil.rmtree(layout.folder)

    def close(self) -> None:
        """Let go of the database."""
        for engine in {self.services.engine, self.services.own_engine}:
            engine.dispose()

    @property
    def storage(self) -> Path:
        return self.folder / "var" / "storage"

    @contextlib.contextmanager
    def served(self) -> Iterator["Fleet"]:
        """Serve with two servers of two processes each."""
        fleet = Fleet(self, workers=2)
        try:
            for at in range(2):
                fleet.start(at)
            yield fleet
        finally:
            fleet.close()


def of_host(site: Site, host: int) -> dict[str, str]:
    """Return what the environment of the server `host` has of its own.

    Servers of one SQLite are on one machine, with its spools; of another database each is a machine by itself.
    """
    if site.database is None:
        return {"FAULTS_HOST": "host0"}
    folder = {} if host == 0 else {"VERBS_DATA_DIR": str(site.folder / f"host{host}")}
    return {"FAULTS_HOST": f"host{host}", **folder}


class Fleet:
    """The servers of a site."""

    def __init__(self, site: Site, *, workers: int) -> None:
        self.site, self._workers = site, workers
        self._stacks: dict[int, contextlib.ExitStack] = {}
        self.servers: dict[int, Running] = {}

    def start(self, host: int) -> None:
        """Start the server of `host`, with the folder that it had before."""
        stack = contextlib.ExitStack()
        log = self.site.folder / "log"
        self.servers[host] = stack.enter_context(
            served(self.site.place, workers=self._workers, log=log, more=of_host(self.site, host), program=SERVER)
        )
        self._stacks[host] = stack

    def stop(self, host: int) -> int:
        """Have the server of `host` end as an operator does, and return its exit status."""
        server = self.servers.pop(host)
        self._stacks.pop(host).close()
        return int(server.process.wait(60))

    def close(self) -> None:
        for host in list(self.servers):
            self.stop(host)

    def urls(self, path: str) -> list[str]:
        """Return where `path` is, on each host."""
        return [server.url + path for server in list(self.servers.values())]

    @property
    def spools(self) -> list[Path]:
        return [self.site.folder / "var" / "spool", *sorted(self.site.folder.glob("host*/spool"))]

    def workers(self) -> list[int]:
        return [pid for server in list(self.servers.values()) for pid in server.workers()]

    def host_of(self, worker: int) -> int:
        """Return which server the process `worker` belongs to."""
        return next(host for host, server in self.servers.items() if worker in server.workers())

    def makers(self) -> list[int]:
        """Return the processes that are making something: those that have the note of a spool locked."""
        notes = {}
        for folder in self.spools:
            for note in folder.glob("*"):
                with contextlib.suppress(FileNotFoundError):
                    notes[note.stat().st_ino] = note
        locks = re.findall(
            r"FLOCK\s+ADVISORY\s+WRITE (\d+) [0-9a-f]+:[0-9a-f]+:(\d+) ", Path("/proc/locks").read_text()
        )
        return [int(pid) for pid, inode in locks if int(inode) in notes]

    def made(self) -> int:
        """Return how many bytes the largest spool has now."""
        sizes = [0]
        for folder in self.spools:
            for data in folder.glob("*.data"):
                with contextlib.suppress(FileNotFoundError):
                    sizes.append(data.stat().st_size)
        return max(sizes)


wait_until = partial(eventually, seconds=180)
"""Wait as long as a machine that is busy with faults may take."""


def memory(pid: int) -> int:
    """Return how many bytes of memory a process has had at most."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) << 10


# --- Clients ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Got:
    """What came of one request. `right`: every byte that came was. `whole`: all came, and the client can tell."""

    status: int
    size: int
    right: bool
    whole: bool


def get(
    url: str,
    expected: bytes,
    *,
    offset: int = 0,
    leave_after: int | None = None,
    stall: float = 0,
    reset: bool = False,
    timeout: float = 120,
    begun: Callable[[], object] = lambda: None,
) -> Got:
    """Ask for `url` from byte `offset` on and compare what comes with `expected`.

    Leaves after `leave_after` bytes (with a reset if so told); stands still for `stall` seconds after the first ones.
    Calls `begun` when these have come.
    """
    split = urlsplit(url)
    connection = HTTPConnection(split.netloc, timeout=timeout)
    status, size, right, whole = 0, offset, True, False
    try:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        connection.request("GET", f"{split.path}?{split.query}", headers=headers)
        answer = connection.getresponse()
        status = answer.status
        if status not in (200, 206):
            answer.read()
            return Got(status, 0, right=True, whole=False)
        size = 0 if status == 200 else offset
        while leave_after is None or size < leave_after:
            length = _PIECE if leave_after is None else min(_PIECE, leave_after - size)
            piece = answer.read(length)
            if not piece:
                # http.client does not tell of a Content-Length that was not reached, when it reads in pieces.
                whole = not answer.length
                break
            right = right and expected.startswith(piece, size)
            if size == (0 if status == 200 else offset):
                begun()
            size += len(piece)
            time.sleep(stall)
            stall = 0
    except (OSError, HTTPException):
        pass
    finally:
        if reset and connection.sock is not None:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    return Got(status, size, right and (not whole or size == len(expected)), whole)


def fetch(
    urls: Sequence[str],
    expected: bytes,
    *,
    seconds: float = 180,
    stall: float = 0,
    begun: Callable[[], object] = lambda: None,
) -> list[Got]:
    """Ask for an image until it has come whole, now here and now there; return every try."""
    tries: list[Got] = []
    deadline = time.monotonic() + seconds
    while not tries or not tries[-1].whole:
        tries.append(get(urls[len(tries) % len(urls)], expected, stall=stall, begun=begun))
        if time.monotonic() > deadline:
            break
        if not tries[-1].whole:
            time.sleep(0.2)
    return tries


def at_once(tasks: Sequence[Callable[[], Any]]) -> "Clients":
    """Run `tasks`, each on a thread of its own, from now on."""
    return Clients(tasks)


class Clients:
    """Clients that run. Leaving the context waits for them."""

    def __init__(self, tasks: Sequence[Callable[[], Any]]) -> None:
        self._pool = ThreadPoolExecutor(len(tasks))
        self._futures = [self._pool.submit(task) for task in tasks]

    def results(self) -> list[Any]:
        return [future.result() for future in self._futures]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


# --- Images -----------------------------------------------------------------------------------------------------------


def noise(name: str, size: int) -> Image:
    """Return an image of `size` bytes that no compression makes smaller, the same for the same name."""
    content = random.Random(name).randbytes(size)
    return Image([Layer([file(b"noise", content)], wrapping="none"), Layer([file(b"etc/name", name.encode())])])


def right_bytes(folder: Path, images: Mapping[str, Image], paths: Sequence[str]) -> dict[str, bytes]:
    """Return what is right at each of `paths`, of `images`, made where nothing fails and nobody else is."""
    place = Place(folder)
    folder.mkdir()
    for name, image in images.items():
        place.push(name, image)
    client = Place(folder, {"REGISTRY_STATE": "readonly"}).app().test_client()
    found = {}
    for path in paths:
        with client.get(path) as answer:
            assert answer.status_code == 200
            found[path] = answer.data
    shutil.rmtree(folder)
    return found


# --- What is left -----------------------------------------------------------------------------------------------------


def records(site: Site) -> list[DerivedRecord]:
    return list(site.services.derived.all())


def stand_still(site: Site, worker: int) -> None:
    """Stop a process for longer than its leases last, at a moment when it keeps nobody from writing to the database."""
    url = site.services.own_engine.url
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": 2} if site.database is None else {})
    over = sqlalchemy.text("UPDATE verbs_derived SET lease_ends_ms = 1 WHERE state = :state")

    def stopped() -> bool:
        os.kill(worker, signal.SIGSTOP)
        eventually(lambda: Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        try:
            with engine.begin() as connection:
                if site.database is not None:
                    connection.execute(sqlalchemy.text("SET LOCAL lock_timeout = '2s'"))
                connection.execute(over, {"state": str(State.GENERATING)})
        except sqlalchemy.exc.OperationalError:
            os.kill(worker, signal.SIGCONT)
            return False
        return True

    wait_until(stopped, pause=0.2, what="it always holds a lock")
    engine.dispose()


def let_time_pass(site: Site) -> None:
    """Make everything of derived images two days old, as if that time had passed."""
    with site.services.own_engine.begin() as connection:
        connection.execute(
            sqlalchemy.text("UPDATE verbs_derived SET lease_ends_ms = lease_ends_ms - 172800000 WHERE state = :state"),
            {"state": str(State.GENERATING)},
        )
    then = time.time() - 2 * 24 * 3600
    for path in [*site.storage.rglob("*"), *site.folder.glob("*/spool/*")]:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (then, then))


def collect(site: Site, host: int = 0) -> None:
    """Run `registry-verbs gc` on `host`."""
    environment = {**os.environ, **site.place.configuration, **of_host(site, host)}
    done = subprocess.run([sys.executable, "-c", SERVER, "gc"], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def left_behind(site: Site) -> list[str]:
    """Return what is there and should not be: all but complete rows and their objects, which must be right."""
    found = []
    complete: dict[str, DerivedRecord] = {}
    for record in records(site):
        if record.state is State.COMPLETE:
            complete[record.path] = record
        elif record.state is State.GENERATING:
            found.append(f"row {record.key} is still generating")
    storage = site.services.storage.preferred
    assert isinstance(storage, FaultyStorage)
    for blob in storage.inner.list(f"{OWN}/derived"):
        if blob.path not in complete:
            found.append(f"object {blob.path} is nobody's")
            continue
        record = complete.pop(blob.path)
        stream = storage.inner.open(blob.path)
        with contextlib.closing(stream):
            content = stream.read()
        if (len(content), hashlib.sha256(content).hexdigest()) != (record.size, record.sha256):
            found.append(f"object {blob.path} is not what its row says")
    found += [f"row {record.key} has no object" for record in complete.values()]
    found += [f"part {path}" for path in (site.storage / ".parts").glob("*")]
    found += [f"spool {path}" for path in site.folder.glob("*/spool/*")]
    return found


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
