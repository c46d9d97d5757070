"""Look-ups: what a name means in the registry, and where its blobs lie. Only reads.

The law: values go out, nothing that is bound to a connection; each call is one connection and a number of queries that
does not depend on the data. A tag is alive when it is not hidden and has not ended; a manifest can be had by its
digest while a tag that has not ended, hidden or not, leads to it. What is deleted here is deleted for everybody.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVarTuple, cast

from sqlalchemy import Connection, Select, and_, case, exists, func, null, select, tuple_
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.orm import aliased

from data.database import Engine, UnusableDatabase, writing
from data.lifetimes import alive, holders, holds, not_ended, reachable
from data.replicas import Replicas
from data.tables import (
    MARKED_FOR_DELETION,
    NORMAL,
    ImageStorage,
    ImageStorageLocation,
    ImageStoragePlacement,
    Manifest,
    MediaType,
    ProxyCacheConfig,
    Repository,
    RepositoryKind,
    Tag,
    User,
    Visibility,
    now_ms,
    now_utc,
)
from util.digest import Digest
from util.problem import Damaged, Missing, Problem

Columns = TypeVarTuple("Columns")

_SHOWN = 10


class RegistryUnavailable(Problem):
    """A registry's database that cannot be reached, does not answer, or does not let us read what we need of it."""

    code = "REGISTRY_UNAVAILABLE"


class RepositoryNotFound(Missing):
    """A repository that does not exist, or is being deleted."""

    code = "NAME_UNKNOWN"


class TagNotFound(Missing):
    """A tag that a repository does not have. `existing` holds some that it has, the newest first."""

    code = "TAG_UNKNOWN"

    def __init__(self, name: str, tag: str, existing: Iterable[str]) -> None:
        self.existing = tuple(existing)
        there_are = f"there are: {', '.join(self.existing)}" if self.existing else "it has no tags"
        super().__init__(f"{name} has no tag {tag!r}; {there_are}")


class ManifestNotFound(Missing):
    """A digest that is not one of a manifest in the repository."""

    code = "MANIFEST_UNKNOWN"


class ManifestNotFetched(Damaged):
    """A manifest of which Quay's proxy cache knows the digest alone: it has not been fetched from upstream yet."""

    code = "MANIFEST_NOT_FETCHED"


class BlobNotPlaced(Damaged):
    """A blob that lies in no storage: one that Quay's proxy cache has not fetched yet, or one that was lost."""

    code = "BLOB_NOT_FOUND"


@dataclass(frozen=True, slots=True)
class RepositoryInfo:
    """A repository. `kind` is `image` for container images. `frozen`: it is read-only, or a mirror of another."""

    id: int
    kind: str
    public: bool
    namespace_enabled: bool
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class RepositoryName:
    """A repository in a listing. `id` grows with each that is made."""

    id: int
    namespace: str
    repository: str


@dataclass(frozen=True, slots=True)
class TagEvent:
    """A tag that appeared or moved at `at_ms`. `id` grows with each, though two may become visible out of order."""

    id: int
    namespace: str
    repository: str
    tag: str
    manifest_digest: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class TagManifest:
    """A manifest as it was pushed. `tagged_ms` is since when the tag means it; None where a digest was asked for."""

    digest: Digest
    media_type: str
    content: bytes
    repository_id: int
    tagged_ms: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class BlobLocation:
    """Where a blob lies: `path` in any of the storages named by `locations`. `size` in bytes, None if not known.

    Where it lies in none, `absence` says why, as far as that is known.
    """

    digest: Digest
    path: str
    size: int | None
    locations: tuple[str, ...]
    absence: str | None = field(default=None, compare=False)

    def check_placed(self, what: str) -> None:
        """Raise BlobNotPlaced where it lies in no storage; `what` is how the error calls it, e.g. `layer`."""
        if not self.locations:
            raise BlobNotPlaced(f"{what} {self.digest} is in no storage location: {self.absence or 'it was lost'}")


@dataclass(frozen=True, slots=True)
class Referred:
    """A manifest of a repository, and the tag or digest that led to it, maybe by way of an image index."""

    namespace: str
    repository: str
    reference: str
    manifest_digest: str

    @property
    def by_tag(self) -> bool:
        return ":" not in self.reference


class Registry(Protocol):
    """What has to be known of a registry. `repository` may have slashes. Every method may raise RegistryUnavailable."""

    def repository(self, namespace: str, name: str) -> RepositoryInfo:
        """Return what is known of a repository. Raises RepositoryNotFound."""

    def manifest(self, namespace: str, repository: str, reference: str) -> TagManifest:
        """Return the manifest that `reference`, a tag or a digest, means.

        Raises TagNotFound or ManifestNotFound, RepositoryNotFound, and ManifestNotFetched.
        """

    def has_manifest(self, namespace: str, repository: str, digest: str) -> bool:
        """Tell whether a repository has a manifest, or has had it lately: until garbage takes it."""

    def blobs(self, namespace: str, repository: str, digests: Iterable[Digest]) -> dict[Digest, BlobLocation]:
        """Return where those of `digests` lie that the repository holds; others are left out.

        It holds what manifests of it have, and what was uploaded to it lately.
        """

    def registered(self, digests: Iterable[Digest]) -> set[Digest]:
        """Return those of `digests` under which the registry has a blob, whichever repository's it is."""

    def tags(self, namespace: str, repository: str) -> tuple[str, ...]:
        """Return the names of the tags that are alive, in order. Raises RepositoryNotFound."""

    def tag_digests(self, namespace: str, repository: str) -> dict[str, str]:
        """Return the digest of the manifest that each tag that is alive means; none where there is no repository."""

    def still_leading(self, referred: Iterable[Referred]) -> set[Referred]:
        """Return those of `referred` that `manifest` would still find by the reference: a tag that has not moved, too.

        Of a disabled namespace too: it may be enabled again.
        """

    def repositories(self, *, namespace: str | None = None, after: int = 0, limit: int = 1000) -> list[RepositoryName]:
        """Return the first `limit` repositories of images whose id is above `after`; disabled namespaces have none."""

    def tag_events(self, *, after: int, limit: int = 1000) -> list[TagEvent]:
        """Return the first `limit` tags that came after the id `after` and are alive, in repositories of images."""

    def last_tag_event(self) -> int:
        """Return the highest id that a tag has had, 0 where there was none."""


@contextmanager
def reached(engine: Engine, *, writes: bool = False) -> Iterator[Connection]:
    """Give a connection to the registry's database, in a transaction that writes if that is said (see `writing`).

    Raises RegistryUnavailable, also for a table or column that is not there or that we may not read.
    """
    try:
        with writing(engine) if writes else engine.connect() as connection:
            yield connection
    except (OperationalError, InterfaceError, PoolExhausted, UnusableDatabase) as error:
        said = error.orig if isinstance(error, DBAPIError) else error
        raise RegistryUnavailable(f"the registry's database cannot be used: {' '.join(str(said).split())}") from error
    except ProgrammingError as error:
        fact = str(error.orig).partition("\n")[0]  # PostgreSQL shows the statement on the lines after
        raise RegistryUnavailable(f"the registry's database cannot be used: {fact}") from error


class SqlRegistry:
    """The registry that a database of Quay's tables describes."""

    def __init__(self, engine: Engine, replicas: Replicas | None = None) -> None:
        """Without `replicas` everything is read from `engine`."""
        self._engine = engine
        self.replicas = Replicas() if replicas is None else replicas

    def _connected(self) -> AbstractContextManager[Connection]:
        return reached(self._engine)

    def repository(self, namespace: str, name: str) -> RepositoryInfo:
        query = (
            in_repository(
                select(Repository.id, RepositoryKind.name, Visibility.name, User.enabled, Repository.state),
                namespace,
                name,
            )
            .join(RepositoryKind, RepositoryKind.id == Repository.kind_id)
            .join(Visibility, Visibility.id == Repository.visibility_id)
        )
        row = None
        if storable(namespace, name):
            with self._connected() as connection:
                row = connection.execute(query).one_or_none()
        if row is None:
            raise repository_not_found(namespace, name)
        number, kind, visibility, enabled, state = row
        return RepositoryInfo(number, kind, visibility == "public", enabled, frozen=state != NORMAL)

    def manifest(self, namespace: str, repository: str, reference: str) -> TagManifest:
        columns = select(Manifest.digest, MediaType.name, Manifest.manifest_bytes, Manifest.repository_id)
        query = cast("Select[Any]", in_repository(columns, namespace, repository))
        now = now_ms()
        if ":" in reference:
            query = query.join(Manifest, Manifest.repository_id == Repository.id).where(
                Manifest.digest == reference, reachable(reference, now)
            )
            query = query.add_columns(null())
        else:
            query = (
                query.join(Tag, Tag.repository_id == Repository.id)
                .join(Manifest, Manifest.id == Tag.manifest_id)
                .where(Tag.name == reference, alive(now))
                .order_by(Tag.lifetime_start_ms.desc(), Tag.id.desc())
                .limit(1)
                .add_columns(Tag.lifetime_start_ms)
            )
        query = query.join(MediaType, MediaType.id == Manifest.media_type_id)
        if not storable(namespace, repository):
            raise repository_not_found(namespace, repository)
        if ":" not in reference and storable(reference):
            # What a tag means may be a moment old; that there is none, or nothing of it yet, may not.
            followed = self.replicas.find(lambda connection: connection.execute(query).one_or_none())
            if followed is not None and followed.manifest_bytes:
                return _tag_manifest(followed)
        with self._connected() as connection:
            row = connection.execute(query).one_or_none() if storable(reference) else None
            if row is None:
                existing = newest_tags(connection, namespace, repository, now)
            elif not row.manifest_bytes:
                absence = _absence(connection, namespace)
                raise ManifestNotFetched(f"the manifest {row.digest} of {namespace}/{repository} is empty: {absence}")
        if row is not None:
            return _tag_manifest(row)
        if ":" in reference:
            raise ManifestNotFound(f"{namespace}/{repository} has no manifest {reference}")
        raise TagNotFound(f"{namespace}/{repository}", reference, existing)

    def has_manifest(self, namespace: str, repository: str, digest: str) -> bool:
        query = in_repository(select(Manifest.id), namespace, repository).join(
            Manifest, Manifest.repository_id == Repository.id
        )
        with self._connected() as connection:
            return connection.execute(query.where(Manifest.digest == digest)).first() is not None

    def blobs(self, namespace: str, repository: str, digests: Iterable[Digest]) -> dict[Digest, BlobLocation]:
        wanted = sorted({str(digest) for digest in digests})
        if not wanted or not storable(namespace, repository):
            return {}
        query = (
            in_repository(
                select(
                    ImageStorage.id,
                    ImageStorage.content_checksum,
                    ImageStorage.uuid,
                    ImageStorage.cas_path,
                    ImageStorage.image_size,
                    ImageStorageLocation.name,
                ).distinct(),
                namespace,
                repository,
            )
            .join(ImageStorage, holds(Repository.id, now_utc()))
            .outerjoin(ImageStoragePlacement, ImageStoragePlacement.storage_id == ImageStorage.id)
            .outerjoin(ImageStorageLocation, ImageStorageLocation.id == ImageStoragePlacement.location_id)
            .where(ImageStorage.content_checksum.in_(wanted))
            .order_by(ImageStorage.id, ImageStorageLocation.name)
        )
        found: dict[int, BlobLocation] = {}
        with self._connected() as connection:
            for number, text, uuid, cas_path, size, location in connection.execute(query):
                before = found[number].locations if number in found else ()
                digest = Digest.parse(text or "")
                path = content_path(digest) if cas_path else f"sharedimages/{uuid}/layer"
                locations = (*before, location) if location else before
                found[number] = BlobLocation(digest, path, size, locations)
            blobs: dict[Digest, BlobLocation] = {}
            for blob in found.values():  # a blob that was stored twice: the older row, unless it lies nowhere
                if blob.digest not in blobs or not blobs[blob.digest].locations:
                    blobs[blob.digest] = blob
            if all(blob.locations for blob in blobs.values()):
                return blobs
            absence = _absence(connection, namespace)
        return {digest: blob if blob.locations else replace(blob, absence=absence) for digest, blob in blobs.items()}

    def registered(self, digests: Iterable[Digest]) -> set[Digest]:
        asked = {str(digest): digest for digest in digests}
        query = select(ImageStorage.content_checksum).where(ImageStorage.content_checksum.in_(sorted(asked)))
        with self._connected() as connection:
            return {asked[found] for found in connection.scalars(query) if found is not None}

    def tags(self, namespace: str, repository: str) -> tuple[str, ...]:
        number = self.repository(namespace, repository).id
        query = select(Tag.name).where(Tag.repository_id == number, alive(now_ms())).distinct()
        with self._connected() as connection:
            return tuple(sorted(connection.scalars(query)))

    def tag_digests(self, namespace: str, repository: str) -> dict[str, str]:
        query = (
            in_repository(select(Tag.name, Manifest.digest), namespace, repository)
            .join(Tag, Tag.repository_id == Repository.id)
            .join(Manifest, Manifest.id == Tag.manifest_id)
            .where(alive(now_ms()))
            .order_by(Tag.name, Tag.lifetime_start_ms, Tag.id)  # of two that are alive the younger counts
        )
        if not storable(namespace, repository):
            return {}
        with self._connected() as connection:
            return {row.name: row.digest for row in connection.execute(query)}

    def still_leading(self, referred: Iterable[Referred]) -> set[Referred]:
        asked = [each for each in referred if storable(each.namespace, each.repository, each.reference)]
        if not asked:
            return set()
        now, newer = now_ms(), aliased(Tag)
        # What an index holds never changes: one that is found by its digest still leads where it led.
        wanted = {each: each.manifest_digest if each.by_tag else each.reference for each in asked}
        chain = holders(
            select(Manifest.id, Manifest.repository_id, Manifest.digest.label("digest"))
            .join(Repository, Repository.id == Manifest.repository_id)
            .join(User, User.id == Repository.namespace_user_id)
            .where(
                Manifest.digest.in_(sorted(set(wanted.values()))),
                tuple_(User.username, Repository.name).in_(
                    sorted({(each.namespace, each.repository) for each in asked})
                ),
                Repository.state != MARKED_FOR_DELETION,
            )
        )
        moved = exists(
            select(newer.id).where(
                newer.repository_id == Tag.repository_id,
                newer.name == Tag.name,
                alive(now, newer),
                tuple_(newer.lifetime_start_ms, newer.id) > tuple_(Tag.lifetime_start_ms, Tag.id),
            )
        )
        names = sorted({each.reference for each in asked if each.by_tag})
        tag = case((and_(Tag.name.in_(names), alive(now), ~moved), Tag.name))  # others are one row without a name
        query = (
            select(User.username, Repository.name, chain.c.digest, tag)
            .select_from(chain)
            .join(Tag, and_(Tag.manifest_id == chain.c.id, Tag.repository_id == chain.c.repository_id))
            .join(Repository, Repository.id == chain.c.repository_id)
            .join(User, User.id == Repository.namespace_user_id)
            .where(not_ended(now))
            .distinct()
        )
        with self._connected() as connection:
            found = {tuple(row) for row in connection.execute(query)}
        anyhow = {row[:3] for row in found}
        return {
            each
            for each, digest in wanted.items()
            if (each.namespace, each.repository, digest, each.reference) in found
            or (not each.by_tag and (each.namespace, each.repository, digest) in anyhow)
        }

    def repositories(self, *, namespace: str | None = None, after: int = 0, limit: int = 1000) -> list[RepositoryName]:
        columns = select(Repository.id, User.username, Repository.name)
        query = _images(columns.select_from(User).join(Repository, Repository.namespace_user_id == User.id))
        query = query.where(Repository.id > after).order_by(Repository.id).limit(limit)
        if namespace is not None:
            if not storable(namespace):
                return []
            query = query.where(User.username == namespace)
        with self._connected() as connection:
            return [RepositoryName(*row) for row in connection.execute(query)]

    def tag_events(self, *, after: int, limit: int = 1000) -> list[TagEvent]:
        # By the id, which has an index: a Quay has none on the time, and many millions of tags.
        query = _images(
            select(Tag.id, User.username, Repository.name, Tag.name, Manifest.digest, Tag.lifetime_start_ms)
            .select_from(Tag)
            .join(Manifest, Manifest.id == Tag.manifest_id)
            .join(Repository, Repository.id == Tag.repository_id)
            .join(User, User.id == Repository.namespace_user_id)
            .where(Tag.id > after, alive(now_ms()))
            .order_by(Tag.id)
            .limit(limit)
        )
        with self._connected() as connection:
            return [TagEvent(*row) for row in connection.execute(query)]

    def last_tag_event(self) -> int:
        with self._connected() as connection:
            return connection.scalar(select(func.max(Tag.id))) or 0


def _tag_manifest(row: Any) -> TagManifest:
    digest, media_type, content, repository_id, tagged_ms = row
    return TagManifest(Digest.parse(digest), media_type, content.encode(), repository_id, tagged_ms)


def content_path(digest: Digest) -> str:
    """Return where storage holds the blob that `digest` names."""
    return f"{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


def in_repository(query: Select[*Columns], namespace: str, name: str) -> Select[*Columns]:
    return (
        query.select_from(User)
        .join(Repository, Repository.namespace_user_id == User.id)
        .where(User.username == namespace, Repository.name == name, Repository.state != MARKED_FOR_DELETION)
    )


def _images(query: Select[*Columns]) -> Select[*Columns]:
    """Narrow `query` to repositories whose images can be had."""
    return query.join(RepositoryKind, RepositoryKind.id == Repository.kind_id).where(
        RepositoryKind.name == "image", Repository.state != MARKED_FOR_DELETION, User.enabled.is_(True)
    )


def newest_tags(connection: Connection, namespace: str, repository: str, now: int) -> list[str]:
    """Return the names of the newest tags. Raises RepositoryNotFound."""
    query = (
        in_repository(select(Tag.name), namespace, repository)
        .outerjoin(Tag, and_(Tag.repository_id == Repository.id, alive(now)))
        .order_by(Tag.lifetime_start_ms.desc(), Tag.id.desc())
        .limit(_SHOWN)
    )
    names = list(connection.scalars(query))
    if not names:
        raise repository_not_found(namespace, repository)
    return [name for name in names if name]  # a repository without tags is one row without a name


def _absence(connection: Connection, namespace: str) -> str:
    """Return why something that is registered in `namespace` may have no bytes, and what to do."""
    query = (
        select(ProxyCacheConfig.upstream_registry)
        .join(User, User.id == ProxyCacheConfig.organization_id)
        .where(User.username == namespace)
    )
    upstream = connection.scalar(query.order_by(ProxyCacheConfig.id).limit(1))
    if upstream is None:
        return "the registry lost it, or has not received it; push the image again"
    return f"{namespace} is a cache of {upstream}, from which Quay has not fetched it; pull the image through Quay once"


def storable(*texts: str) -> bool:
    """Tell whether a database could hold `texts`; what it could not hold, it does not have."""
    return all(each.isprintable() for each in texts)


def repository_not_found(namespace: str, repository: str) -> RepositoryNotFound:
    """Return the error to raise where there is no such repository."""
    return RepositoryNotFound(f"there is no repository {namespace}/{repository}")
