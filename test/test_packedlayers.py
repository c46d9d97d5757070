"""What images are as one layer: worked out, held against what comes, and remembered as rows."""

import gzip
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import pytest
from sqlalchemy import update

from data.database import Engine
from data.owntables import PackedLayerRow, changing
from data.packedlayers import PackedLayers
from util.compression import Compression, compressed
from util.digest import Digest
from util.packedlayer import LayerDiffers, PackedLayer, announced, packed

TAR = bytes(range(256)) * 10_000
KEY = "a" * 64


def pieces(content: bytes, size: int = 100_000) -> Iterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


# --- What it is, before it is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("tar", [TAR, b""], ids=["some", "nothing"])
def test_what_a_layer_will_be_is_what_it_becomes(compression: Compression, tar: bytes) -> None:
    layer = packed(pieces(tar), compression)
    content = b"".join(compressed(pieces(tar, 777), compression))
    assert layer == PackedLayer(compression, Digest.of(content), len(content), Digest.of(tar))


def test_the_diff_id_is_that_of_the_tar_and_the_digest_that_of_what_is_stored() -> None:
    layer = packed(pieces(TAR), Compression.GZIP)
    content = b"".join(compressed(pieces(TAR), Compression.GZIP))
    assert gzip.decompress(content) == TAR
    assert layer.digest.hex == hashlib.sha256(content).hexdigest()
    assert layer.diff_id.hex == hashlib.sha256(TAR).hexdigest()


def test_a_tar_that_breaks_has_no_layer_and_is_closed() -> None:
    closed = []

    def broken() -> Iterator[bytes]:
        try:
            yield TAR
            raise OSError("the layer is short")
        finally:
            closed.append(True)

    with pytest.raises(OSError, match="the layer is short"):
        packed(broken(), Compression.GZIP)
    assert closed


@pytest.mark.parametrize("compression", list(Compression))
def test_what_was_announced_comes(compression: Compression) -> None:
    layer = packed(pieces(TAR), compression)
    assert b"".join(announced(pieces(TAR, 5), layer)) == b"".join(compressed(pieces(TAR), compression))


@pytest.mark.parametrize(
    "changes",
    [{"size": 1}, {"size": 1 << 40}, {"digest": Digest.of(b"other")}, {"compression": Compression.ZSTD}],
    ids=["longer", "shorter", "other bytes", "otherwise compressed"],
)
def test_what_was_not_announced_is_no_whole_layer(changes: dict[str, object]) -> None:
    layer = replace(packed(pieces(TAR), Compression.GZIP), **changes)  # type: ignore[arg-type]
    got = bytearray()
    with pytest.raises(LayerDiffers, match=str(layer.digest)):
        got.extend(chain.from_iterable(announced(pieces(TAR), layer)))
    assert len(got) <= layer.size


def test_a_layer_that_nobody_reads_on_is_closed() -> None:
    closed = []

    def watched() -> Iterator[bytes]:
        try:
            yield from pieces(TAR)
        finally:
            closed.append(True)

    for compression in Compression:
        chunks = announced(watched(), packed(pieces(TAR), compression))
        for _ in range(2):  # the first of gzip is its header, and needs nothing
            next(chunks, b"")
        chunks.close()
    assert len(closed) == 3


# --- Remembered -------------------------------------------------------------------------------------------------------


def test_what_is_remembered_is_what_was_found(engine: Engine) -> None:
    rows = PackedLayers(engine)
    assert rows.find(KEY) is None
    for compression in Compression:
        layer = replace(packed(pieces(TAR), compression), size=5 << 40)
        rows.add(KEY, layer)
        assert PackedLayers(engine).find(KEY) == layer
    assert rows.find("b" * 64) is None


def test_many_may_remember_the_same_at_once(engine: Engine) -> None:
    layer = packed(pieces(TAR), Compression.GZIP)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: PackedLayers(engine).add(KEY, layer), range(16)))
    assert PackedLayers(engine).find(KEY) == layer


def test_what_does_not_fit_is_forgotten_and_what_was_found_since_is_not(engine: Engine) -> None:
    rows, layer = PackedLayers(engine), packed(pieces(TAR), Compression.GZIP)
    rows.add(KEY, layer)
    rows.forget(KEY, replace(layer, digest=Digest.of(b"other")))
    assert rows.find(KEY) == layer
    rows.forget(KEY, layer)
    assert rows.find(KEY) is None


def test_what_is_old_is_swept(engine: Engine) -> None:
    rows, layer = PackedLayers(engine), packed(pieces(TAR), Compression.GZIP)
    rows.add(KEY, layer)
    rows.add("b" * 64, layer)
    old = update(PackedLayerRow).where(PackedLayerRow.key == KEY)
    old = old.values(created_ms=PackedLayerRow.created_ms - 3_600_000)
    changing(engine, lambda connection: connection.execute(old))
    assert rows.sweep(older_than=3600, dry_run=True) == 1
    assert rows.find(KEY) == layer
    assert rows.sweep(older_than=3600) == 1
    assert rows.find(KEY) is None
    assert rows.find("b" * 64) == layer
    assert rows.sweep(older_than=3600) == 0
