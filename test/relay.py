"""A relay for tests between a client and a server: passes bytes on as they come, and breaks connections when told."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

_RESET = struct.pack("ii", 1, 0)


class Relay:
    """Passes on to `target`, a URL. Everything but `url` may be used while it runs."""

    def __init__(self, target: str) -> None:
        place = urlsplit(target)
        self._target = (place.hostname or "", place.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = place._replace(netloc=f"127.0.0.1:{self._listener.getsockname()[1]}").geturl()
        self._lock = threading.Lock()
        self._cuts: list[int] = []
        self._open: set[socket.socket] = set()
        self.requests: list[bytes] = []
        """The first bytes of every request, its headers among them where the client sends them at once."""
        threading.Thread(target=self._serve, daemon=True).start()

    def cut_after(self, *sizes: int) -> None:
        """Reset the next connections that bring bytes to the client, each after so many of them."""
        with self._lock:
            self._cuts.extend(sizes)

    def waiting(self) -> int:
        """Return how many cuts have not been made."""
        return len(self._cuts)

    def cut_all(self) -> None:
        """Reset every connection that is open."""
        with self._lock:
            for connection in self._open:
                _reset(connection)

    def ranges(self) -> list[str]:
        """Return the ranges that GET requests asked for, empty for those that asked for none."""
        found = []
        for request in self.requests:
            if request.startswith(b"GET "):
                lines = request.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                found.append(headers.get("range", headers.get("x-ms-range", "")))
        return found

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                _reset(client)
                continue
            with self._lock:
                self._open.update((client, server))
            threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True).start()

    def _pass_on(self, origin: socket.socket, target: socket.socket, to_client: bool) -> None:
        left: int | None = None
        with contextlib.suppress(OSError):
            while piece := origin.recv(1 << 16):
                if not to_client:
                    self.requests.append(piece)
                elif left is None:
                    with self._lock:
                        left = self._cuts.pop(0) if self._cuts else None
                if left is not None and len(piece) >= left:
                    target.sendall(piece[:left])
                    _reset(target)
                    break
                left = None if left is None else left - len(piece)
                target.sendall(piece)
        with self._lock:
            self._open -= {origin, target}
        for end in (origin, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        if to_client:  # both directions are shut now
            origin.close()
            target.close()


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(target: str) -> Iterator[Relay]:
    """Give a relay to `target` that runs."""
    running = Relay(target)
    try:
        yield running
    finally:
        running.close()
