"""Streams of a derived image on their way out: started before they are promised, and never short without an error.

The law: a generator that was never started holds nothing, and one that is closed early closes what it holds.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from util.digest import Readable
from util.problem import Damaged

Chunks = Generator[bytes, None, None]


@dataclass(frozen=True, slots=True)
class Stream:
    """The bytes of a derived image. Whoever gets it closes `chunks`. `size` is None where only the end will tell."""

    chunks: Chunks
    size: int | None


HEADSTART = 64 << 10
"""Bytes pulled before an answer begins. More than the first bytes of any format, so that a layer has been opened."""

_PIECE = 256 << 10


class StoredImageCut(Damaged):
    """A stored derived image that ends before its end."""

    code = "STORED_IMAGE_CUT"


def started(chunks: Iterator[bytes], *, at_least: int = HEADSTART) -> Chunks:
    """Pull the first `at_least` bytes of `chunks` now, and return all of them. What goes wrong now is raised."""
    pulled: list[bytes] = []
    size = 0
    try:
        while size < at_least and (chunk := next(chunks, None)) is not None:
            pulled.append(chunk)
            size += len(chunk)
    except BaseException:
        close(chunks)
        raise
    passing = _passed_on(pulled, chunks)
    next(passing)  # now it stands within its `try`, and a close() reaches `chunks`
    return passing


def _passed_on(pulled: list[bytes], chunks: Iterator[bytes]) -> Chunks:
    try:
        yield b""
        while pulled:
            yield pulled.pop(0)
        yield from chunks
    finally:
        close(chunks)


def verified(chunks: Iterator[bytes]) -> Chunks:
    """Pass `chunks` on, and the last one after their end: what raises there is told by a body that is not whole."""
    try:
        held = next(chunks, None)
        while held is not None:
            following = next(chunks, None)
            yield held
            held = following
    finally:
        close(chunks)


def read_through(stream: Readable, size: int, *, what: str) -> Chunks:
    """Yield the `size` bytes of `stream` and close it. Raises StoredImageCut where there are fewer."""
    left = size
    try:
        while left:
            chunk = stream.read(min(_PIECE, left))
            if not chunk:
                raise StoredImageCut(f"{what} ends {left} bytes before its end")
            left -= len(chunk)
            yield chunk
    finally:
        stream.close()


def close(chunks: Iterator[bytes]) -> None:
    """Close `chunks` if it is of the kind that can be closed."""
    closing = getattr(chunks, "close", None)
    if closing is not None:
        closing()
