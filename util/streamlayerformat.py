"""The streaming merger: a merge plan and opened layers in, one tar out.

The law: each layer is read once, front to back, and closed before its successor's bytes are written; one that nothing
survives of is not opened. The size is exact before the first byte. What a layer's bytes are is verified to their end,
also past the last survivor, so a wrong blob ends the stream with an error, never with a short or a changed image.
Memory is bounded by what is read ahead, whatever the image holds; what is inflated before its turn waits on disk.
"""

import hashlib
import threading
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate

from util.compression import decompressed
from util.digest import Digest, DigestMismatch, Readable
from util.layerindex import LayerIndex, LayerLimits, Sparse, TruncatedLayer
from util.layerreader import read_layer_index
from util.mergeplan import How, MergePlan, Run, Step, plan_merge
from util.readahead import ReadAhead
from util.rootfschanges import RootfsChanges
from util.tarheader import BLOCK, END_OF_ARCHIVE, HeaderPatch, padding
from util.written import Written, written

_AHEAD = 8 << 20
_SPILL = 512 << 20
_TOGETHER = 2
_OUTPUT = 256 << 10
_ZEROS = bytes(64 << 10)
_OWN = "added by the format"


class NotComputed(Exception):
    """A value that is known only after the stream has ended."""


@dataclass(frozen=True, slots=True)
class LayerSource:
    """A layer as the merger needs it: its digest, index, and how to open its stored bytes, which the merger closes."""

    digest: Digest
    size: int | None
    index: LayerIndex
    open: Callable[[], Readable]


class _VerifiedBlob:
    """A blob that hashes what is read of it; `verify` reads the rest. Closes what it wraps."""

    def __init__(self, source: LayerSource) -> None:
        self._source = source
        self._stream = source.open()
        self._hasher = source.digest.hasher()
        self._length = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._hasher.update(data)
        self._length += len(data)
        return data

    def verify(self) -> None:
        while self.read(1 << 20):
            pass
        digest, size = self._source.digest, self._source.size
        if self._hasher.hexdigest() != digest.hex:
            raise DigestMismatch(
                f"layer {digest} holds other bytes: they have {digest.algorithm}:{self._hasher.hexdigest()}"
            )
        if size is not None and size != self._length:
            raise DigestMismatch(f"layer {digest} should have {size} bytes and has {self._length}")

    def close(self) -> None:
        self._stream.close()


class _Tar:
    """The pieces of an uncompressed tar, as slices of it asked for front to back."""

    def __init__(self, pieces: Iterator[bytes], layer: Digest) -> None:
        self._pieces = pieces
        self._layer = layer
        self._piece = b""
        self._base = 0

    def slices(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from `begin` to `end`, whole pieces uncopied."""
        while begin < end:
            stop = self._base + len(self._piece)
            if begin >= stop:
                self._base = stop
                piece = next(self._pieces, None)
                if piece is None:
                    raise TruncatedLayer(
                        f"layer {self._layer} ends before byte {end} of its tar, which its index names"
                    )
                self._piece = piece
                continue
            part = self._piece[begin - self._base : end - self._base]
            begin += len(part)
            yield part


class StreamLayerMerger:
    """The root file system of a stack of layers as one tar, base first."""

    def __init__(
        self,
        layers: Sequence[LayerSource],
        *,
        path_prefix: bytes = b"",
        changes: RootfsChanges | None = None,
        limits: LayerLimits | None = None,
    ) -> None:
        """Plan the merge, `changes` included; nothing is opened. Raises what `plan_merge` raises."""
        own = _own_layer(changes)
        self._layers = [*layers, *own]
        self._plan: MergePlan = plan_merge(
            [layer.index for layer in self._layers],
            layers=[*(str(layer.digest) for layer in layers), *(_OWN for _ in own)],
            path_prefix=path_prefix,
            limits=limits,
            completed=bool(own),
        )
        self._diff_id: Digest | None = None

    @property
    def size(self) -> int:
        """The exact length of the whole tar in bytes, end-of-archive blocks included."""
        return self._plan.size

    @property
    def diff_id(self) -> Digest:
        """The digest of the tar that was streamed. Raises NotComputed before the stream has ended."""
        if self._diff_id is None:
            raise NotComputed("the diff_id is known when the stream has ended")
        return self._diff_id

    def entries(self) -> Iterator[Written]:
        """Yield what the tar holds, in its order, and where each payload lies in it. Reads no layer."""
        return written(self._plan)

    def kept_file(self, path: bytes) -> bytes | None:
        """Return the content of `etc/passwd` or `etc/group` in the merged root file system, None if it has none."""
        found = self._plan.entry_of(path)
        if found is None:
            return None
        layer, entry = found
        return self._layers[layer].index.kept.get(entry)

    def folder(self, path: bytes) -> tuple[int, int, int] | None:
        """Return mode, owner and group of the directory that `path` leads to, None where it leads to none."""
        return self._plan.folder(path)

    def get_generator(self) -> Generator[bytes, None, None]:
        """Yield the tar, and compute its `diff_id`. Opened layers are closed when the generator ends or is closed.

        Raises DigestMismatch, CorruptStream, TruncatedStream, TruncatedLayer and what opening a layer raises.
        """
        hasher = hashlib.sha256()
        for chunk in self.get_range(0, self.size):
            hasher.update(chunk)
            yield chunk
        self._diff_id = Digest("sha256", hasher.hexdigest())

    def get_range(self, offset: int, length: int) -> Generator[bytes, None, None]:
        """Yield `length` bytes of the tar from `offset`, fewer where it ends, in pieces of any size.

        Layers without a byte in the range are not opened; one in which it ends is read to its own end, which verifies
        its digest, and not inflated further. Raises what `get_generator` raises, at the end too: who must not pass on
        what is wrong keeps the last piece until then.
        """
        parts: list[bytes | bytearray] = []
        waiting = 0
        stream = self._parts(offset, min(offset + length, self.size))
        try:
            for part in stream:
                parts.append(part)
                waiting += len(part)
                if waiting >= _OUTPUT:
                    yield b"".join(parts)
                    parts, waiting = [], 0
            if parts:
                yield b"".join(parts)
        finally:
            stream.close()

    def _parts(self, begin: int, stop: int) -> Generator[bytes | bytearray, None, None]:
        """Yield the bytes from `begin` to `stop`, uncopied where that is possible."""
        plan = self._plan
        if plan.head[begin:stop]:
            yield plan.head[begin:stop]
        bounds = list(accumulate(plan.sizes, initial=len(plan.head)))
        wanted = [
            layer for layer, size in enumerate(plan.sizes) if size and bounds[layer] < stop > begin < bounds[layer + 1]
        ]
        waiting = [layer for layer in wanted if plan.ends[layer]]
        running: dict[int, ReadAhead] = {}
        enough = threading.Event()  # of the last layer
        try:
            for layer in wanted:
                while waiting and len(running) < _TOGETHER:
                    following = waiting.pop(0)
                    last = enough if following == wanted[-1] else None
                    running[following] = self._read_ahead(following, last, spill=_SPILL if running else 0)
                ahead = running.get(layer)
                parts = self._layer(layer, ahead or iter(()), max(begin - bounds[layer], 0))
                yield from _at_most(parts, stop - max(begin, bounds[layer]))
                if ahead is not None:
                    if layer == wanted[-1]:
                        enough.set()
                    # The verdict on the blob's digest comes after its last piece.
                    for _ in ahead:
                        pass
                    running.pop(layer).close()
        finally:
            for ahead in running.values():
                ahead.close()
        rest = END_OF_ARCHIVE[max(begin - bounds[-1], 0) : max(stop - bounds[-1], 0)]
        if rest:
            yield rest

    def _read_ahead(self, layer: int, enough: threading.Event | None, *, spill: int) -> ReadAhead:
        """Read a layer, inflating no more of it than survives, nor than is wanted when there is `enough`."""
        source, end = self._layers[layer], self._plan.ends[layer]

        def pieces() -> Iterator[bytes]:
            blob = _VerifiedBlob(source)
            try:
                position = 0
                for piece in decompressed(blob, what=f"layer {source.digest}"):
                    yield piece
                    position += len(piece)
                    if position >= end or (enough is not None and enough.is_set()):
                        break
                blob.verify()
            finally:
                blob.close()

        return ReadAhead(pieces, budget=_AHEAD, spill=spill)

    def _layer(self, layer: int, pieces: Iterator[bytes], skip: int) -> Iterator[bytes | bytearray]:
        """Yield what is written of a layer, without the first `skip` bytes."""
        plan, tar = self._plan, _Tar(pieces, self._layers[layer].digest)
        for step in plan.steps(layer):
            if not skip:
                yield from self._written(layer, step, tar)
                continue
            rest, skip = plan.without(layer, step, skip)
            if rest is not None:
                yield from _without(self._written(layer, rest, tar), skip)
                skip = 0

    def _written(self, layer: int, step: Run | Step, tar: _Tar) -> Iterator[bytes | bytearray]:
        plan, index = self._plan, self._layers[layer].index
        if isinstance(step, Step):
            yield plan.header(step)
            yield from _payload(tar, step.begin, step.end, plan.sparse_of(step))
        elif step.how is How.RENDER:
            payloads, sizes, sparse = index.payloads, index.sizes, index.sparse
            for entry, header in enumerate(plan.headers(layer, step), step.first):
                yield header
                if sizes[entry] or entry in sparse:
                    begin = payloads[entry]
                    yield from _payload(tar, begin, begin + sizes[entry], sparse.get(entry))
        else:
            slices = tar.slices(index.starts[step.first], index.end(step.stop - 1))
            if step.how is How.COPY:
                yield from slices
            else:
                yield from _patched(slices, index.starts[step.first : step.stop], plan.patch)


def _own_layer(changes: RootfsChanges | None) -> list[LayerSource]:
    """Return the layer that a format's changes are, none where there are none."""
    tar = b"" if changes is None else changes.layer()
    if not tar:
        return []
    return [LayerSource(Digest.of(tar), len(tar), read_layer_index([tar], layer=_OWN), lambda: BytesIO(tar))]


def _payload(tar: _Tar, begin: int, end: int, sparse: Sparse | None) -> Iterator[bytes]:
    """Yield the bytes from `begin` to `end` with the holes of a sparse file between them, and what pads them."""
    if sparse is None:
        yield from tar.slices(begin, end)
        if rest := padding(end - begin):
            yield bytes(rest)
        return
    position = 0
    for offset, length in (*sparse.pieces, (sparse.size, 0)):
        yield from _zeros(offset - position)
        yield from tar.slices(begin, begin + length)
        begin += length
        position = offset + length
    yield from _zeros(padding(sparse.size))


def _patched(pieces: Iterator[bytes], starts: "array[int]", patch: HeaderPatch) -> Iterator[bytearray]:
    """Yield `pieces`, which begin at the first of `starts`, with each header that starts there patched."""
    position, rest, following = starts[0], b"", 0
    for piece in pieces:
        buffer = bytearray(rest)
        buffer += piece
        last = position + len(buffer) - BLOCK
        while following < len(starts) and starts[following] <= last:
            patch.apply(buffer, starts[following] - position)
            following += 1
        rest = b""
        if following < len(starts) and (cut := starts[following] - position) < len(buffer):
            rest = bytes(buffer[cut:])
            del buffer[cut:]
        position += len(buffer)
        yield buffer


def _at_most(parts: Iterator[bytes | bytearray], room: int) -> Iterator[bytes | bytearray]:
    for part in parts:
        if len(part) >= room:
            yield part[:room]
            return
        room -= len(part)
        yield part


def _without(parts: Iterator[bytes | bytearray], skip: int) -> Iterator[bytes | bytearray]:
    for part in parts:
        if skip < len(part):
            yield part[skip:] if skip else part
        skip = max(skip - len(part), 0)


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield _ZEROS[:count]
        count -= len(_ZEROS)
