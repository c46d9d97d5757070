"""The import: an image from a file or a folder into database and storage.

The law: what is imported is whole and has been read. Every blob is verified on its way into storage and is there only
if it was sound; every layer has been indexed; the rows come last, in one transaction, so that nobody ever sees half an
image. Importing the same again changes nothing. A tag that is moved keeps its past: the old row ends, another begins.

An image index is imported with all its images and attestations that the source has: tools that copy one platform
write the whole index and leave the other images out.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, insert, or_, select, update

from data.database import (
    MARKED_FOR_DELETION,
    Base,
    Engine,
    ImageStorage,
    ImageStorageLocation,
    ImageStoragePlacement,
    Manifest,
    ManifestBlob,
    ManifestChild,
    MediaType,
    Repository,
    RepositoryKind,
    Tag,
    TagKind,
    User,
    Visibility,
    now_ms,
    writing,
)
from data.layerindexes import LayerIndexes
from data.registry import BlobLocation, content_path
from data.sources import BlobNotInSource, Source, open_source
from data.storage.base import BlobNotFound, BlobWriter
from data.storage.distributed import DistributedStorage
from util.digest import Digest, Readable, verified
from util.document import MAX_DOCUMENT_SIZE, Fields, MalformedManifest, read_document
from util.oci import (
    MANIFEST_OCI,
    Descriptor,
    ImageConfig,
    ImageIndex,
    NotAnImage,
    Schema1Manifest,
    UnsupportedLayer,
    parse_manifest,
)
from util.oci import Manifest as ImageManifest
from util.problem import Malformed, Problem, TooLarge, Unsupported

MAX_DOCUMENTS = 1000
"""Manifests and indexes that one import may have."""

_MAX_DEPTH = 8
_PIECE = 256 << 10
_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_NAMESPACE = re.compile(_PART)
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_MAX_NAME = 255
_ELSEWHERE = (".foreign.", ".nondistributable.")

Advance = Callable[[int], None]


class InvalidName(Malformed):
    """A name that a namespace, a repository or a tag cannot have."""

    code = "NAME_INVALID"


class UnusableRepository(Problem):
    """A repository that exists and cannot take an image."""

    code = "REPOSITORY_UNUSABLE"


class ImageTooLarge(TooLarge):
    """An image with more or larger documents than are accepted."""

    code = "IMAGE_TOO_LARGE"


class Schema1NotImported(Unsupported):
    """A manifest of Docker's schema 1, which says neither its configuration nor its blobs' sizes."""

    code = "SCHEMA1_NOT_IMPORTED"


@dataclass(frozen=True, slots=True)
class _Blob:
    """A blob to import: a layer, which is indexed, or any other; `elsewhere` when the source need not have it."""

    descriptor: Descriptor
    is_layer: bool = False
    diff_id: Digest | None = None

    @property
    def elsewhere(self) -> bool:
        return any(part in self.descriptor.media_type for part in _ELSEWHERE)


@dataclass(frozen=True, slots=True)
class _Document:
    """A manifest or an image index, with what its row says. `children` are those that are imported with it."""

    digest: Digest
    media_type: str
    content: bytes
    config_media_type: str | None = None
    subject: str | None = None
    artifact_type: str | None = None
    blobs: tuple[_Blob, ...] = ()
    children: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class _Stored:
    """A blob that lies in storage, in bytes as it is there and, for a layer, uncompressed."""

    size: int
    uncompressed_size: int | None = None


def import_image(
    source: str,
    namespace: str,
    repository: str,
    tag: str,
    *,
    engine: Engine,
    storage: DistributedStorage,
    indexes: LayerIndexes,
    private: bool = False,
    progress: Advance = lambda _: None,
) -> Digest:
    """Import the image that `source` names (see open_source) under a tag, and return its manifest's digest.

    Namespace and repository are made where they are missing; `private` says how. `progress` is called, perhaps on
    another thread, with the bytes of blobs read since the last call.
    Raises InvalidName and UnusableRepository before anything is read; what open_source raises; DigestMismatch and what
    documents and layers that are not sound raise; Schema1NotImported, ImageTooLarge; StorageUnavailable. The tag is
    then what it was.
    """
    _check_names(namespace, repository, tag)
    with engine.connect() as connection:
        _find_repository(connection, namespace, repository)
    with open_source(source, max_size=indexes.limits.max_size) as opened:
        documents = _Documents(opened)
        documents.add(opened.root)
        keeper = _Keeper(opened, storage, indexes, progress)
        for document in documents.found.values():
            for blob in document.blobs:
                keeper.keep(blob)
    with writing(engine) as connection:
        rows = _Rows(connection, storage.preferred_location, keeper.kept)
        number = rows.repository(namespace, repository, private=private)
        rows.manifests(number, documents.found.values())
        rows.tag(number, tag, opened.root.digest)
    return opened.root.digest


def _check_names(namespace: str, repository: str, tag: str) -> None:
    if not _NAMESPACE.fullmatch(namespace) or len(namespace) > _MAX_NAME:
        raise InvalidName(
            f"{namespace!r} is no name for a namespace: lower-case letters, digits and single .-_ between"
        )
    if not _REPOSITORY.fullmatch(repository) or len(repository) > _MAX_NAME:
        raise InvalidName(
            f"{repository!r} is no name for a repository: lower-case letters, digits and single .-_/ between"
        )
    if not _TAG.fullmatch(tag):
        raise InvalidName(f"{tag!r} is no tag: at most 128 letters, digits and ._-, the first no dot or dash")


def _find_repository(connection: Connection, namespace: str, repository: str) -> int | None:
    """Return the repository's row, None where there is none. Raises UnusableRepository."""
    query = (
        select(Repository.id, Repository.state, RepositoryKind.name)
        .join(User, User.id == Repository.namespace_user_id)
        .join(RepositoryKind, RepositoryKind.id == Repository.kind_id)
        .where(User.username == namespace, Repository.name == repository)
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    number, state, kind = row
    if state == MARKED_FOR_DELETION:
        raise UnusableRepository(f"{namespace}/{repository} is being deleted")
    if kind != "image":
        raise UnusableRepository(f"{namespace}/{repository} is of kind {kind!r} and takes no images")
    return number


# --- Documents -----------------------------------------------------------------------------------------------------


class _Documents:
    """The manifests and indexes of an image, those inside an index before it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.found: dict[Digest, _Document] = {}

    def add(self, descriptor: Descriptor) -> None:
        """Read the document that `descriptor` describes, and all below it."""
        self._add(descriptor, self._content(descriptor), 0)

    def _add(self, descriptor: Descriptor, content: bytes, depth: int) -> None:
        if depth > _MAX_DEPTH or len(self.found) >= MAX_DOCUMENTS:
            raise ImageTooLarge(f"the image has more than {MAX_DOCUMENTS} manifests, or indexes {_MAX_DEPTH} deep")
        fields = read_document(content, "manifest", MalformedManifest)
        children: list[Digest] = []
        media_type = fields.text("mediaType") or descriptor.media_type or MANIFEST_OCI
        blobs: tuple[_Blob, ...]
        try:
            manifest = parse_manifest(content, descriptor.media_type)
        except (NotAnImage, UnsupportedLayer):
            blobs = _blobs_of_artifact(fields)
        else:
            media_type = manifest.media_type
            if isinstance(manifest, Schema1Manifest):
                raise Schema1NotImported(
                    f"{descriptor.digest} is of Docker's schema 1; convert it to schema 2 or OCI first"
                )
            if isinstance(manifest, ImageIndex):
                blobs, children = (), self._children(manifest, depth)
            else:
                blobs = self._blobs(manifest)
        config, subject = fields.fields("config"), fields.fields("subject")
        self.found[descriptor.digest] = _Document(
            descriptor.digest,
            media_type,
            content,
            config_media_type=config.text("mediaType") if config else None,
            subject=str(subject.digest("digest")) if subject else None,
            artifact_type=fields.text("artifactType"),
            blobs=blobs,
            children=tuple(dict.fromkeys(children)),
        )

    def _children(self, index: ImageIndex, depth: int) -> list[Digest]:
        children: list[Digest] = []
        absent: BlobNotInSource | None = None
        for entry in index.manifests:
            if entry.digest not in self.found:
                try:
                    content = self._content(entry)
                except BlobNotInSource as error:
                    absent = error
                    continue
                self._add(entry, content, depth + 1)
            children.append(entry.digest)
        if absent and not children:
            raise absent
        return children

    def _blobs(self, manifest: ImageManifest) -> tuple[_Blob, ...]:
        config = ImageConfig.parse(self._content(manifest.config))
        pairs = zip(manifest.layers, config.diff_ids_of(manifest.layers), strict=True)
        return (_Blob(manifest.config), *(_Blob(layer, is_layer=True, diff_id=diff_id) for layer, diff_id in pairs))

    def _content(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > MAX_DOCUMENT_SIZE:
            raise ImageTooLarge(
                f"the document {descriptor.digest} has {descriptor.size} bytes; at most {MAX_DOCUMENT_SIZE}"
            )
        with closing(self._source.open(descriptor.digest)) as stream:
            pieces = iter(lambda: stream.read(_PIECE), b"")
            return b"".join(verified(pieces, descriptor.digest, size=descriptor.size, what="document"))


def _blobs_of_artifact(fields: Fields) -> tuple[_Blob, ...]:
    config = fields.fields("config")
    entries = (*((config,) if config else ()), *fields.each("layers"), *fields.each("blobs"))
    for entry in entries:
        entry.required("size")
    return tuple(
        _Blob(Descriptor(entry.text("mediaType") or "", entry.digest("digest"), entry.number("size") or 0))
        for entry in entries
    )


# --- Blobs ---------------------------------------------------------------------------------------------------------


class _Keeper:
    """Puts blobs into storage. `kept` are those that lie there now."""

    def __init__(self, source: Source, storage: DistributedStorage, indexes: LayerIndexes, progress: Advance) -> None:
        self._source, self._storage, self._indexes, self._progress = source, storage, indexes, progress
        self.kept: dict[Digest, _Stored] = {}

    def keep(self, blob: _Blob) -> None:
        """Make sure that `blob` lies in storage, sound and, if it is a layer, indexed."""
        digest, size = blob.descriptor.digest, blob.descriptor.size
        place = BlobLocation(digest, content_path(digest), size, (self._storage.preferred_location,))
        if self._has(place):
            index = self._indexes.get(place, diff_id=blob.diff_id) if blob.is_layer else None
            known = self.kept.get(digest)
            self.kept[digest] = _Stored(size, index.size if index else known.uncompressed_size if known else None)
            return
        try:
            stream = self._source.open(digest)
        except BlobNotInSource:
            if blob.elsewhere:
                return
            raise
        index = None
        with closing(stream), self._storage.create(place.path) as writer:
            passing = _Passing(stream, writer, self._progress)
            if blob.is_layer:
                index = self._indexes.read(passing, digest, size=size, diff_id=blob.diff_id)
            else:
                for _ in verified(iter(lambda: passing.read(_PIECE), b""), digest, size=size):
                    pass
            writer.commit()
        if index is not None:
            self._indexes.keep(digest, index)
        self.kept[digest] = _Stored(size, index.size if index else None)

    def _has(self, place: BlobLocation) -> bool:
        try:
            return self._storage.preferred.size(place.path) == place.size
        except BlobNotFound:
            return False


class _Passing:
    """A stream that goes into storage as it is read."""

    def __init__(self, stream: Readable, writer: BlobWriter, progress: Advance) -> None:
        self._stream, self._writer, self._progress = stream, writer, progress

    def read(self, size: int = -1, /) -> bytes:
        piece = self._stream.read(size)
        if piece:
            self._writer.write(piece)
            self._progress(len(piece))
        return piece

    def close(self) -> None:
        """Do nothing: stream and writer are their opener's."""


# --- Rows ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Rows:
    """The rows of an image, made in one transaction as far as they are not there."""

    connection: Connection
    location: str
    stored: Mapping[Digest, _Stored]
    _blobs: dict[Digest, int] = field(default_factory=dict)

    def repository(self, namespace: str, name: str, *, private: bool) -> int:
        """Return the repository's row."""
        found = _find_repository(self.connection, namespace, name)
        if found is not None:
            return found
        user = self._row(User, {"username": namespace}, organization=True)
        return self._row(
            Repository,
            {"namespace_user_id": user, "name": name},
            visibility_id=self._row(Visibility, {"name": "private" if private else "public"}),
            kind_id=self._row(RepositoryKind, {"name": "image"}),
        )

    def manifests(self, repository: int, documents: Iterable[_Document]) -> None:
        """Make the rows of `documents`, of which those inside an index come before it."""
        rows: dict[Digest, int] = {}
        for document in documents:
            layers = [blob.descriptor.size for blob in document.blobs if blob.is_layer]
            rows[document.digest] = manifest = self._row(
                Manifest,
                {"repository_id": repository, "digest": str(document.digest)},
                media_type_id=self._row(MediaType, {"name": document.media_type}),
                manifest_bytes=document.content.decode(),
                config_media_type=document.config_media_type,
                layers_compressed_size=sum(layers) if layers else None,
                subject=document.subject,
                subject_backfilled=True,
                artifact_type=document.artifact_type,
                artifact_type_backfilled=True,
            )
            for child in document.children:
                key = {"manifest_id": manifest, "child_manifest_id": rows[child]}
                self._row(ManifestChild, key, repository_id=repository)
            for blob in document.blobs:
                digest = blob.descriptor.digest
                if digest in self.stored:
                    key = {"manifest_id": manifest, "blob_id": self._blob(digest)}
                    self._row(ManifestBlob, key, repository_id=repository)

    def tag(self, repository: int, name: str, digest: Digest) -> None:
        """Let the tag `name` mean the manifest `digest` from now on."""
        manifest = self._row(Manifest, {"repository_id": repository, "digest": str(digest)})
        same = (Tag.repository_id == repository, Tag.name == name)
        now = self._next_ms(*same)
        unended = or_(Tag.lifetime_end_ms.is_(None), Tag.lifetime_end_ms > now)
        alive = self.connection.execute(
            select(Tag.id, Tag.manifest_id, Tag.lifetime_end_ms).where(*same, Tag.hidden.is_(False), unended)
        ).all()
        if [(row.manifest_id, row.lifetime_end_ms) for row in alive] == [(manifest, None)]:
            return
        for at, row in enumerate(alive):  # no two may end at the same time
            self.connection.execute(update(Tag).where(Tag.id == row.id).values(lifetime_end_ms=now + at))
        self.connection.execute(
            insert(Tag).values(
                name=name,
                repository_id=repository,
                manifest_id=manifest,
                lifetime_start_ms=now + max(len(alive) - 1, 0),
                tag_kind_id=self._row(TagKind, {"name": "tag"}),
            )
        )

    def _next_ms(self, *same: ColumnElement[bool]) -> int:
        """Return the time, or the first after it at which no row of the tag has begun or ended."""
        now = now_ms()
        begun = self.connection.scalar(select(func.max(Tag.lifetime_start_ms)).where(*same))
        ended = self.connection.scalar(select(func.max(Tag.lifetime_end_ms)).where(*same, Tag.lifetime_end_ms <= now))
        return max(now, (begun or 0) + 1, (ended or 0) + 1)

    def _blob(self, digest: Digest) -> int:
        if digest not in self._blobs:
            stored = self.stored[digest]
            row = self._row(
                ImageStorage,
                {"content_checksum": str(digest), "cas_path": True, "uploading": False},
                image_size=stored.size,
                uncompressed_size=stored.uncompressed_size,
            )
            location = self._row(ImageStorageLocation, {"name": self.location})
            self._row(ImageStoragePlacement, {"storage_id": row, "location_id": location})
            self._blobs[digest] = row
        return self._blobs[digest]

    def _row(self, table: type[Base], key: Mapping[str, Any], **more: Any) -> int:
        """Return the row of `table` that has `key`, made with `more` where it is not there."""
        columns = table.__table__.columns
        query = select(table.id).where(*(columns[name] == value for name, value in key.items()))
        found = self.connection.scalar(query.order_by(table.id).limit(1))
        if found is not None:
            return found
        return self.connection.execute(insert(table).values(**key, **more).returning(table.id)).scalar_one()
