"""The spool: the file that one making grows, and those who read it meanwhile, in its own process and in others.

The law: what the data file holds is right, in order, and never taken back. What else there is to know stands in a note
beside it, whose lines are only ever added. The maker has the note locked (flock) from before it has a name until after
it has lost it: a note that has no end and no lock is a dead maker's. Readers hold descriptors, so names may go at any
time, and a reader neither slows a maker nor outlives what it has opened.
"""

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
import weakref
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from util.problem import Damaged, Problem

SWEEP_SECONDS = 60.0
"""How long a spool must have been still to be swept: one that is just coming to be has no lock for a moment."""

DATA = ".data"
"""Stands after the name of a note in that of its data."""

_NEW = ".new"
_MAX_REASON = 2000
_MAX_NOTE = 64 << 10


class SpoolCut(Damaged):
    """A spool that holds less than its maker has told; somebody has cut the file."""

    code = "SPOOL_CUT"


class MakingFailed(Problem):
    """A making, in another process, that ended with an error after its first byte. The text is the error's."""

    code = "MAKING_FAILED"


class MakerGone(Exception):
    """The spool will not grow any more and is not whole. What it holds is right; the rest must come from elsewhere.

    `ending` is None where the maker left without a word.
    """

    def __init__(self, why: str, ending: "Ending | None" = None) -> None:
        super().__init__(why)
        self.ending = ending


class Ending(StrEnum):
    """How a making leaves its spool."""

    WHOLE = "whole"
    FAILED = "failed"  # the image cannot be made
    LEFT = "left"  # the maker was told to stop
    BROKEN = "broken"  # the spool itself takes no more; the image may still be made


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a spool. `size` is how many bytes there will be, None until the end where only that tells."""

    begun: bool = False
    written: int = 0
    size: int | None = None
    ending: Ending | None = None


class Spool:
    """A maker's side. One thread writes; any may follow. Every method but `close` raises OSError."""

    def __init__(self, folder: str, token: str, *, growing: str | None = None) -> None:
        """Make the spool `token` in `folder`, of the file `growing` where the maker has one that it writes itself."""
        self._name = os.path.join(folder, token)
        self._growing = growing
        self._changed = threading.Condition()
        self._state = State()
        self._error: Exception | None = None
        self._followers = 0
        self._descriptors: list[int] = []
        self._note = self._data = -1
        os.makedirs(folder, exist_ok=True)
        try:
            self._note = self._opened(self._name + _NEW, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND)
            fcntl.flock(self._note, fcntl.LOCK_EX)
            self._tell(growing=growing)
            data = self._name + DATA
            if growing is None:
                self._data = self._opened(data, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            else:
                _link(growing, data)
                self._data = self._opened(data, os.O_RDONLY)
            os.rename(self._name + _NEW, self._name)
        except BaseException:
            self.close()
            raise
        _SPOOLS.add(self)

    @property
    def state(self) -> State:
        """What a follower would see now."""
        return self._state

    @property
    def followers(self) -> int:
        """How many of this process follow."""
        return self._followers

    def begin(self, size: int | None) -> None:
        """Tell that the first bytes are found, and how many there will be where that is known."""
        self._tell(begun=True, size=size)
        self._become(State(begun=True, size=size))

    def write(self, chunk: bytes) -> None:
        """Append `chunk`; not where the maker writes the growing file itself."""
        with memoryview(chunk) as rest:
            written = 0
            while written < len(rest):
                written += os.write(self._data, rest[written:])
        self.grown(len(chunk))

    def grown(self, length: int) -> None:
        """Tell that the growing file has `length` more bytes."""
        now = self._state
        self._become(State(begun=True, written=now.written + length, size=now.size))

    def end(self, ending: Ending, error: Exception | None = None) -> None:
        """Tell how it ended; `error` is raised in who follows a failed one. Raises nothing; the first end counts."""
        now = self._state
        if now.ending is not None:
            return
        size = now.written if ending is Ending.WHOLE else now.size
        # A note that cannot be written loses its lock soon: to other processes the maker is then gone, which is safe.
        with contextlib.suppress(OSError):
            self._tell(ending=ending, size=size, reason=None if error is None else str(error)[:_MAX_REASON])
        self._error = error
        self._become(State(now.begun, now.written, size, ending))

    def close(self) -> None:
        """Take the names away and let go of the files. Raises nothing; idempotent."""
        self.end(Ending.LEFT)
        for name in (self._name + _NEW, self._name, self._name + DATA):
            with contextlib.suppress(OSError):
                os.unlink(name)
        with self._changed:
            self.forget()

    def forget(self) -> None:
        """Let go of the files, and leave the names: in a process that was forked from the maker's.

        Takes no lock: the thread that had it has not come along.
        """
        self._note = self._data = -1
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _opened(self, name: str, flags: int) -> int:
        descriptor = os.open(name, flags | os.O_CLOEXEC, 0o600)
        self._descriptors.append(descriptor)
        return descriptor

    def _tell(self, **line: Any) -> None:
        # A new line first: a full disk may have cut the one before.
        said = b"\n" + json.dumps(line).encode() + b"\n"
        if os.write(self._note, said) < len(said):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _become(self, state: State) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()

    @property
    def error(self) -> Exception | None:
        """Why it failed."""
        return self._error

    def join(self) -> int:
        """Count a follower in, and return a descriptor of its own for the data. Raises MakerGone after `close`."""
        with self._changed:
            if not self._descriptors:
                raise MakerGone("the making has ended", Ending.LEFT)
            self._followers += 1
            return os.dup(self._data)

    def part(self) -> None:
        """Count a follower out."""
        with self._changed:
            self._followers -= 1

    def wait(self, beyond: int, timeout: float | None) -> State:
        """Return the state once it has more than `beyond` bytes or an end, or after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._state.ending is not None or self._state.written > beyond, timeout)
            return self._state


def dead(folder: str, token: str) -> bool:
    """Tell whether the maker of the spool `token` died without taking it away."""
    try:
        note = os.open(os.path.join(folder, token), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_unlocked(note)
    finally:
        os.close(note)


def is_unlocked(note: int) -> bool:
    """Tell whether nobody has the note locked that is open as `note`."""
    try:
        fcntl.flock(note, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.flock(note, fcntl.LOCK_UN)
    return True


def bury(folder: str, token: str) -> bool:
    """Remove what a dead maker left of the spool `token`; False where its maker lives or there is no such spool."""
    for name in (token, token + _NEW):
        path = os.path.join(folder, name)
        try:
            note = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if not is_unlocked(note):
                return False
            growing = _growing(read_note(note))
            for left in (growing, path, os.path.join(folder, token + DATA)):
                if left is not None:
                    with contextlib.suppress(OSError):
                        os.unlink(left)
            return True
        finally:
            os.close(note)
    return False


def sweep(folder: str, *, older_than: float = SWEEP_SECONDS, dry_run: bool = False) -> int:
    """Remove the spools of dead makers that nothing was written to for `older_than` seconds; return how many."""
    found = 0
    for token in sorted(_tokens(folder)):
        files = [os.path.join(folder, token + suffix) for suffix in ("", _NEW, DATA)]
        if _age(files) < older_than:
            continue
        if dry_run:
            found += not _alive(files[:2])
        elif bury(folder, token):
            found += 1
        elif not any(map(os.path.exists, files[:2])):  # data alone: its maker died on its way out
            with contextlib.suppress(OSError):
                os.unlink(files[2])
                found += 1
    return found


def _tokens(folder: str) -> set[str]:
    try:
        return {name.removesuffix(_NEW).removesuffix(DATA) for name in os.listdir(folder)}
    except OSError:
        return set()


def _age(files: list[str]) -> float:
    """Return for how many seconds nothing was written to any of `files`."""
    times = []
    for file in files:
        with contextlib.suppress(OSError):
            times.append(os.stat(file).st_mtime)
    return time.time() - max(times, default=0)


def _alive(notes: list[str]) -> bool:
    for note in notes:
        with contextlib.suppress(OSError):
            descriptor = os.open(note, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not is_unlocked(descriptor):
                    return True
            finally:
                os.close(descriptor)
    return False


def _growing(note: bytes) -> str | None:
    growing = what_says(note).get("growing")
    return growing if isinstance(growing, str) else None


def read_note(note: int) -> bytes:
    """Return what stands in the note that is open as `note`."""
    return os.pread(note, _MAX_NOTE, 0)


def what_says(note: bytes) -> dict[str, Any]:
    """Return what all lines say together. One that a full disk has cut says nothing."""
    said: dict[str, Any] = {}
    for line in note.splitlines():
        with contextlib.suppress(ValueError):
            said |= json.loads(line)
    return said


def _link(growing: str, data: str) -> None:
    try:
        os.link(growing, data)
    except OSError:  # on another file system, or one without links: then a follower may come too late for the name
        os.symlink(os.path.abspath(growing), data)


_SPOOLS: "weakref.WeakSet[Spool]" = weakref.WeakSet()


def _forget_the_parent_s() -> None:
    """Let go of what the forked process's parent makes: its lock must die with it."""
    for spool in list(_SPOOLS):
        spool.forget()


os.register_at_fork(after_in_child=_forget_the_parent_s)
