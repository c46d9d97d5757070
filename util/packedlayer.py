"""A root file system as one packed layer: what it will be, byte for byte, before it is packed.

The law: the facts of a packed layer come from packing it once, to its end. Who announces them and packs it again holds
what comes against them: bytes that are others are an error, and never the end of a stream.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from util.compression import Compression, compressed
from util.digest import Digest
from util.problem import Damaged


class LayerDiffers(Damaged):
    """A layer that comes out otherwise than it was announced."""

    code = "LAYER_DIFFERS"


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A tar in `compression`: `size` bytes that have `digest`, and unwrap to what has `diff_id`."""

    compression: Compression
    digest: Digest
    size: int
    diff_id: Digest

    def check_tar(self, size: int) -> None:
        """Raise LayerDiffers where a tar of `size` bytes cannot be this layer, which is not compressed."""
        if self.compression is Compression.NONE and self.size != size:
            raise LayerDiffers(f"layer {self.digest} should have {self.size} bytes and has {size}")


def packed(tar: Iterator[bytes], compression: Compression) -> PackedLayer:
    """Return what `tar` is in `compression`. Reads it to its end, closes it, and keeps nothing."""
    diff_id, digest, size = hashlib.sha256(), hashlib.sha256(), 0
    with closing(_wrapped(tar, compression, diff_id.update)) as chunks:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
    return PackedLayer(compression, Digest("sha256", digest.hexdigest()), size, Digest("sha256", diff_id.hexdigest()))


def announced(tar: Iterator[bytes], layer: PackedLayer) -> Generator[bytes, None, None]:
    """Yield `tar` packed, which is `layer`, and close it. Raises LayerDiffers where it is not, after less than all."""
    digest, size = hashlib.sha256(), 0
    with closing(_wrapped(tar, layer.compression, None)) as chunks:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            if size > layer.size:
                raise LayerDiffers(f"layer {layer.digest} should have {layer.size} bytes and has more")
            yield chunk
    if (size, digest.hexdigest()) != (layer.size, layer.digest.hex):
        raise LayerDiffers(
            f"layer {layer.digest} of {layer.size} bytes comes out as sha256:{digest.hexdigest()} of {size} bytes"
        )


def _wrapped(
    tar: Iterator[bytes], compression: Compression, hear: Callable[[bytes], object] | None
) -> Generator[bytes, None, None]:
    """Yield `tar` in `compression`, and have `hear` told of it. Closing it closes `tar`."""

    def heard() -> Iterator[bytes]:
        for chunk in tar:
            if hear is not None:
                hear(chunk)
            yield chunk

    try:
        yield from compressed(heard(), compression)
    finally:
        close = getattr(tar, "close", None)
        if close is not None:
            close()
