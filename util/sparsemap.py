"""Sparse maps: where the pieces of a sparse file belong, read from the four forms that GNU tar has written them in.

The law: pure functions over what follows a header. Pieces come in order, do not overlap and end within the file; of a
map that says anything else nothing is believed. No map takes more than the room it is given.

GNU tar manual, "Storing Sparse Files", and tar(5) of FreeBSD for the old form.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

from util.layerindex import Sparse
from util.tarheader import BLOCK, parse_number

_DIGITS = 20
_INTEGER = re.compile(rb"\d{1,%d}" % _DIGITS)
_OLD_PIECE = 24  # bytes of one piece in the old form's tables: two numbers
_OLD_TABLE = slice(386, 482)
_OLD_FURTHER_TABLE = slice(0, 504)
_UNUSED = (0, 0x20)  # what a piece that is none begins with

Read = Callable[[int], bytes]
"""Gives so many bytes of the tar, fewer at its end."""


class MalformedMap(ValueError):
    """A map that means nothing, as what is to be said of the entry that has it."""


class MapCut(ValueError):
    """A map that the tar ends within."""


def is_pax(records: Mapping[bytes, bytes]) -> bool:
    """Tell whether an entry with these PAX records is a sparse file."""
    return b"GNU.sparse.major" in records or b"GNU.sparse.map" in records or b"GNU.sparse.size" in records


def read_old_gnu(header: bytes, read: Read, *, room: int) -> Sparse:
    """Return the map of an entry of type `S`, after reading the further tables that stand before its payload.

    These may take `room` bytes. Raises MalformedMap, MapCut.
    """
    size = _number(header[483:495], "size")
    numbers: list[int] = []
    table, more = header[_OLD_TABLE], header[482]
    while True:
        for at in range(0, len(table), _OLD_PIECE):
            if table[at] in _UNUSED:
                break
            numbers += (_number(table[at : at + 12], "map"), _number(table[at + 12 : at + 24], "map"))
        if not more:
            return _sparse(size, numbers)
        room -= BLOCK
        if room < 0:
            raise MalformedMap("has a sparse map larger than any extension may be")
        block = read(BLOCK)
        if len(block) < BLOCK:
            raise MapCut
        table, more = block[_OLD_FURTHER_TABLE], block[504]


def read_pax(
    local: Iterable[tuple[bytes, bytes]], records: Mapping[bytes, bytes], size: int, read: Read, *, room: int
) -> tuple[Sparse, int]:
    """Return the map of a sparse entry with PAX records, and how many of the `size` stored bytes are left after it.

    `local` are the entry's own records in order, with all that come twice. Raises MalformedMap.
    """
    full = _record(records, b"GNU.sparse.realsize", _record(records, b"GNU.sparse.size", size))
    major = records.get(b"GNU.sparse.major", b"0")
    if major == b"1":
        numbers, used = _read_blocks(read, size, room)
        size -= used
    elif major != b"0":
        raise MalformedMap("is sparse in a version that is not known")
    elif b"GNU.sparse.map" in records:
        text = records[b"GNU.sparse.map"]
        numbers = _numbers(text.split(b",") if text else [])
    else:
        numbers = _numbers(value for key, value in local if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"))
    return _sparse(full, numbers), size


def _read_blocks(read: Read, size: int, room: int) -> tuple[list[int], int]:
    """Return the numbers of a map that stands before the data, a line each after their count, and the bytes it took."""
    lines: list[bytes] = []
    count: int | None = None
    pending = b""
    used = 0
    while count is None or len(lines) <= 2 * count:
        used += BLOCK
        block = read(BLOCK)
        if used > max(size, BLOCK) or used > room or len(block) < BLOCK:
            raise MalformedMap("has a sparse map without an end")
        *more, pending = (pending + block).split(b"\n")
        lines += more
        if count is None and lines:
            [count] = _numbers(lines[:1])
            if count > room:
                raise MalformedMap("has a sparse map larger than any extension may be")
        if len(pending) > _DIGITS and (count is None or len(lines) <= 2 * count):
            # A number without an end would be copied with each block.
            raise MalformedMap("has a sparse map that is no list of numbers")
    return _numbers(lines[1 : 1 + 2 * count]), used


def _number(field: bytes, what: str) -> int:
    try:
        return parse_number(field)
    except ValueError:
        raise MalformedMap(f"has a sparse {what} that is no number") from None


def _record(records: Mapping[bytes, bytes], key: bytes, default: int) -> int:
    text = records.get(key)
    return _numbers([text])[0] if text else default


def _numbers(texts: Iterable[bytes]) -> list[int]:
    numbers = []
    for text in texts:
        if not _INTEGER.fullmatch(text):
            raise MalformedMap("has a sparse map that is no list of numbers")
        numbers.append(int(text))
    return numbers


def _sparse(size: int, numbers: list[int]) -> Sparse:
    if len(numbers) % 2 or size < 0:
        raise MalformedMap("has a sparse map with half a piece")
    pieces = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    for (offset, length), (following, _) in pairwise((*pieces, (size, 0))):
        if offset < 0 or length < 0 or offset + length > following:
            raise MalformedMap("has a sparse map whose pieces overlap or leave the file")
    return Sparse(size, tuple(piece for piece in pieces if piece[1]))
