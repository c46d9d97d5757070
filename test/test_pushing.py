"""Pushes to real servers: their memory, many at once, killed workers, clients that leave, and two servers in turn."""

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from data.registry import content_path
from test.databases import database_uri
from test.door import SETTINGS, login
from test.images import CONFIG, LAYER, MANIFEST
from test.people import People
from test.place import Place
from test.s3server import s3_client, s3_server
from test.server import Running, served
from test.waiting import eventually
from util.digest import Digest

MEMORY = 150 << 20
LARGE = int(os.environ.get("PUSHED_LAYER_BYTES", str(192 << 20)))
"""Bytes of a layer by which memory is measured; the variable asks for another one."""

_PIECE = 1 << 20


class Pushed:
    """A layer that is made as it is sent, the same every time: `size` bytes from `seed`."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self._piece = random.Random(seed).randbytes(_PIECE)
        hasher = hashlib.sha256()
        for piece in self.pieces():
            hasher.update(piece)
        self.digest = Digest("sha256", hasher.hexdigest())

    def pieces(self, offset: int = 0, end: int | None = None) -> Iterator[bytes]:
        end = self.size if end is None else end
        while offset < end:
            start = offset % _PIECE
            piece = self._piece[start : min(_PIECE, start + end - offset)]
            yield piece
            offset += len(piece)


class Sized:
    """A body of a known length for requests, read in pieces."""

    def __init__(self, pieces: Iterator[bytes], size: int) -> None:
        self._pieces, self._size = pieces, size

    def __len__(self) -> int:
        return self._size

    def read(self, _: int = -1) -> bytes:
        return next(self._pieces, b"")


def a_place(folder: Path, more: Any = None) -> Place:
    """Return a place with the user `acme`, and their repository `acme/app`."""
    place = Place(folder, {**SETTINGS, **(more or {})})
    place.services()
    engine = place.engine
    people = People(engine)
    people.user("acme")
    people.repository("acme/app")
    engine.dispose()
    return place


class Client:
    """A client of one server or of several, which it asks in turn."""

    def __init__(self, *urls: str, name: str = "acme/app") -> None:
        self._urls, self._name, self._turn = urls, name, 0
        self.session = requests.Session()
        self.session.headers.update(login("acme"))

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        self._turn += 1
        url = self._urls[self._turn % len(self._urls)]
        if not path.startswith("/"):
            path = f"/v2/{self._name}/{path}"
        return self.session.request(method, url + path, timeout=300, **more)

    def begin(self) -> str:
        answer = self.ask("POST", "blobs/uploads/")
        assert answer.status_code == 202, answer.text
        return str(answer.headers["Location"])

    def reached(self, path: str) -> int:
        """Return how many bytes an upload has."""
        answer = self.ask("GET", path)
        assert answer.status_code == 204, answer.text
        last = int(answer.headers["Range"].split("-")[1])
        return last + 1 if last else 0

    def had(self, digest: Digest) -> str | None:
        """Return the digest of what is to be had under `digest`, None where nothing is."""
        answer = self.ask("GET", f"blobs/{digest}", stream=True)
        if answer.status_code == 404:
            return None
        assert answer.status_code == 200, answer.text
        hasher = hashlib.sha256()
        for piece in answer.iter_content(_PIECE):
            hasher.update(piece)
        return f"sha256:{hasher.hexdigest()}"


def had_at_last(client: Client, digest: Digest) -> str | None:
    """Return what `client.had` does, from a worker that lives long enough to say it."""
    while True:
        with contextlib.suppress(requests.RequestException):
            return client.had(digest)


def peaks(running: Running) -> list[int]:
    """Return the most memory that each worker ever had, in bytes."""
    peaks = []
    for worker in running.workers():
        status = Path(f"/proc/{worker}/status").read_text()
        peaks.append(int(status.split("VmHWM:")[1].split()[0]) << 10)
    return peaks


# --- Memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["length", "chunked", "ranges"])
def test_a_large_layer_is_pushed_and_pulled_in_little_memory(tmp_path: Path, how: str) -> None:
    layer = Pushed(LARGE)
    with served(a_place(tmp_path)) as running:
        client = Client(running.url)
        path = client.begin()
        if how == "length":
            answer = client.ask("PUT", f"{path}?digest={layer.digest}", data=Sized(layer.pieces(), layer.size))
        elif how == "chunked":
            assert client.ask("PATCH", path, data=layer.pieces()).status_code == 202
            answer = client.ask("PUT", f"{path}?digest={layer.digest}")
        else:
            for first in range(0, layer.size, layer.size // 5):
                last = min(first + layer.size // 5, layer.size)
                headers = {"Content-Range": f"{first}-{last - 1}"}
                body = Sized(layer.pieces(first, last), last - first)
                assert client.ask("PATCH", path, data=body, headers=headers).status_code == 202
            answer = client.ask("PUT", f"{path}?digest={layer.digest}")
        assert answer.status_code == 201, answer.text
        assert client.had(layer.digest) == str(layer.digest)
        assert max(peaks(running)) < MEMORY


def test_a_large_layer_goes_into_a_bucket_in_little_memory(tmp_path: Path) -> None:
    layer = Pushed(LARGE)
    with s3_server() as url, served(a_place(tmp_path, in_bucket(url))) as running:
        client = Client(running.url)
        path = client.begin()
        assert client.ask("PATCH", path, data=layer.pieces()).status_code == 202
        assert client.ask("PUT", f"{path}?digest={layer.digest}").status_code == 201
        assert client.had(layer.digest) == str(layer.digest)
        assert max(peaks(running)) < MEMORY


def in_bucket(url: str) -> dict[str, Any]:
    bucket = f"pushes-{uuid.uuid4().hex}"  # all servers of a process hold the same ones
    client = s3_client(url)
    client.create_bucket(Bucket=bucket)
    client.close()
    parameters = {
        "hostname": "127.0.0.1",
        "port": urlsplit(url).port,
        "is_secure": False,
        "access_key": "key",
        "secret_key": "secret",
        "bucket_name": bucket,
        "storage_path": "/registry",
    }
    return {"DISTRIBUTED_STORAGE_CONFIG": json.dumps({"s3": ["RadosGWStorage", parameters]})}


# --- Many at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite and a folder", "postgresql and a bucket"])
def test_many_push_images_that_share_layers_at_once(tmp_path: Path, kind: str) -> None:
    with contextlib.ExitStack() as stack:
        # Nobody is to be refused because the machine has much else to do: not for a lock, and not for a connection.
        more: dict[str, Any] = {"DB_URI": f"sqlite:///{tmp_path}/var/registry.db?timeout=300", "VERBS_REGISTRY": "own"}
        if "bucket" in kind:
            more |= in_bucket(stack.enter_context(s3_server()))
            more["DB_URI"] = f"{stack.enter_context(database_uri('postgresql', tmp_path))}&connect_timeout=60"
        running = stack.enter_context(served(a_place(tmp_path, more), workers=2))
        shared = [random.Random(number).randbytes(200_000) for number in range(4)]

        def push(number: int) -> None:
            client = Client(running.url, name=f"acme/image{number % 8}")
            blobs = [b'{"rootfs":{"type":"layers","diff_ids":[]},"os":"linux","architecture":"amd64"}']
            blobs += [*random.Random(number).sample(shared, 3), random.Random(-number).randbytes(50_000)]
            descriptors: list[dict[str, Any]] = []
            for blob in blobs:
                digest = Digest.of(blob)
                path = client.begin()
                assert client.ask("PATCH", path, data=blob).status_code == 202
                answer = client.ask("PUT", f"{path}?digest={digest}")
                assert answer.status_code == 201, answer.text
                descriptors.append({"mediaType": LAYER, "digest": str(digest), "size": len(blob)})
            manifest = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": descriptors[0] | {"mediaType": CONFIG},
                "layers": descriptors[1:],
            }
            answer = client.ask("PUT", f"manifests/{number}", json=manifest, headers={"Content-Type": MANIFEST})
            assert answer.status_code == 201, answer.text
            for descriptor in descriptors:
                assert client.had(Digest.parse(descriptor["digest"])) == descriptor["digest"]

        with ThreadPoolExecutor(32) as pool:
            for outcome in [pool.submit(push, number) for number in range(32)]:
                outcome.result()
        services = Place(tmp_path, {**SETTINGS, **more}).services()
        assert list(services.storage.preferred.list("verbs/uploads")) == []
        assert len(list(services.storage.preferred.list("sha256"))) == 1 + 4 + 32


# --- Killed, cut, and in turn -----------------------------------------------------------------------------------------


def test_uploads_go_on_over_two_servers_in_turn(tmp_path: Path) -> None:
    layer = Pushed(5 << 20, seed=3)
    place = a_place(tmp_path)
    with served(place) as one, served(place) as other:
        client = Client(one.url, other.url)
        path = client.begin()
        for first in range(0, layer.size, 700_000):
            last = min(first + 700_000, layer.size)
            headers = {"Content-Range": f"{first}-{last - 1}"}
            body = b"".join(layer.pieces(first, last))
            assert client.ask("PATCH", path, data=body, headers=headers).status_code == 202
            assert client.reached(path) == last
        assert client.ask("PUT", f"{path}?digest={layer.digest}").status_code == 201
        assert client.had(layer.digest) == client.had(layer.digest) == str(layer.digest)


@pytest.mark.parametrize("chunked", [False, True])
def test_what_came_from_a_client_that_left_is_there_to_go_on(tmp_path: Path, chunked: bool) -> None:
    layer = Pushed(8 << 20)
    with served(a_place(tmp_path)) as running:
        client = Client(running.url)
        path = client.begin()
        where = urlsplit(running.url)
        with socket.create_connection((where.hostname or "", where.port or 0)) as connection:
            lines = [f"PATCH {path} HTTP/1.1", "Host: x", f"Authorization: {login('acme')['Authorization']}"]
            lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {layer.size}")
            connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
            for piece in layer.pieces(0, 5 << 20):
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        reached = eventually(lambda: client.reached(path))
        assert 4 << 20 <= reached <= 5 << 20
        rest = Sized(layer.pieces(reached), layer.size - reached)
        headers = {"Content-Range": f"{reached}-{layer.size - 1}"}
        answer = client.ask("PUT", f"{path}?digest={layer.digest}", data=rest, headers=headers)
        assert answer.status_code == 201, answer.text
        assert client.had(layer.digest) == str(layer.digest)


def test_workers_that_are_killed_leave_no_broken_blob_and_uploads_that_go_on(tmp_path: Path) -> None:
    """Clients push the same blobs in chunks, while workers die; who looks sees a whole blob or none."""
    layers = [Pushed(3 << 20, seed=seed) for seed in range(3)]
    ended = threading.Event()
    done: list[Digest] = []
    advances: list[int] = []
    broken: list[object] = []
    with served(a_place(tmp_path), workers=2) as running:

        def push(number: int) -> None:
            layer, client = layers[number % 3], Client(running.url)
            path = None
            while True:
                try:
                    path = path or client.begin()
                    reached = client.reached(path)
                    if reached < layer.size:
                        last = min(reached + 400_000, layer.size)
                        headers = {"Content-Range": f"{reached}-{last - 1}"}
                        client.ask("PATCH", path, data=b"".join(layer.pieces(reached, last)), headers=headers)
                        advances.append(number)
                        continue
                    answer = client.ask("PUT", f"{path}?digest={layer.digest}")
                    if answer.status_code == 201:
                        done.append(layer.digest)
                        return
                    broken.append(answer.text)
                    return
                except requests.RequestException:
                    continue  # its worker has been killed
                except AssertionError:
                    # An upload that is gone has ended, and its end could not be told.
                    if path is None or had_at_last(client, layer.digest) != str(layer.digest):
                        broken.append(path)
                    done.append(layer.digest)
                    return

        def look() -> None:
            client = Client(running.url)
            while not ended.is_set():
                for layer in layers:
                    with contextlib.suppress(requests.RequestException):
                        found = client.had(layer.digest)
                        if found not in (None, str(layer.digest)):
                            broken.append(found)

        def kill() -> None:
            while not ended.is_set():
                seen = len(advances) + len(done)
                time.sleep(random.uniform(0.3, 1.2))
                if len(advances) + len(done) == seen:
                    continue  # workers that take longer to begin would never come to anything
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(random.choice(running.workers()), signal.SIGKILL)

        others = [threading.Thread(target=look), threading.Thread(target=kill)]
        for thread in others:
            thread.start()
        with ThreadPoolExecutor(6) as pool:
            pushes = [pool.submit(push, number) for number in range(12)]
            for outcome in pushes:
                outcome.result()
        ended.set()
        for thread in others:
            thread.join()
        assert broken == []
        assert len(done) == 12
        client = Client(running.url)
        for layer in layers:
            assert client.had(layer.digest) == str(layer.digest)
            assert (tmp_path / "var" / "storage" / content_path(layer.digest)).stat().st_size == layer.size
