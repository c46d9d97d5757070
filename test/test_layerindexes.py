"""Layer indexes: made once, kept, made anew when what is kept is lost or damaged, and never of other bytes."""

import gzip
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data.layerindexes import DiffIdMismatch, LayerIndexes
from data.registry import BlobLocation
from data.storage.base import BlobNotFound, BlobWriter, StorageUnavailable
from data.storage.distributed import DistributedStorage
from data.storage.local import LocalStorage
from test.layers import file, gzip_members, gzipped, layer, zstd_frame
from test.merging import dumped
from util.compression import CorruptStream, TruncatedStream
from util.digest import Digest, DigestMismatch, Readable
from util.layerindex import LayerLimits, LayerTooLarge, MetadataTooLarge, TruncatedLayer
from util.storedindex import FORMAT_VERSION, restored_from
from util.tarheader import MalformedHeader

TAR = layer(file(b"a", b"content of a"), file(b"b/c", b"x" * 5000))
OTHER = layer(file(b"other"))
ABSENT = Digest.of(b"absent")


class Counting(LocalStorage):
    """A folder that tells which blobs were opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened: list[str] = []

    def open(self, path: str, *, offset: int = 0, length: int | None = None) -> Readable:
        stream = super().open(path, offset=offset, length=length)
        self.opened.append(path)
        return stream


class ReadOnly(Counting):
    def create(self, path: str) -> BlobWriter:
        raise StorageUnavailable("the disk is read-only")


@pytest.fixture
def storage(tmp_path: Path) -> Counting:
    return Counting(tmp_path)


def put(storage: LocalStorage, blob: bytes, *, digest: Digest | None = None, size: int | None = None) -> BlobLocation:
    digest = digest or Digest.of(blob)
    path = f"sha256/{digest.hex[:2]}/{digest.hex}"
    with LocalStorage(storage._root).create(path) as writer:
        writer.write(blob)
        writer.commit()
    return BlobLocation(digest, path, len(blob) if size is None else size, ("here",))


def indexes(storage: LocalStorage, limits: LayerLimits | None = None) -> LayerIndexes:
    return LayerIndexes(DistributedStorage({"here": storage}, ["here"]), limits)


def place_of(storage: LocalStorage, blob: BlobLocation) -> Path:
    return Path(storage._root, f"verbs/layerindex/v{FORMAT_VERSION}", blob.path)


@pytest.mark.parametrize("wrapped", [bytes, gzipped, zstd_frame, lambda tar: gzip_members(tar, 700)])
def test_an_index_is_made_of_a_layer_in_any_wrapping(storage: Counting, wrapped: Callable[[bytes], bytes]) -> None:
    index = indexes(storage).get(put(storage, wrapped(TAR)), diff_id=Digest.of(TAR))
    assert index.diff_id == Digest.of(TAR)
    assert index.size == len(TAR)
    assert index.names == [b"a", b"b/c"]


def test_a_layer_is_read_once_and_its_index_from_then_on(storage: Counting) -> None:
    blob = put(storage, gzipped(TAR))
    first = indexes(storage).get(blob)
    assert storage.opened == [blob.path]
    second = indexes(storage).get(blob, diff_id=Digest.of(TAR))
    assert storage.opened[1:] == [f"verbs/layerindex/v{FORMAT_VERSION}/{blob.path}"]
    assert dumped(second) == dumped(first)


def test_nothing_is_read_to_look_whether_there_is_an_index(storage: Counting) -> None:
    blob = put(storage, gzipped(TAR))
    assert indexes(storage).peek(blob) is None
    assert storage.opened == []
    made = indexes(storage).get(blob)
    kept = indexes(storage).peek(blob)
    assert kept is not None
    assert dumped(kept) == dumped(made)
    assert storage.opened.count(blob.path) == 1


@pytest.mark.parametrize("damage", [lambda _: b"", lambda data: data[:-5], lambda data: data[:-5] + b"!!!!!"])
def test_an_index_that_cannot_be_read_is_made_anew(
    storage: Counting, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    blob = put(storage, gzipped(TAR))
    sound = dumped(indexes(storage).get(blob))
    place = place_of(storage, blob)
    assert place.read_bytes() == sound
    place.write_bytes(damage(sound))
    assert dumped(indexes(storage).get(blob)) == sound
    assert place.read_bytes() == sound
    assert f"the index of layer {blob.digest} cannot be read and is made anew" in caplog.text


def test_an_index_of_another_layer_in_its_place_is_found_out(storage: Counting) -> None:
    blob, other = put(storage, gzipped(TAR)), put(storage, gzipped(OTHER))
    indexes(storage).get(other)
    place_of(storage, blob).parent.mkdir(parents=True)
    place_of(storage, other).rename(place_of(storage, blob))
    assert indexes(storage).get(blob, diff_id=Digest.of(TAR)).diff_id == Digest.of(TAR)


def test_an_index_that_cannot_be_kept_fails_no_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = ReadOnly(tmp_path)
    blob = put(storage, gzipped(TAR))
    assert indexes(storage).get(blob).diff_id == Digest.of(TAR)
    assert indexes(storage).get(blob).diff_id == Digest.of(TAR)
    assert f"the index of layer {blob.digest} is not kept" in caplog.text


def test_no_index_is_kept_when_the_registry_is_read_only(storage: Counting, caplog: pytest.LogCaptureFixture) -> None:
    blob = put(storage, gzipped(TAR))
    caplog.set_level(logging.INFO)
    readonly = LayerIndexes(DistributedStorage({"here": storage}, ["here"], readonly=True))
    assert readonly.get(blob).diff_id == Digest.of(TAR)
    assert not place_of(storage, blob).exists()
    assert "Traceback" not in caplog.text


def test_an_index_that_storage_cannot_give_is_made_anew(
    storage: Counting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blob = put(storage, gzipped(TAR))
    indexes(storage).get(blob)
    opened = Counting.open

    def breaking(self: Counting, path: str, *, offset: int = 0, length: int | None = None) -> Readable:
        if path.startswith("verbs/"):
            raise StorageUnavailable("the wire is cut")
        return opened(self, path, offset=offset, length=length)

    monkeypatch.setattr(Counting, "open", breaking)
    assert indexes(storage).get(blob).diff_id == Digest.of(TAR)
    assert "the wire is cut" in caplog.text


def test_an_index_comes_from_the_preferred_location_and_the_layer_from_where_it_lies(tmp_path: Path) -> None:
    near, far = Counting(tmp_path / "near"), Counting(tmp_path / "far")
    both = LayerIndexes(DistributedStorage({"near": near, "here": far}, ["near", "here"]))
    blob = put(far, gzipped(TAR))
    both.get(blob)
    both.get(blob)
    assert far.opened == [blob.path]
    assert near.opened == [f"verbs/layerindex/v{FORMAT_VERSION}/{blob.path}"]


# --- What is wrong with a layer ---------------------------------------------------------------------------------------


def nothing_is_kept(storage: LocalStorage) -> bool:
    return not Path(storage._root, "verbs").exists() or not any(
        path.is_file() for path in Path(storage._root, "verbs").rglob("*")
    )


def test_a_layer_that_is_not_there_is_named(storage: Counting) -> None:
    blob = BlobLocation(ABSENT, "sharedimages/1234/layer", 10, ("here",))
    with pytest.raises(BlobNotFound, match=f"layer {ABSENT} .*sharedimages/1234/layer"):
        indexes(storage).get(blob)


def test_other_bytes_than_the_digest_s_are_no_index(storage: Counting) -> None:
    blob = put(storage, gzipped(OTHER), digest=Digest.of(gzipped(TAR)))
    with pytest.raises(DigestMismatch, match=f"layer {blob.digest} holds other bytes"):
        indexes(storage).get(blob)
    assert nothing_is_kept(storage)


def test_another_size_than_the_registry_s_is_no_index(storage: Counting) -> None:
    blob = put(storage, gzipped(TAR), size=len(gzipped(TAR)) - 1)
    with pytest.raises(DigestMismatch, match="is longer than"):
        indexes(storage).get(blob)
    assert nothing_is_kept(storage)


def test_bytes_that_are_broken_in_storage_are_told_as_that_and_not_as_a_broken_layer(storage: Counting) -> None:
    pushed = gzipped(TAR)
    broken = pushed[: len(pushed) // 2] + bytes([pushed[len(pushed) // 2] ^ 0xFF]) + pushed[len(pushed) // 2 + 1 :]
    for wrong in (broken, pushed[:-20], gzip.compress(b"no tar at all" * 100)):
        with pytest.raises(DigestMismatch):
            indexes(storage).get(put(storage, wrong, digest=Digest.of(pushed), size=len(wrong)))


def test_other_bytes_far_behind_a_broken_header_are_still_found(storage: Counting) -> None:
    pushed = b"no tar at all" * 100_000
    blob = put(storage, pushed[:-1] + b"?", digest=Digest.of(pushed))
    with pytest.raises(DigestMismatch):
        indexes(storage).get(blob)
    with pytest.raises(MalformedHeader):
        indexes(storage).get(put(storage, pushed))


@pytest.mark.parametrize(
    ("blob", "error"),
    [
        (gzipped(TAR)[:-20], TruncatedStream),
        (gzipped(TAR)[:-8] + bytes(8), CorruptStream),
        (gzipped(TAR[:520]), TruncatedLayer),
        (gzipped(b"no tar at all" * 100), MalformedHeader),
    ],
    ids=["cut", "checksum", "tar cut", "no tar"],
)
def test_a_layer_that_was_pushed_broken_is_named(storage: Counting, blob: bytes, error: type[Exception]) -> None:
    location = put(storage, blob)
    with pytest.raises(error, match=str(location.digest)):
        indexes(storage).get(location)
    assert nothing_is_kept(storage)


def test_bytes_after_the_tar_belong_to_the_digest(storage: Counting) -> None:
    blob = put(storage, TAR + b"\0" * (1 << 20), digest=Digest.of(TAR), size=len(TAR) + (1 << 20))
    with pytest.raises(DigestMismatch):
        indexes(storage).get(blob)


@pytest.mark.parametrize("kept_before", [False, True])
def test_another_layer_than_the_configuration_says_is_refused(storage: Counting, kept_before: bool) -> None:
    blob = put(storage, gzipped(TAR))
    if kept_before:
        indexes(storage).get(blob)
    with pytest.raises(DiffIdMismatch, match=f"layer {blob.digest} is {Digest.of(TAR)} uncompressed.* {ABSENT}"):
        indexes(storage).get(blob, diff_id=ABSENT)


def test_limits_hold_for_an_index_that_was_kept_under_others(storage: Counting) -> None:
    blob = put(storage, gzipped(TAR))
    indexes(storage).get(blob)
    for limits in (LayerLimits(max_entries=1), LayerLimits(max_size=len(TAR) - 1)):
        assert indexes(storage, limits).peek(blob) is None
        with pytest.raises(LayerTooLarge, match=str(blob.digest)):
            indexes(storage, limits).get(blob)


# --- Several layers ---------------------------------------------------------------------------------------------------


def test_several_layers_come_in_their_order_and_a_repeated_one_is_read_once(storage: Counting) -> None:
    tars = [layer(file(b"%d" % at)) for at in range(5)]
    blobs = [put(storage, gzipped(tar)) for tar in tars]
    order = [0, 1, 0, 2, 3, 4, 3]
    found = indexes(storage).many([blobs[at] for at in order], [Digest.of(tars[at]) for at in order])
    assert [index.diff_id for index in found] == [Digest.of(tars[at]) for at in order]
    assert sorted(storage.opened) == sorted(blob.path for blob in blobs)


def test_diff_ids_that_are_not_known_are_not_asked_for(storage: Counting) -> None:
    blobs = [put(storage, gzipped(TAR)), put(storage, gzipped(OTHER))]
    assert [len(index) for index in indexes(storage).many(blobs, [None, None])] == [2, 1]
    assert indexes(storage).many([], []) == []


def test_of_several_errors_that_of_the_lowest_layer_is_told(storage: Counting) -> None:
    sound = put(storage, gzipped(TAR))
    absent = [BlobLocation(Digest.of(b"%d" % at), f"absent/{at}", None, ("here",)) for at in range(3)]
    with pytest.raises(BlobNotFound, match="absent/0"):
        indexes(storage).many([sound, *absent], [None] * 4)


def test_layers_and_diff_ids_are_as_many(storage: Counting) -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        indexes(storage).many([put(storage, TAR)], [])


def test_what_is_kept_is_what_the_format_reads(storage: Counting) -> None:
    blob = put(storage, gzipped(TAR))
    made = indexes(storage).get(blob)
    assert restored_from(place_of(storage, blob).read_bytes(), layer="x").names == made.names


# --- Limits -----------------------------------------------------------------------------------------------------------

DEEP = layer(file(b"a/" * 60 + b"f"))


def test_a_layer_beyond_a_limit_is_read_once_and_again_when_the_limit_was_raised(storage: Counting) -> None:
    blob = put(storage, gzipped(DEEP))
    for _ in range(3):
        with pytest.raises(
            MetadataTooLarge, match=rf"layer {blob.digest}: entry 'a/a/.*61 components.*VERBS_MAX_DEPTH"
        ):
            indexes(storage, LayerLimits(max_depth=20)).get(blob)
    assert storage.opened.count(blob.path) == 1
    with pytest.raises(MetadataTooLarge, match="VERBS_MAX_DEPTH"):
        indexes(storage, LayerLimits(max_depth=20)).peek(blob)
    with pytest.raises(MetadataTooLarge, match="VERBS_MAX_DEPTH"):
        indexes(storage, LayerLimits(max_depth=20)).peek_many([blob])
    assert indexes(storage, LayerLimits(max_depth=21)).peek(blob) is None
    assert indexes(storage, LayerLimits(max_depth=61)).get(blob).names == [b"a/" * 60 + b"f"]
    assert indexes(storage, LayerLimits(max_depth=61)).peek(blob) is not None


def test_an_index_made_under_wider_limits_of_an_entry_is_made_anew(storage: Counting) -> None:
    blob = put(storage, gzipped(DEEP))
    indexes(storage).get(blob)
    assert indexes(storage, LayerLimits(max_depth=61)).peek(blob) is None
    indexes(storage, LayerLimits(max_depth=61)).get(blob)
    assert indexes(storage).peek(blob) is not None, "what keeps narrower limits keeps wider ones"


def test_other_bytes_are_told_as_that_and_not_remembered_as_a_layer_beyond_a_limit(storage: Counting) -> None:
    blob = put(storage, gzipped(DEEP), digest=Digest.of(gzipped(TAR)), size=len(gzipped(DEEP)))
    with pytest.raises(DigestMismatch):
        indexes(storage, LayerLimits(max_depth=20)).get(blob)
    assert nothing_is_kept(storage)


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"code": "X", "text": "", "limit": "max_depth", "most": 1}'])
def test_a_refusal_that_cannot_be_read_is_found_out_anew(storage: Counting, damage: bytes) -> None:
    blob = put(storage, gzipped(DEEP))
    with pytest.raises(MetadataTooLarge):
        indexes(storage, LayerLimits(max_depth=20)).get(blob)
    place = place_of(storage, blob)
    head, brace, _ = place.read_bytes().partition(b"{")
    assert brace
    place.write_bytes(head + damage)
    with pytest.raises(MetadataTooLarge):
        indexes(storage, LayerLimits(max_depth=20)).get(blob)
    assert storage.opened.count(blob.path) == 2


def test_the_layers_of_an_image_have_their_limits_together_and_none_is_blamed_for_that(storage: Counting) -> None:
    tars = [layer(*(file(b"%d%03d" % (at, each)) for each in range(600))) for at in range(3)]
    blobs = [put(storage, gzipped(tar)) for tar in tars]
    for limits, setting in ((LayerLimits(max_entries=1000), "ENTRIES"), (LayerLimits(max_metadata=4000), "METADATA")):
        with pytest.raises(LayerTooLarge, match=rf"the image has .*VERBS_MAX_{setting}"):
            indexes(storage, limits).many(blobs, [None] * 3)
        for blob in blobs:
            assert len(indexes(storage, limits).get(blob)) == 600
        with pytest.raises(LayerTooLarge, match=rf"the image has .*VERBS_MAX_{setting}"):
            indexes(storage, limits).peek_many(blobs)
        assert len(indexes(storage, limits).many([blobs[0]] * 3, [None] * 3)) == 3, "a layer counts once"


def test_a_layer_is_read_once_by_all_who_want_it_at_a_time(storage: Counting) -> None:
    blob = put(storage, gzipped(TAR))
    all_want_it = indexes(storage)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: all_want_it.get(blob), range(8)))
    assert storage.opened.count(blob.path) == 1
    assert {dumped(index) for index in found} == {dumped(found[0])}
    assert not all_want_it._turns._locks
