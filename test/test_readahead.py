"""Reading ahead: the same bytes in the same order, whatever waits where, and no thread that is left over."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from test.waiting import eventually
from util.readahead import ReadAhead

PIECE = 1000


def pieces(count: int, made: list[int] | None = None) -> Callable[[], Iterator[bytes]]:
    def produce() -> Iterator[bytes]:
        for number in range(count):
            if made is not None:
                made.append(number)
            yield (b"%d," % number).ljust(PIECE, b".")

    return produce


def settled(made: list[int], count: int) -> int:
    """Return how many pieces were made, after waiting for `count`, and for more that should not come."""
    eventually(lambda: len(made) >= count)
    time.sleep(0.2)
    return len(made)


@pytest.mark.parametrize("spill", [0, 3 * PIECE, 30 * PIECE, 10_000 * PIECE])
@pytest.mark.parametrize("hurried", [True, False], ids=["hurried", "late"])
def test_all_pieces_come_in_their_order(spill: int, hurried: bool) -> None:
    ahead = ReadAhead(pieces(500), budget=2 * PIECE, spill=spill)
    if not hurried:
        time.sleep(0.1)
    assert b"".join(ahead) == b"".join(pieces(500)())
    ahead.close()


def test_what_waits_is_bounded_in_memory_and_on_disk() -> None:
    made: list[int] = []
    ahead = ReadAhead(pieces(500, made), budget=2 * PIECE, spill=10 * PIECE)
    assert settled(made, 13) == 13  # two in memory, ten on disk, one in hand
    next(ahead)
    assert settled(made, 13) == 13  # what is on disk has to be read before memory is for others again
    ahead.close()


def test_nothing_waits_on_disk_where_that_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    made: list[int] = []
    ahead = ReadAhead(pieces(500, made), budget=2 * PIECE)
    assert settled(made, 3) == 3
    assert b"".join(ahead) == b"".join(pieces(500)())
    ahead.close()


def test_a_full_disk_makes_the_producer_wait_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = [0], os.pwrite

    def full(descriptor: int, data: bytes, at: int) -> int:
        written[0] += 1
        if written[0] > 3:
            raise OSError(28, "No space left on device")
        return write(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    made: list[int] = []
    ahead = ReadAhead(pieces(100, made), budget=2 * PIECE, spill=50 * PIECE)
    assert settled(made, 6) == 6
    assert b"".join(ahead) == b"".join(pieces(100)())
    ahead.close()


def test_an_error_comes_after_what_came_before_it() -> None:
    def produce() -> Iterator[bytes]:
        yield from pieces(20)()
        raise RuntimeError("broken")

    ahead = ReadAhead(produce, budget=2 * PIECE, spill=50 * PIECE)
    got = b""
    while len(got) < 20 * PIECE:
        got += next(ahead)
    assert got == b"".join(pieces(20)())
    with pytest.raises(RuntimeError, match="broken"):
        next(ahead)
    ahead.close()


@pytest.mark.parametrize("spill", [0, 5 * PIECE])
def test_closing_early_ends_the_thread_and_the_producer(spill: int) -> None:
    ended = threading.Event()

    def produce() -> Iterator[bytes]:
        try:
            while True:
                yield bytes(PIECE)
        finally:
            ended.set()

    before = set(threading.enumerate())
    ahead = ReadAhead(produce, budget=2 * PIECE, spill=spill)
    next(ahead)
    ahead.close()
    ahead.close()
    assert ended.is_set()
    assert set(threading.enumerate()) <= before
