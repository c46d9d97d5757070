"""A body on the wire: the whole of it, or a connection that is cut.

The law: once the first byte is out, an error cannot be told any more; what is left is to make sure that nobody takes a
short file for a whole one. With a Content-Length or in chunks it is enough that the body does not end as it should: the
exception leaves through the server, which drops the connection. A client of HTTP/1.0 that was told no length (a proxy,
often) takes any orderly close for the end, so its connection is reset instead.

A file is left to the server, which has the kernel send it, where that is known to begin where the file stands and to
end with Content-Length. gunicorn does so (http/wsgi.py, `Response.sendfile`); another server gets chunks.
"""

import contextlib
import logging
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from typing import Any

from endpoints.streams import Chunks, StoredImageCut, close
from util.problem import Problem

log = logging.getLogger(__name__)

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_PIECE = 256 << 10  # where the server reads the file after all: over TLS
_UNREAD = 64 << 10  # of a body that nobody wants, at a time


class ConnectionCut(Exception):
    """Ends a body that cannot be finished. Not an OSError: servers take those for the client's own leaving."""


def whole_or_cut(chunks: Iterator[bytes], environ: Mapping[str, Any], *, what: str, has_length: bool) -> Chunks:
    """Pass `chunks` on, and close them. Raises ConnectionCut when they raise, after logging why.

    `environ` is the request's; `what` is how the log calls the body.
    """
    try:
        yield from chunks
    except Exception as error:
        if isinstance(error, Problem):
            log.error("%s was cut: %s", what, error)  # noqa: TRY400 a fact about an image needs no traceback
        else:
            log.exception("%s was cut", what)
        if environ.get("SERVER_PROTOCOL") == "HTTP/1.0" and not has_length:
            _reset(environ)
        raise ConnectionCut(f"{what} was cut: its source failed") from error
    finally:
        close(chunks)


def part_of(chunks: Iterator[bytes], offset: int, length: int) -> Chunks:
    """Pass `length` bytes of `chunks` on from `offset`, the last of them after the end of `chunks`; and close them.

    Whether they are right is known at the end only.
    """
    end, position = offset + length, 0
    held = b""
    try:
        for chunk in chunks:
            part = chunk[max(offset - position, 0) : max(end - position, 0)]
            position += len(chunk)
            if part:
                if held:
                    yield held
                held = part
        yield held
    finally:
        close(chunks)


def sent_by_server(
    path: str, offset: int, length: int, environ: Mapping[str, Any], *, what: str
) -> Iterable[bytes] | None:
    """Return a body of `length` bytes of a file from `offset` that the server sends by itself.

    None where the server is not one that can, or the file has no such bytes. Reading never ends early: a file that
    became shorter ends the answer with ConnectionCut.
    """
    if "gunicorn.socket" not in environ:
        return None
    try:
        file = FilePart(path, offset, length, what=what)
    except (OSError, StoredImageCut):
        log.exception("%s cannot be sent from its file", what)
        return None
    body: Iterable[bytes] = environ["wsgi.file_wrapper"](file, _PIECE)
    return body


class FilePart:
    """`length` bytes of the file at `path`, opened and standing at `offset`; a file itself. Raises StoredImageCut."""

    def __init__(self, path: str, offset: int, length: int, *, what: str) -> None:
        self._file, self._end, self._what = FileIO(path), offset + length, what
        try:
            self._check()
            self._file.seek(offset)
        except BaseException:
            self._file.close()
            raise

    def fileno(self) -> int:
        return self._file.fileno()

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` bytes, none after the last one."""
        left = self._end - self._file.tell()
        data = self._file.read(left if size < 0 else min(size, left)) if left > 0 else b""
        if left > 0 and size and not data:
            raise ConnectionCut(f"{self._what} was cut: its file became shorter")
        return data

    def close(self) -> None:
        """Close the file. Raises ConnectionCut where it became shorter: the kernel does not tell who sent less."""
        try:
            if not self._file.closed:
                self._check()
        except StoredImageCut as error:
            raise ConnectionCut(f"{self._what} was cut: {error}") from error
        finally:
            self._file.close()

    def _check(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size < self._end:
            raise StoredImageCut(f"{self._what} has a file of {size} bytes, where {self._end} should be")


@contextlib.contextmanager
def patience(environ: Mapping[str, Any], seconds: float) -> Iterator[None]:
    """Have reading the request's body raise where nothing comes for so long: the client has gone without a word.

    Servers other than gunicorn wait as they will.
    """
    connection = environ.get("gunicorn.socket")
    if connection is None:
        yield
        return
    before = connection.gettimeout()
    connection.settimeout(seconds)
    try:
        yield
    finally:
        connection.settimeout(before)


def read_on(environ: Mapping[str, Any], *, seconds: float = 30, silence: float = 5) -> None:
    """Read what is left of the request's body, for nothing, once the answer is out; at most for so long.

    Many a client reads no answer before it has sent everything, and a connection that is closed on bytes that nobody
    has read is reset: the client would never see why. One that sends nothing for `silence` seconds is given up too.
    Servers other than gunicorn have ways of their own.
    """
    connection = environ.get("gunicorn.socket")
    if connection is None:
        return
    until = time.monotonic() + seconds
    try:
        with patience(environ, silence):
            while time.monotonic() < until and environ["wsgi.input"].read(_UNREAD):
                pass
    except Exception as error:  # noqa: BLE001 every server has errors of its own for a client that has gone
        log.debug("the rest of a body was not read: %s", error)


def _reset(environ: Mapping[str, Any]) -> None:
    """Have the client see a reset. Servers other than gunicorn do not hand out the socket; theirs ends as they will."""
    connection = environ.get("gunicorn.socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            connection.close()
