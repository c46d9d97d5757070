"""Bodies on the wire, through a real server: whole, or cut so that no client takes them for whole."""

import contextlib
import http.client
import socket
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

SERVER = """
import sys
from endpoints.server import Server
from endpoints.wire import whole_or_cut

def chunks(fails):
    yield b"x" * 70_000
    if fails:
        raise ValueError("the source fails")
    yield b"y" * 70_000

def application(environ, start_response):
    length, fails = environ["PATH_INFO"].strip("/").split("/")
    headers = [("Content-Length", "140000")] if length == "sized" else []
    start_response("200 OK", headers)
    return whole_or_cut(chunks(fails == "cut"), environ, what="a body", has_length=length == "sized")

Server(
    lambda: application, host="127.0.0.1", port=0, workers=1, ready=lambda url: print(url, flush=True)
).run()
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


def curl(*arguments: str) -> tuple[int, int]:
    """Run curl, and return its exit status and how many bytes it wrote."""
    done = subprocess.run(["curl", "-s", *arguments], capture_output=True, check=False, timeout=30)
    return done.returncode, len(done.stdout)


@pytest.mark.parametrize("length", ["sized", "unsized"])
@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
def test_a_whole_body_is_taken_for_whole(url: str, length: str, version: str) -> None:
    assert curl(version, f"{url}/{length}/whole") == (0, 140_000)


@pytest.mark.parametrize("length", ["sized", "unsized"])
@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
def test_curl_takes_no_cut_body_for_whole(url: str, length: str, version: str) -> None:
    status, _ = curl(version, f"{url}/{length}/cut")
    assert status in {18, 56}  # partial file; failure in receiving


@pytest.mark.parametrize("length", ["sized", "unsized"])
def test_python_takes_no_cut_body_for_whole(url: str, length: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", f"/{length}/cut")
        with pytest.raises(http.client.IncompleteRead):
            connection.getresponse().read()


def test_who_reads_until_the_end_is_reset_and_sees_no_end(url: str) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=30) as connection:
        connection.sendall(b"GET /unsized/cut HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            read_to_the_end(connection)


def read_to_the_end(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def test_a_server_goes_on_after_a_cut(url: str) -> None:
    for _ in range(20):
        curl("--http1.0", f"{url}/unsized/cut")
    assert curl(f"{url}/unsized/whole") == (0, 140_000)
