"""Blobs in a folder of this machine.

The law: a blob is written beside the others, under `.parts/` where no path leads, brought to the disk, and renamed into
its place; a power cut leaves the old blob or the new one. Each byte of a part is in the file as soon as it is written,
so that it can be read from there while it grows. A part that a killed process left behind is removed by the
first writer that finds it a day old.
"""

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data.storage.base import (
    COPY_SIZE,
    BlobNotFound,
    BlobWriter,
    Storage,
    StorageUnavailable,
    StoredBlob,
    check_range,
    checked_folder,
    checked_path,
)
from util.digest import Readable

_PARTS = ".parts"
_STALE = 24 * 3600  # seconds; a writer that lives touches its part with every chunk
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV}
_COMMITS = 50  # tries, where somebody removes the emptied folder that a blob is on its way to


class LocalStorage(Storage):
    """Blobs under the folder `root`, which is made with the first blob."""

    def __init__(self, root: str | Path) -> None:
        self._root = os.path.abspath(root)
        self._swept = False

    def open(self, path: str, *, offset: int = 0, length: int | None = None) -> Readable:
        """Return the stream; a blob that is replaced or deleted meanwhile is read to its own end."""
        check_range(offset, length)
        with _translated(path):
            stream = open(self._place(path), "rb", buffering=0)  # noqa: SIM115 the caller closes it
            end = os.fstat(stream.fileno()).st_size
            stream.seek(offset)
        left = max(end - offset, 0)
        return _LocalReader(stream, left if length is None else min(length, left), path)

    def size(self, path: str) -> int:
        with _translated(path), open(self._place(path), "rb") as stream:
            return os.fstat(stream.fileno()).st_size

    def create(self, path: str) -> BlobWriter:
        place = self._place(path)
        with _translated(path):
            return _LocalWriter(os.path.join(self._parts(), uuid.uuid4().hex), place, path)

    def copy(self, source: str, target: str) -> None:
        """Give the file another name, where the file system has such a thing. Committed blobs are never written to."""
        origin, place = self._place(source), self._place(target)
        if origin == place:
            self.size(source)
            return
        with _translated(source):
            part = os.path.join(self._parts(), uuid.uuid4().hex)
            try:
                _link(origin, part)
                os.utime(part)
                _settle(part, place, target)
            finally:
                with contextlib.suppress(OSError):  # a rename between two names of one file leaves both
                    os.unlink(part)

    def delete(self, path: str) -> None:
        place = self._place(path)
        with contextlib.suppress(BlobNotFound), _translated(path):
            os.unlink(place)
            with contextlib.suppress(OSError):  # a folder that is not empty stays
                while (place := os.path.dirname(place)) != self._root:
                    os.rmdir(place)

    def list(self, prefix: str) -> Iterator[StoredBlob]:
        return self._under(checked_folder(prefix))

    def sweep(self, *, older_than: float, dry_run: bool = False) -> int:
        with _translated(_PARTS):
            return _sweep(os.path.join(self._root, _PARTS), older_than, dry_run=dry_run)

    def local_path(self, path: str) -> str | None:
        return self._place(path)

    def _under(self, folder: str) -> Iterator[StoredBlob]:
        try:
            with _translated(folder), os.scandir(os.path.join(self._root, folder)) as scan:
                entries = [entry for entry in scan if not entry.name.startswith(".")]
        except BlobNotFound:  # also a folder that was emptied and removed since it was found
            return
        for entry in entries:
            path = f"{folder}/{entry.name}"
            # A link may lead out of the root, and what is found is going to be deleted.
            if entry.is_dir(follow_symlinks=False):
                yield from self._under(path)
            elif entry.is_file(follow_symlinks=False):
                try:
                    with _translated(path):
                        found = entry.stat(follow_symlinks=False)
                except BlobNotFound:
                    continue
                yield StoredBlob(path, found.st_size, found.st_mtime_ns // 1_000_000)

    def _parts(self) -> str:
        """Return the folder of what is not committed, made and swept."""
        parts = os.path.join(self._root, _PARTS)
        os.makedirs(parts, exist_ok=True)
        if not self._swept:
            self._swept = True
            _sweep(parts, _STALE, dry_run=False)
        return parts

    def _place(self, path: str) -> str:
        return os.path.join(self._root, *checked_path(path).split("/"))


class _LocalReader:
    """The `left` bytes that follow in an opened file."""

    def __init__(self, stream: BinaryIO, left: int, path: str) -> None:
        self._stream, self._left, self._path = stream, left, path

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        pieces: list[bytes] = []
        while wanted:
            with _translated(self._path):
                piece = self._stream.read(wanted)
            if not piece:
                raise StorageUnavailable(f"{self._path} became shorter while it was read")
            pieces.append(piece)
            wanted -= len(piece)
            self._left -= len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        self._stream.close()


class _LocalWriter(BlobWriter):
    def __init__(self, part: str, place: str, path: str) -> None:
        self._part, self._place, self._path = part, place, path
        self._stream = open(part, "xb", buffering=0)  # noqa: SIM115 commit and abort close it

    @property
    def growing(self) -> str | None:
        return self._part

    def _write(self, chunk: bytes) -> None:
        with _translated(self._path), memoryview(chunk) as rest:
            written = 0
            while written < len(rest):
                written += self._stream.write(rest[written:])

    def _commit(self) -> None:
        with _translated(self._path):
            os.fsync(self._stream.fileno())
            self._stream.close()
            _settle(self._part, self._place, self._path)

    def _abort(self) -> None:
        with contextlib.suppress(OSError):  # some file systems tell of a full disk here
            self._stream.close()
        with contextlib.suppress(OSError):
            os.unlink(self._part)


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BlobNotFound(f"there is no blob {path} in storage") from error
    except OSError as error:
        raise StorageUnavailable(f"storage cannot be used for {path}: {error.strerror or error}") from error


def _settle(part: str, place: str, path: str) -> None:
    """Bring `part`, which is on the disk, to its place, and the names of folders and file to the disk."""
    for folder in _rename(part, place, path):
        with contextlib.suppress(FileNotFoundError):  # the blob is deleted already, and the folder with it
            _sync_folder(folder)


def _rename(part: str, place: str, path: str) -> list[str]:
    """Rename `part` to `place`, and return the folders whose content that changed."""
    error: OSError | None = None
    for _ in range(_COMMITS):
        try:
            changed = _make_folder(os.path.dirname(place))
            os.replace(part, place)
            return changed
        except (FileNotFoundError, FileExistsError) as caught:
            error = caught
    raise StorageUnavailable(f"the part or the folder of {path} was taken away: {error}") from error


def _link(origin: str, part: str) -> None:
    """Make `part` another name of the file `origin`, or a copy of it where the file system knows one name a file."""
    try:
        os.link(origin, part)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open(origin, "rb") as read, open(part, "xb") as written:
            shutil.copyfileobj(read, written, COPY_SIZE)
            written.flush()
            os.fsync(written.fileno())


def _make_folder(folder: str) -> list[str]:
    """Make `folder` and those above it, and return those whose content changes with a new name in `folder`."""
    changed = [folder]
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
        changed.append(folder)
    os.makedirs(changed[0], exist_ok=True)
    return changed


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(parts: str, older_than: float, *, dry_run: bool) -> int:
    found = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(parts) as scan:
        for part in scan:
            with contextlib.suppress(FileNotFoundError):
                if part.stat().st_mtime <= time.time() - older_than:
                    if not dry_run:
                        os.unlink(part)
                    found += 1
    return found
