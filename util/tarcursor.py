"""The cursor in an uncompressed tar: a position that only moves forward, and the hash of all that it passes."""

from collections.abc import Iterator
from hashlib import sha256

from util.digest import Digest
from util.layerindex import LayerLimits, LayerTooLarge


class TarCursor:
    """A position in the tar that comes in `chunks`. Raises LayerTooLarge where it is larger than `limits` allow."""

    def __init__(self, chunks: Iterator[bytes], layer: str, limits: LayerLimits) -> None:
        self._chunks = chunks
        self._layer = layer
        self._limits = limits
        self._hasher = sha256()
        self._chunk = b""
        self._at = 0
        self._base = 0

    @property
    def position(self) -> int:
        return self._base + self._at

    def _next(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._hasher.update(chunk)
        self._base += len(self._chunk)
        self._at = 0
        self._chunk = chunk
        if self._base + len(chunk) > self._limits.max_size:
            raise self._limits.too_large("max_size", f"layer {self._layer} has more bytes uncompressed", LayerTooLarge)
        return True

    def window(self) -> tuple[bytes, int]:
        """Return the bytes at hand, and where among them the position is."""
        return self._chunk, self._at

    def position_of(self, at: int) -> int:
        """Return the position of the byte `at` of those at hand."""
        return self._base + at

    def move(self, at: int) -> None:
        """Go to the byte `at` of those at hand."""
        self._at = at

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer at the end of the tar."""
        at = self._at
        if at + size <= len(self._chunk):
            self._at = at + size
            return self._chunk[at : at + size]
        parts = []
        while size:
            if self._at == len(self._chunk) and not self._next():
                break
            part = self._chunk[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def pass_by(self, size: int) -> int:
        """Pass `size` bytes by and return how many there were."""
        if self._at + size <= len(self._chunk):
            self._at += size
            return size
        missing = size
        while missing:
            here = min(missing, len(self._chunk) - self._at)
            self._at += here
            missing -= here
            if missing and not self._next():
                break
        return size - missing

    def finish(self) -> tuple[int, Digest]:
        """Read to the end, and return the tar's size (bytes) and its digest."""
        while self._next():
            pass
        return self._base + len(self._chunk), Digest("sha256", self._hasher.hexdigest())
