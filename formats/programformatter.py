"""The contract of a format that somebody else's program makes: one file, out of the root file system's tar.

The law: that of every format (formatter.py). How large it is, only making it tells; the file is whole before its first
byte is given out, and has no name, so that nothing is left of it whoever dies. The program's version is part of what
decides the bytes. Where no program is there, the format says which one it wants.
"""

import os
import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import IO, ClassVar

from formats.formatter import Formatter, Rootfs, SourceImage
from formats.program import Program
from util.problem import Unavailable

_PIECE = 256 << 10


class ProgramMissing(Unavailable):
    """A format whose program is not there any more."""

    code = "PROGRAM_MISSING"


class ProgramFormatter(Formatter):
    """A format that one of several programs makes."""

    programs: ClassVar[Sequence[Program]]
    """The best first."""

    @abstractmethod
    def arguments(self, program: Program, image: SourceImage, rootfs: Rootfs) -> Sequence[str]:
        """Return the arguments of `program`, which reads the tar and writes `{output}`: the same bytes each time."""

    @property
    def unavailable(self) -> str | None:
        """What is wrong with each program, None where there is one that will do."""
        return None if self._found() else "; ".join(str(program.missing) for program in self.programs)

    @property
    def program(self) -> str | None:
        """The name and version of the program that makes it."""
        found = self._found()
        return None if found is None else found.version

    def _found(self) -> Program | None:
        return next((program for program in self.programs if program.missing is None), None)

    def size(self, image: SourceImage, rootfs: Rootfs) -> int | None:
        """Return None, after what `check` raises."""
        self.check(image, rootfs)
        return None

    def stream(self, image: SourceImage, rootfs: Rootfs, *, folder: str) -> Iterator[bytes]:
        """Return the file's bytes; it is made when the first is asked for, in `folder`.

        Raises what `check` raises, and ProgramMissing; later ProgramFailed, before the first byte.
        """
        self.check(image, rootfs)
        program = self._found()
        if program is None:
            raise ProgramMissing(f"{self.verb} cannot be made here: {self.unavailable}")
        return self._made(program, self.arguments(program, image, rootfs), rootfs, folder)

    def _made(self, program: Program, arguments: Sequence[str], rootfs: Rootfs, folder: str) -> Iterator[bytes]:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as output:
            tar = rootfs.get_range(0, rootfs.size)
            try:
                program.make(arguments, tar, output)
            finally:
                close = getattr(tar, "close", None)
                if close is not None:
                    close()
            yield from _pieces(output)


def _pieces(output: IO[bytes]) -> Iterator[bytes]:
    output.seek(0)
    while piece := output.read(_PIECE):
        yield piece
