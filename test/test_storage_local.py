"""Blobs in a folder: the suite of all storages, and what only a disk does."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from data.storage.base import BlobNotFound, Storage, StorageUnavailable
from data.storage.local import LocalStorage
from data.storage.testing import PATH, BackDoor, StorageTests


class Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, path: str, content: bytes) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content)

    def get(self, path: str) -> bytes | None:
        return (self.root / path).read_bytes() if (self.root / path).is_file() else None

    def leftovers(self) -> list[str]:
        return [str(part) for part in self.root.glob(".*/*")]


class TestLocalStorage(StorageTests):
    @pytest.fixture
    def back_door(self, tmp_path: Path) -> BackDoor:
        return Folder(tmp_path / "blobs")

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return LocalStorage(tmp_path / "blobs")


def refusing(number: int) -> Any:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_blob_is_on_the_disk_before_it_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def syncing(descriptor: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(tmp_path)))
        fsync(descriptor)

    def replacing(part: str, place: str) -> None:
        steps.append("rename")
        replace(part, place)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    with LocalStorage(tmp_path).create("a/b/blob") as writer:
        writer.write(b"x")
        writer.commit()
    assert steps[0].startswith("/.parts/")
    assert steps[1:] == ["rename", "/a/b", "/a", ""]


def test_a_part_of_a_killed_writer_is_removed_after_a_day(tmp_path: Path) -> None:
    parts = tmp_path / ".parts"
    parts.mkdir()
    for name, age in (("old", 25 * 3600), ("young", 3600)):
        (parts / name).write_bytes(b"x")
        os.utime(parts / name, (time.time() - age,) * 2)
    LocalStorage(tmp_path).create("blob").abort()
    assert [part.name for part in parts.iterdir()] == ["young"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    monkeypatch.setattr(os, "fsync", refusing(errno.ENOSPC))
    with (
        pytest.raises(StorageUnavailable, match="cannot be used for blob: No space left on device"),
        storage.create("blob") as writer,
    ):
        writer.commit()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((StorageUnavailable, BlobNotFound)):
        LocalStorage(tmp_path / "file").create(PATH)


def test_a_blob_that_may_not_be_read_is_not_taken_for_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.open", refusing(errno.EACCES))
    storage = LocalStorage(tmp_path)
    with pytest.raises(StorageUnavailable, match="Permission denied"):
        storage.size(PATH)
    with pytest.raises(StorageUnavailable, match="Permission denied"):
        storage.open(PATH)


def test_a_blob_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"0123456789")
    stream = LocalStorage(tmp_path).open("blob")
    stream.read(2)
    os.truncate(tmp_path / "blob", 5)
    with pytest.raises(StorageUnavailable, match="became shorter"):
        stream.read()
    stream.close()


def test_a_blob_that_is_replaced_while_it_is_read_is_read_to_its_own_end(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    (tmp_path / "blob").write_bytes(b"old bytes")
    stream = storage.open("blob")
    with storage.create("blob") as writer:
        writer.write(b"new")
        writer.commit()
    assert stream.read() == b"old bytes"
    stream.close()


def test_a_folder_has_no_urls(tmp_path: Path) -> None:
    assert LocalStorage(tmp_path).direct_download_url(PATH, seconds=60) is None


def test_a_commit_is_told_when_its_part_was_taken_away(tmp_path: Path) -> None:
    with LocalStorage(tmp_path).create("a/blob") as writer:
        writer.write(b"x")
        assert writer.growing is not None
        os.unlink(writer.growing)
        with pytest.raises(StorageUnavailable, match="the part or the folder of a/blob was taken away"):
            writer.commit()


def test_a_commit_makes_the_folder_again_that_a_delete_took_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    folder = tmp_path / "a/b"

    def replacing(part: str, place: str) -> None:
        monkeypatch.undo()
        os.rmdir(folder)
        replace(part, place)

    monkeypatch.setattr(os, "replace", replacing)
    with LocalStorage(tmp_path).create("a/b/blob") as writer:
        writer.commit()
    assert (folder / "blob").is_file()


def test_a_blob_that_is_deleted_as_soon_as_it_is_there_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    storage = LocalStorage(tmp_path)

    def replacing(part: str, place: str) -> None:
        replace(part, place)
        storage.delete("a/b/blob")

    monkeypatch.setattr(os, "replace", replacing)
    with storage.create("a/b/blob") as writer:
        writer.commit()
    assert not (tmp_path / "a").exists()


def test_emptied_folders_go_with_the_last_blob_and_the_root_stays(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "root")
    for path in ("a/b/c/one", "a/two"):
        with storage.create(path) as writer:
            writer.commit()
    storage.delete("a/b/c/one")
    assert sorted(os.listdir(tmp_path / "root/a")) == ["two"]
    storage.delete("a/two")
    assert sorted(os.listdir(tmp_path / "root")) == [".parts"]


def test_a_write_that_takes_part_of_a_chunk_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short:
        """A disk that takes three bytes at a time."""

        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def write(self, chunk: memoryview) -> int:
            taken: int = self._stream.write(chunk[:3])
            return taken

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    with LocalStorage(tmp_path).create("blob") as writer:
        monkeypatch.setattr(writer, "_stream", Short(writer._stream))  # type: ignore[attr-defined]
        writer.write(b"0123456789")
        writer.commit()
    assert (tmp_path / "blob").read_bytes() == b"0123456789"


def test_a_list_does_not_leave_the_root_nor_tell_of_what_is_no_blob(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    root = tmp_path / "root"
    (root / "verbs/.hidden").mkdir(parents=True)
    (root / "verbs/.hidden/x").write_bytes(b"x")
    (root / "verbs/.x").write_bytes(b"x")
    (root / "verbs/blob").write_bytes(b"x")
    (root / "verbs/link").symlink_to(outside)
    (root / "verbs/file").symlink_to(outside / "precious")
    os.mkfifo(root / "verbs/pipe")
    assert [blob.path for blob in LocalStorage(root).list("verbs")] == ["verbs/blob"]


def test_a_blob_that_goes_while_it_is_listed_is_passed_over(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for name in "abc":
        with storage.create(f"verbs/{name}/x") as writer:
            writer.commit()
        with storage.create(f"verbs/{name}/y") as writer:
            writer.commit()
    listing = storage.list("verbs")
    first = next(listing)
    for name in "abc":
        for blob in "xy":
            storage.delete(f"verbs/{name}/{blob}")
    assert [first, *listing] == [first]


def test_a_folder_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", refusing(errno.EACCES))
    storage = LocalStorage(tmp_path)
    with pytest.raises(StorageUnavailable, match="cannot be used for verbs: Permission denied"):
        list(storage.list("verbs"))
    with pytest.raises(StorageUnavailable, match="Permission denied"):
        storage.sweep(older_than=0)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EMLINK, errno.ENOTSUP])
def test_a_blob_is_copied_byte_by_byte_where_files_have_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    storage, folder = LocalStorage(tmp_path), Folder(tmp_path)
    folder.put("one", b"content" * 1000)
    monkeypatch.setattr(os, "link", refusing(number))
    storage.copy("one", PATH)
    assert folder.get(PATH) == folder.get("one") == b"content" * 1000
    assert (tmp_path / "one").stat().st_ino != (tmp_path / PATH).stat().st_ino
    assert folder.leftovers() == []


@pytest.mark.parametrize("call", ["link", "utime", "replace"])
def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    storage, folder = LocalStorage(tmp_path), Folder(tmp_path)
    folder.put("one", b"content")
    monkeypatch.setattr(os, call, refusing(errno.EIO))
    with pytest.raises(StorageUnavailable, match="Input/output error"):
        storage.copy("one", PATH)
    assert folder.get(PATH) is None
    assert folder.leftovers() == []


def test_a_copy_takes_no_room_of_its_own(tmp_path: Path) -> None:
    storage, folder = LocalStorage(tmp_path), Folder(tmp_path)
    folder.put("one", b"content")
    storage.copy("one", PATH)
    assert (tmp_path / "one").stat().st_ino == (tmp_path / PATH).stat().st_ino
