"""Reading a blob over as many connections as it takes.

Invariants: what is read is the bytes from the first position to the end that was known when the blob was opened; where
a connection breaks, the next one goes on at the byte where it broke, of the same object or not at all.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

from data.storage.base import StorageUnavailable

log = logging.getLogger(__name__)

_RESUMPTIONS = 5  # in a row without one byte between them


class Body(Protocol):
    """The bytes of one answer."""

    def read(self, size: int, /) -> bytes: ...
    def close(self) -> object: ...


class ResumingReader:
    """`left` bytes from `position` of the blob at `path`, `body` being the answer that has begun with them.

    `reopen` returns the answer from one offset to another; it sees to it that the object is the same, and raises
    BlobNotFound and StorageUnavailable. `broken` are the errors of a body whose connection broke.
    """

    def __init__(
        self,
        path: str,
        position: int,
        left: int,
        *,
        body: Body,
        reopen: Callable[[int, int], Body],
        broken: tuple[type[Exception], ...],
    ) -> None:
        self._path, self._position, self._end = path, position, position + left
        self._body: Body | None = body
        self._reopen, self._breaks = reopen, broken
        self._broken = 0

    def read(self, size: int = -1, /) -> bytes:
        left = self._end - self._position
        wanted = left if size < 0 else min(size, left)
        if size >= 0:
            return self._piece(wanted) if wanted else b""
        pieces = []
        while self._position < self._end:
            pieces.append(self._piece(self._end - self._position))
        return b"".join(pieces)

    def close(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            with contextlib.suppress(*self._breaks):
                body.close()

    def _piece(self, wanted: int) -> bytes:
        """Return at most `wanted` bytes, and at least one."""
        while True:
            try:
                if self._body is None:
                    self._body = self._reopen(self._position, self._end)
                piece = self._body.read(wanted)
                if piece:
                    self._position += len(piece)
                    self._broken = 0
                    return piece
                reason = "the connection was closed"
            except self._breaks as error:
                reason = str(error)
            self.close()
            self._broken += 1
            if self._broken > _RESUMPTIONS:
                raise StorageUnavailable(f"{self._path} cannot be read on from byte {self._position}: {reason}")
            log.warning("reading %s goes on at byte %d after: %s", self._path, self._position, reason)


class Nothing:
    """No bytes at all, as of a range that begins where the blob ends."""

    def read(self, size: int = -1, /) -> bytes:
        return b""

    def close(self) -> None:
        pass
