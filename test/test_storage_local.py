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
