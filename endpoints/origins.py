"""Where a client's bytes come from, and what takes its place when it is gone in the middle.

The law: a client gets one image, to the byte, or a cut. Where the maker of a spool is gone, its followers go on at the
byte they have come to with whatever there is then; what was sent is compared with what is skipped, so that nobody gets
two halves.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from data.derivedimages import DerivedRecord
from endpoints.following import Follower
from endpoints.maker import Maker
from endpoints.spool import MakerGone
from endpoints.streams import Chunks, Stream, close
from util.problem import Damaged

log = logging.getLogger(__name__)

_SETTLE_SECONDS = 2.0  # how long the end of a body waits for the image to be stored, so that a next request finds it
_NEVER = 1 << 62  # no spool has as many bytes


class BytesDiffer(Damaged):
    """An image that was to be gone on with, and begins with other bytes than its client has."""

    code = "BYTES_DIFFER"


class How(StrEnum):
    """Where the bytes of a live image come from."""

    MADE = "made"  # by a making that this request began
    FOLLOWED = "followed"  # from one that was running, in this process or another one of this host
    STREAMED = "streamed"  # by a generation of its own, of which nothing is kept


@dataclass(frozen=True, slots=True)
class Stored:
    """An image that is complete in storage: `record` has its path, size and SHA-256."""

    record: DerivedRecord


@dataclass(frozen=True, slots=True)
class Live:
    """An image that is being made. `chunks` has begun and is closed by its reader; `size` in bytes, None if unknown."""

    chunks: Chunks
    size: int | None
    how: How


Serving = Stored | Live


class Source(Protocol):
    """Where a client's bytes come from."""

    size: int | None
    how: How

    def chunks(self) -> Iterator[bytes]:
        """Yield all of the image, once. Raises MakerGone only where `piece` gives what came."""

    def piece(self, offset: int, length: int) -> bytes:
        """Return at least one and at most `length` bytes of what came."""

    def close(self) -> None:
        """Let go. Idempotent."""


class Spooled:
    """A making's spool. `maker` is None where another process makes it."""

    def __init__(self, follower: Follower, size: int | None, how: How, maker: Maker | None) -> None:
        self.size, self.how, self.maker = size, how, maker
        self._follower = follower

    def chunks(self) -> Iterator[bytes]:
        yield from self._follower.chunks()
        if self.maker is not None:
            self.maker.done.wait(_SETTLE_SECONDS)

    def piece(self, offset: int, length: int) -> bytes:
        return self._follower.piece(offset, length)

    def close(self) -> None:
        self._follower.close()

    def progress(self) -> tuple[int, int | None]:
        """Return how many bytes are made, and of how many."""
        state = self._follower.watch(-1)
        return state.written, state.size

    def ended(self, timeout: float) -> bool:
        """Wait for the end, `timeout` seconds at most, and tell whether it came, whichever it is."""
        try:
            return self._follower.watch(_NEVER, timeout).ending is not None
        except MakerGone:
            return True


class Plain:
    """A stream that is nobody else's. `done` is called at its end."""

    how = How.STREAMED

    def __init__(self, stream: Stream, done: Callable[[], None]) -> None:
        self.size: int | None = stream.size
        self._stream = stream
        self._done: Callable[[], None] | None = done

    def chunks(self) -> Iterator[bytes]:
        return self._stream.chunks

    def piece(self, offset: int, length: int) -> bytes:
        raise ValueError("a stream does not go back")

    def close(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            try:
                close(self._stream.chunks)
            finally:
                done()


def lasting(what: str, source: Source, instead: Callable[[], Source]) -> Chunks:
    """Return the bytes of `source`, and where its maker goes, the rest from `instead()`. Closing it closes them."""
    chunks = _chunks(what, source, instead)
    next(chunks)  # now it stands within its `try`, and a close() reaches the source
    return chunks


def alone(source: Plain) -> Chunks:
    """Return the bytes of `source`, and of nothing in its place. Closing it closes the source."""
    chunks = _closing(source)
    next(chunks)
    return chunks


def _closing(source: Plain) -> Chunks:
    try:
        yield b""
        yield from source.chunks()
    finally:
        source.close()


def _chunks(what: str, source: Source, instead: Callable[[], Source]) -> Chunks:
    sent, proof = 0, source  # `proof` holds all that was sent
    try:
        yield b""
        while True:
            try:
                at = 0
                for chunk in source.chunks():
                    rest = chunk if at == sent else _checked_off(chunk, proof, at, sent, what)
                    at += len(chunk)
                    if not rest:
                        continue
                    if proof is not source:
                        proof.close()
                        proof = source
                    sent = at
                    yield rest
                if at < sent:
                    raise BytesDiffer(f"{what} ended after {at} bytes, {sent} of which were sent")
                return
            except MakerGone as gone:
                log.warning("%s goes on at byte %d without its maker: %s", what, sent, gone)
                if source is not proof:
                    source.close()
                source = instead()
    finally:
        source.close()
        proof.close()


def _checked_off(chunk: bytes, proof: Source, at: int, sent: int, what: str) -> bytes:
    """Return what of `chunk`, which stands at byte `at`, was not sent yet. Raises BytesDiffer."""
    before = min(len(chunk), sent - at)
    done = 0
    while done < before:
        piece = proof.piece(at + done, before - done)
        if chunk[done : done + len(piece)] != piece:
            raise BytesDiffer(f"{what} is not made of the same bytes as before, from byte {at + done} on")
        done += len(piece)
    return chunk[before:]
