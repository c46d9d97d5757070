"""Writing a blob in parts: what the drivers of object stores share.

Invariants:
- A blob that fits into one part is one request.
- Parts are filled one at a time and sent up to PARTS_AHEAD side by side, so a writer holds PARTS_AHEAD + 1 parts in
  memory, whatever the blob's size.
- Parts grow with their number, because every store has a largest number of them.
- No part is on its way any more when the upload is given back: one that arrived later would stay for good.
"""

from abc import abstractmethod
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, cast

from data.storage.base import BlobWriter

PART_SIZE = 8 << 20
"""Bytes of one part."""

PARTS_AHEAD = 2
"""Parts that are on their way up while the next one is filled. A writer holds that many and one more in memory."""

Part = TypeVar("Part")


class PartsWriter(BlobWriter, Generic[Part]):
    """A writer whose blob goes up in parts of `part_size` bytes, larger by one size after each `growth` parts.

    Every method that a driver defines raises StorageUnavailable, but `_give_back`, which raises nothing.
    """

    def __init__(self, path: str, *, part_size: int, growth: int) -> None:
        self._path, self._part_size, self._growth = path, part_size, growth
        # Parts are filled where they lie, and filled again once sent: what grows is moved, and leaves holes behind.
        self._part = bytearray()
        self._filled = 0
        self._sent: list[bytearray] = []
        self._begun = False
        self._threads: ThreadPoolExecutor | None = None
        self._sending: deque[tuple[Future[Part], bytearray]] = deque()
        self._parts: list[Part] = []

    @abstractmethod
    def _put_whole(self, content: bytes) -> None:
        """Make the blob of `content`, all of it."""

    @abstractmethod
    def _begin(self) -> None:
        """Begin an upload in parts. Called once, before the first part."""

    @abstractmethod
    def _put(self, number: int, content: bytes) -> Part:
        """Send a part, the first has number 1, and return what `_complete` needs of it. Called on another thread."""

    @abstractmethod
    def _complete(self, parts: list[Part]) -> None:
        """Make the blob of `parts`, in one step."""

    @abstractmethod
    def _give_back(self) -> None:
        """Remove the parts that were sent. Called where the upload was begun; logs what stays and raises nothing."""

    def _write(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:
            if self._filled == len(self._part):
                self._next_part()
            taken = rest[: len(self._part) - self._filled]
            self._part[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            rest = rest[len(taken) :]

    def _next_part(self) -> None:
        """Send the part that is full, if there is one, and begin another."""
        if self._part:
            self._send(self._part)
        size = self._part_size * (1 + self._count() // self._growth)
        part = self._sent.pop() if self._sent else bytearray()
        self._part = part if len(part) == size else bytearray(size)
        self._filled = 0

    def _commit(self) -> None:
        del self._part[self._filled :]
        if not self._begun:
            self._put_whole(_bytes(self._part))
            return
        self._send(self._part)
        self._wait(0)
        self._complete(self._parts)
        self._stop()

    def _abort(self) -> None:
        self._part = bytearray()
        self._stop()
        if self._begun:
            self._give_back()

    def _count(self) -> int:
        return len(self._parts) + len(self._sending)

    def _send(self, content: bytearray) -> None:
        """Send the next part as soon as there is room. Raises what went wrong with one before it."""
        if not self._begun:
            self._begin()
            self._begun = True
        self._wait(PARTS_AHEAD * self._part_size - len(content))
        if self._threads is None:
            self._threads = ThreadPoolExecutor(PARTS_AHEAD, thread_name_prefix="upload")
        self._sending.append((self._threads.submit(self._put, self._count() + 1, _bytes(content)), content))

    def _wait(self, room: int) -> None:
        """Wait until no more than `room` bytes are on their way, or none at all. Raises what went wrong with any."""
        for future, _ in self._sending:
            if future.done():
                future.result()
        while self._sending and sum(len(content) for _, content in self._sending) > max(room, 0):
            future, content = self._sending[0]
            self._parts.append(future.result())
            self._sending.popleft()
            self._sent.append(content)

    def _stop(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None
        self._sending.clear()
        self._sent.clear()


def _bytes(content: bytearray) -> bytes:
    """Return `content` itself: the clients take any bytes, and their stubs do not say so."""
    return cast("bytes", content)
