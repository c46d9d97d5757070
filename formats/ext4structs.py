"""The structures of an ext4 file system as bytes: superblock, groups, inodes, directories, attributes, journal.

The law: each is a function of the values that it is given, and knows no layout. Only what every Linux of the last ten
years reads: blocks of 4 KiB, inodes of 256 bytes, extents, flexible groups, no checksums of metadata.

Linux, Documentation/filesystems/ext4; e2fsprogs, lib/ext2fs/ext2_fs.h; struct posix_acl_xattr_header.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from util.layerindex import shown
from util.problem import Inexpressible

BLOCK = 4096
BLOCKS_PER_GROUP = 8 * BLOCK
INODE = 256
INODES_PER_BLOCK = BLOCK // INODE
DESCRIPTOR = 32
ROOT_INODE, JOURNAL_INODE, FIRST_INODE = 2, 8, 11
MAX_NAME = 255
MAX_LINKS = 65000
MAX_EXTENT = 1 << 15
EXTENTS_IN_INODE = 4
EXTENTS_IN_BLOCK = (BLOCK - 12) // 12
INLINE_TARGET = 59

S_IFIFO, S_IFCHR, S_IFDIR, S_IFBLK, S_IFREG, S_IFLNK = 0x1000, 0x2000, 0x4000, 0x6000, 0x8000, 0xA000

_COMPAT = 0x4 | 0x8 | 0x20  # has_journal, ext_attr, dir_index
_INCOMPAT = 0x2 | 0x40 | 0x200  # filetype, extents, flex_bg
_RO_COMPAT = 0x1 | 0x2 | 0x8 | 0x20 | 0x40  # sparse_super, large_file, huge_file, dir_nlink, extra_isize
_EXTENTS_FLAG = 0x80000
_EXTRA = 32  # bytes of an inode's fields beyond the first 128
_ATTRIBUTES_IN_INODE = INODE - 128 - _EXTRA
_FILE_TYPES = {S_IFREG: 1, S_IFDIR: 2, S_IFCHR: 3, S_IFBLK: 4, S_IFIFO: 5, S_IFLNK: 7}
_TIMES = (-(1 << 31), (1 << 34) - (1 << 31) - 1)

Extent = tuple[int, int]
"""The first block, and how many."""


class NotOnExt4(Inexpressible):
    """An entry that an ext4 file system cannot hold; the text names it."""

    code = "EXT4_INEXPRESSIBLE"


# --- Inodes -----------------------------------------------------------------------------------------------------------


def inode(
    *,
    mode: int,
    uid: int,
    gid: int,
    links: int,
    size: int,
    time: tuple[int, int],
    sectors: int,
    block: bytes,
    mapped: bool,
    attributes: bytes,
    attribute_block: int,
) -> bytes:
    """Return an inode. `mode` has the file's kind; `time` is in seconds and nanoseconds, and all four times.

    `block` is what stands in the place of block numbers, a tree of extents where `mapped`.
    """
    low, extra = _time(*time)
    first = struct.pack(
        "<HHIIIIIHHIII60sIII I HHHHHH",
        mode, uid & 0xFFFF, size & 0xFFFFFFFF, low, low, low, 0, gid & 0xFFFF, links, sectors & 0xFFFFFFFF,
        _EXTENTS_FLAG if mapped else 0, 0, block, 0, attribute_block & 0xFFFFFFFF, size >> 32, 0,
        sectors >> 32, attribute_block >> 32, uid >> 16, gid >> 16, 0, 0,
    )  # fmt: skip
    second = struct.pack("<HHIIIIIII", _EXTRA, 0, extra, extra, extra, low, extra, 0, 0)
    return (first + second + attributes).ljust(INODE, b"\0")


def _time(seconds: int, nanoseconds: int) -> tuple[int, int]:
    """Return the two fields of a time, the nearest one that there is: from 1901 to 2446."""
    if not _TIMES[0] <= seconds <= _TIMES[1]:
        seconds, nanoseconds = max(_TIMES[0], min(seconds, _TIMES[1])), 0
    low = seconds & 0xFFFFFFFF
    signed = low - (1 << 32) if low >> 31 else low
    return low, nanoseconds << 2 | (seconds - signed) >> 32


def device_block(major: int, minor: int) -> bytes:
    """Return what stands in a device's inode in the place of block numbers."""
    if major < 256 and minor < 256:
        return struct.pack("<I", major << 8 | minor)
    return struct.pack("<II", 0, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12)


def extent_root(extents: Sequence[Extent], leaves: Sequence[int]) -> bytes:
    """Return the root of a tree of `extents`, which stand in the blocks `leaves` where an inode is too small."""
    if not leaves:
        return _extents(extents, EXTENTS_IN_INODE, 0)
    header = struct.pack("<HHHHI", 0xF30A, len(leaves), EXTENTS_IN_INODE, 1, 0)
    firsts = _logical(extents)[::EXTENTS_IN_BLOCK]
    return header + b"".join(
        struct.pack("<IIHH", first, leaf & 0xFFFFFFFF, leaf >> 32, 0)
        for first, leaf in zip(firsts, leaves, strict=True)
    )


def extent_leaves(extents: Sequence[Extent]) -> Iterator[bytes]:
    """Yield the blocks that hold `extents`."""
    logical = 0
    for at in range(0, len(extents), EXTENTS_IN_BLOCK):
        part = extents[at : at + EXTENTS_IN_BLOCK]
        yield _extents(part, EXTENTS_IN_BLOCK, logical).ljust(BLOCK, b"\0")
        logical += sum(count for _, count in part)


def _extents(extents: Sequence[Extent], most: int, logical: int) -> bytes:
    parts = [struct.pack("<HHHHI", 0xF30A, len(extents), most, 0, 0)]
    for start, count in extents:
        parts.append(struct.pack("<IHHI", logical, count, start >> 32, start & 0xFFFFFFFF))
        logical += count
    return b"".join(parts)


def _logical(extents: Sequence[Extent]) -> list[int]:
    """Return at which of the file's own blocks each extent begins."""
    firsts, at = [], 0
    for _, count in extents:
        firsts.append(at)
        at += count
    return firsts


# --- Directories ------------------------------------------------------------------------------------------------------

Child = tuple[bytes, int, int]
"""A name, the number of its inode, and the inode's mode."""


def directory_length(names: Iterable[bytes]) -> int:
    """Return how many blocks a directory of these names takes."""
    blocks, room = 1, BLOCK - 24
    for name in names:
        length = _record(name)
        if length > room:
            blocks, room = blocks + 1, BLOCK
        room -= length
    return blocks


def directory(own: int, parent: int, children: Iterable[Child]) -> Iterator[bytes]:
    """Yield the blocks of the directory with the inode `own`."""
    records: list[tuple[bytes, int, int]] = [(b".", own, S_IFDIR), (b"..", parent, S_IFDIR)]
    room = BLOCK - 24
    for child in children:
        length = _record(child[0])
        if length > room:
            yield _directory_block(records)
            records, room = [], BLOCK
        room -= length
        records.append(child)
    yield _directory_block(records)


def _directory_block(records: Sequence[Child]) -> bytes:
    parts, at = [], 0
    for place, (name, number, mode) in enumerate(records):
        length = _record(name) if place < len(records) - 1 else BLOCK - at
        kind = _FILE_TYPES[mode & 0xF000]
        parts.append(struct.pack("<IHBB", number, length, len(name), kind) + name.ljust(length - 8, b"\0"))
        at += length
    return b"".join(parts)


def _record(name: bytes) -> int:
    return 8 + (len(name) + 3 & ~3)


# --- Extended attributes ----------------------------------------------------------------------------------------------

# In the order in which they are looked for: whole names first.
_PREFIXES = (
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
)
_RECORD = b"SCHILY.xattr."
_ACL_IDS = (0x02, 0x08)  # entries of a named user, and of a named group


@dataclass(frozen=True, slots=True)
class _Attribute:
    index: int
    name: bytes
    value: bytes

    @property
    def order(self) -> tuple[int, int, bytes]:
        """How the kernel sorts them."""
        return self.index, len(self.name), self.name

    @property
    def length(self) -> int:
        return 16 + (len(self.name) + 3 & ~3) + (len(self.value) + 3 & ~3)


def attributes(records: Mapping[bytes, bytes], path: bytes) -> tuple[bytes, bytes]:
    """Return the attributes among the PAX `records`, for the inode's own room and for a block: one of them is empty.

    Those of a kind that ext4 has not are left out, as they are when an image is unpacked on one. Raises NotOnExt4.
    """
    found = sorted(
        (
            _attribute(key.removeprefix(_RECORD), value, path)
            for key, value in records.items()
            if key.startswith(_RECORD) and key[len(_RECORD) :].startswith(tuple(prefix for prefix, _ in _PREFIXES))
        ),
        key=lambda each: each.order,
    )
    if not found:
        return b"", b""
    room = sum(each.length for each in found) + 4
    if room + 4 <= _ATTRIBUTES_IN_INODE:
        return struct.pack("<I", 0xEA020000) + _packed(found, 0, _ATTRIBUTES_IN_INODE - 4), b""
    if room + 32 > BLOCK or any(len(each.name) > MAX_NAME for each in found):
        raise NotOnExt4(f"the extended attributes of {shown(path)} take more than ext4 has room for")
    total = 0
    for each in found:
        total = (total << 16 & 0xFFFFFFFF) ^ total >> 16 ^ _hash(each)
    header = struct.pack("<IIIII12x", 0xEA020000, 1, 1, total, 0)
    return b"", header + _packed(found, 32, BLOCK - 32)


def _attribute(name: bytes, value: bytes, path: bytes) -> _Attribute:
    prefix, index = next((prefix, index) for prefix, index in _PREFIXES if name.startswith(prefix))
    if index in (2, 3):
        value = _acl(value, path)
    return _Attribute(index, name.removeprefix(prefix), value)


def _packed(found: Sequence[_Attribute], shift: int, room: int) -> bytes:
    """Return `room` bytes with the entries from the front and the values from the back; offsets begin at `shift`."""
    entries, values, end = [], b"", room
    for each in found:
        end -= len(each.value) + 3 & ~3
        offset = end + shift if each.value else 0
        values = each.value.ljust(len(each.value) + 3 & ~3, b"\0") + values
        entry = struct.pack("<BBHIII", len(each.name), each.index, offset, 0, len(each.value), _hash(each))
        entries.append(entry + each.name.ljust(len(each.name) + 3 & ~3, b"\0"))
    return b"".join(entries).ljust(room - len(values), b"\0") + values


def _hash(each: _Attribute) -> int:
    total = 0
    for byte in each.name:
        # The kernel counts characters with a sign, as they are on most machines.
        total = (total << 5 & 0xFFFFFFFF) ^ total >> 27 ^ (byte if byte < 128 else 0xFFFFFF00 | byte)
    for (word,) in struct.iter_unpack("<I", each.value.ljust(len(each.value) + 3 & ~3, b"\0")):
        total = (total << 16 & 0xFFFFFFFF) ^ total >> 16 ^ word
    return total


def _acl(value: bytes, path: bytes) -> bytes:
    """Return an access control list as ext4 keeps it, from what the system calls it."""
    if len(value) < 4 or len(value) % 8 != 4 or value[:4] != struct.pack("<I", 2):
        raise NotOnExt4(f"the access control list of {shown(path)} cannot be read")
    parts = [struct.pack("<I", 1)]
    for tag, permissions, who in struct.iter_unpack("<HHI", value[4:]):
        parts.append(struct.pack("<HH", tag, permissions) + (struct.pack("<I", who) if tag in _ACL_IDS else b""))
    return b"".join(parts)


# --- The whole --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """A block group: where its tables are, and what is free in it."""

    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    free_blocks: int
    free_inodes: int
    directories: int

    def descriptor(self) -> bytes:
        return struct.pack(
            "<IIIHHHH12x",
            self.block_bitmap, self.inode_bitmap, self.inode_table,
            self.free_blocks, self.free_inodes, self.directories, 0,
        )  # fmt: skip


def superblock(
    *,
    group: int,
    blocks: int,
    inodes_per_group: int,
    groups: Sequence[Group],
    identity: bytes,
    journal_block: bytes,
    journal_size: int,
) -> bytes:
    """Return the 1024 bytes of the superblock, or of its copy in another `group`.

    The first half of the 32 bytes `identity` is the UUID, the second one seeds the hashes of names.
    """
    uuid = bytearray(identity[:16])
    uuid[6], uuid[8] = uuid[6] & 0x0F | 0x80, uuid[8] & 0x3F | 0x80  # RFC 9562: of a kind of one's own
    fields = struct.pack(
        "<IIIIIIIIIIIIIHHHHHHIIIIHHIHHIII16s16s64sIBBH16sIII16sBBHIII",
        inodes_per_group * len(groups), blocks, 0, sum(each.free_blocks for each in groups),
        sum(each.free_inodes for each in groups), 0, 2, 2, BLOCKS_PER_GROUP, BLOCKS_PER_GROUP, inodes_per_group,
        0, 0, 0, 0xFFFF, 0xEF53, 1, 1, 0, 0, 0, 0, 1, 0, 0, FIRST_INODE, INODE, group, _COMPAT, _INCOMPAT, _RO_COMPAT,
        bytes(uuid), b"", b"", 0, 0, 0, 0, b"", JOURNAL_INODE, 0, 0, identity[16:32],
        1,  # half of MD4
        1,  # the journal's inode is copied here
        0, 0xC,  # user_xattr, acl
        0, 0,
    )  # fmt: skip
    copied = journal_block + struct.pack("<II", journal_size >> 32, journal_size & 0xFFFFFFFF)
    rest = struct.pack("<IIIHHIHHQIB", 0, 0, 0, _EXTRA, _EXTRA, 1, 0, 0, 0, 0, 4)
    return (fields + copied + rest).ljust(1024, b"\0")


def journal(blocks: int) -> bytes:
    """Return the first block of an empty journal of `blocks` blocks; all others are zeros."""
    header = struct.pack(">IIIIIIIII", 0xC03B3998, 4, 0, BLOCK, blocks, 1, 1, 0, 0)
    return (header + struct.pack(">III16sI", 0, 0, 0, b"", 1)).ljust(BLOCK, b"\0")
