"""Layers for tests: entries as values, and tar archives written byte by byte.

The law: nothing here comes from the project. The formats are written from their own descriptions (POSIX pax and
ustar, the GNU tar manual, RFC 1952, RFC 8878), so that a misreading in `util` cannot hide behind the same one here.
"""

import gzip
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import zstandard

BLOCK = 512
END = bytes(2 * BLOCK)

# Typeflags, by the names of POSIX and of GNU tar.
REGULAR, OLD_REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO, CONTIGUOUS = (
    b"0",
    b"\0",
    b"1",
    b"2",
    b"3",
    b"4",
    b"5",
    b"6",
    b"7",
)
PAX_LOCAL, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK, GNU_SPARSE = b"x", b"g", b"L", b"K", b"S"

USTAR_MAGIC, GNU_MAGIC, V7_MAGIC = b"ustar\x0000", b"ustar  \0", bytes(8)

Dialect = Literal["pax", "gnu"]


# --- Entries as values ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """What one tar entry says, before it is written. `name` and `link` are as they stand in the archive."""

    name: bytes
    kind: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    content: bytes = b""
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


def file(
    name: bytes,
    content: bytes = b"",
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime_ns: int = 0,
    xattrs: Mapping[bytes, bytes] | None = None,
    kind: bytes = REGULAR,
) -> Entry:
    return Entry(name, kind, mode, uid, gid, mtime_ns, content, xattrs=xattrs or {})


def directory(
    name: bytes,
    *,
    mode: int = 0o755,
    uid: int = 0,
    gid: int = 0,
    mtime_ns: int = 0,
    xattrs: Mapping[bytes, bytes] | None = None,
) -> Entry:
    """Return a directory whose name is written as given: with or without a slash at its end."""
    return Entry(name, DIRECTORY, mode, uid, gid, mtime_ns, xattrs=xattrs or {})


def symlink(
    name: bytes,
    target: bytes,
    *,
    uid: int = 0,
    gid: int = 0,
    mtime_ns: int = 0,
    xattrs: Mapping[bytes, bytes] | None = None,
) -> Entry:
    return Entry(name, SYMLINK, 0o777, uid, gid, mtime_ns, link=target, xattrs=xattrs or {})


def hardlink(name: bytes, target: bytes, *, mode: int = 0o644, uid: int = 0, mtime_ns: int = 0) -> Entry:
    """Return a hard link; its own mode, owner and time are what its header claims and the merge ignores."""
    return Entry(name, HARD_LINK, mode, uid, mtime_ns=mtime_ns, link=target)


def character_device(name: bytes, major: int, minor: int, *, mode: int = 0o600, mtime_ns: int = 0) -> Entry:
    return Entry(name, CHARACTER, mode, mtime_ns=mtime_ns, device=(major, minor))


def block_device(name: bytes, major: int, minor: int, *, mode: int = 0o600, mtime_ns: int = 0) -> Entry:
    return Entry(name, BLOCK_DEVICE, mode, mtime_ns=mtime_ns, device=(major, minor))


def fifo(name: bytes, *, mode: int = 0o644, mtime_ns: int = 0) -> Entry:
    return Entry(name, FIFO, mode, mtime_ns=mtime_ns)


def whiteout(path: bytes) -> Entry:
    """Return the entry that deletes `path` from the lower layers."""
    folder, slash, name = path.rpartition(b"/")
    return file(folder + slash + b".wh." + name, mode=0)


def opaque(folder: bytes) -> Entry:
    """Return the entry that deletes all that lower layers have in `folder`."""
    return file((folder.rstrip(b"/") + b"/" if folder else b"") + b".wh..wh..opq", mode=0)


# --- Headers, byte by byte --------------------------------------------------------------------------------------------


def octal(value: int, width: int) -> bytes:
    """Return a number as POSIX writes it: octal digits, filled with zeros, ended by a NUL."""
    text = b"%0*o" % (width - 1, value)
    assert len(text) < width, f"{value} does not fit {width} bytes in octal"
    return text + b"\0"


def base256(value: int, width: int) -> bytes:
    """Return a number as GNU writes what octal cannot hold: two's complement, the top bit of the field set."""
    assert -(1 << (8 * width - 2)) <= value < 1 << (8 * width - 2)
    number = bytearray((value & ((1 << 8 * width) - 1)).to_bytes(width, "big"))
    number[0] |= 0x80
    return bytes(number)


def number(value: int, width: int) -> bytes:
    """Return `value` in octal where it fits and in base 256 where not."""
    return octal(value, width) if 0 <= value < 8 ** (width - 1) else base256(value, width)


def header(
    name: bytes,
    *,
    kind: bytes = REGULAR,
    size: bytes | int = 0,
    mode: bytes | int = 0o644,
    uid: bytes | int = 0,
    gid: bytes | int = 0,
    mtime: bytes | int = 0,
    link: bytes = b"",
    magic: bytes = USTAR_MAGIC,
    uname: bytes = b"",
    gname: bytes = b"",
    major: bytes | int = 0,
    minor: bytes | int = 0,
    prefix: bytes = b"",
    checksum: bytes | None = None,
    signed_checksum: bool = False,
) -> bytes:
    """Return one header block. A field given as bytes is written as it is; the checksum is right unless given."""

    def numeric(value: bytes | int, width: int) -> bytes:
        return value.ljust(width, b"\0")[:width] if isinstance(value, bytes) else number(value, width)

    assert len(name) <= 100, name
    assert len(link) <= 100, link
    devices = bytes(16) if magic == V7_MAGIC else numeric(major, 8) + numeric(minor, 8)
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            numeric(mode, 8),
            numeric(uid, 8),
            numeric(gid, 8),
            numeric(size, 12),
            numeric(mtime, 12),
            b" " * 8,
            kind,
            link.ljust(100, b"\0"),
            magic,
            uname.ljust(32, b"\0"),
            gname.ljust(32, b"\0"),
            devices,
            prefix.ljust(155, b"\0"),
        )
    ).ljust(BLOCK, b"\0")
    assert len(block) == BLOCK
    if checksum is None:
        total = sum(struct.unpack("512b", block)) if signed_checksum else sum(block)
        checksum = b"%06o\0 " % total
    return block[:148] + checksum + block[156:]


def padded(content: bytes) -> bytes:
    """Return `content` filled with zeros to whole blocks."""
    return content + bytes(-len(content) % BLOCK)


def pax_record(key: bytes, value: bytes) -> bytes:
    """Return one record: its own length, a space, `key=value` and a newline."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def pax_header(records: Iterable[tuple[bytes, bytes]], *, kind: bytes = PAX_LOCAL) -> bytes:
    """Return an extended header (local, or global with `kind=PAX_GLOBAL`) of these records, in this order."""
    return pax_block(b"".join(pax_record(key, value) for key, value in records), kind=kind)


def pax_block(content: bytes, *, kind: bytes = PAX_LOCAL, size: bytes | int | None = None) -> bytes:
    """Return an extended header whose content is `content`, be it well formed or not."""
    claimed = len(content) if size is None else size
    return header(b"././@PaxHeader", kind=kind, size=claimed, mode=0) + padded(content)


def gnu_long(kind: bytes, text: bytes) -> bytes:
    """Return a GNU long name (`L`) or long link (`K`) entry: the text and a NUL."""
    return header(b"././@LongLink", kind=kind, size=len(text) + 1, mode=0, magic=GNU_MAGIC) + padded(text + b"\0")


def decimal_time(mtime_ns: int) -> bytes:
    """Return a time as pax writes it: decimal seconds, the fraction without zeros at its end."""
    sign, rest = (b"-", -mtime_ns) if mtime_ns < 0 else (b"", mtime_ns)
    seconds, fraction = divmod(rest, 10**9)
    text = sign + b"%d" % seconds
    return text + (b".%09d" % fraction).rstrip(b"0") if fraction else text


def written(entry: Entry, dialect: Dialect = "pax") -> bytes:
    """Return the entry's header or headers and its payload.

    pax: what ustar cannot hold goes into an extended header. gnu: long names by `L` and `K`, numbers in base 256, as
    far as that dialect can say it; a fraction of the time and xattrs need a pax header still.
    """
    records: list[tuple[bytes, bytes]] = []
    extensions = b""
    name, link = entry.name, entry.link
    if len(name) > 100 or (dialect == "pax" and not name.isascii()):
        if dialect == "gnu":
            extensions += gnu_long(GNU_LONG_NAME, name)
        else:
            records.append((b"path", name))
        name = name[:100]
    if len(link) > 100 or (dialect == "pax" and not link.isascii()):
        if dialect == "gnu":
            extensions = gnu_long(GNU_LONG_LINK, link) + extensions
        else:
            records.append((b"linkpath", link))
        link = link[:100]
    uid, gid, seconds = entry.uid, entry.gid, entry.mtime_ns // 10**9
    if dialect == "pax":
        if uid >= 8**7:
            records.append((b"uid", b"%d" % uid))
            uid = 0
        if gid >= 8**7:
            records.append((b"gid", b"%d" % gid))
            gid = 0
    if entry.mtime_ns % 10**9 or (dialect == "pax" and not 0 <= seconds < 8**11):
        records.append((b"mtime", decimal_time(entry.mtime_ns)))
        seconds = max(seconds, 0)
    records += [(b"SCHILY.xattr." + key, value) for key, value in entry.xattrs.items()]
    if records:
        extensions += pax_header(records)
    return (
        extensions
        + header(
            name,
            kind=entry.kind,
            size=len(entry.content),
            mode=entry.mode,
            uid=uid,
            gid=gid,
            mtime=seconds,
            link=link,
            magic=GNU_MAGIC if dialect == "gnu" else USTAR_MAGIC,
            major=entry.device[0],
            minor=entry.device[1],
        )
        + padded(entry.content)
    )


def layer(*entries: Entry | bytes, dialect: Dialect = "pax", end: bytes = END) -> bytes:
    """Return the tar of these entries; bytes among them are put in as they are."""
    return b"".join(part if isinstance(part, bytes) else written(part, dialect) for part in entries) + end


# --- Sparse files, in the four ways that GNU tar knows ----------------------------------------------------------------

# The data of all regions follows on from one another; only the last may end within a block. GNU tar starts each region
# at a block, other readers do not, and both agree on what real writers write.

Regions = list[tuple[int, bytes]]


def expanded(size: int, regions: Regions) -> bytes:
    """Return the content of a sparse file of `size` bytes with data in `regions`."""
    content = bytearray(size)
    for offset, data in regions:
        content[offset : offset + len(data)] = data
    return bytes(content)


def old_gnu_sparse(name: bytes, size: int, regions: Regions) -> bytes:
    """Return an entry of type `S`: four regions in the header, 21 in each extension block after it."""
    slots = [octal(offset, 12) + octal(len(data), 12) for offset, data in regions]
    data = b"".join(data for _, data in regions)
    block = bytearray(header(name, kind=GNU_SPARSE, size=len(data), magic=GNU_MAGIC))
    block[386:482] = b"".join(slots[:4]).ljust(96, b"\0")
    block[482] = 1 if len(slots) > 4 else 0
    block[483:495] = octal(size, 12)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    extensions, rest = b"", slots[4:]
    while rest:
        extensions += (b"".join(rest[:21]).ljust(504, b"\0") + (b"\1" if len(rest) > 21 else b"\0")).ljust(BLOCK, b"\0")
        rest = rest[21:]
    return bytes(block) + extensions + padded(data)


def pax_sparse_00(name: bytes, size: int, regions: Regions) -> bytes:
    """Return a sparse entry as GNU tar 1.14 wrote it: the same keys again and again, whose order counts."""
    records = [(b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(regions))]
    for offset, data in regions:
        records += [(b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % len(data))]
    data = b"".join(data for _, data in regions)
    return pax_header(records) + header(name, size=len(data)) + padded(data)


def pax_sparse_01(name: bytes, size: int, regions: Regions) -> bytes:
    """Return a sparse entry as GNU tar 1.15.1 wrote it: one map record; the real name is a record too."""
    folder, _, last = name.rpartition(b"/")
    pairs = b",".join(b"%d,%d" % (offset, len(data)) for offset, data in regions)
    records = [
        (b"GNU.sparse.size", b"%d" % size),
        (b"GNU.sparse.numblocks", b"%d" % len(regions)),
        (b"GNU.sparse.name", name),
        (b"GNU.sparse.map", pairs),
    ]
    data = b"".join(data for _, data in regions)
    stand_in = (folder + b"/" if folder else b"") + b"GNUSparseFile.1/" + last
    return pax_header(records) + header(stand_in, size=len(data)) + padded(data)


def pax_sparse_10(name: bytes, size: int, regions: Regions) -> bytes:
    """Return a sparse entry as GNU tar writes it since 1.16: the map stands in blocks before the data."""
    folder, _, last = name.rpartition(b"/")
    records = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", name),
        (b"GNU.sparse.realsize", b"%d" % size),
    ]
    numbers = [len(regions)] + [value for offset, data in regions for value in (offset, len(data))]
    payload = padded(b"".join(b"%d\n" % value for value in numbers)) + b"".join(data for _, data in regions)
    stand_in = (folder + b"/" if folder else b"") + b"GNUSparseFile.1/" + last
    return pax_header(records) + header(stand_in, size=len(payload)) + padded(payload)


# --- Compression, with all that the formats allow ---------------------------------------------------------------------


def gzip_member(
    content: bytes,
    *,
    extra: bytes | None = None,
    name: bytes | None = None,
    comment: bytes | None = None,
    header_crc: bool = False,
    text: bool = False,
    crc: int | None = None,
    size: int | None = None,
) -> bytes:
    """Return one gzip member (RFC 1952) with any of its optional header fields, and a trailer that may lie."""
    flags = text | header_crc << 1 | (extra is not None) << 2 | (name is not None) << 3 | (comment is not None) << 4
    head = bytes((0x1F, 0x8B, 8, flags)) + struct.pack("<IBB", 0, 0, 255)
    if extra is not None:
        head += struct.pack("<H", len(extra)) + extra
    if name is not None:
        head += name + b"\0"
    if comment is not None:
        head += comment + b"\0"
    if header_crc:
        head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = deflate.compress(content) + deflate.flush()
    checksum = zlib.crc32(content) if crc is None else crc
    length = len(content) & 0xFFFFFFFF if size is None else size
    return head + body + struct.pack("<II", checksum, length)


def gzipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def gzip_members(content: bytes, size: int) -> bytes:
    """Return a gzip stream with a member for each `size` bytes, as eStargz and bgzip write it."""
    return b"".join(gzip_member(content[at : at + size]) for at in range(0, len(content), size))


def zstd_frame(content: bytes, *, checksum: bool = True, with_size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=checksum, write_content_size=with_size).compress(content)


def zstd_skippable(content: bytes, *, magic: int = 0) -> bytes:
    """Return a skippable frame (RFC 8878, 3.1.2), as zstd:chunked keeps its table of contents in."""
    return struct.pack("<II", 0x184D2A50 + magic, len(content)) + content


def zstd_frames(content: bytes, size: int) -> bytes:
    return b"".join(zstd_frame(content[at : at + size]) for at in range(0, len(content), size))


def in_chunks(content: bytes, size: int) -> Iterator[bytes]:
    """Yield `content` in chunks of `size` bytes."""
    for at in range(0, len(content), size):
        yield content[at : at + size]
