"""Following a spool: its bytes from the first to the last, at the reader's own pace, while it grows.

The law: a follower yields all bytes, or raises. In the maker's own process it is woken; in another one it looks again
and again, notices by the note's lock when the maker is no more, and asks now and then whether it may still be waited
for: one that is stopped keeps its lock, but not its lease.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Self

from endpoints.spool import (
    DATA,
    Ending,
    MakerGone,
    MakingFailed,
    Spool,
    SpoolCut,
    State,
    is_unlocked,
    read_note,
    what_says,
)

PIECE = 1 << 20
"""The most bytes that a reader takes at a time."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.004, 0.05  # seconds between two looks at another process's spool
_PATIENCE = 2.0  # seconds without a byte, after which a reader asks whether its maker is still the one


class Follower(ABC):
    """A reader of a spool while it grows. Good for one thread; `close` it."""

    def __init__(self, data: int) -> None:
        self._data: int | None = data

    @abstractmethod
    def watch(self, beyond: int, timeout: float | None = None) -> State:
        """Return the state once there are more than `beyond` bytes or an end, at the latest after `timeout` seconds.

        Raises MakerGone where the maker has left without a word.
        """

    @abstractmethod
    def _failure(self) -> Exception:
        """Return why the making failed."""

    def begun(self) -> State:
        """Wait for the first byte of a making that goes on, or of one that is whole.

        Raises what it failed of, and MakerGone where its maker has left or is dead, whatever there is already.
        """
        state = self.watch(0)
        if state.ending not in (None, Ending.WHOLE):
            raise self._end(state)
        return state

    def chunks(self) -> Iterator[bytes]:
        """Yield all that the spool holds and will hold. Raises MakerGone, SpoolCut, and what the making failed of."""
        offset = 0
        while True:
            state = self.watch(offset)
            while offset < state.written:
                piece = self.piece(offset, min(PIECE, state.written - offset))
                offset += len(piece)
                yield piece
            if state.ending is Ending.WHOLE:
                if offset != state.size:
                    raise SpoolCut(f"the spool has {offset} bytes and should have {state.size}")
                return
            if state.ending is not None:
                raise self._end(state)

    def piece(self, offset: int, length: int) -> bytes:
        """Return at most `length` bytes from `offset`, at least one. Raises SpoolCut where there is none."""
        if self._data is None:
            raise ValueError("the follower has been closed")
        piece = os.pread(self._data, length, offset)
        if not piece:
            raise SpoolCut(f"the spool ends at byte {offset}")
        return piece

    def close(self) -> None:
        """Let go of the spool. Idempotent."""
        data, self._data = self._data, None
        if data is not None:
            os.close(data)
            self._closed()

    def _closed(self) -> None:  # noqa: B027 not every follower holds more
        pass

    def _end(self, state: State) -> Exception:
        if state.ending is Ending.FAILED:
            return self._failure()
        return MakerGone(f"the making is {state.ending}", state.ending)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Near(Follower):
    """In the maker's own process: woken by it."""

    def __init__(self, spool: Spool) -> None:
        super().__init__(spool.join())
        self._spool = spool

    def watch(self, beyond: int, timeout: float | None = None) -> State:
        return self._spool.wait(beyond, timeout)

    def _failure(self) -> Exception:
        return self._spool.error or MakingFailed("the making failed")

    def _closed(self) -> None:
        self._spool.part()


class _Far(Follower):
    """In another process: looks again and again, and at the lock when nothing comes."""

    def __init__(self, data: int, note: int, held: Callable[[], bool]) -> None:
        super().__init__(data)
        self._note, self._held = note, held
        self._lines, self._told = 0, State()
        self._reason = ""

    def watch(self, beyond: int, timeout: float | None = None) -> State:
        now = time.monotonic()
        end = None if timeout is None else now + timeout
        patience = now + _PATIENCE
        pause = _FIRST_PAUSE
        while True:
            state = self._look()
            if state.ending is not None or state.written > beyond:
                return state
            if pause > _FIRST_PAUSE and is_unlocked(self._note):
                state = self._look()  # it may have come to its end between the two looks
                if state.ending is not None or state.written > beyond:
                    return state
                raise MakerGone("the maker died")
            now = time.monotonic()
            if end is not None and now >= end:
                return state
            if now >= patience:
                if not self._held():
                    raise MakerGone("the maker stands still, and its lease is over")
                patience = now + _PATIENCE
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def begun(self) -> State:
        state = super().begun()
        if state.ending is None and is_unlocked(self._note) and self._look().ending is None:
            raise MakerGone("the maker died")
        return state

    def _look(self) -> State:
        # The note first: what it says of an end is then true of the data that is measured afterwards.
        if os.fstat(self._note).st_size != self._lines:
            self._read()
        if self._data is None:
            raise ValueError("the follower has been closed")
        told = self._told
        # Before a begin the data has no bytes, and after it all that it has are right.
        return State(told.begun, os.fstat(self._data).st_size if told.begun else 0, told.size, told.ending)

    def _read(self) -> None:
        lines = read_note(self._note)
        whole = lines[: lines.rfind(b"\n") + 1]
        self._lines = len(whole)
        said = what_says(whole)
        ending = said.get("ending")
        self._told = State(said.get("begun", False), 0, said.get("size"), None if ending is None else Ending(ending))
        self._reason = said.get("reason") or ""

    def _failure(self) -> Exception:
        return MakingFailed(self._reason or "the making failed")

    def _closed(self) -> None:
        os.close(self._note)


def find(folder: str, token: str, *, held: Callable[[], bool]) -> Follower | None:
    """Return a follower of the spool `token` in `folder`, whichever process makes it; None where there is none.

    `held` is asked, now and then while no byte comes, whether its maker may still be waited for.
    """
    name = os.path.join(folder, token)
    try:
        note = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.open(name + DATA, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        os.close(note)
        return None
    return _Far(data, note, held)
