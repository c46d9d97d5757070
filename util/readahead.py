"""Reading ahead: an iterator of pieces that runs on a thread of its own, a bounded number of bytes before its reader.

The law: what waits in memory is bounded, and so is what waits on disk, where that is allowed; an error in the producer
is raised in the reader, in its place; `close` ends the thread whatever it is doing, and returns after it has ended.
"""

import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO

_PIECE = 1 << 20


class ReadAhead(Iterator[bytes]):
    """The bytes of `produce()`, made on a thread, in pieces: at most `budget` bytes wait in memory.

    With `spill`, up to so many more bytes wait in a temporary file without a name. One that cannot be made or written
    makes the producer wait instead.
    """

    def __init__(self, produce: Callable[[], Iterator[bytes]], *, budget: int, spill: int = 0) -> None:
        self._produce = produce
        self._budget = budget
        self._spill = spill
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._file: IO[bytes] | None = None
        self._written = self._read = 0
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
                    if not self._put(piece):
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

    def _put(self, piece: bytes) -> bool:
        """Let `piece` wait for the reader; False when there is none any more."""
        with self._changed:
            while not self._closed:
                # What is on disk comes after what is in memory, so memory is for whom nothing waits on disk.
                if self._read == self._written and self._waiting < self._budget:
                    self._read = self._written = 0
                    self._pieces.append(piece)
                    self._waiting += len(piece)
                    self._changed.notify_all()
                    return True
                if self._written + len(piece) <= self._spill:
                    break
                self._changed.wait()
            if self._closed:
                return False
        # The reader never comes past `_written`, so the lock is not needed while this takes its time.
        try:
            self._write(piece)
        except OSError:
            with self._changed:
                self._spill = 0
            return self._put(piece)
        with self._changed:
            self._written += len(piece)
            self._changed.notify_all()
        return True

    def _write(self, piece: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0, prefix="registry-verbs-")  # noqa: SIM115 closed by close()
        view, at = memoryview(piece), self._written
        while view:
            count = os.pwrite(self._file.fileno(), view, at)
            view, at = view[count:], at + count

    def __next__(self) -> bytes:
        with self._changed:
            while not self._pieces:
                if self._read < self._written:
                    break
                if self._ended:
                    return self._end()
                self._changed.wait()
            else:
                piece = self._pieces.popleft()
                self._waiting -= len(piece)
                self._changed.notify_all()
                return piece
            at, size = self._read, min(_PIECE, self._written - self._read)
        # Only the reader closes the file, and nothing is on disk without one.
        piece = os.pread(self._file.fileno(), size, at) if self._file is not None else b""
        if not piece:
            raise OSError(f"a temporary file has lost the {size} bytes at {at}")
        with self._changed:
            self._read += len(piece)
            self._changed.notify_all()
        return piece

    def _end(self) -> bytes:
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
        if self._file is not None:
            self._file.close()
            self._file = None
