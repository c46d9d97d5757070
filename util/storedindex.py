"""Layer indexes as bytes: written and read in pieces, because an index can be as large as memory allows one to be.

Invariants:
- What is written depends on the index alone, so equal indexes are equal bytes.
- Neither way holds more than the index itself and some pieces; how much an index will take is known before it is read.
- Whatever else lies in an index's place is an UnreadableLayerIndex, and never half an index.
"""

import json
import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields
from io import BytesIO
from itertools import chain, islice
from typing import Any

from util.compression import decompressed
from util.digest import Digest, Readable
from util.layerindex import (
    LAYER_LIMITS,
    LayerIndex,
    LayerLimits,
    LayerTooLarge,
    MetadataTooLarge,
    Sparse,
    Spent,
)
from util.problem import Damaged

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT_VERSION = 3
"""Goes up whenever what `stored` writes, or what `read_layer_index` makes of a tar, changes."""

_MAGIC = b"layerindex" + struct.pack("<H", FORMAT_VERSION)
_PIECE = 256 << 10
_TOGETHER = 4096
_COLUMNS = ("starts", "payloads", "sizes", "modes", "uids", "gids", "mtimes")
_LENGTH = struct.Struct("<Q")
_MAX_HEAD = 1 << 20


_REFUSED = b"layernoindex" + struct.pack("<H", FORMAT_VERSION)
_KINDS: dict[str, type[LayerTooLarge]] = {kind.code: kind for kind in (LayerTooLarge, MetadataTooLarge)}
_MAX_REFUSAL = 64 << 10


class UnreadableLayerIndex(Damaged):
    """Stored bytes that are no layer index of this version; the index is made anew from the layer."""

    code = "LAYER_INDEX_UNREADABLE"


def stored_refusal(problem: LayerTooLarge) -> bytes:
    """Return the bytes that `restored` raises `problem` for. It must have a `limit`."""
    told = {"code": problem.code, "text": str(problem), "limit": problem.limit, "most": problem.most}
    return _REFUSED + json.dumps(told).encode()


def stored(index: LayerIndex) -> Iterator[bytes]:
    """Yield the bytes that `restored` reads, in pieces."""
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: 1,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    compressor = zstd.ZstdCompressor(options=options)
    waiting = [_MAGIC]
    size = 0
    for part in _parts(index):
        packed = compressor.compress(part)
        waiting.append(packed)
        size += len(packed)
        if size >= _PIECE:
            yield b"".join(waiting)
            waiting, size = [], 0
    waiting.append(compressor.flush())
    yield b"".join(waiting)


def restored(stream: Readable, *, layer: str, spent: Spent | None = None) -> LayerIndex:
    """Return the index that `stored` wrote to what `stream` gives, after counting in `spent` what it will take.

    Raises the LayerTooLarge that `stored_refusal` wrote in its place, UnreadableLayerIndex, which names `layer`, and
    what Spent.add raises. The caller closes `stream`.
    """
    magic = _exactly(stream, len(_MAGIC))
    try:
        if magic + _exactly(stream, len(_REFUSED) - len(magic), unless=magic == _MAGIC) == _REFUSED:
            raise _refusal(stream)
        if magic != _MAGIC:
            raise ValueError(f"it is not of version {FORMAT_VERSION}")
        return _index(_Source(decompressed(stream, what=f"the index of layer {layer}")), spent)
    except (Damaged, struct.error, ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise UnreadableLayerIndex(f"the index of layer {layer} cannot be read: {error}") from error


def restored_from(data: bytes, *, layer: str) -> LayerIndex:
    """Return the index that `stored` wrote as `data`. Raises UnreadableLayerIndex."""
    return restored(BytesIO(data), layer=layer)


def _exactly(stream: Readable, size: int, *, unless: bool = False) -> bytes:
    """Return `size` bytes, fewer where the stream ends, and none `unless` that."""
    data = b""
    while not unless and len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def _refusal(stream: Readable) -> LayerTooLarge:
    told = json.loads(_exactly(stream, _MAX_REFUSAL))
    if told["limit"] not in LAYER_LIMITS:
        raise ValueError("it is refused for a limit that there is not")
    return _KINDS[told["code"]](told["text"], limit=told["limit"], most=told["most"])


# --- Writing ----------------------------------------------------------------------------------------------------------


def _parts(index: LayerIndex) -> Iterator[bytes]:
    distinct = {id(records): records for records in index.records.values()}
    numbers = {identity: number for number, identity in enumerate(distinct)}
    head = {
        "diff_id": str(index.diff_id),
        "size": index.size,
        "tidy": index.tidy,
        "entries": len(index),
        "metadata": index.metadata,
        "limits": asdict(index.limits),
    }
    content = json.dumps(head).encode()
    yield _LENGTH.pack(len(content)) + content
    yield from _texts(index.names)
    yield from _bytes(index.kinds)
    yield from _bytes(index.flags)
    for column in _COLUMNS:
        yield from _array(getattr(index, column))
    yield from _array(array("I", index.links))
    yield from _texts(index.links.values())
    yield from _array(array("I", index.records))
    yield from _array(array("I", (numbers[id(records)] for records in index.records.values())))
    yield from _array(array("I", map(len, distinct.values())))
    yield from _blobs(lambda: chain.from_iterable(records.keys() for records in distinct.values()))
    yield from _blobs(lambda: chain.from_iterable(records.values() for records in distinct.values()))
    yield from _array(array("I", index.devices))
    yield from _array(array("I", chain.from_iterable(index.devices.values())))
    yield from _array(array("I", index.sparse))
    yield from _array(array("Q", (sparse.size for sparse in index.sparse.values())))
    yield from _array(array("I", (len(sparse.pieces) for sparse in index.sparse.values())))
    yield from _array(
        array("Q", (number for sparse in index.sparse.values() for piece in sparse.pieces for number in piece))
    )
    yield from _array(array("I", index.kept))
    yield from _blobs(index.kept.values)
    yield from _texts(index.whiteouts)
    yield from _texts(index.opaques)
    yield from _texts([name for name, _ in index.implied])
    yield from _array(array("I", (entry for _, entry in index.implied)))


def _texts(texts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield texts that have no NUL in them: their length together, and each with a NUL behind it."""
    texts = texts if isinstance(texts, list) else list(texts)
    yield _LENGTH.pack(sum(map(len, texts)) + len(texts))
    for at in range(0, len(texts), _TOGETHER):
        yield b"\0".join(texts[at : at + _TOGETHER]) + b"\0"


def _blobs(blobs: Callable[[], Iterable[bytes]]) -> Iterator[bytes]:
    """Yield what may have any bytes: the length of each, and then each."""
    yield from _array(array("I", map(len, blobs())))
    yield from blobs()


def _bytes(content: bytes | bytearray) -> Iterator[bytes]:
    yield _LENGTH.pack(len(content))
    yield bytes(content)


def _array(values: "array[int]") -> Iterator[bytes]:
    if sys.byteorder == "big":
        values = array(values.typecode, values)
        values.byteswap()
    yield from _bytes(values.tobytes())


# --- Reading ----------------------------------------------------------------------------------------------------------


def _index(source: "_Source", spent: Spent | None) -> LayerIndex:
    head = source.head()
    entries, metadata = head["entries"], head["metadata"]
    if spent is not None:
        spent.add(entries, metadata)
    index = LayerIndex()
    index.diff_id, index.size, index.tidy = Digest.parse(head["diff_id"]), head["size"], head["tidy"]
    index.metadata = metadata
    index.limits = LayerLimits(**{field.name: head["limits"][field.name] for field in fields(LayerLimits)})
    index.names = source.texts()
    index.kinds, index.flags = bytearray(source.content()), bytearray(source.content())
    for name in _COLUMNS:
        column: array[int] = getattr(index, name)
        source.column(column)
        if len(column) != entries:
            raise ValueError("a column has another length")
    if not len(index.names) == len(index.kinds) == len(index.flags) == entries:
        raise ValueError("a column has another length")
    index.links = dict(zip(source.numbers("I"), source.texts(), strict=True))
    having, which = source.numbers("I"), source.numbers("I")
    distinct = list(_records(source))
    index.records = {entry: distinct[number] for entry, number in zip(having, which, strict=True)}
    having, devices = source.numbers("I"), source.numbers("I")
    index.devices = dict(zip(having, zip(devices[::2], devices[1::2], strict=True), strict=True))
    index.sparse = dict(_sparse(source))
    index.kept = dict(zip(source.numbers("I"), source.blobs(), strict=True))
    index.whiteouts, index.opaques = source.texts(), source.texts()
    index.implied = list(zip(source.texts(), source.numbers("I"), strict=True))
    source.end()
    return index


def _records(source: "_Source") -> Iterator[dict[bytes, bytes]]:
    """Yield each dictionary of records that some entry has, with what is equal in them stored once."""
    counts = source.numbers("I")
    known: dict[bytes, bytes] = {}
    keys = [known.setdefault(key, key) for key in source.blobs()]
    values = source.blobs()
    at = 0
    for count in counts:
        own = keys[at : at + count]
        at += count
        pairs = zip(own, islice(values, count), strict=True)
        yield {key: known.setdefault(value, value) if b".xattr." in key else value for key, value in pairs}
    if at != len(keys):
        raise ValueError("there are records that no entry has")
    for _ in values:  # what follows can be read when this has been
        raise ValueError("there are values that no record has")


def _sparse(source: "_Source") -> Iterator[tuple[int, Sparse]]:
    having, sizes, counts, numbers = (source.numbers(kind) for kind in "IQIQ")
    at = 0
    for entry, size, count in zip(having, sizes, counts, strict=True):
        pieces = tuple(zip(numbers[at : at + 2 * count : 2], numbers[at + 1 : at + 2 * count : 2], strict=True))
        if len(pieces) != count:
            raise ValueError("a sparse map is cut")
        at += 2 * count
        yield entry, Sparse(size, pieces)


class _Source:
    """What `_parts` yielded, read in the same order."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")

    def head(self) -> dict[str, Any]:
        length = self._length()
        if length > _MAX_HEAD:
            raise ValueError("its head is too long")
        head = json.loads(b"".join(self._read(length)))
        if not isinstance(head, dict):
            raise TypeError("its head is no object")
        return head

    def content(self) -> bytes:
        return b"".join(self._read(self._length()))

    def column(self, values: "array[int]") -> None:
        values.frombytes(self.content())
        if sys.byteorder == "big":
            values.byteswap()

    def numbers(self, kind: str) -> "array[int]":
        values: array[int] = array(kind)
        self.column(values)
        return values

    def texts(self) -> list[bytes]:
        texts: list[bytes] = []
        rest = b""
        for piece in self._read(self._length()):
            *some, rest = (rest + piece).split(b"\0")
            texts += some
        if rest:
            raise ValueError("a text is cut")
        return texts

    def blobs(self) -> Iterator[bytes]:
        """Read how long they are now, and each when it is asked for."""
        lengths = self.numbers("I")
        return (b"".join(self._read(length)) for length in lengths)

    def end(self) -> None:
        if self._piece or any(self._pieces):
            raise ValueError("its parts do not fill it")

    def _length(self) -> int:
        length: int = _LENGTH.unpack(b"".join(self._read(_LENGTH.size)))[0]
        return length

    def _read(self, length: int) -> "Iterator[bytes]":
        while length:
            if not self._piece:
                piece = next(self._pieces, None)
                if piece is None:
                    raise ValueError("it is cut")
                self._piece = memoryview(piece)
                continue
            part = self._piece[:length]
            self._piece = self._piece[len(part) :]
            length -= len(part)
            yield bytes(part)
