"""The layer index: what a layer's tar says, without its payloads.

The law: a layer is read once, front to back, and from then on its index answers for it: every entry's metadata, and
where its payload lies in the uncompressed tar. An index depends on the tar's bytes alone, so it is kept under the
layer's digest and shared by every image that has it. Whiteouts are not entries but facts about lower layers. Names
are normalised here and nowhere else: bytes, relative to the root, without `.` and `..`, the root itself being `b""`.

It is held in columns, one array per value, because one object per entry would cost a hundred times the time to load.
"""

import threading
from array import array
from dataclasses import dataclass

from util.digest import Digest
from util.problem import Damaged, Malformed, TooLarge
from util.tarheader import padding

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
    """A layer, or an image, with more entries or bytes than is allowed here.

    `limit` is the field of LayerLimits that a layer exceeds by itself, and `most` its value then; None where the fact
    is not one about a single layer's own bytes, and so must not be remembered with it.
    """

    code = "LAYER_TOO_LARGE"

    def __init__(self, text: str, *, limit: str | None = None, most: int = 0) -> None:
        super().__init__(text)
        self.limit = limit
        self.most = most


class MetadataTooLarge(LayerTooLarge):
    """A layer, or an image, with longer or more names, links, attributes, maps or whiteouts than is allowed here."""

    code = "LAYER_METADATA_TOO_LARGE"


class OutputTooLarge(LayerTooLarge):
    """An image that would be many times as large as the layers that it is made of."""

    code = "IMAGE_OUTPUT_TOO_LARGE"


class ImageTooComplex(LayerTooLarge):
    """An image whose layers take more work to merge than is allowed here."""

    code = "IMAGE_TOO_COMPLEX"


@dataclass(frozen=True, slots=True)
class LayerLimits:
    """How much one layer, and one image, may hold. Each is set by the setting VERBS_ and the field's name.

    What is measured in bytes of memory was measured with CPython 3.11 on 64 bits: an entry of an index takes 85 bytes
    beside its name, and some 170 more while it is made and while images are planned. At the defaults an image takes at
    most some 700 MiB, the metadata that follow included.
    """

    max_entries: int = 2_000_000
    """Of a layer, and of an image. A developer's whole machine has half a million files."""
    max_size: int = 1 << 40
    """Bytes of the uncompressed tar, and of what sparse files expand to."""
    max_extension: int = 1 << 20
    """Bytes of all the extension headers of one entry; the sparse map of a file lies there, too."""
    max_name: int = 4096
    """Bytes of a name or of a link's target: Linux's PATH_MAX, so nothing longer was ever packed from a disk by its
    name. Names of up to 100 bytes pass whatever this says.
    """
    max_depth: int = 1024
    """Components of a name. Half of what PATH_MAX has room for; the deepest trees of modules have a tenth."""
    max_attribute: int = 64 << 10
    """Bytes of one extended attribute, or of another record that is kept: Linux's XATTR_SIZE_MAX."""
    max_attributes: int = 256 << 10
    """Bytes of all that is kept of one entry's records: bsdtar writes each attribute twice, once of them in base64, so
    one of the greatest size takes 152 KiB.
    """
    max_global: int = 64 << 10
    """Bytes of all records in the global PAX headers of one layer, each with 64 more for what it takes in memory. `git
    archive` writes one, of 52 bytes.
    """
    max_pieces: int = 1 << 16
    """Pieces of one sparse file. The forms that maps are written in have room for about as many."""
    max_whiteouts: int = 500_000
    """Of one layer. Whole directories are deleted by one; the most that were seen, of emptied caches, are thousands."""
    max_repeats: int = 1000
    """Entries of one name in one layer. Builders that append to a layer write a name a few times."""
    max_metadata: int = 256 << 20
    """Bytes of names, and of all that comes beside the numbers of an entry: links, records, maps, whiteouts,
    directories without an entry. Of one layer, and of an image. For names of 60 bytes that is twice what `max_entries`
    need.
    """
    max_growth: int = 16
    """How many times the bytes of its uncompressed layers an image's tar may have, holes of sparse files not counted,
    and 16 MiB more. An honest entry grows from 512 bytes to 1,536 where its name with a prefix needs an extension; one
    below a symlink that leads to the longest name there can be grows to 5,632, which is eleven times.
    """
    max_lookups: int = 10_000_000
    """Names that may be looked up to find out where the entries of an image lie: some ten seconds. Parents that are
    no symlinks are free, and others that were found are known from then on, so real images need less than one an entry.
    """
    plan_seconds: int = 60
    """Seconds of processor time that an image may take to be planned, or analyzed. One of 160,000 entries takes 0.2."""

    def too_large(self, limit: str, what: str, kind: type[LayerTooLarge] | None = None) -> LayerTooLarge:
        """Return the error that something exceeds the field `limit`; `what` says what, and begins with its layer."""
        most = getattr(self, limit)
        setting = f"VERBS_{limit.upper()}"
        return (kind or MetadataTooLarge)(f"{what}; at most {most} are allowed ({setting})", limit=limit, most=most)

    def satisfied_by(self, made: "LayerLimits") -> bool:
        """Tell whether every entry that was read under the limits `made` is allowed by these, too."""
        return all(getattr(made, name) <= getattr(self, name) for name in _OF_AN_ENTRY)


_OF_AN_ENTRY = (
    "max_extension", "max_name", "max_depth", "max_attribute", "max_attributes", "max_global", "max_pieces",
    "max_repeats",
)  # fmt: skip
LAYER_LIMITS = (*_OF_AN_ENTRY, "max_entries", "max_size", "max_whiteouts", "max_metadata")
"""The limits that a layer keeps or exceeds by itself, whatever image it is in."""


class Spent:
    """What the layers of one image, of which several may be read at once, take together of what it may have."""

    def __init__(self, limits: LayerLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._entries = 0
        self._metadata = 0

    def add(self, entries: int, metadata: int) -> None:
        """Count what one more layer, or one more part of one, has. Raises LayerTooLarge, MetadataTooLarge."""
        with self._lock:
            self._entries += entries
            self._metadata += metadata
            entries, metadata = self._entries, self._metadata
        limits = self._limits
        if entries > limits.max_entries:
            raise LayerTooLarge(
                f"the image has more than {limits.max_entries} entries; no more are allowed (VERBS_MAX_ENTRIES)"
            )
        if metadata > limits.max_metadata:
            raise MetadataTooLarge(
                "the image has names, links, records, maps and whiteouts of more than"
                f" {limits.max_metadata} bytes; no more are allowed (VERBS_MAX_METADATA)"
            )


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
        "devices", "diff_id", "flags", "gids", "implied", "kept", "kinds", "limits", "links", "metadata", "modes",
        "mtimes", "names", "opaques", "payloads", "records", "size", "sizes", "sparse", "starts", "tidy", "uids",
        "whiteouts",
    )  # fmt: skip

    def __init__(self) -> None:
        self.diff_id = Digest.of(b"")
        self.size = 0
        self.limits = LayerLimits()
        """The limits under which the layer was read."""
        self.metadata = 0
        """What counts for LayerLimits.max_metadata (bytes of memory)."""
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
        """Equal ones are one object, so they must not be changed."""
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


def shown(name: bytes) -> str:
    text = name.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 200 else text[:200] + "…")
