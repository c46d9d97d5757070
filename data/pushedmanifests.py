"""Manifests that are pushed and deleted, one by one, and the tags that lead to them.

The law: a manifest is taken only when all that it names is in its repository, and its rows are made in one transaction
under the lock of all who write; garbage is taken under the same lock, so what was there stays. Nobody sees half of a
push, and pushing the same again changes nothing. What is pushed by its digest alone gets a hidden tag without an end,
so that it is there (see data.lifetimes); that tag ends when an image index is pushed that has the manifest, unless the
manifest has a subject: it belongs to that, whatever index it is in beside.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, exists, select

from data.database import Engine, byte_length
from data.lifetimes import holders, not_ended, reachable
from data.manifestdocuments import ManifestDocument
from data.registry import ManifestNotFound, RepositoryName, TagNotFound, newest_tags, reached, repository_not_found
from data.registryrows import RegistryRows, parts
from data.tables import (
    MARKED_FOR_DELETION,
    ImageStorage,
    ImageStoragePlacement,
    Manifest,
    ManifestBlob,
    Repository,
    Tag,
    UploadedBlob,
    now_ms,
)
from util.digest import Digest
from util.oci import MANIFESTS, Descriptor
from util.problem import Malformed, Problem

_SHOWN = 10


class NamedContentUnknown(Malformed):
    """A manifest that names blobs or manifests which its repository does not have: `missing`."""

    code = "MANIFEST_BLOB_UNKNOWN"

    def __init__(self, missing: Iterable[Digest]) -> None:
        self.missing = tuple(missing)
        shown = ", ".join(str(digest) for digest in self.missing[:_SHOWN])
        more = f" and {len(self.missing) - _SHOWN} more" if len(self.missing) > _SHOWN else ""
        super().__init__(f"the repository does not have what the manifest names: {shown}{more}")


class NamedSizeWrong(Malformed):
    """A manifest that says of something else how many bytes it has than there are."""

    code = "MANIFEST_INVALID"


class HeldByIndex(Problem):
    """A manifest that cannot be deleted as long as an image index has it; the text names one."""

    code = "MANIFEST_HELD"


@dataclass(frozen=True, slots=True)
class _Kept:
    """A row that something names by its digest. `size` in bytes, None where it is not known."""

    id: int
    size: int | None


class PushedManifests:
    """The manifests of a registry of our own. Every method may raise RegistryUnavailable, and then has done nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def push(self, repository: RepositoryName, document: ManifestDocument, tags: Sequence[str]) -> None:
        """Take `document` into the repository, and let `tags` mean it; with none it is kept by its digest alone.

        Raises NamedContentUnknown; NamedSizeWrong; and RepositoryNotFound where the repository has gone meanwhile.
        """
        with reached(self._engine, writes=True) as connection:
            _check_there(connection, repository)
            blobs, children = _named(connection, repository.id, document)
            rows = RegistryRows(connection)
            manifest = rows.manifest(repository.id, document, blobs=blobs, children=children)
            for tag in tags:
                rows.tag(repository.id, tag, manifest)
            if not tags:
                rows.keep(repository.id, manifest)
            rows.stop_keeping(repository.id, _without_subject(connection, children))

    def delete_tag(self, repository: RepositoryName, tag: str) -> None:
        """Let the tag end now. Raises TagNotFound, RepositoryNotFound."""
        with reached(self._engine, writes=True) as connection:
            _check_there(connection, repository)
            which = (Tag.repository_id == repository.id, Tag.name == tag, Tag.hidden.is_(False))
            if not (tag.isprintable() and RegistryRows(connection).end(*which)):
                names = (repository.namespace, repository.repository)
                raise TagNotFound("/".join(names), tag, newest_tags(connection, *names, now_ms()))

    def delete(self, repository: RepositoryName, digest: Digest) -> None:
        """Let every tag end that leads to the manifest `digest` by itself, so that it is not there any more.

        Raises ManifestNotFound, RepositoryNotFound, and HeldByIndex, where it would be there all the same.
        """
        name = f"{repository.namespace}/{repository.repository}"
        there = select(Manifest.id).where(Manifest.repository_id == repository.id, Manifest.digest == str(digest))
        with reached(self._engine, writes=True) as connection:
            _check_there(connection, repository)
            found = connection.scalar(there.where(reachable(str(digest), now_ms())))
            if found is None:
                raise ManifestNotFound(f"{name} has no manifest {digest}")
            RegistryRows(connection).end(Tag.repository_id == repository.id, Tag.manifest_id == found)
            holder = _holder(connection, repository.id, found)
            if holder is not None:  # and with the error all of it is undone
                raise HeldByIndex(f"{digest} is in the image index {holder} of {name}; delete that first")


def _check_there(connection: Connection, repository: RepositoryName) -> None:
    query = select(Repository.id).where(Repository.id == repository.id, Repository.state != MARKED_FOR_DELETION)
    if connection.execute(query).first() is None:
        raise repository_not_found(repository.namespace, repository.repository)


def _named(connection: Connection, repository: int, document: ManifestDocument) -> tuple[list[int], list[int]]:
    """Return the rows of the blobs and of the manifests that `document` names.

    Raises NamedContentUnknown, NamedSizeWrong.
    """
    # What an index names that is no manifest by its type is a blob: BuildKit keeps its cache so.
    inside = [entry for entry in document.entries if not _is_manifest(entry)]
    required = [*(blob.descriptor for blob in document.blobs if not blob.elsewhere), *inside]
    optional = [blob.descriptor for blob in document.blobs if blob.elsewhere]
    manifests = [entry for entry in document.entries if _is_manifest(entry)]
    blobs = _blobs(connection, repository, {each.digest for each in (*required, *optional)})
    children = _manifests(connection, repository, {each.digest for each in manifests})
    missing = [each.digest for each in required if each.digest not in blobs]
    missing += [each.digest for each in manifests if each.digest not in children]
    if missing:
        raise NamedContentUnknown(dict.fromkeys(missing))
    for each, kept in (
        *((each, blobs[each.digest]) for each in (*required, *optional) if each.digest in blobs),
        *((each, children[each.digest]) for each in manifests),
    ):
        if kept.size not in (None, each.size):
            raise NamedSizeWrong(f"the manifest says that {each.digest} has {each.size} bytes; there are {kept.size}")
    return [kept.id for kept in blobs.values()], [kept.id for kept in children.values()]


def _is_manifest(entry: Descriptor) -> bool:
    return entry.media_type in MANIFESTS or not entry.media_type


def _blobs(connection: Connection, repository: int, digests: Collection[Digest]) -> dict[Digest, _Kept]:
    """Return those of `digests` that are blobs of the repository: a manifest of it has them, or they were uploaded."""
    found: dict[Digest, _Kept] = {}
    for part in parts(digests):
        asked = {str(digest): digest for digest in part}
        query = select(ImageStorage.id, ImageStorage.content_checksum, ImageStorage.image_size).where(
            ImageStorage.content_checksum.in_(asked),
            exists().where(ImageStoragePlacement.storage_id == ImageStorage.id),
        )
        rows = connection.execute(query.order_by(ImageStorage.id)).all()
        numbers = [row.id for row in rows]
        # By themselves: asked of each row, they would go through all that the repository has, again and again.
        held = {
            number
            for table in (ManifestBlob, UploadedBlob)
            for number in connection.scalars(
                select(table.blob_id).where(table.repository_id == repository, table.blob_id.in_(numbers)).distinct()
            )
        }
        for number, checksum, size in rows:
            if number in held:
                found.setdefault(asked[checksum or ""], _Kept(number, size))  # of two that are the same, the older
    return found


def _manifests(connection: Connection, repository: int, digests: Collection[Digest]) -> dict[Digest, _Kept]:
    """Return those of `digests` that are manifests of the repository.

    Also those that no tag leads to any more: garbage takes them whole, or not at all.
    """
    found: dict[Digest, _Kept] = {}
    size = byte_length(connection, Manifest.manifest_bytes)
    for part in parts(digests):
        asked = {str(digest): digest for digest in part}
        query = select(Manifest.id, Manifest.digest, size).where(
            Manifest.repository_id == repository, Manifest.digest.in_(asked)
        )
        found |= {asked[digest]: _Kept(number, length) for number, digest, length in connection.execute(query)}
    return found


def _without_subject(connection: Connection, manifests: Collection[int]) -> list[int]:
    return [
        number
        for part in parts(manifests)
        for number in connection.scalars(select(Manifest.id).where(Manifest.id.in_(part), Manifest.subject.is_(None)))
    ]


def _holder(connection: Connection, repository: int, manifest: int) -> str | None:
    """Return the digest of an image index that a tag leads to and that has `manifest`, itself or in another inside."""
    chain = holders(select(Manifest.id, Manifest.repository_id).where(Manifest.id == manifest))
    query = (
        select(Manifest.digest)
        .join(chain, chain.c.id == Manifest.id)
        .where(
            exists().where(and_(Tag.manifest_id == chain.c.id, Tag.repository_id == repository, not_ended(now_ms())))
        )
    )
    return connection.scalar(query.order_by(Manifest.id).limit(1))
