"""The suite that every storage driver passes, ours or a stranger's.

A driver's own test file derives a class from `StorageTests` and gives it two fixtures: `storage`, one that is empty,
and `back_door`, a way to the same blobs that does not go through the driver, so that a fault in writing cannot hide one
in reading. Needs pytest.
"""

# ruff: noqa: S101 a suite asserts, installed or not

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pytest

from data.storage.base import OWN, BlobNotFound, BlobWriter, InvalidBlobPath, Storage, StorageUnavailable
from util.digest import Readable

PATH = "sha256/ab/abcdef"


class BackDoor(Protocol):
    """The storage's place as it is seen without the driver."""

    def put(self, path: str, content: bytes) -> None:
        """Put a blob there."""

    def get(self, path: str) -> bytes | None:
        """Return a blob's bytes, None where there is none."""

    def leftovers(self) -> list[str]:
        """Return what unfinished writing has left."""


def content_of(stream: Readable) -> bytes:
    """Return all bytes of `stream`, asked for in pieces, and close it."""
    try:
        return b"".join(iter(lambda: stream.read(1000), b""))
    finally:
        stream.close()


class StorageTests:
    """What holds for every storage."""

    large = b"0123456789abcdef" * (1 << 16)
    """A blob that a driver which writes in parts writes in several; override it where parts are larger than 256 KiB."""

    def settle(self, writer: BlobWriter) -> None:
        """Wait until nothing of `writer` is on its way; override it where writing goes on behind the writer's back."""

    @pytest.fixture(autouse=True)
    def _nothing_is_left_over(self, back_door: BackDoor) -> Iterator[None]:
        yield
        assert back_door.leftovers() == []

    # --- Reading ---

    def test_a_blob_is_read_as_it_is(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put(PATH, self.large)
        assert content_of(storage.open(PATH)) == self.large

    def test_an_empty_blob_is_there(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put(PATH, b"")
        assert content_of(storage.open(PATH)) == b""
        assert content_of(storage.open(PATH, offset=1)) == b""
        assert storage.size(PATH) == 0

    @pytest.mark.parametrize(
        ("offset", "length", "content"),
        [
            (0, None, b"0123456789"),
            (3, None, b"3456789"),
            (0, 4, b"0123"),
            (3, 4, b"3456"),
            (9, 1, b"9"),
            (8, 100, b"89"),
            (10, None, b""),
            (10, 1, b""),
            (500, None, b""),
            (3, 0, b""),
            (0, 0, b""),
        ],
    )
    def test_a_range_is_read(
        self, storage: Storage, back_door: BackDoor, offset: int, length: int | None, content: bytes
    ) -> None:
        back_door.put(PATH, b"0123456789")
        assert content_of(storage.open(PATH, offset=offset, length=length)) == content

    @pytest.mark.parametrize("wanted", [{"offset": -1}, {"length": -1}])
    def test_a_negative_range_is_a_mistake(self, storage: Storage, back_door: BackDoor, wanted: dict[str, int]) -> None:
        back_door.put(PATH, b"0123456789")
        with pytest.raises(ValueError, match="no range"):
            storage.open(PATH, **wanted)

    def test_a_read_without_a_size_returns_the_rest(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put(PATH, b"0123456789")
        stream = storage.open(PATH)
        assert stream.read(2) == b"01"
        assert stream.read() == b"23456789"
        assert stream.read() == b""
        assert stream.read(5) == b""
        stream.close()

    def test_a_read_of_nothing_is_not_the_end(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put(PATH, b"0123456789")
        stream = storage.open(PATH)
        assert stream.read(0) == b""
        assert stream.read() == b"0123456789"
        stream.close()

    def test_a_read_never_returns_more_than_was_asked_for(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put(PATH, self.large)
        stream = storage.open(PATH)
        sizes = [len(stream.read(size)) for size in (1, 10, 1000, 70_000)]
        stream.close()
        assert all(0 < size <= wanted for size, wanted in zip(sizes, (1, 10, 1000, 70_000), strict=True))

    def test_a_stream_is_closed_early_and_twice(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put(PATH, self.large)
        stream = storage.open(PATH)
        stream.read(10)
        stream.close()
        stream.close()

    def test_two_streams_of_one_blob_are_independent(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put(PATH, b"0123456789")
        one, other = storage.open(PATH), storage.open(PATH, offset=5)
        assert (one.read(2), other.read(2), one.read(2), other.read(2)) == (b"01", b"56", b"23", b"78")
        one.close()
        other.close()

    def test_an_absent_blob_is_found_out_when_it_is_opened(self, storage: Storage) -> None:
        for wanted in ({}, {"offset": 5}, {"length": 0}, {"offset": 5, "length": 5}):
            with pytest.raises(BlobNotFound, match=PATH):
                storage.open(PATH, **wanted)

    def test_a_folder_is_no_blob(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put(PATH, b"x")
        with pytest.raises(BlobNotFound):
            storage.open("sha256/ab")
        with pytest.raises(BlobNotFound):
            storage.size("sha256")
        with pytest.raises(BlobNotFound):
            storage.open(PATH + "/deeper")

    def test_the_size_is_that_of_the_blob(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put(PATH, self.large)
        assert storage.size(PATH) == len(self.large)

    def test_an_absent_blob_has_no_size(self, storage: Storage) -> None:
        with pytest.raises(BlobNotFound, match=PATH):
            storage.size(PATH)

    # --- Writing ---

    @pytest.mark.parametrize("piece", [1 << 10, 100_000, 1 << 30])
    def test_what_is_written_is_there_after_the_commit(self, storage: Storage, back_door: BackDoor, piece: int) -> None:
        with storage.create(PATH) as writer:
            for start in range(0, len(self.large), piece):
                writer.write(self.large[start : start + piece])
            writer.commit()
        assert back_door.get(PATH) == self.large

    def test_a_blob_of_no_bytes_is_written(self, storage: Storage, back_door: BackDoor) -> None:
        with storage.create(PATH) as writer:
            writer.commit()
        assert back_door.get(PATH) == b""

    def test_a_blob_is_invisible_before_the_commit(self, storage: Storage, back_door: BackDoor) -> None:
        with storage.create(PATH) as writer:
            writer.write(self.large)
            assert back_door.get(PATH) is None
            with pytest.raises(BlobNotFound):
                storage.open(PATH)
            writer.commit()

    @pytest.mark.parametrize("amount", [0, 10, None])
    def test_leaving_without_a_commit_leaves_nothing(
        self, storage: Storage, back_door: BackDoor, amount: int | None
    ) -> None:
        with storage.create(PATH) as writer:
            writer.write(self.large[:amount])
        assert back_door.get(PATH) is None

    def test_leaving_with_an_error_leaves_nothing_and_passes_the_error_on(
        self, storage: Storage, back_door: BackDoor
    ) -> None:
        with pytest.raises(ZeroDivisionError), storage.create(PATH) as writer:  # noqa: PT012 the block is the point
            writer.write(self.large)
            raise ZeroDivisionError
        assert back_door.get(PATH) is None

    def test_a_commit_replaces_and_an_abort_does_not(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put(PATH, b"old")
        with storage.create(PATH) as writer:
            writer.write(b"new")
            writer.abort()
        assert back_door.get(PATH) == b"old"
        with storage.create(PATH) as writer:
            writer.write(b"new")
            writer.commit()
        assert back_door.get(PATH) == b"new"

    def test_an_abort_does_nothing_after_a_commit_or_an_abort(self, storage: Storage, back_door: BackDoor) -> None:
        writer = storage.create(PATH)
        writer.write(b"x")
        writer.commit()
        writer.abort()
        assert back_door.get(PATH) == b"x"
        other = storage.create("other")
        other.abort()
        other.abort()
        assert back_door.get("other") is None

    def test_nothing_is_written_after_the_end(self, storage: Storage, back_door: BackDoor) -> None:
        committed, aborted = storage.create(PATH), storage.create("other")
        committed.commit()
        aborted.abort()
        for writer in (committed, aborted):
            with pytest.raises(ValueError, match="committed or aborted"):
                writer.write(b"late")
            with pytest.raises(ValueError, match="committed or aborted"):
                writer.commit()
        assert back_door.get(PATH) == b""
        assert back_door.get("other") is None

    def test_two_writers_of_one_path_do_not_mix(self, storage: Storage, back_door: BackDoor) -> None:
        with storage.create(PATH) as one, storage.create(PATH) as other:
            one.write(b"one")
            other.write(b"other")
            one.commit()
            assert back_door.get(PATH) == b"one"
            other.commit()
        assert back_door.get(PATH) == b"other"

    def test_many_threads_write_and_read(self, storage: Storage) -> None:
        def round_trip(number: int) -> bytes:
            path = f"some/{number}"
            with storage.create(path) as writer:
                writer.write(b"%d" % number)
                writer.commit()
            return content_of(storage.open(path))

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(round_trip, range(32))) == [b"%d" % number for number in range(32)]

    def test_what_is_written_can_be_read_from_the_growing_file(self, storage: Storage) -> None:
        with storage.create(PATH) as writer:
            if writer.growing is None:
                return
            with open(writer.growing, "rb") as growing:
                for piece in (b"a", self.large, b"z"):
                    writer.write(piece)
                    assert growing.read() == piece
                writer.commit()
                assert growing.seek(0) == 0
                assert growing.read(1) == b"a"

    # --- Copying ---

    def test_a_blob_is_copied_and_stays(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put("verbs/uploads/a/1", self.large)
        storage.copy("verbs/uploads/a/1", PATH)
        assert back_door.get(PATH) == self.large
        assert back_door.get("verbs/uploads/a/1") == self.large

    def test_a_copy_takes_the_place_of_what_is_there(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put("source", b"new")
        back_door.put(PATH, self.large)
        storage.copy("source", PATH)
        assert back_door.get(PATH) == b"new"

    def test_a_copy_outlives_its_source_and_the_source_its_copy(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put("one", b"content")
        storage.copy("one", "other")
        storage.delete("one")
        assert back_door.get("other") == b"content"
        storage.copy("other", "one")
        storage.delete("other")
        assert back_door.get("one") == b"content"

    def test_replacing_one_of_two_copies_leaves_the_other(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put("one", b"content")
        storage.copy("one", "other")
        with storage.create("one") as writer:
            writer.write(b"more")
            writer.commit()
        assert back_door.get("one") == b"more"
        assert back_door.get("other") == b"content"

    def test_a_blob_is_copied_where_it_is_already(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put("one", b"content")
        storage.copy("one", PATH)
        storage.copy("one", PATH)
        storage.copy(PATH, PATH)
        assert back_door.get("one") == back_door.get(PATH) == b"content"

    def test_a_blob_of_no_bytes_is_copied(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put("one", b"")
        storage.copy("one", PATH)
        assert back_door.get(PATH) == b""

    def test_an_absent_blob_cannot_be_copied(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put(PATH, b"old")
        with pytest.raises(BlobNotFound, match="absent"):
            storage.copy("absent/blob", PATH)
        with pytest.raises(BlobNotFound, match="absent"):
            storage.copy("absent/blob", "absent/blob")
        assert back_door.get(PATH) == b"old"

    def test_a_copy_is_as_young_as_it_is(self, storage: Storage) -> None:
        with storage.create("verbs/a") as writer:
            writer.commit()
        began = time.time()
        time.sleep(1.1)  # storages tell whole seconds
        storage.copy("verbs/a", "verbs/b")
        young = {blob.path: blob.modified_ms for blob in storage.list(OWN)}
        assert young["verbs/b"] >= int(began) * 1000 + 1000

    def test_blobs_are_copied_where_others_are_deleted(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put("source", b"content")

        def round_trip(number: int) -> bytes:
            path = f"some/folder/{number}"
            storage.copy("source", path)
            content = content_of(storage.open(path))
            storage.delete(path)
            return content

        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(round_trip, range(60))) == {b"content"}

    # --- Listing, sweeping ---

    def test_a_folder_is_listed_with_all_below_it_and_nothing_beside_it(
        self, storage: Storage, back_door: BackDoor
    ) -> None:
        for path in ("verbs/one/a", "verbs/one/b/c/d", "verbs/one/b/e", "verbs/one2/x", "verbs/x", "other/verbs/one/y"):
            back_door.put(path, path.encode())
        expected = [(path, len(path)) for path in ("verbs/one/a", "verbs/one/b/c/d", "verbs/one/b/e")]
        assert sorted((blob.path, blob.size) for blob in storage.list("verbs/one")) == expected
        assert sorted((blob.path, blob.size) for blob in storage.list("verbs/one/")) == expected
        assert [blob.path for blob in storage.list("verbs/one/b/c")] == ["verbs/one/b/c/d"]

    def test_a_listed_blob_tells_when_it_was_written(self, storage: Storage) -> None:
        with storage.create("verbs/a") as writer:
            writer.commit()
        (blob,) = storage.list(OWN)
        assert abs(blob.modified_ms / 1000 - time.time()) < 60

    def test_an_absent_folder_is_an_empty_list(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put("verbs/a", b"x")
        assert list(storage.list("verbs/absent")) == []
        assert list(storage.list("verbs/a")) == []

    def test_what_is_not_committed_is_not_listed(self, storage: Storage) -> None:
        with storage.create("verbs/a") as writer:
            writer.write(self.large)
            assert list(storage.list(OWN)) == []

    def test_blobs_can_be_deleted_while_they_are_listed(self, storage: Storage, back_door: BackDoor) -> None:
        for number in range(20):
            back_door.put(f"verbs/{number % 3}/{number}", b"x")
        for blob in storage.list(OWN):
            storage.delete(blob.path)
        assert list(storage.list(OWN)) == []

    def test_what_a_dead_writer_left_is_swept_once_it_is_old_enough(
        self, storage: Storage, back_door: BackDoor
    ) -> None:
        dead = storage.create("verbs/a/b")
        dead.write(self.large)
        self.settle(dead)
        assert storage.sweep(older_than=3600) == 0
        assert len(back_door.leftovers()) == 1
        future = -60  # whatever the clock of the storage says
        assert storage.sweep(older_than=future, dry_run=True) == 1
        assert len(back_door.leftovers()) == 1
        assert storage.sweep(older_than=future) == 1
        assert back_door.leftovers() == []
        with pytest.raises(StorageUnavailable):
            dead.commit()
        dead.abort()
        assert back_door.get("verbs/a/b") is None

    def test_a_storage_without_leftovers_is_swept(self, storage: Storage, back_door: BackDoor) -> None:
        assert storage.sweep(older_than=0) == 0
        back_door.put(PATH, b"x")
        assert storage.sweep(older_than=-60) == 0
        assert back_door.get(PATH) == b"x"

    # --- Deleting, paths, URLs ---

    def test_what_is_deleted_is_gone(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put(PATH, b"x")
        storage.delete(PATH)
        assert back_door.get(PATH) is None

    def test_deleting_leaves_the_blobs_beside_it(self, storage: Storage, back_door: BackDoor) -> None:
        for path in ("a/b/c", "a/b/d", "a/e"):
            back_door.put(path, b"x")
        storage.delete("a/b")
        storage.delete("a/b/c")
        assert [back_door.get(path) for path in ("a/b/c", "a/b/d", "a/e")] == [None, b"x", b"x"]

    def test_blobs_are_written_where_others_are_deleted(self, storage: Storage) -> None:
        def round_trip(number: int) -> bytes:
            path = f"some/folder/{number}"
            with storage.create(path) as writer:
                writer.write(b"%d" % number)
                writer.commit()
            content = content_of(storage.open(path))
            storage.delete(path)
            return content

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(round_trip, range(100))) == [b"%d" % number for number in range(100)]

    def test_deleting_what_is_absent_is_no_error(self, storage: Storage) -> None:
        storage.delete(PATH)
        storage.delete(PATH)

    @pytest.mark.parametrize(
        "path", ["", "/", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", ".parts/x", "a/..", "a\0b"]
    )
    def test_a_path_that_leads_elsewhere_is_refused(self, storage: Storage, path: str) -> None:
        with pytest.raises(InvalidBlobPath):
            storage.open(path)
        with pytest.raises(InvalidBlobPath):
            storage.size(path)
        with pytest.raises(InvalidBlobPath):
            storage.create(path)
        with pytest.raises(InvalidBlobPath):
            storage.copy(path, PATH)
        with pytest.raises(InvalidBlobPath):
            storage.copy(PATH, path)
        with pytest.raises(InvalidBlobPath):
            storage.delete(path)
        with pytest.raises(InvalidBlobPath):
            storage.local_path(path)

    @pytest.mark.parametrize("prefix", ["", "/", "/etc", "..", "verbs/../..", "verbs//", ".parts", "."])
    def test_a_folder_that_lies_elsewhere_is_not_listed(self, storage: Storage, prefix: str) -> None:
        with pytest.raises(InvalidBlobPath):
            storage.list(prefix)

    def test_a_local_path_is_the_blob_or_nothing(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put(PATH, b"content")
        place = storage.local_path(PATH)
        if place is not None:
            with open(place, "rb") as stream:
                assert stream.read() == b"content"

    def test_a_url_is_a_url_or_nothing(self, storage: Storage, back_door: BackDoor) -> None:
        back_door.put(PATH, b"x")
        url = storage.direct_download_url(PATH, seconds=60, file_name="x.tar", media_type="application/x-tar")
        assert url is None or url.startswith(("http://", "https://"))
