"""The streaming merger: a merge plan and opened layers in, one tar out.

The law: each layer is read once, front to back, and closed before its successor's bytes are written; one that nothing
survives of is not opened. The size is exact before the first byte. What a layer's bytes are is verified to their end,
also past the last survivor, so a wrong blob ends the stream with an error, never with a short or a changed image.
Memory is bounded by what is read ahead, whatever the image holds.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from util.compression import decompressed
from util.digest import Digest, DigestMismatch, Readable
from util.layerindex import LayerIndex, LayerLimits, TruncatedLayer
from util.mergeplan import MergePlan, Step, plan_merge
from util.readahead import ReadAhead
from util.tarheader import END_OF_ARCHIVE, padding

_AHEAD = 12 << 20
_TOGETHER = 2
_OUTPUT = 256 << 10
_ZEROS = bytes(64 << 10)


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
        self, layers: Sequence[LayerSource], *, path_prefix: bytes = b"", limits: LayerLimits | None = None
    ) -> None:
        """Plan the merge; nothing is opened. Raises what `plan_merge` raises."""
        self._layers = layers
        self._plan: MergePlan = plan_merge(
            [layer.index for layer in layers],
            layers=[str(layer.digest) for layer in layers],
            path_prefix=path_prefix,
            limits=limits,
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

    def kept_file(self, path: bytes) -> bytes | None:
        """Return the content of `etc/passwd` or `etc/group` in the merged root file system, None if it has none."""
        found = self._plan.entry_of(path)
        if found is None:
            return None
        layer, entry = found
        return self._layers[layer].index.kept.get(entry)

    def get_generator(self) -> Generator[bytes, None, None]:
        """Yield the tar. Opened layers are closed when the generator ends or is closed.

        Raises DigestMismatch, CorruptStream, TruncatedStream, TruncatedLayer and what opening a layer raises.
        """
        hasher = hashlib.sha256()
        for chunk in self._batched():
            hasher.update(chunk)
            yield chunk
        self._diff_id = Digest("sha256", hasher.hexdigest())

    def _batched(self) -> Iterator[bytes]:
        """Join small parts, and hand large ones on as they are."""
        parts: list[bytes] = []
        length = 0
        stream = self._parts()
        try:
            for part in stream:
                parts.append(part)
                length += len(part)
                if length >= _OUTPUT:
                    yield parts[0] if len(parts) == 1 else b"".join(parts)
                    parts, length = [], 0
            if parts:
                yield b"".join(parts)
        finally:
            stream.close()

    def _parts(self) -> Generator[bytes, None, None]:
        plan = self._plan
        root = plan.root()
        if root is not None:
            yield plan.header(root)
        ends = plan.ends
        waiting = [layer for layer, end in enumerate(ends) if end]
        running: dict[int, ReadAhead] = {}
        try:
            for layer, end in enumerate(ends):
                if not end:
                    for step in plan.steps(layer):
                        yield plan.header(step)
                    continue
                while waiting and len(running) < _TOGETHER:
                    following = waiting.pop(0)
                    running[following] = self._read_ahead(following, ends)
                yield from self._layer(layer, running[layer])
                running.pop(layer).close()
        finally:
            for ahead in running.values():
                ahead.close()
        yield END_OF_ARCHIVE

    def _read_ahead(self, layer: int, ends: Sequence[int]) -> ReadAhead:
        source, end = self._layers[layer], ends[layer]

        def pieces() -> Iterator[bytes]:
            blob = _VerifiedBlob(source)
            try:
                position = 0
                for piece in decompressed(blob, what=f"layer {source.digest}"):
                    yield piece
                    position += len(piece)
                    if position >= end:
                        break
                blob.verify()
            finally:
                blob.close()

        return ReadAhead(pieces, budget=_AHEAD)

    def _layer(self, layer: int, ahead: ReadAhead) -> Iterator[bytes]:
        plan, tar = self._plan, _Tar(ahead, self._layers[layer].digest)
        sparse = bool(self._layers[layer].index.sparse)
        for step in plan.steps(layer):
            if step.entry is None:
                yield from tar.slices(step.begin, step.end)
                continue
            yield plan.header(step)
            holes = plan.sparse_of(step) if sparse else None
            if holes is not None:
                yield from _expanded(tar, step, *holes)
                continue
            if step.end > step.begin:
                yield from tar.slices(step.begin, step.end)
                if rest := padding(step.end - step.begin):
                    yield bytes(rest)
        # The verdict on the blob's digest comes after its last piece.
        for _ in ahead:
            pass


def _expanded(tar: _Tar, step: Step, size: int, pieces: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    position, stored = 0, step.begin
    for offset, length in (*pieces, (size, 0)):
        yield from _zeros(offset - position)
        yield from tar.slices(stored, stored + length)
        stored += length
        position = offset + length
    yield from _zeros(padding(size))


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield _ZEROS[:count]
        count -= len(_ZEROS)
