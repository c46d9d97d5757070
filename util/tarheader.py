"""Tar headers: numbers, checksums, PAX records, and the one way in which this project writes a header.

The law: a header is rendered from values alone, so the same values give the same bytes: ustar where ustar can say it,
a PAX record for each value where it cannot, a GNU long name only for a long name that is not UTF-8 (PAX has no word for
it that all readers share). Owners are numbers; names of users and groups are never written.

POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format".
"""

from collections.abc import Mapping
from zlib import adler32

from util.problem import Malformed

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)

_USTAR = b"ustar\x0000"
_USTAR_SUM = sum(_USTAR)
_GNU_SUM = sum(b"ustar  \0")
_MAX_ID = 0o7777777
_MAX_OCTAL_12 = 0o77777777777
_NAME = 100
_PREFIX = 155
LONGEST_PREFIX = _PREFIX + 1
"""Bytes that a path prefix, its slash included, may have to fit before any name."""


class MalformedHeader(Malformed):
    """A tar header, or an extension of one, that no reader could agree on."""

    code = "LAYER_HEADER_MALFORMED"


def padding(size: int) -> int:
    """Return how many bytes follow a payload of `size` bytes up to the next block."""
    return -size % BLOCK


def checksum(block: bytes) -> int:
    """Return the sum of the header `block`'s bytes, its checksum field counted as blanks."""
    # The low half of an Adler-32 is a sum of bytes plus one, exact for so few bytes, and a tenth of the cost of sum().
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
    return total - (adler32(block[148:156]) & 0xFFFF) + 1 + 8 * 32


def signed_checksum(block: bytes) -> int:
    """Return the sum that writers with signed characters made of the header `block`."""
    signed = sum(byte - 256 if byte > 127 else byte for byte in block)
    return signed - sum(byte - 256 if byte > 127 else byte for byte in block[148:156]) + 8 * 32


def parse_number(field: bytes) -> int:
    """Return the number that a header field holds, octal or base-256. Raises ValueError."""
    first = field[0]
    if first & 0x80:
        value = int.from_bytes(field, "big", signed=False)
        bits = 8 * len(field)
        # GNU: 0x80 marks a positive number, 0xff a negative one in two's complement.
        return value - (1 << bits) if first & 0x40 else value & ~(0x80 << (bits - 8))
    digits = field.strip(b" \0").partition(b"\0")[0]
    if not digits:
        return 0
    if not digits.isdigit():
        raise ValueError(f"{field!r} is no octal number")
    return int(digits, 8)


def pax_record(key: bytes, value: bytes) -> bytes:
    """Return one extended header record, whose decimal length counts itself."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length = len(b"%d" % length) + len(body)
    return b"%d" % length + body


def parse_pax_records(payload: bytes) -> list[tuple[bytes, bytes]]:
    """Return the records of an extended header in their order. Raises ValueError."""
    records: list[tuple[bytes, bytes]] = []
    position = 0
    # Some writers fill the last block with NULs that the size counts.
    end = len(payload.rstrip(b"\0"))
    while position < end:
        space = payload.find(b" ", position, position + 20)
        digits = payload[position:space] if space > 0 else b""
        if not digits.isdigit():
            raise ValueError("a record without a length")
        stop = position + int(digits)
        if stop > len(payload) or stop <= space + 1 or payload[stop - 1 : stop] != b"\n":
            raise ValueError("a record whose length does not fit")
        key, equals, value = payload[space + 1 : stop - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise ValueError("a record without a key")
        records.append((key, value))
        position = stop
    return records


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Return ustar's (prefix, name); the name is too long where no slash of a long one stands in the right place."""
    if _NAME < len(name) <= _NAME + _PREFIX + 1:
        # The slash that ends a directory's name cannot be the one that parts it.
        slash = name.rfind(b"/", 0, min(_PREFIX + 1, len(name) - 1))
        if slash > 0 and len(name) - slash - 1 <= _NAME:
            return name[:slash], name[slash + 1 :]
    return b"", name


def _base256(value: int, length: int) -> bytes:
    return (value | 0x80 << 8 * (length - 1)).to_bytes(length, "big")


def _device(value: int) -> bytes:
    return b"%07o\0" % value if value <= _MAX_ID else _base256(value, 8)


def _block(kind: bytes, names: tuple[bytes, bytes], link: bytes, numbers: bytes, devices: bytes) -> bytes:
    prefix, name = names
    head = name.ljust(_NAME, b"\0") + numbers
    tail = kind + link.ljust(_NAME, b"\0") + b"ustar\x0000" + bytes(64) + devices + prefix.ljust(167, b"\0")
    total = (adler32(head + tail[:108]) & 0xFFFF) + (adler32(tail[108:]) & 0xFFFF) - 2 + 8 * 32
    return head + b"%06o\0 " % total + tail


_PLAIN_NUMBERS = b"%07o\0%07o\0%07o\0%011o\0%011o\0"
_NO_DEVICES = b"0000000\x000000000\0"


def _extension(kind: bytes, name: bytes, payload: bytes) -> bytes:
    numbers = _PLAIN_NUMBERS % (0o644, 0, 0, len(payload), 0)
    return _block(kind, (b"", name), b"", numbers, _NO_DEVICES) + payload + bytes(padding(len(payload)))


class HeaderPatch:
    """Puts `path_prefix` before the names in headers of one block whose prefix field is free."""

    def __init__(self, path_prefix: bytes) -> None:
        self._prefix = path_prefix.removesuffix(b"/")
        self._sum = sum(self._prefix)
        self._stop = 345 + len(self._prefix)

    def apply(self, buffer: bytearray, at: int) -> None:
        """Change the header at `at`, whose checksum is six digits; GNU's old form becomes ustar."""
        total = int(buffer[at + 148 : at + 154], 8) + self._sum
        if buffer[at + 262] == 0x20:
            buffer[at + 257 : at + 265] = _USTAR
            total += _USTAR_SUM - _GNU_SUM
        buffer[at + 148 : at + 154] = b"%06o" % total
        buffer[at + 345 : at + self._stop] = self._prefix


def is_plain(name: bytes, link: bytes, owner: tuple[int, int], size: int, mtime: int) -> bool:
    """Return whether one block holds these values, for an entry that has no further records and is no device."""
    return (
        (len(name) <= _NAME or len(_split(name)[1]) <= _NAME)
        and len(link) <= _NAME
        and max(owner) <= _MAX_ID
        and size <= _MAX_OCTAL_12
        and 0 <= mtime <= _MAX_OCTAL_12
    )


def render_header(
    name: bytes,
    *,
    kind: bytes = b"0",
    mode: int,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    devices: tuple[int, int] = (0, 0),
    records: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """Return the header of an entry with all its extension headers, a multiple of 512 bytes.

    `name` is written as it is; a directory's ends with a slash. `mtime` is in seconds since the epoch. `records` are
    further PAX records, written in the order of their keys; one that says what a value here says wins over it.
    """
    if not records and is_plain(name, link, (uid, gid), size, mtime):
        numbers = _PLAIN_NUMBERS % (mode, uid, gid, size, mtime)
        plain = _NO_DEVICES if devices == (0, 0) else b"".join(map(_device, devices))
        return _block(kind, _split(name), link, numbers, plain)
    extended = dict(records or {})
    leading, target = b"", link
    prefix, short = _split(name)
    if len(short) > _NAME:
        short = name[:_NAME]
        if is_utf8(name):
            extended[b"path"] = name
        else:
            leading += _extension(b"L", b"././@LongLink", name + b"\0")
    if len(link) > _NAME:
        target = link[:_NAME]
        if is_utf8(link):
            extended[b"linkpath"] = link
        else:
            leading += _extension(b"K", b"././@LongLink", link + b"\0")
    for key, value, most in ((b"uid", uid, _MAX_ID), (b"gid", gid, _MAX_ID), (b"size", size, _MAX_OCTAL_12)):
        if value > most:
            extended[key] = b"%d" % value
    if not 0 <= mtime <= _MAX_OCTAL_12:
        extended.setdefault(b"mtime", b"%d" % mtime)
    if extended:
        leading += _extension(
            b"x", b"PaxHeaders/entry", b"".join(pax_record(*item) for item in sorted(extended.items()))
        )
    numbers = _PLAIN_NUMBERS % (
        mode,
        uid if uid <= _MAX_ID else 0,
        gid if gid <= _MAX_ID else 0,
        size if size <= _MAX_OCTAL_12 else 0,
        mtime if 0 <= mtime <= _MAX_OCTAL_12 else 0,
    )
    return leading + _block(kind, (prefix, short), target, numbers, b"".join(map(_device, devices)))
