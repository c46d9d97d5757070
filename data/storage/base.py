"""The interface of storage: blobs by path, read in ranges, written in one step.

The law: a path is a relative name of segments joined by `/`; no segment is empty or begins with a dot. A blob is there
as a whole or not at all: what is being written is invisible, even in part, until it is committed. Drivers turn the
errors of their world into the two below, once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import quote

from util.digest import Readable
from util.problem import Damaged, Problem

COPY_SIZE = 1 << 20
"""Bytes that are moved at a time where a whole blob is read."""


OWN = "verbs"
"""The folder of the blobs that we make and may delete; everything beside it is the registry's."""


class BlobNotFound(Damaged):
    """A path, or a registered blob, that storage does not hold."""

    code = "BLOB_NOT_FOUND"


class InvalidBlobPath(Damaged):
    """A path that breaks the law above; the registry names a place that no storage has."""

    code = "BLOB_PATH_INVALID"


class StorageUnavailable(Problem):
    """A storage that does not answer, refuses access or fails; what it holds is not known. Trying again may help."""

    code = "STORAGE_UNAVAILABLE"


def checked_path(path: str) -> str:
    """Return `path` as it is. Raises InvalidBlobPath where it breaks the law."""
    if not path or "\0" in path or any(not segment or segment.startswith(".") for segment in path.split("/")):
        raise InvalidBlobPath(f"{path!r} is no path of a blob")
    return path


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob as a listing tells of it. `modified_ms` is when it was committed, by the storage's clock since 1970."""

    path: str
    size: int
    modified_ms: int


@dataclass(frozen=True, slots=True)
class Recipient:
    """Who is going to download by a URL, as far as that is known: a storage with several ways out chooses by it."""

    address: str | None = None
    """The client's IP address."""
    host: str | None = None
    """The name by which the client came to us, with the port."""
    namespace: str | None = None
    """Whose repository the blob is asked of."""


ANYBODY = Recipient()


class BlobWriter(ABC):
    """A blob that is being written. Leaving the `with` block without a commit aborts.

    A driver says what the three steps do; that each comes when it may is seen to here.
    """

    _ended = False

    @property
    def growing(self) -> str | None:
        """The file of this machine that holds every byte written so far, None where the driver has no such file.

        It may be read, and linked elsewhere, while it grows and for as long as it is held open; commit and abort take
        the name away.
        """
        return None

    def write(self, chunk: bytes) -> None:
        """Append `chunk`. Raises StorageUnavailable; the writer is then good for an abort only."""
        self._check_open()
        self._write(chunk)

    def commit(self) -> None:
        """Make the blob visible in one step, in the place of one that may be there. Raises StorageUnavailable."""
        self._check_open()
        self._commit()
        self._ended = True

    def abort(self) -> None:
        """Remove what was written, and leave a blob that was there before. Does nothing after commit or abort."""
        if not self._ended:
            self._ended = True
            self._abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _check_open(self) -> None:
        if self._ended:
            raise ValueError("the blob has been committed or aborted")

    @abstractmethod
    def _write(self, chunk: bytes) -> None: ...

    @abstractmethod
    def _commit(self) -> None: ...

    @abstractmethod
    def _abort(self) -> None:
        """Remove what was written. Raises nothing: who aborts is often on the way out with an error of its own."""


class Storage(ABC):
    """Blobs by path. Safe to use from several threads; readers and writers are each for one thread.

    Every method raises InvalidBlobPath for a path that is none, and StorageUnavailable.
    """

    @abstractmethod
    def open(self, path: str, *, offset: int = 0, length: int | None = None) -> Readable:
        """Return a stream of `length` bytes from `offset`, or of as many as there are; the caller closes it.

        Raises BlobNotFound here, not on the first read. Reading raises StorageUnavailable where the blob's end is not
        reached: a stream never ends early.
        """

    @abstractmethod
    def size(self, path: str) -> int:
        """Return how many bytes the blob has. Raises BlobNotFound."""

    @abstractmethod
    def create(self, path: str) -> BlobWriter:
        """Return a writer for the blob at `path`, which may replace one."""

    @abstractmethod
    def copy(self, source: str, target: str) -> None:
        """Make the blob at `target` that at `source`, which stays, in one step and in the place of one that is there.

        The bytes do not pass through us where the storage can help it. A blob at `target` counts as committed now,
        whenever that at `source` was. Raises BlobNotFound; what is at `target` is then what it was.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Make sure that there is no blob at `path`. Idempotent."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[StoredBlob]:
        """Iterate over the blobs under the folder `prefix`, in no certain order; a `/` at its end changes nothing.

        A blob that comes or goes meanwhile may be told or not. The iterator raises StorageUnavailable.
        """

    @abstractmethod
    def sweep(self, *, older_than: float, dry_run: bool = False) -> int:
        """Remove what writers left behind that died before commit and abort. Return how many there were.

        Left behind is what nothing was written to for `older_than` seconds. Only blobs under OWN are looked at where
        the storage is not ours alone. With `dry_run` all stays as it is.
        """

    def local_path(self, path: str) -> str | None:
        """Return the file that is the blob at `path`, None where the driver has no files.

        Whether there is a blob is not looked at.
        """
        checked_path(path)
        return None

    def direct_download_url(
        self,
        path: str,
        *,
        seconds: int,
        file_name: str | None = None,
        media_type: str | None = None,
        recipient: Recipient = ANYBODY,
    ) -> str | None:
        """Return a URL by which anybody can download the blob for `seconds`, None where the storage has no such thing.

        The answer under it carries `media_type`, where a URL of the storage can say so, and a Content-Disposition with
        `file_name`. `recipient` decides where the URL leads, not who may use it. Whether there is a blob is not looked
        at.
        """
        return None


def checked_folder(prefix: str) -> str:
    """Return `prefix` without a `/` at its end. Raises InvalidBlobPath where it is no folder of blobs."""
    return checked_path(prefix.removesuffix("/"))


def check_range(offset: int, length: int | None) -> None:
    """Raise ValueError for a range that is a mistake of the caller's."""
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"no range: offset {offset}, length {length}")


def attachment(file_name: str) -> str:
    """Return the Content-Disposition that saves an answer as `file_name`. RFC 6266."""
    plain = "".join(char if char.isascii() and char.isprintable() and char not in '"\\' else "_" for char in file_name)
    extended = "" if plain == file_name else f"; filename*=UTF-8''{quote(file_name, safe='')}"
    return f'attachment; filename="{plain}"{extended}'
