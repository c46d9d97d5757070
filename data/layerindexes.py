"""Layer indexes by their layer's digest: taken from storage, or made of the layer and kept there.

The law: an index is only ever made of bytes that have the layer's digest, and is only ever given to who expects its
diff_id. What is kept may be lost, damaged or of another version, and is then made anew; a storage that cannot keep it
costs time and nothing else.

A layer that exceeds a limit is remembered in its index's place, with the limit, so that it is read again only when the
limit has been raised. In one process, a layer is read by one thread at a time: the others wait for its index.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from data.registry import BlobLocation, content_path
from data.storage.base import OWN, BlobNotFound
from data.storage.distributed import DistributedStorage, StorageReadOnly
from util.compression import decompressed
from util.digest import Digest, DigestMismatch, InvalidDigest, Readable, verified
from util.layerindex import LayerIndex, LayerLimits, LayerTooLarge, Spent
from util.layerreader import read_layer_index
from util.problem import Damaged, Malformed
from util.storedindex import FORMAT_VERSION, UnreadableLayerIndex, restored, stored, stored_refusal

log = logging.getLogger(__name__)

INDEXES = f"{OWN}/layerindex"
"""The folder of the indexes that are kept, of all versions."""

_PIECE = 256 << 10
_THREADS = 2  # each has a second one that decompresses ahead


class DiffIdMismatch(DigestMismatch):
    """A layer that is another one, once uncompressed, than the image's configuration says."""

    code = "DIFF_ID_MISMATCH"


def indexed_layer(path: str) -> Digest | None:
    """Return the layer whose index storage keeps at `path`; None where it is none that this version would look at."""
    algorithm, _, hexadecimal = path.removeprefix(f"{INDEXES}/v{FORMAT_VERSION}/").replace("/", ":", 1).partition(":")
    try:
        digest = Digest.parse(f"{algorithm}:{hexadecimal.rpartition('/')[2]}")
    except InvalidDigest:
        return None
    return digest if path == _path(digest) else None


class LayerIndexes:
    """The indexes of a registry's layers. Safe to use from several threads and processes."""

    def __init__(self, storage: DistributedStorage, limits: LayerLimits | None = None) -> None:
        self._storage = storage
        self.limits = limits or LayerLimits()
        self._turns = _Turns()

    def get(self, blob: BlobLocation, *, diff_id: Digest | None = None, spent: Spent | None = None) -> LayerIndex:
        """Return the index of the layer `blob`, which has `diff_id` if that is known.

        What it takes is counted in `spent`, for an image whose layers have limits together. Raises BlobNotFound naming
        the layer, DigestMismatch and DiffIdMismatch, what decompressing raises, and the family of MalformedLayer,
        TruncatedLayer, LayerTooLarge.
        """
        with self._turns.of(blob.digest):
            return self._get(blob, diff_id, spent)

    def _get(self, blob: BlobLocation, diff_id: Digest | None, spent: Spent | None) -> LayerIndex:
        index = self.peek(blob, spent=spent)
        if index is not None and diff_id in (None, index.diff_id):
            return index
        # Also where the kept index has another diff_id: it may be the index that is wrong, and only the layer tells.
        try:
            stream = self._storage.open(blob.locations, blob.path)
        except BlobNotFound:
            raise BlobNotFound(f"layer {blob.digest} is not in storage (looked for {blob.path})") from None
        try:
            index = self.read(stream, blob.digest, size=blob.size, diff_id=diff_id, spent=spent)
        except LayerTooLarge as problem:
            if problem.limit is not None:
                log.warning("verbs refuse the layer: %s", problem)
                self._keep(blob.digest, iter([stored_refusal(problem)]))
            raise
        finally:
            stream.close()
        self.keep(blob.digest, index)
        return index

    def many(self, blobs: Sequence[BlobLocation], diff_ids: Iterable[Digest | None]) -> list[LayerIndex]:
        """Return the index of each of `blobs`, side by side; a layer that comes twice is read once.

        Together they keep within the limits of an image. Raises what `get` raises; of several errors that of the lowest
        layer.
        """
        spent = Spent(self.limits)
        wanted = list(zip((blob.digest for blob in blobs), diff_ids, strict=True))
        places = dict(zip(wanted, blobs, strict=True))
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="layer-index") as pool:
            coming = {key: pool.submit(self.get, blob, diff_id=key[1], spent=spent) for key, blob in places.items()}
            try:
                made = {key: future.result() for key, future in coming.items()}
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        return [made[key] for key in wanted]

    def peek_many(self, blobs: Sequence[BlobLocation]) -> list[LayerIndex] | None:
        """Return the index that is kept of each of `blobs`, None where one cannot be used. Raises as `peek`."""
        spent = Spent(self.limits)
        found: dict[Digest, LayerIndex] = {}
        for blob in blobs:
            index = found.get(blob.digest) or self.peek(blob, spent=spent)
            if index is None:
                return None
            found[blob.digest] = index
        return [found[blob.digest] for blob in blobs]

    def peek(self, blob: BlobLocation, *, spent: Spent | None = None) -> LayerIndex | None:
        """Return the index that is kept of the layer `blob`, None where there is none that can be used.

        The layer is not read. An index that is larger than the limits allow is of no use: making it will say so.
        Raises LayerTooLarge for a layer that is known to exceed a limit, and what Spent.add raises.
        """
        path = _path(blob.digest)
        try:
            stream = self._storage.preferred.open(path)
            try:
                index = restored(stream, layer=str(blob.digest), spent=spent)
            finally:
                stream.close()
        except BlobNotFound:
            return None
        except LayerTooLarge as problem:
            if problem.limit is not None and getattr(self.limits, problem.limit) > problem.most:
                return None
            raise
        except UnreadableLayerIndex:
            log.warning("the index of layer %s cannot be read and is made anew", blob.digest)
            return None
        except Exception:
            log.exception("storage cannot give the index of layer %s; it is made anew", blob.digest)
            return None
        limits = self.limits
        within = (
            len(index) <= limits.max_entries
            and index.size <= limits.max_size
            and index.metadata <= limits.max_metadata
            and len(index.whiteouts) + len(index.opaques) <= limits.max_whiteouts
        )
        return index if within and limits.satisfied_by(index.limits) else None

    def read(
        self,
        stream: Readable,
        digest: Digest,
        *,
        size: int | None = None,
        diff_id: Digest | None = None,
        spent: Spent | None = None,
    ) -> LayerIndex:
        """Return the index of the layer that `stream` gives as it was pushed, read to its end. Keeps nothing.

        Raises what `get` raises of a layer's content. Bytes of another digest are told as that, whatever else is
        wrong with them. The caller closes `stream`.
        """
        blob = _Verified(stream, digest, size)
        try:
            chunks = decompressed(blob, what=f"layer {digest}")
            index = read_layer_index(chunks, layer=str(digest), limits=self.limits, spent=spent)
        except DigestMismatch:
            raise
        except (Damaged, Malformed, LayerTooLarge):
            blob.finish()
            raise
        blob.finish()
        _check_diff_id(index, digest, diff_id)
        return index

    def keep(self, digest: Digest, index: LayerIndex) -> None:
        """Keep the index of the layer `digest`. A storage that fails is logged and left alone."""
        self._keep(digest, stored(index))

    def _keep(self, digest: Digest, pieces: Iterator[bytes]) -> None:
        try:
            with self._storage.create(_path(digest)) as writer:
                for piece in pieces:
                    writer.write(piece)
                writer.commit()
        except StorageReadOnly:
            log.info("the index of layer %s is not kept: the registry is read-only", digest)
        except Exception:
            log.exception("the index of layer %s is not kept: storage failed", digest)


class _Turns:
    """Lets one thread at a time do something for a digest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[Digest, threading.Lock] = {}
        self._wanted: Counter[Digest] = Counter()

    @contextmanager
    def of(self, digest: Digest) -> Iterator[None]:
        with self._lock:
            turn = self._locks.setdefault(digest, threading.Lock())
            self._wanted[digest] += 1
        try:
            with turn:
                yield
        finally:
            with self._lock:
                self._wanted[digest] -= 1
                if not self._wanted[digest]:
                    del self._wanted[digest], self._locks[digest]


class _Verified:
    """A stream whose end is an error unless the bytes before it have a digest and, where it is known, a size."""

    def __init__(self, stream: Readable, digest: Digest, size: int | None) -> None:
        pieces = iter(lambda: stream.read(_PIECE), b"")
        self._pieces = verified(pieces, digest, size=size, what="layer")
        self._rest = b""
        self._mismatch: DigestMismatch | None = None

    def read(self, size: int = -1, /) -> bytes:
        if not self._rest:
            self._rest = self._next()
        end = len(self._rest) if size < 0 else size
        piece, self._rest = self._rest[:end], self._rest[end:]
        return piece

    def finish(self) -> None:
        """Read what has not been read. Raises DigestMismatch, also when a read has raised it before."""
        while self._next():
            pass

    def _next(self) -> bytes:
        if self._mismatch is not None:
            raise self._mismatch
        try:
            return next(self._pieces, b"")
        except DigestMismatch as error:
            # Who read it may have been reading ahead, and another error may have come first.
            self._mismatch = error
            raise

    def close(self) -> None:
        """Do nothing: the stream is its opener's."""


def _check_diff_id(index: LayerIndex, layer: Digest, diff_id: Digest | None) -> None:
    # An index knows the SHA-256 of its layer; no other algorithm is in use for diff_ids.
    if diff_id is not None and index.diff_id != diff_id:
        raise DiffIdMismatch(f"layer {layer} is {index.diff_id} uncompressed, and the configuration says {diff_id}")


def _path(digest: Digest) -> str:
    return f"{INDEXES}/v{FORMAT_VERSION}/{content_path(digest)}"
