"""Reading ahead: an iterator of pieces that runs on a thread of its own, a bounded number of pieces before its reader.

The law: what the pieces hold while they wait is bounded; an error in the producer is raised in the reader, in its
place; `close` ends the thread whatever it is doing, and returns after it has ended.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator


class ReadAhead(Iterator[bytes]):
    """The pieces of `produce()`, made on a thread, at most `budget` bytes of them waiting."""

    def __init__(self, produce: Callable[[], Iterator[bytes]], *, budget: int) -> None:
        self._produce = produce
        self._budget = budget
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            pieces = self._produce()
            try:
                for piece in pieces:
                    with self._changed:
                        self._pieces.append(piece)
                        self._waiting += len(piece)
                        self._changed.notify_all()
                        self._changed.wait_for(lambda: self._waiting < self._budget or self._closed)
                        if self._closed:
                            return
            finally:
                close = getattr(pieces, "close", None)
                if close is not None:
                    close()
        except BaseException as error:  # noqa: BLE001  whatever it is, the reader gets it
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def __next__(self) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._ended)
            if self._pieces:
                piece = self._pieces.popleft()
                self._waiting -= len(piece)
                self._changed.notify_all()
                return piece
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopIteration

    def close(self) -> None:
        """End the thread and drop what waits. Idempotent."""
        with self._changed:
            self._closed = True
            self._pieces.clear()
            self._changed.notify_all()
        self._thread.join()
