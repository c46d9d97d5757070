"""Reading a layer: one pass over its uncompressed tar, front to back, that fills its index.

The law: whatever GNU tar, bsdtar, Go, Docker, BuildKit and old aufs ever wrote is read, in any chunking, and means what
their own readers make of it; what no two readers would agree on is an error that names layer and entry. What a layer
may take is bounded: by the limits, which whatever is kept counts against before it is kept, and by what is read ahead.

POSIX.1-2017, pax; GNU tar manual, "Basic Tar Format"; OCI image-spec, layer.md.
"""

import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from itertools import chain

from util import sparsemap, tarheader, whiteout
from util.layerindex import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    JOINED,
    KEPT_FILES,
    LINK,
    PATCHABLE,
    PRESENT,
    SYMLINK,
    VERBATIM,
    BareWhiteout,
    LayerIndex,
    LayerLimits,
    LayerTooLarge,
    MalformedLayer,
    PathLeavesRoot,
    Sparse,
    Spent,
    TruncatedLayer,
    UnknownEntryType,
    shown,
)
from util.readahead import ReadAhead
from util.tarcursor import TarCursor
from util.tarheader import BLOCK, MalformedHeader, padding
from util.whiteout import Whiteout

_MAX_KEPT = 1 << 20
_MAX_ID = 0xFFFFFFFF
_MAX_TIME = 1 << 56
_READ_AHEAD = 512 << 10
"""Enough for one piece to be inflated while another is read; more would only hold what a refusal throws away."""

# What is counted in memory beside the bytes themselves: an object, its place in a table, and what planning adds.
_IN_A_TABLE = 128
_HARD_LINK = 512
_IMPLIED = 256
_RECORDS = 384
_RECORD = 64
_PIECE_OF_A_MAP = 128
_BETWEEN_LOOKS = 1 << 20  # bytes of metadata
_BASE64 = (4, 3)  # how much longer it is
_LIBARCHIVE = b"LIBARCHIVE.xattr."

# Modes, owners and times come again and again.
_parse_number = lru_cache(1 << 12)(tarheader.parse_number)


@lru_cache(1 << 12)
def _parse_ownership(fields: bytes) -> tuple[int, int, int]:
    parse = tarheader.parse_number
    return parse(fields[:8]), parse(fields[8:16]), parse(fields[16:24])


_ZEROS = bytes(BLOCK)
_NO_OWNERS = bytes(64)
_NO_REST = bytes(12)
_NO_PREFIX = bytes(155)
_CHECKSUM_ENDS = (b"\0 ", b" \0")
_HEADER = struct.Struct("100s24s12s12s8sc100x8s64s16x155s12s")
_UNCOMMON_STARTS = (b".", b"/", b"")
_USTAR = b"ustar\x0000"
_GNU = b"ustar  \0"
_PLAIN_KINDS = frozenset((FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))
_SUPERSEDED = frozenset((b"path", b"linkpath", b"size", b"uid", b"gid", b"uname", b"gname", b"hdrcharset", b"charset"))
_NOT_WRITTEN = frozenset((b"uname", b"gname", b"hdrcharset", b"charset"))
_TIME = re.compile(rb"-?\d{1,18}(?:\.\d{0,40})?(?:e-\d{1,2})?")
_INTEGER = re.compile(rb"\d{1,20}")


def read_layer_index(
    chunks: Iterable[bytes], *, layer: str, limits: LayerLimits | None = None, spent: Spent | None = None
) -> LayerIndex:
    """Return the index of the uncompressed tar that comes in `chunks`, in whatever pieces; it is read to its end.

    `layer` is how errors call the layer. What is kept is counted in `spent` as it comes, for an image whose layers
    have limits together. Raises MalformedHeader, MalformedLayer and its kinds, TruncatedLayer, LayerTooLarge and
    MetadataTooLarge, and whatever `chunks` raises.
    """
    ahead = ReadAhead(lambda: iter(chunks), budget=_READ_AHEAD)
    limits = limits or LayerLimits()
    try:
        return _Reader(TarCursor(ahead, layer, limits), layer, limits, spent or Spent(limits)).read()
    finally:
        ahead.close()


class _Reader:
    """One pass over a tar that fills one index."""

    def __init__(self, tar: TarCursor, layer: str, limits: LayerLimits, spent: Spent) -> None:
        self._tar = tar
        self._layer = layer
        self._limits = limits
        self._spent = spent
        self._index = LayerIndex()
        self._index.limits = limits
        self._counted = 0
        self._metadata = 0
        self._told = 0, 0
        self._next_look = min(_BETWEEN_LOOKS, limits.max_metadata)
        self._global: dict[bytes, bytes] = {}
        self._globals = 0
        self._of_all: dict[bytes, bytes] | None = None
        self._known: dict[int, dict[bytes, bytes]] = {}
        self._values: dict[bytes, bytes] = {}
        self._local: list[tuple[bytes, bytes]] = []
        self._long_name: bytes | None = None
        self._long_link: bytes | None = None
        self._extended = 0
        self._extensions = 0
        self._unsigned = True
        self._start: int | None = None
        self._directories: set[bytes] = {b""}
        self._used: dict[bytes, int] = {}
        self._end = -1
        self._size = 0

    def _malformed(self, fact: str, entry: bytes | None = None) -> MalformedHeader:
        where = f"entry {shown(entry)}" if entry is not None else f"the header before byte {self._tar.position}"
        return MalformedHeader(f"layer {self._layer}: {where} {fact}")

    def _too_large(self, limit: str, name: bytes, what: str) -> LayerTooLarge:
        return self._limits.too_large(limit, f"layer {self._layer}: entry {shown(name)} {what}")

    def _spend(self, size: int) -> None:
        """Count `size` bytes of memory. Raises MetadataTooLarge, before they are taken."""
        self._metadata += size
        if self._metadata > self._next_look:
            self._look()

    def _look(self) -> None:
        """Hold what has been counted against what the layer may have, and the image."""
        names, most = self._index.names, self._limits.max_metadata
        if self._metadata > most:
            where = f"after entry {shown(names[-1])}" if names else "before its first entry"
            raise self._limits.too_large(
                "max_metadata",
                f"layer {self._layer} has more bytes of names, links, records, maps and whiteouts {where}",
            )
        entries, metadata = self._told
        self._spent.add(len(names) - entries, self._metadata - metadata)
        self._told = len(names), self._metadata
        self._next_look = min(self._metadata + _BETWEEN_LOOKS, most)

    def _spend_names(self) -> None:
        """Count the entries that have come since this was called last."""
        names = self._index.names
        size = sum(map(len, names[self._counted :]))
        self._counted = len(names)
        self._spend(size)

    def read(self) -> LayerIndex:
        tar, index = self._tar, self._index
        while True:
            if not (self._extensions or self._global):
                self._common()
                if self._counted < len(index.names):
                    self._spend_names()
            position = tar.position
            block = tar.read(BLOCK)
            if len(block) < BLOCK:
                if block.strip(b"\0"):
                    raise TruncatedLayer(f"layer {self._layer} ends within a header, at byte {tar.position}")
                break
            if block == _ZEROS:
                if tar.read(BLOCK).strip(b"\0"):
                    raise self._malformed("follows a lone block of zeros")
                break
            self._header(block, position)
        if self._start is not None:
            raise TruncatedLayer(f"layer {self._layer} ends after an extension header that extends nothing")
        index.size, index.diff_id = tar.finish()
        self._judge_order()
        index.metadata = self._metadata
        self._look()
        return index

    def _header(self, block: bytes, position: int) -> None:
        try:
            stored = _parse_number(block[148:156])
        except ValueError:
            stored = -1
        self._unsigned = stored == tarheader.checksum(block)
        if not self._unsigned and stored != tarheader.signed_checksum(block):
            raise self._malformed("has a wrong checksum, or is no tar header")
        kind = block[156]
        if kind in b"xgLK":
            self._extension(block, kind, position)
            return
        self._entry(block, kind, position)
        if not self._extensions:
            return
        self._local, self._long_name, self._long_link, self._start = [], None, None, None
        self._extended = self._extensions = 0

    def _common(self) -> None:
        """Take the files and directories that come next, up to the first that has anything uncommon.

        Whatever this takes, `_entry` would take in the same way, at three times the cost.
        """
        tar, index = self._tar, self._index
        max_size, room = self._limits.max_size, self._limits.max_entries - len(index.names)
        # No name without an extension is longer than a header has room for; one with may be as long as a block.
        longest = min(self._limits.max_name, self._limits.max_depth)
        chunk, at = tar.window()
        while room and at + BLOCK <= len(chunk):
            start = tar.position_of(at)
            name, ownership, length, time, stored, kind, magic, owners, prefix, rest = _HEADER.unpack_from(chunk, at)
            block = at
            if kind == b"x":
                block = at + 2 * BLOCK
                size = chunk.find(b"\n", at + BLOCK, block) + 1 - at - BLOCK
                if size <= 0:
                    break
                digits, _, name = chunk[at + BLOCK : at + BLOCK + size - 1].partition(b" path=")
                if (
                    block + BLOCK > len(chunk)
                    or digits != b"%d" % size
                    or length[:11] != b"%011o" % size
                    or stored[6:] not in _CHECKSUM_ENDS
                    or stored[:6] != b"%06o" % tarheader.checksum(chunk[at : at + BLOCK])
                    or len(name) > longest
                    or not tarheader.is_utf8(name)
                ):
                    break
                _, ownership, length, time, stored, kind, magic, owners, prefix, rest = _HEADER.unpack_from(
                    chunk, block
                )
            else:
                name = name.rstrip(b"\0")
            if (
                kind not in (b"0", b"5")
                or magic not in (_USTAR, _GNU)
                or prefix[0]
                or stored[6:] not in _CHECKSUM_ENDS
                or stored[:6] != b"%06o" % tarheader.checksum(chunk[block : block + BLOCK])
                or name[:1] in _UNCOMMON_STARTS
                or b"/." in name
                or b"//" in name
                or b"\0" in name
                or name in KEPT_FILES
            ):
                break
            try:
                mode, uid, gid = _parse_ownership(ownership)
                size, mtime = _parse_number(length), _parse_number(time)
            except ValueError:
                break
            path = name
            if kind == b"5":
                path = name[:-1]
                if size or name[-1:] != b"/":
                    break
            elif name[-1:] == b"/":
                break
            if not (0 <= size <= max_size and 0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID and 0 <= mtime < _MAX_TIME):
                break
            payload = tar.position_of(block + BLOCK)
            end = payload + size + -size % BLOCK
            padded = True
            at = block + BLOCK + end - payload
            if at > len(chunk):
                tar.move(block + BLOCK)
                passed = tar.pass_by(end - payload)
                if passed < size:
                    raise self._cut(name)
                padded = payload + passed == end
                chunk, at = tar.window()
                self._spend_names()
            flags = PRESENT | JOINED if start == self._end else PRESENT
            if owners == _NO_OWNERS and rest == _NO_REST and padded:
                flags |= VERBATIM
                if prefix == _NO_PREFIX and start + BLOCK == payload:
                    flags |= PATCHABLE
            entry = len(index.names)
            index.names.append(path)
            index.kinds.append(kind[0])
            index.flags.append(flags)
            index.starts.append(start)
            index.payloads.append(payload)
            index.sizes.append(size)
            index.modes.append(mode & 0o7777)
            index.uids.append(uid)
            index.gids.append(gid)
            index.mtimes.append(mtime)
            self._end = end
            self._place(path, kind[0], entry)
            room -= 1
        tar.move(at)

    def _is_patchable(self, block: bytes) -> bool:
        return (
            self._unsigned
            and not block[345:500].strip(b"\0")
            and block[148:154].isdigit()
            and block[154:156] in _CHECKSUM_ENDS
        )

    def _is_own_pax(self) -> bool:
        """Return whether the extensions read so far are one PAX header that this project could have written."""
        local = self._local
        keys = {key for key, _ in local}
        return (
            self._extensions == 1
            and len(keys) == len(local)
            and keys.isdisjoint(_NOT_WRITTEN)
            and all(
                value and (key not in (b"path", b"linkpath") or tarheader.is_utf8(value)) and b"GNU." not in key
                for key, value in local
            )
        )

    def _number(self, field: bytes, what: str, name: bytes | None = None) -> int:
        try:
            return _parse_number(field)
        except ValueError:
            raise self._malformed(f"has a {what} that is no number", name) from None

    def _extension(self, block: bytes, kind: int, position: int) -> None:
        size = self._number(block[124:136], "size")
        self._extensions += 1
        self._extended += max(size, 0) + BLOCK
        if size < 0:
            raise self._malformed("has a negative size")
        if self._extended > self._limits.max_extension:
            raise self._limits.too_large(
                "max_extension",
                f"layer {self._layer}: the header before byte {self._tar.position} is an extension of {size} bytes",
            )
        payload = self._tar.read(size + padding(size))
        if len(payload) < size:
            raise TruncatedLayer(f"layer {self._layer} ends within an extension header, at byte {self._tar.position}")
        payload = payload[:size]
        if kind == 0x4C:
            self._long_name = payload.partition(b"\0")[0]
        elif kind == 0x4B:
            self._long_link = payload.partition(b"\0")[0]
        else:
            try:
                records = tarheader.parse_pax_records(payload)
            except ValueError as error:
                raise self._malformed(f"is a PAX header with {error}") from None
            if kind == 0x67:
                self._globals += sum(len(key) + len(value) + _RECORD for key, value in records)
                if self._globals > self._limits.max_global:
                    raise self._limits.too_large(
                        "max_global",
                        f"layer {self._layer}: the global PAX headers before byte {self._tar.position} have"
                        f" {self._globals} bytes of records",
                    )
                # Entries share what it says, so it is another one from here on.
                self._global = {key: value for key, value in (self._global | dict(records)).items() if value}
                self._of_all = None
                # It extends all that follows, not one entry, so the tar may end after it.
                return
            self._local.extend(records)
        if self._start is None:
            self._start = position

    def _entry(self, block: bytes, kind: int, position: int) -> None:
        tar, index = self._tar, self._index
        magic = block[257:265]
        name = block[:100].partition(b"\0")[0]
        if magic == _USTAR and block[345]:
            prefix = block[345 : 476 if block[508:512] == b"tar\0" else 500].partition(b"\0")[0]
            name = prefix + b"/" + name
        link = block[157:257].partition(b"\0")[0]
        size = self._number(block[124:136], "size", name)
        records: dict[bytes, bytes] = {}
        plain = verbatim = self._start is None and not self._global
        if not plain:
            verbatim = not self._global and self._long_name is None is self._long_link and self._is_own_pax()
            records = {**self._global, **dict(self._local)} if self._local else self._global
            name = records.get(b"path") or name
            link = records.get(b"linkpath") or link
            name = name if self._long_name is None else self._long_name
            link = link if self._long_link is None else self._long_link
            size = self._integer(records, b"size", size, name)
        sparse: Sparse | None = None
        pax_sparse = kind != 0x53 and sparsemap.is_pax(records)
        if pax_sparse:
            name = records.get(b"GNU.sparse.name") or name
        if not plain and (b"\0" in name or b"\0" in link):
            raise self._malformed("has a NUL in its name", name)
        if len(name) > self._limits.max_name:
            raise self._too_large("max_name", name, f"has a name of {len(name)} bytes")
        if len(link) > self._limits.max_name:
            raise self._too_large("max_name", name, f"has a link of {len(link)} bytes")
        try:
            if kind == 0x53:  # old GNU sparse
                sparse = sparsemap.read_old_gnu(block, tar.read, room=self._limits.max_extension - self._extended)
            elif pax_sparse:
                room = self._limits.max_extension
                sparse, size = sparsemap.read_pax(self._local, records, size, tar.read, room=room)
        except sparsemap.MalformedMap as problem:
            raise self._malformed(str(problem), name) from None
        except sparsemap.MapCut:
            raise TruncatedLayer(f"layer {self._layer} ends within the sparse map of {shown(name)}") from None
        if size < 0:
            raise self._malformed("has a negative size", name)
        payload = tar.position
        stored = size
        if kind in (0x00, 0x30, 0x37, 0x53):
            # Since tar's first days a file whose name ends with a slash is a directory.
            verbatim = verbatim and kind == FILE and not name.endswith(b"/")
            kind = DIRECTORY if name.endswith(b"/") else FILE
        elif kind in _PLAIN_KINDS:
            if size:
                stored = size = 0
                verbatim = False
        else:
            raise UnknownEntryType(f"layer {self._layer}: entry {shown(name)} has the unknown type {bytes((kind,))!r}")
        claimed = max(size, 0 if sparse is None else sparse.size)
        if claimed > self._limits.max_size:
            raise self._limits.too_large(
                "max_size", f"layer {self._layer}: entry {shown(name)} claims {claimed} bytes", LayerTooLarge
            )
        path = name
        if b"/." in name or b"//" in name or name[:1] in (b".", b"/") or name[-1:] == b"/":
            path = self._normalised(name, name)
        if path.count(b"/") >= self._limits.max_depth:
            raise self._too_large("max_depth", name, f"has a name of {path.count(b'/') + 1} components")
        if b".wh." in path and self._whiteout(path, name):
            self._pass_by(stored, name)
            return
        # Only in tars without types is a slash at the end all that makes the root a directory.
        if not path and (kind != DIRECTORY or block[156] in b"07"):
            raise self._malformed("stands for the root and is no directory", name)
        content = b""
        if kind == FILE and path in KEPT_FILES and stored <= _MAX_KEPT and sparse is None:
            content = tar.read(stored)
            if len(content) < stored:
                raise self._cut(name)
            self._spend(stored + _IN_A_TABLE)
            index.kept[len(index.names)] = content
            tar.pass_by(padding(stored))
        else:
            self._pass_by(stored, name)
        entry = len(index.names)
        if entry >= self._limits.max_entries:
            raise self._limits.too_large("max_entries", f"layer {self._layer} has more entries", LayerTooLarge)
        uid, gid = self._number(block[108:116], "uid", name), self._number(block[116:124], "gid", name)
        if records:
            uid, gid = self._integer(records, b"uid", uid, name), self._integer(records, b"gid", gid, name)
        if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
            raise self._malformed(f"has an owner ({uid}:{gid}) that no system has", name)
        mtime, exact = self._time(block, records, name)
        mode = self._number(block[100:108], "mode", name) & 0o7777
        if kind in (LINK, SYMLINK):
            if not link:
                raise self._malformed("is a link to nothing", name)
            if kind == LINK:
                target = self._normalised(link, name)
                verbatim = verbatim and target == link
                link = target
            self._spend(len(link) + (_HARD_LINK if kind == LINK else _IN_A_TABLE))
            index.links[entry] = link
        elif kind in (CHARACTER, BLOCK_DEVICE):
            major, minor = self._number(block[329:337], "device", name), self._number(block[337:345], "device", name)
            if not (0 <= major <= _MAX_ID and 0 <= minor <= _MAX_ID):
                raise self._malformed(f"has a device number ({major}, {minor}) that no system has", name)
            self._spend(2 * _IN_A_TABLE)
            index.devices[entry] = (major, minor)
        if sparse is not None:
            if sum(length for _, length in sparse.pieces) > stored:
                raise self._malformed("has less data than its sparse map says", name)
            if len(sparse.pieces) > self._limits.max_pieces:
                raise self._too_large("max_pieces", name, f"is a sparse file of {len(sparse.pieces)} pieces")
            self._spend(2 * _IN_A_TABLE + _PIECE_OF_A_MAP * len(sparse.pieces))
            index.sparse[entry] = sparse
            self._size += sparse.size
            if self._size > self._limits.max_size:
                raise self._limits.too_large(
                    "max_size",
                    f"layer {self._layer}: its sparse files, of which {shown(name)} is one, expand to"
                    f" {self._size} bytes",
                    LayerTooLarge,
                )
        if records:
            kept = self._kept(records, exact, name)
            if kept:
                self._spend(_IN_A_TABLE)
                index.records[entry] = kept
        start = self._start if self._start is not None else position
        flags = PRESENT | JOINED if start == self._end else PRESENT
        if (
            verbatim
            and sparse is None
            and name == (path + b"/" if kind == DIRECTORY else path)
            and block[265:329] == _NO_OWNERS
            and (magic == _USTAR or (magic == _GNU and not block[345]))
            and not block[500:512].strip(b"\0")
            and tar.position == payload + stored + padding(stored)
        ):
            flags |= VERBATIM
            if plain and kind != LINK and self._is_patchable(block):
                flags |= PATCHABLE
        index.names.append(path)
        index.kinds.append(kind)
        index.flags.append(flags)
        index.starts.append(start)
        index.payloads.append(payload)
        index.sizes.append(stored)
        index.modes.append(mode)
        index.uids.append(uid)
        index.gids.append(gid)
        index.mtimes.append(mtime)
        self._end = payload + stored + padding(stored)
        self._counted += 1
        self._spend(len(path))
        self._place(path, kind, entry)

    def _kept(self, records: dict[bytes, bytes], exact: bytes | None, name: bytes) -> dict[bytes, bytes]:
        """Return what is kept of an entry's records, as one object for all entries that have the same.

        `exact` is the mtime that a record of its own has to say.
        """
        shared = not self._local
        if shared and self._of_all is not None:
            return self._of_all
        kept = {
            key: value
            for key, value in records.items()
            # Without a value a record takes back a global one; an attribute may be empty.
            if (value or b".xattr." in key) and key not in _SUPERSEDED and not key.startswith(b"GNU.sparse.")
        }
        kept.pop(b"mtime", None)
        if exact is not None:
            kept[b"mtime"] = exact
        if kept:
            kept = self._known_records(kept, name)
        if shared:
            self._of_all = kept
        return kept

    def _known_records(self, kept: dict[bytes, bytes], name: bytes) -> dict[bytes, bytes]:
        """Return `kept`, or what is known already and equal to it."""
        identity = hash(frozenset(kept.items()))
        known = self._known.get(identity)
        if known == kept:
            return known
        limits, total = self._limits, 0
        for key, value in kept.items():
            size = len(value)
            total += len(key) + size
            if key.startswith(_LIBARCHIVE):
                size = size * _BASE64[1] // _BASE64[0]
            if size > limits.max_attribute:
                raise self._too_large("max_attribute", name, f"has {shown(key)} of {size} bytes")
        if total > limits.max_attributes:
            raise self._too_large("max_attributes", name, f"has records of {total} bytes")
        values, distinct = self._values, {}
        size = _RECORDS + _RECORD * len(kept)
        for key, value in kept.items():
            for text in (key, value) if b".xattr." in key else (key,):
                if text not in values:
                    size += len(text) + _IN_A_TABLE
                    values[text] = text
            if b".xattr." in key:
                distinct[values[key]] = values[value]
            else:
                size += len(value)
                distinct[values[key]] = value
        self._spend(size)
        self._known[identity] = distinct
        return distinct

    def _place(self, path: bytes, kind: int, entry: int) -> None:
        """Note the directories that `path` needs, and whether it comes after something that needed it."""
        parent = path.rpartition(b"/")[0]
        while parent not in self._directories and parent not in self._used:
            self._spend(len(parent) + _IMPLIED)
            self._used[parent] = entry
            parent = parent.rpartition(b"/")[0]
        if kind == DIRECTORY:
            if path in self._used:
                self._index.tidy = False
            self._directories.add(path)

    def _judge_order(self) -> None:
        index = self._index
        directories, used = self._directories, self._used
        names = set(index.names)
        if len(names) != len(index.names):
            index.tidy = False
            [(name, times)] = Counter(index.names).most_common(1)
            if times > self._limits.max_repeats:
                raise self._too_large("max_repeats", name, f"comes {times} times")
        # Shallow first, so that a plan meets a parent before what is in it.
        index.implied = sorted(
            ((path, entry) for path, entry in used.items() if path not in directories),
            key=lambda item: item[0].count(b"/"),
        )
        if not index.tidy:
            return
        # A name below a directory's entry has that entry as its parent; one below a file has the file.
        needed = chain(used, (name.rpartition(b"/")[0] for name in directories if name))
        if any(path in names and path not in directories for path in needed):
            index.tidy = False
            return
        del names
        links = [entry for entry in index.links if index.kinds[entry] == LINK]
        if links:
            order = {name: entry for entry, name in enumerate(index.names)}
            for entry in links:
                if order.get(index.links[entry], len(order)) >= entry:
                    index.tidy = False
                    return

    def _cut(self, name: bytes) -> TruncatedLayer:
        return TruncatedLayer(f"layer {self._layer} ends within the payload of {shown(name)}")

    def _pass_by(self, size: int, name: bytes) -> None:
        padded = size + padding(size)
        # Writers that stop right after the last payload leave its padding out.
        if self._tar.pass_by(padded) < size:
            raise self._cut(name)

    def _integer(self, records: Mapping[bytes, bytes], key: bytes, default: int, name: bytes) -> int:
        text = records.get(key)
        if not text:
            return default
        if not _INTEGER.fullmatch(text):
            raise self._malformed(f"has a PAX record {key.decode()} that is no number", name)
        return int(text)

    def _time(self, block: bytes, records: Mapping[bytes, bytes], name: bytes) -> tuple[int, bytes | None]:
        """Return the whole seconds of an entry's mtime, and all of it where there is a fraction, which a record has."""
        text = records.get(b"mtime")
        exact: bytes | None = None
        if not text:
            seconds = self._number(block[136:148], "mtime", name)
        else:
            if not _TIME.fullmatch(text):
                raise self._malformed("has a PAX record mtime that is no time", name)
            # Python writes a time near the epoch with an exponent.
            time = Decimal(text.decode())
            # The whole seconds are below the time, also before the epoch.
            seconds = math.floor(time)
            if time != seconds:
                exact = f"{time:f}".rstrip("0").encode()
        if not -_MAX_TIME < seconds < _MAX_TIME:
            raise self._malformed(f"has a time ({seconds} s) that no clock shows", name)
        return seconds, exact

    def _normalised(self, path: bytes, entry: bytes) -> bytes:
        parts: list[bytes] = []
        for part in path.split(b"/"):
            if part == b"..":
                if not parts:
                    what = "" if path is entry else f" links to {shown(path)}, which"
                    raise PathLeavesRoot(f"layer {self._layer}: entry {shown(entry)}{what} leaves the root")
                parts.pop()
            elif part and part != b".":
                parts.append(part)
        return b"/".join(parts)

    def _whiteout(self, path: bytes, name: bytes) -> bool:
        """Note what the whiteout `path` deletes; False when it is an ordinary name."""
        *parents, last = path.split(b"/")
        for position, part in enumerate((*parents, last)):
            match whiteout.classify(part):
                case Whiteout.LEFTOVER:
                    return True
                case Whiteout.BARE:
                    raise BareWhiteout(f"layer {self._layer}: entry {shown(name)} is a whiteout of nothing")
                case Whiteout.OPAQUE if position == len(parents):
                    self._count_whiteout(name)
                    self._index.opaques.append(b"/".join(parents))
                    return True
                case Whiteout.FILE if position == len(parents):
                    target = last[len(whiteout.PREFIX) :]
                    if target in (b".", b".."):
                        raise PathLeavesRoot(
                            f"layer {self._layer}: entry {shown(name)} deletes a directory from within"
                        )
                    self._count_whiteout(name)
                    self._index.whiteouts.append(b"/".join((*parents, target)))
                    return True
                case Whiteout.OPAQUE | Whiteout.FILE:
                    raise MalformedLayer(f"layer {self._layer}: entry {shown(name)} lies below a whiteout")
                case None:
                    continue
        return False

    def _count_whiteout(self, name: bytes) -> None:
        if len(self._index.whiteouts) + len(self._index.opaques) >= self._limits.max_whiteouts:
            raise self._too_large("max_whiteouts", name, "is one whiteout more")
        self._spend(len(name) + _IN_A_TABLE)
