"""Garbage: what nobody can reach any more in a registry of our own, from a tag's past to a blob's object.

The law: all is found by looking, in pages, and looked at again before it goes, under the lock that everybody holds who
writes to the registry (`writing`). Who links a blob, or means a manifest, does so under that lock too: what is in use
then stays, and what is gone then cannot be linked.

A blob's object goes in the transaction that its row goes in, after the row and before the commit. So whoever holds the
lock finds row and object, or neither; but for one case: where a process dies before the commit the row stays without
its object. Nothing links such a row, and the next collection takes it; who links a blob that nothing links looks under
the lock whether its object is there. A row whose object cannot be deleted stays.

What a manifest had is kept for the grace, from when its row went: whoever has just seen a blob can still name it, and
whoever has begun to read an image reads on. A row is never known by its number alone: SQLite gives numbers again.
"""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVarTuple, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    exists,
    func,
    insert,
    inspect,
    or_,
    select,
    update,
)

from data.database import Engine, byte_length
from data.registry import RegistryUnavailable, content_path, reached
from data.storage.distributed import DistributedStorage
from data.tables import (
    MARKED_FOR_DELETION,
    ImageStorage,
    ImageStorageLocation,
    ImageStoragePlacement,
    Manifest,
    ManifestBlob,
    ManifestChild,
    Repository,
    RepositoryPermission,
    Tag,
    UploadedBlob,
    User,
)
from util.digest import Digest
from util.problem import Problem

Columns = TypeVarTuple("Columns")

_PAGE = 200
_TOGETHER = 20  # manifests in one transaction; each may have a thousand blobs
_RETENTION_S = 14 * 24 * 3600  # of what belongs to no namespace; Quay's default
_LONGEST_PAUSE = 1.0  # seconds
_QUAYS = "queueitem"  # a table that every Quay has, and no registry of ours


class QuaysRegistry(Problem):
    """A database that a Quay made, where something should be collected. What is in it is that Quay's garbage."""

    code = "REGISTRY_IS_QUAYS"


class Kind(StrEnum):
    """What something is that goes."""

    ENDED = "ended"  # a tag's past, older than its namespace keeps it
    DELETED = "deleted"  # what was left of a repository that somebody has deleted
    UNTAGGED = "untagged"  # a manifest that no tag leads to any more
    UNREFERENCED = "unreferenced"  # a blob that no manifest has and nobody has uploaded lately
    STRAY = "stray"  # an object without a row; see data/strays.py
    UPLOAD = "upload"  # an upload that nobody went on with; see data/uploads.py


@dataclass(frozen=True, slots=True)
class Waste:
    """Something that goes. `what` names it to a person, `path` is its object's, `size` in bytes is what it frees."""

    kind: Kind
    what: str
    path: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Needed:
    """A manifest that somebody is making something of."""

    namespace: str
    repository: str
    digest: str


Failed = Callable[[str, Exception], None]
"""Told of what cannot be done, and why, before the rest goes on; it may raise to end that."""


class Garbage:
    """Collects a registry's garbage, step by step; the order of the methods is that in which one makes the next.

    Each yields what goes, once it is gone; with `dry_run` what would go, and nothing changes. Each may raise
    RegistryUnavailable; what is left then waits for the next time. Any number may collect at once.
    """

    def __init__(
        self,
        engine: Engine,
        storage: DistributedStorage,
        *,
        grace_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` is what the rows' times are held against: those who write them have clocks of their own."""
        self._engine, self._storage, self._clock = engine, storage, clock
        self._grace = timedelta(seconds=grace_seconds)

    def check(self) -> None:
        """Raise QuaysRegistry where the database is none of ours."""
        with self._reading() as connection:
            if inspect(connection).has_table(_QUAYS):
                raise QuaysRegistry(
                    "the database is a Quay's, which collects its own garbage: nothing of it is touched;"
                    " set VERBS_REGISTRY to quay"
                )

    # --- Tags ---------------------------------------------------------------------------------------------------------

    def tags(self, *, dry_run: bool = False) -> Iterator[Waste]:
        """Drop the rows of tags that ended longer ago than their namespace keeps them; of deleted repositories, all."""
        over = ~_counts(self._now_ms())
        after = 0
        while True:
            query = _named(select(Tag.id), Tag).where(over, Tag.id > after).order_by(Tag.id).limit(_PAGE)
            with self._reading() as connection:
                page = list(connection.scalars(query))
            if not page:
                return
            after = page[-1]
            again = _named(select(Tag.id, User.username, Repository.name, Tag.name, Tag.hidden), Tag)
            with self._looking(dry_run=dry_run) as connection:
                rows = connection.execute(again.where(over, Tag.id.in_(page))).all()
                if not dry_run:
                    numbers = [row[0] for row in rows]
                    linking = update(Tag).where(Tag.linked_tag_id.in_(numbers))
                    connection.execute(linking.values(linked_tag_id=None))
                    connection.execute(delete(Tag).where(Tag.id.in_(numbers)))
            for _, namespace, repository, name, hidden in rows:
                if not hidden:  # nobody knows the others by their names
                    yield Waste(Kind.ENDED, f"{namespace}/{repository}:{name}")

    # --- Repositories -------------------------------------------------------------------------------------------------

    def repositories(self, *, dry_run: bool = False) -> Iterator[Waste]:
        """Drop the rows of deleted repositories that have nothing any more: also no blob that is kept for the grace."""
        query = (
            select(Repository.id, User.username, Repository.name)
            .outerjoin(User, User.id == Repository.namespace_user_id)
            .where(Repository.state == MARKED_FOR_DELETION)
        )
        empty = and_(
            ~exists().where(Manifest.repository_id == Repository.id),
            ~exists().where(UploadedBlob.repository_id == Repository.id, UploadedBlob.expires_at > self._now()),
        )
        after = 0
        while True:
            with self._reading() as connection:
                page = query.where(empty, Repository.id > after).order_by(Repository.id).limit(_PAGE)
                rows = connection.execute(page).all()
            if not rows:
                return
            after = rows[-1].id
            for number, *_ in rows:
                with self._looking(dry_run=dry_run) as connection:
                    row = connection.execute(query.where(empty, Repository.id == number)).one_or_none()
                    if row is not None and not dry_run:
                        for table in (Tag, UploadedBlob, RepositoryPermission):
                            connection.execute(delete(table).where(table.repository_id == number))
                        connection.execute(delete(Repository).where(Repository.id == number))
                if row is not None:
                    yield Waste(Kind.DELETED, f"{row[1]}/{row[2]}")

    # --- Manifests ----------------------------------------------------------------------------------------------------

    def manifests(self, needed: Callable[[], Collection[Needed]], *, dry_run: bool = False) -> Iterator[Waste]:
        """Drop the rows of manifests that no tag leads to, ended or not, and that nobody needs.

        `needed` is asked again and again. Their blobs are kept for the grace, and what refers to one by its `subject`
        loses the hidden tag that kept it.
        """
        untagged = self._untagged(needed())
        for start in range(0, len(untagged), _TOGETHER):
            page = untagged[start : start + _TOGETHER]
            kept = set(needed())
            gone = []
            with self._looking(dry_run=dry_run) as connection:
                for number in page:
                    row = connection.execute(_manifests(connection).where(Manifest.id == number)).one_or_none()
                    if row is None or Needed(row.username, row.name, row.digest) in kept:
                        continue
                    if not dry_run:
                        if connection.scalar(select(_led_to(number))):
                            continue
                        self._drop_manifest(connection, row)
                    gone.append(Waste(Kind.UNTAGGED, f"{row.username}/{row.name}@{row.digest}", size=row.size))
            yield from gone

    def _untagged(self, needed: Collection[Needed]) -> list[int]:
        """Return the manifests to drop, an index before those in it."""
        kept = set(needed)
        counts = _counts(self._now_ms())
        tagged = exists().where(Tag.manifest_id == Manifest.id, counts)
        in_tagged = exists().where(
            ManifestChild.child_manifest_id == Manifest.id, Tag.manifest_id == ManifestChild.manifest_id, counts
        )
        waiting: dict[int, set[int]] = {}
        after = 0
        while True:
            with self._reading() as connection:
                query = _manifests(connection).where(~tagged, ~in_tagged, Manifest.id > after)
                rows = connection.execute(query.order_by(Manifest.id).limit(_PAGE)).all()
                if not rows:
                    break
                after = rows[-1].id
                page = {row.id: set[int]() for row in rows}
                for number, parent in connection.execute(
                    select(ManifestChild.child_manifest_id, ManifestChild.manifest_id).where(
                        ManifestChild.child_manifest_id.in_(page)
                    )
                ):
                    page[number].add(parent)
            for row in rows:
                if Needed(row.username, row.name, row.digest) not in kept:
                    waiting[row.id] = page[row.id]
        # What is in an index goes only if every index goes that it is in.
        order: list[int] = []
        gone: set[int] = set()
        while free := [number for number, parents in waiting.items() if parents <= gone]:
            for number in free:
                del waiting[number]
            order += free
            gone.update(free)
        return order

    def _drop_manifest(self, connection: Connection, row: Any) -> None:
        now, other = self._now(), ManifestBlob.__table__.alias()
        blobs = select(ManifestBlob.blob_id).where(ManifestBlob.manifest_id == row.id)
        until = now + self._grace
        kept = or_(
            exists().where(
                other.c.blob_id == ManifestBlob.blob_id,
                other.c.repository_id == row.repository_id,
                other.c.manifest_id != row.id,
            ),
            exists().where(
                UploadedBlob.blob_id == ManifestBlob.blob_id,
                UploadedBlob.repository_id == row.repository_id,
                UploadedBlob.expires_at >= until,
            ),
        )
        links = [
            {"repository_id": row.repository_id, "blob_id": blob, "uploaded_at": now, "expires_at": until}
            for blob in connection.scalars(blobs.where(~kept).distinct())
        ]
        if links:
            connection.execute(insert(UploadedBlob), links)
        connection.execute(delete(ManifestBlob).where(ManifestBlob.manifest_id == row.id))
        connection.execute(delete(ManifestChild).where(ManifestChild.manifest_id == row.id))
        referrers = select(Manifest.id).where(
            Manifest.repository_id == row.repository_id, Manifest.subject == row.digest
        )
        hidden = and_(Tag.hidden.is_(True), Tag.lifetime_end_ms.is_(None), Tag.manifest_id.in_(referrers))
        connection.execute(update(Tag).where(hidden).values(lifetime_end_ms=self._now_ms()))
        connection.execute(delete(Manifest).where(Manifest.id == row.id))

    # --- Blobs --------------------------------------------------------------------------------------------------------

    def links(self) -> int:
        """Drop the links of uploads whose time is over, and return how many there were."""
        dropped = 0
        over = UploadedBlob.expires_at <= self._now()
        while True:
            with self._reading() as connection:
                query = select(UploadedBlob.id).where(over).order_by(UploadedBlob.expires_at).limit(_PAGE)
                page = list(connection.scalars(query))
            if not page:
                return dropped
            with self._writing() as connection:
                ended = delete(UploadedBlob).where(UploadedBlob.id.in_(page), over)
                dropped += connection.execute(ended).rowcount

    def blobs(self, failed: Failed, *, dry_run: bool = False) -> Iterator[Waste]:
        """Drop the blobs that no manifest has and no upload keeps: the row and, wherever it lies, the object.

        `failed` is told of one whose object cannot be deleted; its row stays.
        """
        now = self._now()
        manifest = exists().where(ManifestBlob.blob_id == ImageStorage.id)
        upload = exists().where(UploadedBlob.blob_id == ImageStorage.id, UploadedBlob.expires_at > now)
        query = select(ImageStorage.id).where(~manifest, ~upload).order_by(ImageStorage.id).limit(_PAGE)
        after = 0
        while True:
            with self._reading() as connection:
                page = list(connection.scalars(query.where(ImageStorage.id > after)))
            if not page:
                return
            after = page[-1]
            for number in page:
                begun = time.monotonic()
                try:
                    with self._looking(dry_run=dry_run) as connection:
                        waste = self._drop_blob(connection, number, now, dry_run=dry_run)
                except RegistryUnavailable:
                    raise
                except Problem as error:
                    failed(f"blob {number} stays", error)
                    continue
                if waste is not None:
                    yield waste
                if not dry_run:  # others want the lock too: they get it as long as we had it
                    time.sleep(min(time.monotonic() - begun, _LONGEST_PAUSE))

    def _drop_blob(self, connection: Connection, number: int, now: datetime, *, dry_run: bool) -> Waste | None:
        blob = ImageStorage
        row = connection.execute(
            select(blob.uuid, blob.cas_path, blob.content_checksum, blob.image_size).where(
                blob.id == number,
                ~exists().where(ManifestBlob.blob_id == number),
                ~exists().where(UploadedBlob.blob_id == number, *([UploadedBlob.expires_at > now] if dry_run else [])),
            )
        ).one_or_none()
        if row is None:
            return None
        uuid, cas_path, checksum, size = row
        path = content_path(Digest.parse(checksum or "")) if cas_path else f"sharedimages/{uuid}/layer"
        if not dry_run:
            same = and_(blob.content_checksum == checksum, blob.cas_path.is_(True)) if cas_path else blob.id == number
            shared = set(connection.scalars(_locations().where(same, blob.id != number)))
            placed = set(connection.scalars(_locations().where(blob.id == number)))
            connection.execute(delete(ImageStoragePlacement).where(ImageStoragePlacement.storage_id == number))
            connection.execute(delete(blob).where(blob.id == number))
            self._storage.delete(placed - shared, path)
        return Waste(Kind.UNREFERENCED, f"blob {checksum or uuid}", path, size or 0)

    # --- Connections and clocks ---------------------------------------------------------------------------------------

    def _reading(self) -> AbstractContextManager[Connection]:
        return reached(self._engine)

    def _writing(self) -> AbstractContextManager[Connection]:
        return reached(self._engine, writes=True)

    def _looking(self, *, dry_run: bool) -> AbstractContextManager[Connection]:
        return self._reading() if dry_run else self._writing()

    def _now_ms(self) -> int:
        return round(self._clock() * 1000)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC).replace(tzinfo=None)


def _named(query: Select[*Columns], table: type[Tag | Manifest]) -> Select[*Columns]:
    """Add to `query` the repository and the namespace of `table`."""
    return (
        query.select_from(table)
        .join(Repository, Repository.id == table.repository_id)
        .outerjoin(User, User.id == Repository.namespace_user_id)
    )


def _counts(now_ms: int) -> ColumnElement[bool]:
    """Tell of a tag, of whichever repository and namespace the query is about, whether its manifest is kept for it."""
    retention_ms = func.coalesce(User.removed_tag_expiration_s, _RETENTION_S) * 1000
    ended = and_(Tag.lifetime_end_ms.is_not(None), Tag.lifetime_end_ms <= now_ms - retention_ms)
    return and_(Repository.state != MARKED_FOR_DELETION, ~ended)


def _manifests(connection: Connection) -> Select[Any]:
    size = byte_length(connection, Manifest.manifest_bytes).label("size")
    columns = (Manifest.id, Manifest.repository_id, Manifest.digest, User.username, Repository.name, size)
    return cast("Select[Any]", _named(select(*columns), Manifest))


def _led_to(manifest: int) -> ColumnElement[bool]:
    return or_(
        exists().where(Tag.manifest_id == manifest),
        exists().where(ManifestChild.child_manifest_id == manifest),
    )


def _locations() -> Select[str]:
    """Ask for the names of the locations of a blob, or of several."""
    return (
        select(ImageStorageLocation.name)
        .join(ImageStoragePlacement, ImageStoragePlacement.location_id == ImageStorageLocation.id)
        .join(ImageStorage, ImageStorage.id == ImageStoragePlacement.storage_id)
    )
