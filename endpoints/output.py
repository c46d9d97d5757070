"""Where the command line writes an image: a file that is there as a whole or not at all, or a stream.

The law: a regular file gets its name when it is complete; what is no regular file (stdout, a pipe, a device) is written
as it comes.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from util.problem import Problem

STDOUT = "-"


class OutputFailed(Problem):
    """A file that cannot be written: no such folder, no permission, no space."""

    code = "OUTPUT_FAILED"


class Output:
    """An output that is open. Leaving its context with an exception leaves no file, and one from before as it was.

    `name` is `-`, a file, or a folder, and then the file is `file_name` in it. Raises OutputFailed, and
    BrokenPipeError where nobody reads any more; both only for its own sake, never for that of a source.
    """

    def __init__(self, name: str, file_name: str) -> None:
        self._name = name
        self._path: str | None = None  # of a regular file, while it is incomplete
        path = os.path.join(name, file_name) if os.path.isdir(name) else name
        with self._explained():
            if name == STDOUT:
                # Not sys.stdout: nothing may be left in its buffer for a pipe that broke.
                self._stream = os.fdopen(os.dup(1), "wb")
            elif os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
                self._stream = open(path, "wb")  # noqa: SIM115 closed on leaving
            else:
                self._path = os.path.realpath(path)
                self._stream = open(f"{self._path}.{secrets.token_hex(4)}.part", "xb")  # noqa: SIM115 closed on leaving

    def write(self, chunk: bytes) -> None:
        with self._explained():
            self._stream.write(chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            with self._explained():
                self._finish()
        else:
            self._give_up()

    def _finish(self) -> None:
        try:
            self._stream.flush()
            if self._path is not None:
                os.fsync(self._stream.fileno())
                os.replace(self._stream.name, self._path)
            self._stream.close()
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        with suppress(OSError):
            self._stream.close()
        if self._path is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._stream.name)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            what = "stdout" if self._name == STDOUT else self._name
            raise OutputFailed(f"{what} cannot be written: {error.strerror}") from error
