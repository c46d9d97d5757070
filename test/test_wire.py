"""Bodies on the wire, through a real server: whole, or cut so that no client takes them for whole."""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from wsgiref.util import FileWrapper

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoints.wire import ConnectionCut, FilePart, part_of, sent_by_server

SERVER = """
import os, sys
from endpoints.server import Server
from endpoints.wire import FilePart, sent_by_server, whole_or_cut

def fails(*_):
    raise AssertionError("the kernel should read the file, and nobody else")

FilePart.read = fails

def chunks(fails):
    yield b"x" * 70_000
    if fails:
        raise ValueError("the source fails")
    yield b"y" * 70_000

def file(name, offset, length, environ, start_response):
    # A file that is called "shrinks" loses some of its bytes while they are sent.
    body = sent_by_server(name, int(offset), int(length), environ, what="a file")
    if body is None:
        start_response("404 Not Found", [("Content-Length", "0")])
        return []
    if name.endswith("shrinks"):
        os.truncate(name, int(offset) + 10)
    start_response("200 OK", [("Content-Length", length)])
    return body

def application(environ, start_response):
    if environ["QUERY_STRING"]:
        return file(environ["PATH_INFO"], *environ["QUERY_STRING"].split("-"), environ, start_response)
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
    done = subprocess.run(["curl", "-s", *arguments], capture_output=True, check=False, timeout=300)
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
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
    with contextlib.closing(connection):
        connection.request("GET", f"/{length}/cut")
        with pytest.raises(http.client.IncompleteRead):
            connection.getresponse().read()


def test_who_reads_until_the_end_is_reset_and_sees_no_end(url: str) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=300) as connection:
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


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "length"), [(0, 300_000), (0, 10), (299_999, 1), (100_000, 100_000)])
def test_a_file_is_sent_by_the_kernel(url: str, tmp_path: Path, offset: int, length: int) -> None:
    path, content = tmp_path / "file", os.urandom(300_000)
    path.write_bytes(content)
    address = f"{url}{path}?{offset}-{length}"
    for _ in range(2):  # over one connection, the second in its place
        done = subprocess.run(["curl", "-sf", address, address], capture_output=True, check=True, timeout=300)
        assert done.stdout == content[offset : offset + length] * 2


@pytest.mark.parametrize("query", ["0-11", "10-1", "5-6"])
def test_a_file_without_those_bytes_is_not_begun(url: str, tmp_path: Path, query: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10))
    assert curl("-f", f"{url}{path}?{query}") == (22, 0)
    assert curl("-f", f"{url}{path}.absent?{query}") == (22, 0)


def test_a_file_that_became_shorter_is_not_taken_for_whole(url: str, tmp_path: Path) -> None:
    path = tmp_path / "shrinks"
    path.write_bytes(bytes(300_000))
    assert curl(f"{url}{path}?1000-200000") == (18, 10)


def test_another_server_is_given_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10))
    environ = {"wsgi.file_wrapper": FileWrapper}
    assert sent_by_server(str(tmp_path / "file"), 0, 10, environ, what="a file") is None


def test_who_reads_the_file_itself_gets_no_more_than_the_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    with closing(FilePart(str(path), 10, 20, what="a file")) as part:
        assert part.tell() == 10
        assert part.read(15) + part.read(15) + part.read(15) == bytes(range(10, 30))
        assert (part.seek(12), part.read()) == (12, bytes(range(12, 30)))
    part = FilePart(str(path), 10, 20, what="a file")
    os.truncate(path, 15)
    assert part.read(5) == bytes(range(10, 15))
    with pytest.raises(ConnectionCut):
        part.read(5)
    with pytest.raises(ConnectionCut):
        part.close()


# --- Parts ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=5), max_size=5), st.integers(0, 25), st.integers(0, 25))
def test_a_part_of_chunks_is_a_slice_of_all(chunks: list[bytes], offset: int, length: int) -> None:
    whole = b"".join(chunks)
    assert b"".join(part_of(iter(chunks), offset, length)) == whole[offset : offset + length]


def test_a_part_of_what_fails_later_is_not_whole() -> None:
    def failing() -> Iterator[bytes]:
        yield b"0123456789"
        raise ValueError("it was all wrong")

    received: list[bytes] = []
    with pytest.raises(ValueError, match="wrong"):
        received.extend(part_of(failing(), 2, 5))
    assert received == []
