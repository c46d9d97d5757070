"""The merge engine as the tests drive it: tars in, merged tar out, each promise of the merger checked on the way."""

import hashlib
from collections.abc import Iterable, Sequence
from io import BytesIO

from test import layers, model
from test.layers import Dialect, Entry
from util.compression import decompressed
from util.digest import Digest
from util.layerindex import LayerIndex, LayerLimits
from util.layerreader import read_layer_index
from util.storedindex import stored
from util.streamlayerformat import LayerSource, StreamLayerMerger


def dumped(index: LayerIndex) -> bytes:
    """Return the bytes by which an index is kept."""
    return b"".join(stored(index))


def index_of(archive: bytes | Iterable[bytes], *, limits: LayerLimits | None = None) -> LayerIndex:
    """Return the index of an uncompressed tar, given whole or in chunks."""
    chunks = [archive] if isinstance(archive, bytes) else archive
    return read_layer_index(chunks, layer="sha256:of-a-test", limits=limits or LayerLimits())


def source_of(blob: bytes) -> LayerSource:
    """Return a layer as it is stored, compressed or not, with its index."""
    digest = Digest.of(blob)
    index = read_layer_index(decompressed(BytesIO(blob)), layer=str(digest))
    return LayerSource(digest=digest, size=len(blob), index=index, open=lambda: BytesIO(blob))


def merger_of(blobs: Sequence[bytes], *, path_prefix: bytes = b"") -> StreamLayerMerger:
    return StreamLayerMerger([source_of(blob) for blob in blobs], path_prefix=path_prefix)


def merged(blobs: Sequence[bytes], *, path_prefix: bytes = b"") -> bytes:
    """Return the merged tar of these layers, base first, whose size and diff_id are as the merger says."""
    merger = merger_of(blobs, path_prefix=path_prefix)
    promised = merger.size
    output = b"".join(merger.get_generator())
    assert len(output) == promised
    assert merger.diff_id == Digest("sha256", hashlib.sha256(output).hexdigest())
    return output


def listing_of_merged(
    *stack: Sequence[Entry | bytes], path_prefix: bytes = b"", dialect: Dialect = "pax"
) -> model.Listing:
    """Return what the merged tar of these layers lists, base first."""
    archives = [layers.layer(*entries, dialect=dialect) for entries in stack]
    return model.listing_of_tar(merged(archives, path_prefix=path_prefix), path_prefix=path_prefix)


def contents_of_merged(*stack: Sequence[Entry | bytes], path_prefix: bytes = b"") -> dict[bytes, bytes]:
    """Return the merged names, each at a glance: content, `-> target`, `/` for a directory, or its kind."""
    glance: dict[bytes, bytes] = {}
    for path, listed in listing_of_merged(*stack, path_prefix=path_prefix).items():
        match listed.kind:
            case "file":
                glance[path] = listed.content
            case "directory":
                glance[path] = b"/"
            case "symlink":
                glance[path] = b"-> " + listed.link
            case kind:
                glance[path] = kind.encode()
    return glance
