"""A proxy for tests that stands between us and a storage, and refuses what it is told to refuse.

The law: what it does not refuse it passes on as it came.
"""

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Refuses = Callable[[str, str], str | None]
"""Is told a request's method and target, and says `refuse` (an error that is not tried again), `cut` or None."""

_REFUSAL = b"<?xml version='1.0'?><Error><Code>QuotaExceeded</Code><Message>no more room</Message></Error>"


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `target`, a URL. `adds` are headers that answers get, by names in lower case."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.refuses: Refuses = lambda _, __: None
        self.adds: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that leave are what tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        refusal = self.server.refuses(self.command, self.path)
        if refusal == "cut":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        if refusal == "refuse":
            self._answer(403, [("Content-Type", "application/xml")], _REFUSAL)
            return
        connection = http.client.HTTPConnection(self.server.target, timeout=30)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            self._answer(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        length = str(len(body))
        adds = self.server.adds
        for name, value in [*((name, value) for name, value in headers if name.lower() not in adds), *adds.items()]:
            if name.lower() == "content-length":
                length = value  # a HEAD tells of a body that does not come
            elif name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815 http.server's names


@contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """Give a proxy to `target` that runs."""
    with Proxy(target) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
