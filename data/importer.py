"""The import: an image from a file or a folder into database and storage.

The law: what is imported is whole and has been read. Every blob is verified on its way into storage and is there only
if it was sound; every layer has been indexed; the rows come last, in one transaction, so that nobody ever sees half an
image. Importing the same again changes nothing. A tag that is moved keeps its past: the old row ends, another begins.

An image index is imported with all its images and attestations that the source has: tools that copy one platform
write the whole index and leave the other images out.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy import Connection, select

from data.database import Engine, writing
from data.layerindexes import LayerIndexes
from data.manifestdocuments import ManifestDocument, NamedBlob, Schema1NotImported, read_manifest
from data.registry import BlobLocation, content_path
from data.registryrows import RegistryRows
from data.sources import BlobNotInSource, Source, open_source
from data.storage.base import BlobNotFound, BlobWriter
from data.storage.distributed import DistributedStorage
from data.tables import MARKED_FOR_DELETION, Repository, RepositoryKind, User, Visibility
from util.digest import Digest, Readable, verified
from util.document import MAX_DOCUMENT_SIZE
from util.names import check_namespace, check_repository, check_tag
from util.oci import Descriptor, ImageConfig
from util.problem import Problem, TooLarge

__all__ = ["ImageTooLarge", "Schema1NotImported", "UnusableRepository", "import_image"]

MAX_DOCUMENTS = 1000
"""Manifests and indexes that one import may have."""

_MAX_DEPTH = 8
_PIECE = 256 << 10

Advance = Callable[[int], None]


class UnusableRepository(Problem):
    """A repository that exists and cannot take an image."""

    code = "REPOSITORY_UNUSABLE"


class ImageTooLarge(TooLarge):
    """An image with more or larger documents than are accepted."""

    code = "IMAGE_TOO_LARGE"


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
        documents = _Documents(opened, opened.root)
        keeper = _Keeper(opened, storage, indexes, progress)
        for blob, diff_id in documents.blobs:
            keeper.keep(blob, diff_id)
        while not _kept_rows(engine, documents, keeper, storage, (namespace, repository, tag), private=private):
            for blob, diff_id in documents.blobs:
                keeper.keep(blob, diff_id)
    return opened.root.digest


def _kept_rows(
    engine: Engine,
    documents: "_Documents",
    keeper: "_Keeper",
    storage: DistributedStorage,
    name: tuple[str, str, str],
    *,
    private: bool,
) -> bool:
    """Make the rows of an image; False, and none is made, where a blob of it is not in storage any more."""
    namespace, repository, tag = name
    with writing(engine) as connection:
        # Garbage is taken under the same lock: what was found in storage may have been some.
        if not keeper.has_all():
            return False
        rows = RegistryRows(connection)
        number = _find_repository(connection, namespace, repository)
        if number is None:
            number = _made_repository(rows, namespace, repository, private=private)
        blobs = {
            digest: rows.blob(
                digest,
                size=stored.size,
                uncompressed_size=stored.uncompressed_size,
                location=storage.preferred_location,
            )
            for digest, stored in keeper.kept.items()
        }
        manifests: dict[Digest, int] = {}
        for document in documents.found.values():
            manifests[document.digest] = rows.manifest(
                number,
                document,
                blobs=(blobs[blob.descriptor.digest] for blob in document.blobs if blob.descriptor.digest in blobs),
                children=(manifests[entry.digest] for entry in document.entries if entry.digest in manifests),
            )
        rows.tag(number, tag, manifests[documents.root])
    return True


def _made_repository(rows: RegistryRows, namespace: str, name: str, *, private: bool) -> int:
    user = rows.row(User, {"username": namespace}, organization=True)
    return rows.row(
        Repository,
        {"namespace_user_id": user, "name": name},
        visibility_id=rows.named(Visibility, "private" if private else "public"),
        kind_id=rows.named(RepositoryKind, "image"),
    )


def _check_names(namespace: str, repository: str, tag: str) -> None:
    check_namespace(namespace)
    check_repository(repository)
    check_tag(tag)


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
    """The manifests and indexes of an image, those inside an index before it; and their blobs, layers with diff_ids."""

    def __init__(self, source: Source, root: Descriptor) -> None:
        """Read the document that `root` describes, and all below it."""
        self._source = source
        self.root = root.digest
        self.found: dict[Digest, ManifestDocument] = {}
        self.blobs: list[tuple[NamedBlob, Digest | None]] = []
        self._add(root, self._content(root), 0)

    def _add(self, descriptor: Descriptor, content: bytes, depth: int) -> None:
        if depth > _MAX_DEPTH or len(self.found) >= MAX_DOCUMENTS:
            raise ImageTooLarge(f"the image has more than {MAX_DOCUMENTS} manifests, or indexes {_MAX_DEPTH} deep")
        document = read_manifest(content, descriptor.digest, descriptor.media_type)
        self._add_entries(document, depth)
        self.blobs += zip(document.blobs, self._diff_ids(document), strict=True)
        self.found[document.digest] = document

    def _add_entries(self, document: ManifestDocument, depth: int) -> None:
        there = False
        absent: BlobNotInSource | None = None
        for entry in document.entries:
            if entry.digest not in self.found:
                try:
                    content = self._content(entry)
                except BlobNotInSource as error:
                    absent = error
                    continue
                self._add(entry, content, depth + 1)
            there = True
        if absent and not there:
            raise absent

    def _diff_ids(self, document: ManifestDocument) -> Sequence[Digest | None]:
        """Return what the configuration of an image says of each blob."""
        if not document.is_container_image:
            return [None] * len(document.blobs)
        config, *layers = (blob.descriptor for blob in document.blobs)
        return [None, *ImageConfig.parse(self._content(config)).diff_ids_of(layers)]

    def _content(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > MAX_DOCUMENT_SIZE:
            raise ImageTooLarge(
                f"the document {descriptor.digest} has {descriptor.size} bytes; at most {MAX_DOCUMENT_SIZE}"
            )
        with closing(self._source.open(descriptor.digest)) as stream:
            pieces = iter(lambda: stream.read(_PIECE), b"")
            return b"".join(verified(pieces, descriptor.digest, size=descriptor.size, what="document"))


# --- Blobs ---------------------------------------------------------------------------------------------------------


class _Keeper:
    """Puts blobs into storage. `kept` are those that lie there now."""

    def __init__(self, source: Source, storage: DistributedStorage, indexes: LayerIndexes, progress: Advance) -> None:
        self._source, self._storage, self._indexes, self._progress = source, storage, indexes, progress
        self.kept: dict[Digest, _Stored] = {}

    def keep(self, blob: NamedBlob, diff_id: Digest | None) -> None:
        """Make sure that `blob` lies in storage, sound and, if it is a layer, which has `diff_id`, indexed."""
        digest, size = blob.descriptor.digest, blob.descriptor.size
        place = BlobLocation(digest, content_path(digest), size, (self._storage.preferred_location,))
        if self._has(digest, size):
            index = self._indexes.get(place, diff_id=diff_id) if blob.is_layer else None
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
                index = self._indexes.read(passing, digest, size=size, diff_id=diff_id)
            else:
                for _ in verified(iter(lambda: passing.read(_PIECE), b""), digest, size=size):
                    pass
            writer.commit()
        if index is not None:
            self._indexes.keep(digest, index)
        self.kept[digest] = _Stored(size, index.size if index else None)

    def has_all(self) -> bool:
        """Tell whether all that was kept still lies in storage."""
        return all(self._has(digest, stored.size) for digest, stored in self.kept.items())

    def _has(self, digest: Digest, size: int) -> bool:
        try:
            return self._storage.preferred.size(content_path(digest)) == size
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
