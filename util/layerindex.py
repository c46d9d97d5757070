"""The layer index: what a layer's tar says, without its payloads.

The law: a layer is read once, front to back, and from then on its index answers for it: every entry's metadata, and
where its payload lies in the uncompressed tar. An index depends on the tar's bytes alone, so it is kept under the
layer's digest and shared by every image that has it. Whiteouts are not entries but facts about lower layers. Names
are normalised here and nowhere else: bytes, relative to the root, without `.` and `..`, the root itself being `b""`.

It is held in columns, one array per value, because one object per entry would cost a hundred times the time to load.
"""

import json
import struct
import sys
from array import array
from dataclasses import dataclass

from util.digest import Digest
from util.problem import Damaged, Malformed, TooLarge
from util.tarheader import padding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT_VERSION = 2
"""Goes up whenever what `dump` writes, or what `read_layer_index` makes of a tar, changes."""

KEPT_FILES = frozenset((b"etc/passwd", b"etc/group"))
"""Files whose content an index keeps, for the formats that resolve users by name."""

FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0123456"

VERBATIM = 1
"""Flag: the entry's bytes in the tar, its PAX header included, can be written as they are."""
JOINED = 2
"""Flag: the entry begins where the one before it in the index ends."""
PATCHABLE = 4
"""Flag: VERBATIM, its header is one block, and whatever is to stand before its name fits into that: no hard link."""
PRESENT = 8
"""Flag: always set, so that no entry has none."""


class MalformedLayer(Malformed):
    """A layer whose entries contradict its specification."""

    code = "LAYER_MALFORMED"


class PathLeavesRoot(MalformedLayer):
    """A name or a link target whose `..` leave the root."""

    code = "LAYER_PATH_LEAVES_ROOT"


class BareWhiteout(MalformedLayer):
    """A whiteout that names nothing."""

    code = "LAYER_WHITEOUT_BARE"


class UnknownEntryType(MalformedLayer):
    """An entry of a type that no image specification knows."""

    code = "LAYER_ENTRY_TYPE_UNKNOWN"


class TruncatedLayer(Damaged):
    """A tar that ends within an entry."""

    code = "LAYER_TRUNCATED"


class LayerTooLarge(TooLarge):
    """A layer with more entries or bytes than is allowed here."""

    code = "LAYER_TOO_LARGE"


class UnreadableLayerIndex(Damaged):
    """Stored bytes that are no layer index of this version; the index is made anew from the layer."""

    code = "LAYER_INDEX_UNREADABLE"


@dataclass(frozen=True, slots=True)
class LayerLimits:
    """How much one layer, and one image, may hold."""

    max_entries: int = 5_000_000
    max_size: int = 1 << 40
    """Bytes of the uncompressed tar, and of what sparse files expand to."""
    max_extension: int = 1 << 20
    """Bytes of all the extension headers of one entry."""


@dataclass(frozen=True, slots=True)
class Sparse:
    """Where the pieces of a sparse file belong: its full size, and (offset, length) of each piece in order (bytes)."""

    size: int
    pieces: tuple[tuple[int, int], ...]


class LayerIndex:
    """The entries of one layer in tar order, column by column, and what it deletes from lower layers.

    Not to be changed by readers. `links` are normalised names for hard links, raw targets for symlinks.
    """

    __slots__ = (
        "devices", "diff_id", "flags", "gids", "implied", "kept", "kinds", "links", "modes", "mtimes", "names",
        "opaques", "payloads", "records", "size", "sizes", "sparse", "starts", "tidy", "uids", "whiteouts",
    )  # fmt: skip

    def __init__(self) -> None:
        self.diff_id = Digest.of(b"")
        self.size = 0
        self.names: list[bytes] = []
        self.kinds = bytearray()
        self.flags = bytearray()
        self.starts = array("Q")
        self.payloads = array("Q")
        self.sizes = array("Q")
        self.modes = array("H")
        self.uids = array("I")
        self.gids = array("I")
        self.mtimes = array("q")
        self.links: dict[int, bytes] = {}
        self.records: dict[int, dict[bytes, bytes]] = {}
        self.devices: dict[int, tuple[int, int]] = {}
        self.sparse: dict[int, Sparse] = {}
        self.kept: dict[int, bytes] = {}
        self.whiteouts: list[bytes] = []
        self.opaques: list[bytes] = []
        self.implied: list[tuple[bytes, int]] = []
        """Directories that the layer uses and has no entry for, each with the first entry that needs it."""
        self.tidy = True
        """Whether the order of the entries does not matter: no duplicates, parents first, link targets first."""

    def __len__(self) -> int:
        return len(self.names)

    def end(self, entry: int) -> int:
        """Return where the entry's last block ends in the uncompressed tar (bytes)."""
        size = self.sizes[entry]
        return self.payloads[entry] + size + padding(size)

    def file_size(self, entry: int) -> int:
        """Return the bytes that the entry's file has once unpacked."""
        sparse = self.sparse.get(entry)
        return sparse.size if sparse else self.sizes[entry]

    _COLUMNS = ("starts", "payloads", "sizes", "modes", "uids", "gids", "mtimes")

    def dump(self) -> bytes:
        """Return the index as bytes that `load` reads."""
        rest = {
            "diff_id": str(self.diff_id),
            "size": self.size,
            "tidy": self.tidy,
            "links": [list(self.links), [link.decode("latin-1") for link in self.links.values()]],
            "records": [
                [entry, [[key.decode("latin-1"), value.decode("latin-1")] for key, value in records.items()]]
                for entry, records in self.records.items()
            ],
            "devices": [[entry, *device] for entry, device in self.devices.items()],
            "sparse": [[entry, sparse.size, sparse.pieces] for entry, sparse in self.sparse.items()],
            "kept": [[entry, content.decode("latin-1")] for entry, content in self.kept.items()],
            "whiteouts": [name.decode("latin-1") for name in self.whiteouts],
            "opaques": [name.decode("latin-1") for name in self.opaques],
            "implied": [[name.decode("latin-1"), entry] for name, entry in self.implied],
        }
        parts = [json.dumps(rest).encode(), b"\0".join(self.names), bytes(self.kinds), bytes(self.flags)]
        for column in self._COLUMNS:
            values: array[int] = getattr(self, column)
            if sys.byteorder == "big":
                values = array(values.typecode, values)
                values.byteswap()
            parts.append(values.tobytes())
        head = struct.pack("<Q", len(self)) + b"".join(struct.pack("<Q", len(part)) for part in parts)
        options: dict[int, int] = {
            zstd.CompressionParameter.compression_level: 1,
            zstd.CompressionParameter.checksum_flag: 1,
        }
        return _MAGIC + zstd.compress(head + b"".join(parts), options=options)

    @classmethod
    def load(cls, data: bytes, *, layer: str) -> "LayerIndex":
        """Return the index that `dump` wrote. Raises UnreadableLayerIndex, which names `layer`."""
        if not data.startswith(_MAGIC):
            raise UnreadableLayerIndex(f"the index of layer {layer} is not of version {FORMAT_VERSION}")
        try:
            return cls._loaded(memoryview(zstd.decompress(data[len(_MAGIC) :])))
        except (zstd.ZstdError, struct.error, ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
            raise UnreadableLayerIndex(f"the index of layer {layer} cannot be read: {error}") from error

    @classmethod
    def _loaded(cls, view: memoryview) -> "LayerIndex":
        count = 5 + len(cls._COLUMNS)
        entries, *lengths = struct.unpack_from(f"<{count}Q", view)
        position = 8 * count
        parts: list[memoryview] = []
        for length in lengths:
            parts.append(view[position : position + length])
            position += length
        if position != len(view):
            raise ValueError("its parts do not fill it")
        rest = json.loads(bytes(parts[0]))
        index = cls()
        index.names = bytes(parts[1]).split(b"\0") if entries else []
        index.kinds, index.flags = bytearray(parts[2]), bytearray(parts[3])
        for name, part in zip(cls._COLUMNS, parts[4:], strict=True):
            column: array[int] = getattr(index, name)
            column.frombytes(part)
            if sys.byteorder == "big":
                column.byteswap()
            if len(column) != entries:
                raise ValueError("a column has another length")
        if not len(index.names) == len(index.kinds) == len(index.flags) == entries:
            raise ValueError("a column has another length")
        index.diff_id, index.size, index.tidy = Digest.parse(rest["diff_id"]), rest["size"], rest["tidy"]
        index.links = dict(zip(rest["links"][0], (link.encode("latin-1") for link in rest["links"][1]), strict=True))
        index.records = {
            entry: {key.encode("latin-1"): value.encode("latin-1") for key, value in records}
            for entry, records in rest["records"]
        }
        index.devices = {entry: (major, minor) for entry, major, minor in rest["devices"]}
        index.sparse = {
            entry: Sparse(size, tuple((offset, length) for offset, length in pieces))
            for entry, size, pieces in rest["sparse"]
        }
        index.kept = {entry: content.encode("latin-1") for entry, content in rest["kept"]}
        index.whiteouts = [name.encode("latin-1") for name in rest["whiteouts"]]
        index.opaques = [name.encode("latin-1") for name in rest["opaques"]]
        index.implied = [(name.encode("latin-1"), entry) for name, entry in rest["implied"]]
        return index


_MAGIC = b"layerindex" + struct.pack("<H", FORMAT_VERSION)


def shown(name: bytes) -> str:
    text = name.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 200 else text[:200] + "…")
