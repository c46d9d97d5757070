"""Uploads: blobs on their way into a repository, in as many requests as a client needs.

The law: what has come lies in storage as segments, each committed and never written to again, and the row says which
they are, in order, and how many bytes. A segment counts once the row has it, in one statement that only the upload's
`writer` can do: the request that came last. One that comes back late has written for nothing. So whoever is killed, the
row is right, and the client goes on behind the last byte that the row knows. A blob's digest is that of bytes that we
have read, whatever a client says, before anything of it can be seen; how it is then put in its place is pushedblobs.py.

A row is there before its segments are, and goes before they go: what lies here without one is nobody's. Many small
segments become a larger one on the way, so that a row stays short and an end does not open thousands.
"""

import json
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, insert, select, update

from data.database import Engine
from data.incoming import Incoming
from data.owntables import DatabaseClock, DatabaseUnavailable, UploadRow, changing, reading
from data.pushedblobs import PushedBlobs
from data.registry import content_path
from data.storage.base import COPY_SIZE, OWN, BlobNotFound, BlobWriter, StorageUnavailable
from data.storage.distributed import DistributedStorage
from util.digest import Digest, DigestMismatch, Hasher, Readable, hasher
from util.problem import Missing, Problem, TooLarge

log = logging.getLogger(__name__)

UPLOADS = f"{OWN}/uploads"
"""The folder of the segments; each upload has one of its own below it, by its id."""

STRAY_SECONDS = 3600
"""How old a segment without a row is, when it is removed."""

_TOGETHER = 256  # segments of one kind that become one of the next
_PAGE = 200


class UploadUnknown(Missing):
    """An upload that is not there: it has ended, was cancelled, was given up, or is another repository's."""

    code = "BLOB_UPLOAD_UNKNOWN"


class UploadOutOfOrder(Problem):
    """Bytes that are not those that follow. `upload` says how many there are."""

    code = "BLOB_UPLOAD_INVALID"

    def __init__(self, upload: "Upload", said: str) -> None:
        self.upload = upload
        super().__init__(f"the upload {upload.id} has {upload.size} bytes, and {said}")


class UploadTaken(Problem):
    """An upload to which another request is writing by now, or which has ended under this one."""

    code = "BLOB_UPLOAD_INVALID"


class UploadCut(Problem):
    """A body that ended before its end. What came of it is kept."""

    code = "SIZE_INVALID"


class OtherBlobCame(DigestMismatch):
    """Bytes with another digest than that under which they were to be a blob."""


class BlobTooLarge(TooLarge):
    """A blob with more bytes than are accepted."""

    code = "SIZE_INVALID"


@dataclass(frozen=True, slots=True)
class Segment:
    """Some bytes of an upload. `name` begins with how many times they have been put together."""

    name: str
    size: int

    @property
    def level(self) -> int:
        return int(self.name.split("-")[0])


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload with `size` bytes so far. `digest` is theirs, where it is known without reading them again."""

    id: str
    repository: int
    algorithm: str
    size: int
    segments: tuple[Segment, ...]
    digest: Digest | None

    def path(self, segment: Segment) -> str:
        """Return where the segment lies."""
        return f"{UPLOADS}/{self.id}/{segment.name}"


@dataclass(frozen=True, slots=True)
class Abandoned:
    """What is swept: an upload, or a segment of none. `size` in bytes."""

    what: str
    path: str
    size: int


class Uploads:
    """The uploads of a registry, by the id of the repository and their own.

    Every method may raise DatabaseUnavailable, and those that write StorageUnavailable; the upload is then what it was.
    """

    def __init__(
        self, engine: Engine, storage: DistributedStorage, blobs: PushedBlobs, *, max_size: int | None = None
    ) -> None:
        """`max_size` is how many bytes a blob may have, None: as many as it has."""
        self._engine, self._storage, self._blobs, self._max_size = engine, storage, blobs, max_size

    def start(self, repository: int, algorithm: str = "sha256") -> Upload:
        """Begin an upload, whose digest is likely to be one of `algorithm`. Raises InvalidDigest for what is none."""
        hasher(algorithm)
        upload = Upload(uuid.uuid4().hex, repository, algorithm, 0, (), None)
        now = DatabaseClock()
        changing(
            self._engine,
            lambda connection: connection.execute(
                insert(UploadRow).values(
                    id=upload.id,
                    repository_id=repository,
                    algorithm=algorithm,
                    size=0,
                    segments="[]",
                    created_ms=now,
                    touched_ms=now,
                )
            ),
        )
        return upload

    def find(self, repository: int, number: str) -> Upload:
        """Return the upload of that id. Raises UploadUnknown."""
        return reading(self._engine, lambda connection: _find(connection, repository, number))

    def append(
        self,
        repository: int,
        number: str,
        body: Readable,
        *,
        offset: int | None = None,
        length: int | None = None,
        algorithm: str | None = None,
    ) -> Upload:
        """Append all of `body`, which should have `length` bytes, begin at `offset`, and are known by `algorithm`.

        What is None is not known. Raises UploadUnknown, UploadOutOfOrder, UploadTaken; BlobTooLarge, and the upload is
        gone; UploadCut where the body ends early or cannot be read, and what came is kept.
        """
        upload, writer = self._take(repository, number, offset)
        if self._max_size is not None and upload.size + (length or 0) > self._max_size:
            self._drop(upload)
            raise self._too_large()
        try:
            return self._append(upload, writer, body, length, algorithm or upload.algorithm)
        except BlobTooLarge:
            self._drop(upload)
            raise

    def finish(self, repository: int, number: str, digest: Digest) -> int:
        """Make a blob of the upload, which the repository holds then, and return its size in bytes.

        Raises UploadUnknown; DigestMismatch, and the upload is gone; what PushedBlobs.keep raises, and it can be
        finished again.
        """
        upload, _ = self._take(repository, number)
        try:
            whole = self._verified(upload, digest)
            self._blobs.keep(repository, digest, upload.size, lambda: self._storage.copy(whole, content_path(digest)))
        except DigestMismatch:
            self._drop(upload)
            raise
        except BlobNotFound as error:
            raise UploadUnknown(f"the upload {upload.id} has ended meanwhile") from error
        self._drop(upload)
        return upload.size

    def cancel(self, repository: int, number: str) -> None:
        """Give the upload up. Raises UploadUnknown."""
        self._drop(self.find(repository, number))

    def sweep(self, *, older_than: float, dry_run: bool = False) -> Iterator[Abandoned]:
        """Drop uploads that nothing has come to for `older_than` seconds, and segments of none; yield each, dropped.

        With `dry_run` all stays as it is. Raises StorageReadOnly.
        """
        if not dry_run:
            self._storage.check_writable("no upload can be swept")
        old = UploadRow.touched_ms <= DatabaseClock() - round(older_than * 1000)
        after = ""
        while page := reading(self._engine, lambda connection: _page(connection, old, after)):  # noqa: B023 run at once
            for upload in page:
                if dry_run or self._drop(upload, old):
                    yield Abandoned(f"upload {upload.id}", f"{UPLOADS}/{upload.id}", upload.size)
            after = page[-1].id
        yield from self._sweep_strays(dry_run=dry_run)

    # --- Bytes --------------------------------------------------------------------------------------------------------

    def _append(self, upload: Upload, writer: str, body: Readable, length: int | None, algorithm: str) -> Upload:
        segment = Segment(f"0-{uuid.uuid4().hex[:16]}", 0)
        hashed = hasher(algorithm)
        incoming = Incoming(body, lambda: self._touch(upload, writer))
        piece = incoming.read()
        if not piece:
            return self._checked(upload, 0, length, incoming)
        received = 0
        with self._storage.create(upload.path(segment)) as stored:
            while piece:
                received += len(piece)
                if self._max_size is not None and upload.size + received > self._max_size:
                    raise self._too_large()
                hashed.update(piece)
                stored.write(piece)
                piece = incoming.read()
            stored.commit()
        known = Digest(algorithm, hashed.hexdigest()) if upload.size == 0 else None
        segments = self._put_together(upload, (*upload.segments, Segment(segment.name, received)))
        grown = Upload(upload.id, upload.repository, upload.algorithm, upload.size + received, segments, known)
        self._grow(upload, grown, writer)
        return self._checked(grown, received, length, incoming)

    def _checked(self, upload: Upload, received: int, length: int | None, incoming: "Incoming") -> Upload:
        if incoming.broken is not None or (length is not None and received != length):
            of = "its body" if length is None else f"{length} bytes"
            raise UploadCut(
                f"of {of} {received} came, and the upload {upload.id} has {upload.size}"
            ) from incoming.broken
        return upload

    def _too_large(self) -> BlobTooLarge:
        return BlobTooLarge(f"a blob may have {self._max_size} bytes (MAXIMUM_LAYER_SIZE), and this one has more")

    def _verified(self, upload: Upload, digest: Digest) -> str:
        """Return where all bytes of the upload lie in one piece, after they have been seen to have the digest.

        Raises DigestMismatch, and BlobNotFound where they have gone.
        """
        if upload.digest is not None and upload.digest.algorithm == digest.algorithm:
            found = upload.digest.hex
        elif len(upload.segments) == 1:
            found = self._read(upload, upload.segments, digest.hasher(), None)
        else:
            whole = Segment(f"0-{uuid.uuid4().hex[:16]}", upload.size)
            with self._storage.create(upload.path(whole)) as stored:
                found = self._read(upload, upload.segments, digest.hasher(), stored)
                if found == digest.hex:
                    stored.commit()
                    return upload.path(whole)
        if found != digest.hex:
            raise OtherBlobCame(f"blob {digest} should come, and the bytes that came have {digest.algorithm}:{found}")
        return upload.path(upload.segments[0])

    def _read(
        self, upload: Upload, segments: Sequence[Segment], digest: Hasher | None, stored: BlobWriter | None
    ) -> str:
        """Read segments into a hash, which is returned, and a writer, as far as there are these."""
        for segment in segments:
            with closing(self._storage.preferred.open(upload.path(segment))) as stream:
                while piece := stream.read(COPY_SIZE):
                    if digest is not None:
                        digest.update(piece)
                    if stored is not None:
                        stored.write(piece)
        return "" if digest is None else digest.hexdigest()

    def _put_together(self, upload: Upload, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        """Return segments with the same bytes, of which no more than a few hundred are of a kind.

        What has been put together is deleted with the upload.
        """
        while len(segments) >= _TOGETHER:
            last = segments[-_TOGETHER:]
            level = last[0].level
            if any(segment.level != level for segment in last):
                break
            larger = Segment(f"{level + 1}-{uuid.uuid4().hex[:16]}", sum(segment.size for segment in last))
            with self._storage.create(upload.path(larger)) as stored:
                self._read(upload, last, None, stored)
                stored.commit()
            segments = (*segments[:-_TOGETHER], larger)
        return segments

    # --- Rows ---------------------------------------------------------------------------------------------------------

    def _take(self, repository: int, number: str, offset: int | None = None) -> tuple[Upload, str]:
        """Return the upload, and the name under which nobody else can write to it from now on."""
        writer = uuid.uuid4().hex

        def work(connection: Connection) -> Upload:
            upload = _find(connection, repository, number)
            if offset is not None and offset != upload.size:
                raise UploadOutOfOrder(upload, f"what was sent begins at {offset}")
            same = and_(UploadRow.id == number, UploadRow.size == upload.size)
            values = {"writer": writer, "touched_ms": DatabaseClock()}
            if not connection.execute(update(UploadRow).where(same).values(values)).rowcount:
                raise UploadTaken(f"another request has just written to the upload {number}")
            return upload

        return changing(self._engine, work), writer

    def _touch(self, upload: Upload, writer: str) -> None:
        """Tell that something still comes. Raises UploadTaken where it comes for nothing."""
        mine = and_(UploadRow.id == upload.id, UploadRow.writer == writer)
        query = update(UploadRow).where(mine).values(touched_ms=DatabaseClock())
        try:
            if changing(self._engine, lambda connection: connection.execute(query).rowcount):
                return
        except DatabaseUnavailable as error:
            log.warning("upload %s: %s", upload.id, error)
            return
        raise UploadTaken(f"another request has taken over the upload {upload.id}")

    def _grow(self, before: Upload, upload: Upload, writer: str) -> None:
        """Let the row say what has come. Raises UploadTaken, and what only this one has is gone.

        Where it is not known whether the row says so, all is left where it is.
        """
        segments = json.dumps([[segment.name, segment.size] for segment in upload.segments], separators=(",", ":"))
        mine = and_(UploadRow.id == upload.id, UploadRow.writer == writer, UploadRow.size == before.size)

        def work(connection: Connection) -> bool:
            values = {
                "size": upload.size,
                "segments": segments,
                "digest": None if upload.digest is None else str(upload.digest),
                "touched_ms": DatabaseClock(),
            }
            if connection.execute(update(UploadRow).where(mine).values(values)).rowcount:
                return True
            # It may have been done, and the connection broken before it was told.
            said = connection.scalar(select(UploadRow.segments).where(UploadRow.id == upload.id))
            return said is not None and upload.segments[-1].name in said

        if not changing(self._engine, work):
            for segment in set(upload.segments) - set(before.segments):
                self._delete(upload.path(segment))
            raise UploadTaken(f"another request has taken over the upload {upload.id}, or ended it")

    def _drop(self, upload: Upload, only_if: ColumnElement[bool] | None = None) -> bool:
        """Let the upload be gone, and tell whether this did it. What cannot be deleted now is swept."""
        query = delete(UploadRow).where(UploadRow.id == upload.id)
        query = query if only_if is None else query.where(only_if)
        dropped = changing(self._engine, lambda connection: connection.execute(query).rowcount) == 1
        if dropped:
            try:
                for stored in list(self._storage.preferred.list(f"{UPLOADS}/{upload.id}")):
                    self._delete(stored.path)
            except StorageUnavailable as error:
                log.warning("what upload %s had is left to be swept: %s", upload.id, error)
        return dropped

    def _delete(self, path: str) -> None:
        try:
            self._storage.preferred.delete(path)
        except StorageUnavailable as error:
            log.warning("%s is left to be swept: %s", path, error)

    def _sweep_strays(self, *, dry_run: bool) -> Iterator[Abandoned]:
        """Drop segments whose upload has no row. A row is there before the first segment, so it is looked up after."""
        before = (time.time() - STRAY_SECONDS) * 1000
        old = [stored for stored in self._storage.preferred.list(UPLOADS) if stored.modified_ms < before]
        for start in range(0, len(old), _PAGE):
            page = old[start : start + _PAGE]
            numbers = {stored.path.split("/")[2] for stored in page}
            query = select(UploadRow.id).where(UploadRow.id.in_(sorted(numbers)))
            alive = set(reading(self._engine, lambda connection: list(connection.scalars(query))))  # noqa: B023 at once
            for stored in page:
                if stored.path.split("/")[2] not in alive:
                    if not dry_run:
                        self._storage.preferred.delete(stored.path)
                    yield Abandoned(stored.path, stored.path, stored.size)


def _find(connection: Connection, repository: int, number: str) -> Upload:
    row = connection.execute(
        _columns().where(UploadRow.id == number, UploadRow.repository_id == repository)
    ).one_or_none()
    if row is None:
        raise UploadUnknown(f"there is no upload {number!r} in the repository; it may have ended, or been given up")
    return _read_row(row)


def _page(connection: Connection, old: ColumnElement[bool], after: str) -> list[Upload]:
    query = _columns().where(old, UploadRow.id > after).order_by(UploadRow.id).limit(_PAGE)
    return [_read_row(row) for row in connection.execute(query)]


def _columns() -> Select[str, int, str, int, str, str | None]:
    row = UploadRow
    return select(row.id, row.repository_id, row.algorithm, row.size, row.segments, row.digest)


def _read_row(row: Any) -> Upload:
    segments = tuple(Segment(name, size) for name, size in json.loads(row.segments))
    digest = None if row.digest is None else Digest.parse(row.digest)
    return Upload(row.id, row.repository_id, row.algorithm, row.size, segments, digest)
