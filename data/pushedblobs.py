"""Blobs that were pushed: which of them a repository holds although no manifest of it has them yet, or any more.

The law: a link (UploadedBlob) is made under the lock that everybody holds who writes to the registry, and only after it
has been seen under that lock that the object is there, in its full length; garbage takes row and object under the same
lock, after having seen that nothing links them. So what is linked is there, whoever was killed when. The object is put
in its place before, without the lock, because that may take long. Hence the order at an upload's end:

1. The bytes lie under `verbs/uploads`, and have the digest (uploads.py).
2. The object is put in its place: a copy, in one step. Killed here: an object that no row has, which garbage takes when
   it is a day old; the upload is what it was, and can be ended again.
3. Under the lock: is the object there? Then row, placement and link, in one transaction. Is it not, because garbage has
   taken what it lay beside just before, all begins again at 2; the bytes are still where they were.
4. The upload goes: its row, and then its bytes. Killed here: they are swept, and the blob stays.

A blob that is in the registry already is not put there again, and only linked. Links end; times are by our clock, as
Quay's are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from data.database import Engine
from data.discovery import Reader, may_read
from data.lifetimes import holders, holds, kept_by_upload, not_ended
from data.registry import RepositoryNotFound, content_path, reached
from data.storage.base import BlobNotFound, StorageUnavailable
from data.storage.distributed import DistributedStorage
from data.tables import (
    MARKED_FOR_DELETION,
    Base,
    ImageStorage,
    ImageStorageLocation,
    ImageStoragePlacement,
    Manifest,
    ManifestBlob,
    Repository,
    RepositoryKind,
    Tag,
    UploadedBlob,
    User,
    Visibility,
    now_ms,
    now_utc,
)
from util.digest import Digest
from util.problem import Missing, Problem

_ATTEMPTS = 5
_HOLDERS = 100


class BlobUnknown(Missing):
    """A digest under which a repository holds no blob."""

    code = "BLOB_UNKNOWN"


class BlobInUse(Problem):
    """A blob that cannot be deleted because a manifest has it; the text names one."""

    code = "BLOB_IN_USE"


@dataclass(frozen=True, slots=True)
class Holder:
    """A repository that holds a blob."""

    id: int
    namespace: str
    repository: str
    public: bool


@dataclass(frozen=True, slots=True)
class _Row:
    """A blob's row: where its object should lie."""

    id: int
    path: str
    cas_path: bool
    size: int | None
    locations: frozenset[str]


class PushedBlobs:
    """Links blobs to repositories, which are meant by their ids. Every method may raise RegistryUnavailable."""

    def __init__(self, engine: Engine, storage: DistributedStorage, *, grace_seconds: float) -> None:
        """A link is kept for `grace_seconds`, for a manifest to name its blob."""
        self._engine, self._storage = engine, storage
        self._grace = timedelta(seconds=grace_seconds)

    def keep(self, repository: int, digest: Digest, size: int, put: Callable[[], None]) -> None:
        """Make sure that the registry has the blob `digest` of `size` bytes, and that the repository holds it.

        `put` puts the object at its `content_path` in the preferred location, in one step; it is called where the
        registry does not have the blob, and again where it was taken away meanwhile.
        Raises RepositoryNotFound where the repository was deleted, StorageUnavailable, and what `put` raises.
        """
        for _ in range(_ATTEMPTS):
            with reached(self._engine) as connection:
                there = self._stored(connection, digest, size) is not None
            if not there:
                put()
            with reached(self._engine, writes=True) as connection:
                if self._linked(connection, repository, digest, size):
                    return
        raise StorageUnavailable(f"blob {digest} was taken away {_ATTEMPTS} times as soon as it was in its place")

    def mount(self, repository: int, digest: Digest, source: int) -> bool:
        """Have the repository hold the blob that `source` holds, and tell whether it does: False where neither may."""
        with reached(self._engine, writes=True) as connection:
            query = select(ImageStorage.image_size).where(
                ImageStorage.content_checksum == str(digest), holds(source, now_utc())
            )
            sizes = set(connection.scalars(query))
            return any(self._linked(connection, repository, digest, size, find=True) for size in sizes)

    def holders(
        self, digest: Digest, reader: Reader, namespace: str | None = None, repository: str | None = None
    ) -> list[Holder]:
        """Return repositories that hold the blob and that `reader` may read, public ones first.

        At most a hundred, or the one of that name. Others cost nothing, so that the time does not tell of them.
        """
        query = (
            select(Repository.id, User.username, Repository.name, Visibility.name)
            .join(User, User.id == Repository.namespace_user_id)
            .join(Visibility, Visibility.id == Repository.visibility_id)
            .join(RepositoryKind, RepositoryKind.id == Repository.kind_id)
            .where(
                Repository.id.in_(_holders(digest, now_utc())),
                Repository.state != MARKED_FOR_DELETION,
                RepositoryKind.name == "image",
                User.enabled.is_(True),
                may_read(reader),
            )
            .order_by(Visibility.name.desc(), Repository.id)
            .limit(_HOLDERS)
        )
        if namespace is not None:
            query = query.where(User.username == namespace, Repository.name == repository)
        with reached(self._engine) as connection:
            return [
                Holder(number, namespace, name, visibility == "public")
                for number, namespace, name, visibility in connection.execute(query)
            ]

    def unlink(self, repository: int, digest: Digest) -> None:
        """Have the repository not hold the blob any more. Raises BlobUnknown, and BlobInUse where a manifest has it."""
        blobs = select(ImageStorage.id).where(ImageStorage.content_checksum == str(digest))
        having = (
            select(Manifest.id, Manifest.repository_id, Manifest.digest)
            .join(ManifestBlob, ManifestBlob.manifest_id == Manifest.id)
            .where(ManifestBlob.repository_id == repository, ManifestBlob.blob_id.in_(blobs))
        )
        chain = holders(having)
        leading = and_(Tag.manifest_id == chain.c.id, Tag.repository_id == chain.c.repository_id, not_ended(now_ms()))
        links = and_(UploadedBlob.repository_id == repository, UploadedBlob.blob_id.in_(blobs))
        with reached(self._engine, writes=True) as connection:
            manifest = connection.scalar(select(func.min(chain.c.digest)).join(Tag, leading))
            if manifest is not None:
                raise BlobInUse(f"the manifest {manifest} has the blob {digest}; delete the manifest")
            manifest = connection.scalar(select(func.min(having.subquery().c.digest)))
            if manifest is not None:
                raise BlobInUse(
                    f"the manifest {manifest}, which has been deleted, keeps the blob {digest}; both go as garbage,"
                    " when the past of its tags is over"
                )
            alive = connection.scalar(select(func.count()).where(links, kept_by_upload(now_utc())))
            if not alive:
                raise BlobUnknown(f"the repository has no blob {digest}")
            connection.execute(delete(UploadedBlob).where(links))

    # --- Under the lock -----------------------------------------------------------------------------------------------

    def _linked(
        self, connection: Connection, repository: int, digest: Digest, size: int | None, *, find: bool = False
    ) -> bool:
        """Link the blob if its object is there, and tell whether it is. `find`: a row that is there has to do."""
        alive = select(Repository.id).where(Repository.id == repository, Repository.state != MARKED_FOR_DELETION)
        if connection.scalar(alive) is None:
            raise RepositoryNotFound("the repository has been deleted")
        number = self._stored(connection, digest, size)
        if number is None or (find and number == 0):
            return False
        number = number or self._row(connection, digest, size)
        now = now_utc()
        until = now + self._grace
        same = and_(UploadedBlob.repository_id == repository, UploadedBlob.blob_id == number)
        latest = connection.scalar(select(func.max(UploadedBlob.expires_at)).where(same))
        if latest is None:
            values = {"repository_id": repository, "blob_id": number, "uploaded_at": now, "expires_at": until}
            connection.execute(insert(UploadedBlob).values(values))
        elif latest < until:
            connection.execute(update(UploadedBlob).where(same).values(expires_at=until))
        return True

    def _stored(self, connection: Connection, digest: Digest, size: int | None) -> int | None:
        """Return the row of a blob whose object is there; 0 where the object is there without one, None without it."""
        for row in _rows(connection, digest):
            expected = size if row.size is None else row.size
            try:
                if self._storage.size(row.locations, row.path) == expected and size in (None, expected):
                    return row.id
            except (BlobNotFound, StorageUnavailable):
                continue  # it can be put where we write
        try:
            there = self._storage.preferred.size(content_path(digest))
        except BlobNotFound:
            return None
        return 0 if there == size else None

    def _row(self, connection: Connection, digest: Digest, size: int | None) -> int:
        """Return the row of the blob that lies at its content's path in the preferred location."""
        number = next((row.id for row in _rows(connection, digest) if row.cas_path), None)
        if number is None:
            values = {"content_checksum": str(digest), "cas_path": True, "image_size": size}
            number = connection.execute(insert(ImageStorage).values(values).returning(ImageStorage.id)).scalar_one()
        else:
            connection.execute(update(ImageStorage).where(ImageStorage.id == number).values(image_size=size))
        location = _there(connection, ImageStorageLocation, name=self._storage.preferred_location)
        _there(connection, ImageStoragePlacement, storage_id=number, location_id=location)
        return number


def _holders(digest: Digest, now: datetime) -> Any:
    """Return the ids of the repositories that hold the blob."""
    blobs = select(ImageStorage.id).where(ImageStorage.content_checksum == str(digest))
    return (
        select(ManifestBlob.repository_id)
        .where(ManifestBlob.blob_id.in_(blobs))
        .union(select(UploadedBlob.repository_id).where(UploadedBlob.blob_id.in_(blobs), kept_by_upload(now)))
    )


def _rows(connection: Connection, digest: Digest) -> list[_Row]:
    """Return the rows of the blob; rarely more than one."""
    query = (
        select(
            ImageStorage.id,
            ImageStorage.uuid,
            ImageStorage.cas_path,
            ImageStorage.image_size,
            ImageStorageLocation.name,
        )
        .outerjoin(ImageStoragePlacement, ImageStoragePlacement.storage_id == ImageStorage.id)
        .outerjoin(ImageStorageLocation, ImageStorageLocation.id == ImageStoragePlacement.location_id)
        .where(ImageStorage.content_checksum == str(digest))
        .order_by(ImageStorage.id)
    )
    found: dict[int, _Row] = {}
    for number, uuid, cas_path, size, location in connection.execute(query):
        path = content_path(digest) if cas_path else f"sharedimages/{uuid}/layer"
        before = found[number].locations if number in found else frozenset[str]()
        found[number] = _Row(number, path, cas_path, size, before | ({location} if location else set()))
    return list(found.values())


def _there(connection: Connection, table: type[Base], **key: Any) -> int:
    """Return the row of `table` that has `key`, made where it is not there."""
    columns = table.__table__.columns
    found = connection.scalar(select(table.id).where(*(columns[name] == value for name, value in key.items())))
    if found is not None:
        return found
    return connection.execute(insert(table).values(**key).returning(table.id)).scalar_one()
