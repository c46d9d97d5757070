"""Connections to `/v2` of a real server: what an answer leaves of them that came before the request was read."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from endpoints.wire import read_on
from test.door import login
from test.server import served
from test.test_pushing import a_place

PATIENT = "from endpoints import wire; wire.read_on.__kwdefaults__.update(seconds=300, silence=60); "
"""Begins a program that gives up no client of these tests, which send as fast as the machine lets them."""

LARGEST = 1 << 20
SIZE = 24 << 20
"""More bytes than the buffers of a connection hold."""

NOWHERE = "/v2/acme/app/blobs/uploads/" + "0" * 32
DIGEST = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = a_place(tmp_path_factory.mktemp("place"), {"MAXIMUM_LAYER_SIZE": str(LARGEST)})
    with served(place, program=PATIENT + "import app; app.main()") as running:
        yield urlsplit(running.url).netloc


def zeros(size: int) -> Iterator[bytes]:
    for _ in range(size >> 16):
        yield bytes(1 << 16)


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize(
    ("asked", "who", "said"),
    [
        (f"PATCH {NOWHERE}", None, (401, "UNAUTHORIZED")),
        ("PUT /v2/acme/app/manifests/1", None, (401, "UNAUTHORIZED")),
        (f"PATCH {NOWHERE}", "acme", (404, "BLOB_UPLOAD_UNKNOWN")),
        (f"PUT {NOWHERE}?digest={DIGEST}", "acme", (404, "BLOB_UPLOAD_UNKNOWN")),
        (f"PUT {NOWHERE}?digest=sha256:0", "acme", (400, "DIGEST_INVALID")),
        ("POST /v2/acme/app/manifests/1", "acme", (405, "UNSUPPORTED")),
        (f"POST /v2/acme/app/blobs/uploads/?digest={DIGEST}", "acme", (413, "SIZE_INVALID")),
        ("PUT /v2/acme/app/manifests/1", "acme", (413, "SIZE_INVALID")),
    ],
)
def test_who_sends_all_of_it_gets_the_answer_and_asks_on(
    address: str, asked: str, who: str | None, said: tuple[int, str], sized: bool
) -> None:
    with closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        length = {"Content-Length": str(SIZE)} if sized else {"Transfer-Encoding": "chunked"}
        method, path = asked.split()
        connection.request(method, path, zeros(SIZE), {**login(who), **length}, encode_chunked=not sized)
        answer = connection.getresponse()
        assert (answer.status, json.load(answer)["errors"][0]["code"]) == said
        kept = connection.sock
        connection.request("GET", "/v2/", headers=login("acme"))
        answer = connection.getresponse()
        assert (answer.status, answer.read(), connection.sock) == (200, b"{}", kept)


def test_a_body_that_nobody_wants_is_no_error(address: str) -> None:
    with closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        for _ in range(2):
            connection.request("GET", "/v2/acme/app/tags/list", bytes(SIZE), login("acme"))
            answer = connection.getresponse()
            assert (answer.status, json.load(answer)["tags"]) == (200, [])


def test_the_answer_is_there_before_the_body_is(address: str) -> None:
    host, port = address.split(":")
    with closing(socket.create_connection((host, int(port)), timeout=60)) as connection:
        connection.sendall(f"PATCH {NOWHERE} HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n\r\n".encode())
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 401 ")


def test_a_body_whose_chunks_are_none_ends_the_connection(address: str) -> None:
    host, port = address.split(":")
    with closing(socket.create_connection((host, int(port)), timeout=60)) as connection:
        connection.sendall(f"PATCH {NOWHERE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno\r\n".encode())
        said = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert said.startswith(b"HTTP/1.1 401 ")
    assert said.count(b"HTTP/1.1 ") == 1


class Body:
    """What a server gives to read a request by, which has no end."""

    def __init__(self, connection: socket.socket) -> None:
        self.read = connection.recv


@pytest.mark.parametrize(("sends", "seconds", "silence"), [(True, 0.6, 60), (False, 60, 0.3)])
def test_who_sends_for_ever_or_nothing_is_given_up(sends: bool, seconds: float, silence: float) -> None:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        over = threading.Event()

        def send() -> None:
            while not over.wait(0.01):
                theirs.send(b"x")

        thread = threading.Thread(target=send)
        if sends:
            thread.start()
        began = time.monotonic()
        read_on({"gunicorn.socket": ours, "wsgi.input": Body(ours)}, seconds=seconds, silence=silence)
        took = time.monotonic() - began
        over.set()
        if sends:
            thread.join()
        assert ours.gettimeout() is None
    assert min(seconds, silence) <= took < 30  # the other of the two is not what has ended it


def test_another_server_reads_what_it_will() -> None:
    class Unread:
        def read(self, _: int) -> bytes:
            raise AssertionError("a stream whose end only the server knows")

    read_on({"wsgi.input": Unread()})


def test_a_client_that_left_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with closing(ours):
        read_on({"gunicorn.socket": ours, "wsgi.input": Body(ours)})
        ours.close()
        read_on({"gunicorn.socket": ours, "wsgi.input": Body(ours)})
