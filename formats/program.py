"""Programs that are not ours: whether they are there, which version they are, and what they make of a stream.

The law: a program is fed on its standard input, writes one file that has no name, and is gone with whoever waits for
it: killed where it is given up and where our process ends, ended by its input's end where we are killed ourselves. What
it made counts only where it ended well and had nothing to say that was not foreseen. Nobody waits for ever for one that
does not go on.
"""

import atexit
import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, cast

from util.problem import Problem

STILL_SECONDS = 600.0
"""How long a program may neither read, nor say anything, nor end."""

_VERSION_SECONDS = 20.0
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}
_VERSION = re.compile(r"\d+(?:\.\d+)+")
_KEPT_LINES = 50
_LONGEST_LINE = 2000


class ProgramFailed(Problem):
    """A program that did not make what it should have. The text names it, and has the last line that it said."""

    code = "PROGRAM_FAILED"


@dataclass(frozen=True, slots=True)
class Program:
    """A program of the Debian package `package`; `oldest` is the first version that will do.

    `tolerated` matches what it may complain of.
    """

    name: str
    package: str
    version_option: str
    oldest: tuple[int, ...] = (0,)
    tolerated: re.Pattern[str] = re.compile("(?!)")

    @property
    def missing(self) -> str | None:
        """Why it cannot be used, None where it can."""
        path = shutil.which(self.name)
        if path is None:
            return f"{self.name} is not installed (Debian package {self.package})"
        version = self._version(path)
        if version is None:
            return f"{path} does not tell its version"
        if tuple(map(int, version.split("."))) < self.oldest:
            return f"{self.name} {version} is older than {'.'.join(map(str, self.oldest))}"
        return None

    @property
    def version(self) -> str:
        """Its name and version; `missing` is None."""
        return f"{self.name} {self._version(shutil.which(self.name) or self.name)}"

    def _version(self, path: str) -> str | None:
        try:
            status = os.stat(path)
        except OSError:
            return None
        return _version_of(path, self.version_option, status.st_mtime_ns, status.st_size)

    def make(self, arguments: Sequence[str], chunks: Iterator[bytes], output: IO[bytes]) -> None:
        """Have it make `output`, whose place among the arguments is `{output}`, of `chunks`.

        Raises ProgramFailed, and what `chunks` raises; nothing runs afterwards.
        """
        path = shutil.which(self.name) or self.name
        place = f"/dev/fd/{output.fileno()}"
        command = [path, *(place if each == "{output}" else each for each in arguments)]
        try:
            process = subprocess.Popen(  # noqa: S603 the arguments are ours
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(output.fileno(),),
                env=_ENVIRONMENT,
                start_new_session=True,  # a terminal's Ctrl-C is for us: we end it
            )
        except OSError as error:
            raise ProgramFailed(f"{self.name} cannot be started: {error.strerror or error}") from error
        _RUNNING.add(process)
        feeding = _Feeding(self.name, process, chunks)
        try:
            feeding.run()
        finally:
            process.kill()
            process.wait()
            _RUNNING.discard(process)
            feeding.close()
        said = [line for line in feeding.said if not self.tolerated.search(line)]
        if process.returncode or said:
            raise ProgramFailed(f"{self.name} {_ending(process.returncode)}{f': {said[-1]}' if said else ''}")


class _Feeding:
    """A program that runs, and is fed. All in one thread: its input is written as it takes it, its words are read."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", chunks: Iterator[bytes]) -> None:
        self.said: deque[str] = deque(maxlen=_KEPT_LINES)
        self._name, self._process, self._chunks = name, process, chunks
        self._stdin = cast("IO[bytes]", process.stdin)
        self._stderr = cast("IO[bytes]", process.stderr)
        self._waiting = memoryview(b"")
        self._line = b""
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stderr.fileno(), False)

    def run(self) -> None:
        """Feed it all, and wait for its end. Raises ProgramFailed where it does not go on, and what `chunks` raises."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdin, selectors.EVENT_WRITE)
            selector.register(self._stderr, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(STILL_SECONDS)
                if not ready:
                    raise ProgramFailed(f"{self._name} did nothing for {STILL_SECONDS:g} s")
                for key, _ in ready:
                    if not (self._write() if key.fileobj is self._stdin else self._read()):
                        selector.unregister(key.fileobj)
                        if key.fileobj is self._stdin:
                            self._shut(self._stdin)
        try:
            self._process.wait(STILL_SECONDS)
        except subprocess.TimeoutExpired:
            raise ProgramFailed(f"{self._name} did not end for {STILL_SECONDS:g} s") from None

    def close(self) -> None:
        """Let go of the pipes."""
        self._shut(self._stdin)
        self._shut(self._stderr)

    def _write(self) -> bool:
        """Write what it takes; False where there is no more to write, or it wants no more."""
        if not self._waiting:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._waiting = memoryview(chunk)
        try:
            self._waiting = self._waiting[os.write(self._stdin.fileno(), self._waiting) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:  # how it ends says more
            return False
        return True

    def _read(self) -> bool:
        """Read what it says; False at its end."""
        try:
            text = os.read(self._stderr.fileno(), 64 << 10)
        except BlockingIOError:
            return True
        *lines, self._line = (self._line + text).split(b"\n")
        if not text:
            lines.append(self._line)
        self._line = self._line[:_LONGEST_LINE]
        for line in lines:
            words = line[:_LONGEST_LINE].decode(errors="replace").strip()
            if words:
                self.said.append(words)
        return bool(text)

    @staticmethod
    def _shut(pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError):
            pipe.close()


@lru_cache(maxsize=64)
def _version_of(path: str, option: str, _modified: int, _size: int) -> str | None:
    """Return the version that the program says it has, asked once as long as its file stays as it is."""
    try:
        done = subprocess.run(  # noqa: S603 a program that somebody has put on the PATH
            [path, option],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_ENVIRONMENT,
            timeout=_VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search((done.stdout + done.stderr).decode(errors="replace"))
    return found and found[0]


def _ending(status: int) -> str:
    if status < 0:
        return f"was killed ({signal.Signals(-status).name})"
    return f"ended with status {status}" if status else "complained"


_RUNNING: "set[subprocess.Popen[bytes]]" = set()


def _kill_all() -> None:
    """End what threads wait for that will not come to their ends."""
    for process in list(_RUNNING):
        process.kill()


atexit.register(_kill_all)
os.register_at_fork(after_in_child=_RUNNING.clear)
