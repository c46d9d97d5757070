"""A body on the wire: the whole of it, or a connection that is cut.

The law: once the first byte is out, an error cannot be told any more; what is left is to make sure that nobody takes a
short file for a whole one. With a Content-Length or in chunks it is enough that the body does not end as it should: the
exception leaves through the server, which drops the connection. A client of HTTP/1.0 that was told no length (a proxy,
often) takes any orderly close for the end, so its connection is reset instead.
"""

import contextlib
import logging
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from endpoints.streams import Chunks, close
from util.problem import Problem

log = logging.getLogger(__name__)

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


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


def _reset(environ: Mapping[str, Any]) -> None:
    """Have the client see a reset. Servers other than gunicorn do not hand out the socket; theirs ends as they will."""
    connection = environ.get("gunicorn.socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            connection.close()
