"""A body as it comes: read piece by piece, and told of while it does.

The law: what came before a client left counts, so its leaving is no error while there is something to read, but a fact
at the end.
"""

import time
from collections.abc import Callable

from data.storage.base import COPY_SIZE
from util.digest import Readable

TOUCH_SECONDS = 60
"""How often a body that comes slowly is told of."""


class Incoming:
    """A body. `broken` is why it could not be read to its end."""

    def __init__(self, body: Readable, touch: Callable[[], None]) -> None:
        """`touch` is called every TOUCH_SECONDS; what it raises ends reading."""
        self._body, self._touch = body, touch
        self._touched = time.monotonic()
        self.broken: Exception | None = None

    def read(self) -> bytes:
        """Return the next bytes, none at the end, also where the client has gone."""
        if time.monotonic() - self._touched > TOUCH_SECONDS:
            self._touch()
            self._touched = time.monotonic()
        try:
            return self._body.read(COPY_SIZE)
        except Exception as error:  # noqa: BLE001 every server has errors of its own for a client that has gone
            self.broken = error
            return b""
