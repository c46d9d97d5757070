"""One GET of another service, whose answer is bounded in time and in bytes, and followed nowhere else.

The time is that of the whole answer: a timeout alone is one of each read, and a peer that sends a byte now and then
could hold a thread for ever.
"""

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Mapping
from urllib.parse import urlsplit


class HttpFailed(Exception):
    """A service that does not answer, not in time, with too much, or with no HTTP; the text says why."""


def get(
    url: str, *, headers: Mapping[str, str], seconds: float, limit: int, context: ssl.SSLContext | None
) -> tuple[int, bytes]:
    """Return status and body of what `url` answers within `seconds` and `limit` bytes. No redirect is followed.

    `context` is for URLs of the scheme https. Raises HttpFailed.
    """
    parts = urlsplit(url)
    host, target = parts.hostname or "", (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = (
        http.client.HTTPSConnection(host, parts.port, timeout=seconds, context=context)
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, parts.port, timeout=seconds)
    )
    try:
        connection.connect()
        ending = threading.Timer(seconds, _end, args=(connection.sock,))
        ending.daemon = True
        ending.start()
        try:
            connection.request("GET", target, headers={"Accept": "application/json", **headers})
            with connection.getresponse() as answer:
                status, body = answer.status, answer.read(limit + 1)
        finally:
            ending.cancel()
    except (OSError, http.client.HTTPException, ValueError) as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise HttpFailed(f"{url} does not answer: {said}") from None
    finally:
        connection.close()
    if len(body) > limit:
        raise HttpFailed(f"{url} answers with more than {limit} bytes")
    return status, body


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
