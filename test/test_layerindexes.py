"""Layer indexes: taken from storage, or made of the layer, and never of other bytes."""

import gzip
import logging
from pathlib import Path

import pytest

from data.layerindexes import DiffIdMismatch, LayerIndexes
from data.registry import BlobLocation
from data.storage.base import BlobNotFound, BlobWriter, StorageUnavailable
from data.storage.distributed import DistributedStorage
from data.storage.local import LocalStorage
from test.layers import file, gzipped, layer
from util.compression import CorruptStream
from util.digest import Digest, DigestMismatch
from util.layerindex import FORMAT_VERSION, LayerLimits, LayerTooLarge, MalformedLayer, TruncatedLayer

TAR = layer(file(b"etc/passwd", b"root:x:0:0::/:/bin/sh\n"), file(b"a", bytes(5000)))


class Shelf:
    """A storage in a folder, with blobs put into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.local = LocalStorage(folder)
        self.storage = DistributedStorage({"here": self.local}, ["here"])
        self.indexes = LayerIndexes(self.storage)

    def put(self, content: bytes, *, digest: Digest | None = None) -> BlobLocation:
        digest = digest or Digest.of(content)
        blob = BlobLocation(digest, f"sha256/{digest.hex[:2]}/{digest.hex}", len(content), ("here",))
        with self.local.create(blob.path) as writer:
            writer.write(content)
            writer.commit()
        return blob

    def kept(self, blob: BlobLocation) -> Path:
        hexadecimal = blob.digest.hex
        return self.folder / f"verbs/layerindex/v{FORMAT_VERSION}/sha256" / hexadecimal[:2] / hexadecimal


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_an_index_is_made_once_and_kept(shelf: Shelf) -> None:
    blob = shelf.put(gzipped(TAR))
    assert shelf.indexes.peek(blob) is None
    made = shelf.indexes.get(blob, diff_id=Digest.of(TAR))
    assert (made.diff_id, len(made), made.size) == (Digest.of(TAR), 2, len(TAR))
    shelf.local.delete(blob.path)
    for index in (shelf.indexes.peek(blob), shelf.indexes.get(blob)):
        assert index is not None
        assert index.dump() == made.dump() == shelf.kept(blob).read_bytes()


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"cut", b"flipped"])
def test_a_kept_index_that_cannot_be_read_is_made_anew(shelf: Shelf, damage: bytes) -> None:
    blob = shelf.put(TAR)
    shelf.indexes.get(blob)
    sound = shelf.kept(blob).read_bytes()
    flipped = sound[:40] + bytes([sound[40] ^ 255]) + sound[41:]
    shelf.kept(blob).write_bytes({b"cut": sound[:-1], b"flipped": flipped}.get(damage, damage))
    assert shelf.indexes.peek(blob) is None
    assert shelf.indexes.get(blob).diff_id == Digest.of(TAR)
    assert shelf.kept(blob).read_bytes() == sound


def test_a_layer_that_is_not_there_is_named(shelf: Shelf) -> None:
    blob = shelf.put(TAR)
    shelf.local.delete(blob.path)
    with pytest.raises(BlobNotFound, match=str(blob.digest)):
        shelf.indexes.get(blob)


@pytest.mark.parametrize(
    "content", [b"", TAR[:-1], TAR + b"\0", gzipped(TAR)[:-1], gzipped(TAR) + b"x", b"\x1f\x8b", b"?" * 2048]
)
def test_other_bytes_than_the_layers_are_told_as_that(shelf: Shelf, content: bytes) -> None:
    blob = shelf.put(content, digest=Digest.of(gzipped(TAR)))
    with pytest.raises(DigestMismatch, match=str(blob.digest)):
        shelf.indexes.get(blob)
    assert not shelf.kept(blob).exists()


def test_a_layer_of_another_length_than_registered_is_refused(shelf: Shelf) -> None:
    blob = shelf.put(TAR)
    with pytest.raises(DigestMismatch):
        shelf.indexes.get(BlobLocation(blob.digest, blob.path, len(TAR) + 1, blob.locations))


def test_a_layer_with_another_diff_id_is_refused_kept_or_not(shelf: Shelf) -> None:
    blob = shelf.put(gzipped(TAR))
    for _ in range(2):
        with pytest.raises(DiffIdMismatch, match=str(blob.digest)):
            shelf.indexes.get(blob, diff_id=blob.digest)
        assert shelf.indexes.get(blob, diff_id=Digest.of(TAR)).diff_id == Digest.of(TAR)


def test_a_layer_that_was_pushed_broken_is_told_as_broken(shelf: Shelf) -> None:
    with pytest.raises(CorruptStream):
        shelf.indexes.get(shelf.put(gzip.compress(TAR)[:-8] + bytes(8)))
    with pytest.raises((MalformedLayer, TruncatedLayer)):
        shelf.indexes.get(shelf.put(b"?" * 2048))
    with pytest.raises(TruncatedLayer):
        shelf.indexes.get(shelf.put(TAR[:3000]))


def test_limits_hold_for_what_is_made_and_for_what_is_kept(shelf: Shelf) -> None:
    blob = shelf.put(TAR)
    narrow = LayerIndexes(shelf.storage, LayerLimits(max_entries=1))
    for _ in range(2):
        with pytest.raises(LayerTooLarge, match="VERBS_MAX_ENTRIES"):
            narrow.get(blob)
        shelf.indexes.get(blob)
    assert narrow.peek(blob) is None


class Unwilling(LocalStorage):
    """A storage that cannot be written to, as a folder owned by somebody else."""

    def create(self, path: str) -> BlobWriter:
        raise StorageUnavailable(f"{path} cannot be written")


def test_a_storage_that_cannot_write_fails_no_read(
    shelf: Shelf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blob = shelf.put(TAR)
    storage = DistributedStorage({"here": Unwilling(tmp_path)}, ["here"])
    assert LayerIndexes(storage).get(blob).diff_id == Digest.of(TAR)
    assert str(blob.digest) in caplog.text
    caplog.clear()
    readonly = DistributedStorage({"here": shelf.local}, ["here"], readonly=True)
    with caplog.at_level(logging.WARNING):
        assert LayerIndexes(readonly).get(blob).diff_id == Digest.of(TAR)
    assert caplog.text == ""
    assert not shelf.kept(blob).exists()


def test_a_storage_that_cannot_give_an_index_is_asked_for_the_layer(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = shelf.put(TAR)
    opened = shelf.local.open

    def open_(path: str, **more: int | None) -> object:
        if path.startswith("verbs/"):
            raise StorageUnavailable("it sleeps")
        return opened(path)

    monkeypatch.setattr(shelf.local, "open", open_)
    assert shelf.indexes.peek(blob) is None
    assert shelf.indexes.get(blob).diff_id == Digest.of(TAR)


def test_several_layers_come_in_their_order_and_each_is_read_once(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    tars = [layer(file(b"%d" % at)) for at in range(5)]
    blobs = [shelf.put(gzipped(tar)) for tar in tars]
    read = []
    get = shelf.indexes.get
    monkeypatch.setattr(shelf.indexes, "get", lambda blob, **more: read.append(blob) or get(blob, **more))
    made = shelf.indexes.many([*blobs, blobs[0]], [*map(Digest.of, tars), Digest.of(tars[0])])
    assert [index.diff_id for index in made] == [*map(Digest.of, tars), Digest.of(tars[0])]
    assert len(read) == 5
    assert shelf.indexes.many([], []) == []


def test_of_several_errors_the_lowest_layers_is_told(shelf: Shelf) -> None:
    sound, first, second = shelf.put(TAR), shelf.put(b"1" * 600), shelf.put(b"2" * 600)
    with pytest.raises((MalformedLayer, TruncatedLayer), match=str(first.digest)):
        shelf.indexes.many([sound, first, second], [None, None, None])
