"""Which image a reference means: repository, manifest, platform, configuration. Documents only, no layer is read.

The law: permission is asked before anything is looked at, and what is answered never depends on what lies behind a
refusal.
"""

from dataclasses import dataclass

from data.registry import Registry, RepositoryNotFound
from data.storage.distributed import DistributedStorage
from endpoints.access import Permission, check
from util.digest import Digest, verified
from util.oci import (
    INDEX_OCI,
    MAX_DOCUMENT_SIZE,
    Descriptor,
    ImageConfig,
    ImageIndex,
    Manifest,
    Platform,
    parse_manifest,
)
from util.problem import Damaged, Problem


class NamespaceDisabled(Problem):
    """A repository whose user or organization has been disabled."""

    code = "NAMESPACE_DISABLED"


class NotAnImageRepository(Problem):
    """A repository that was made for something else than container images."""

    code = "REPOSITORY_KIND_UNSUPPORTED"


class BlobNotRegistered(Damaged):
    """A blob that a manifest names and the repository does not have."""

    code = "BLOB_UNKNOWN"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as the image's documents name it. Images of Docker's schema 1 do not know their diff_ids."""

    digest: Digest
    diff_id: Digest | None


@dataclass(frozen=True, slots=True)
class Image:
    """One image for one platform. `layers` stand base first.

    `tagged_ms` is since when the tag means it, in milliseconds since 1970; None for an image asked for by its digest.
    """

    manifest_digest: Digest
    platform: Platform
    config: ImageConfig
    layers: tuple[Layer, ...]
    tagged_ms: int | None = None


class ImageFinder:
    """Finds images in a registry, for those who may read them."""

    def __init__(self, registry: Registry, storage: DistributedStorage, permission: Permission) -> None:
        self._registry, self._storage, self._permission = registry, storage, permission

    def find(self, namespace: str, repository: str, reference: str, platform: Platform | None = None) -> Image:
        """Return the image that `reference`, a tag or a manifest's digest, means on `platform`; None is the default.

        Raises Denied before anything else; then NamespaceDisabled, NotAnImageRepository, and what look-ups and
        documents raise: Missing, Unsupported, Malformed, TooLarge, Damaged.
        """
        self._check_repository(namespace, repository)
        found = self._registry.manifest(namespace, repository, reference)
        manifest = parse_manifest(found.content, found.media_type)
        told: Platform | None = None
        tagged_ms = found.tagged_ms
        while isinstance(manifest, ImageIndex):
            chosen = manifest.choose(platform)
            told = chosen.platform
            found = self._registry.manifest(namespace, repository, str(chosen.digest))
            manifest = parse_manifest(found.content, found.media_type)
        if isinstance(manifest, Manifest):
            config = self._config(namespace, repository, manifest.config)
            diff_ids = config.diff_ids_of(manifest.layers)
            layers = tuple(
                Layer(layer.digest, diff_id) for layer, diff_id in zip(manifest.layers, diff_ids, strict=True)
            )
        else:
            config = manifest.config
            layers = tuple(Layer(digest, None) for digest in manifest.layers)
        actual = told or config.platform
        alone = Descriptor(manifest.media_type, found.digest, len(found.content), actual)
        ImageIndex(INDEX_OCI, (alone,)).choose(platform)  # an image by itself suits whom it would suit in an index
        return Image(found.digest, actual, config, layers, tagged_ms)

    def _check_repository(self, namespace: str, repository: str) -> None:
        try:
            info = self._registry.repository(namespace, repository)
        except RepositoryNotFound:
            check(self._permission, namespace, repository, public=False)
            raise
        check(self._permission, namespace, repository, public=info.public)
        if not info.namespace_enabled:
            raise NamespaceDisabled(f"the namespace {namespace} has been disabled")
        if info.kind != "image":
            raise NotAnImageRepository(
                f"{namespace}/{repository} is of kind {info.kind!r}; only those of kind 'image' hold images"
            )

    def _config(self, namespace: str, repository: str, descriptor: Descriptor) -> ImageConfig:
        blob = self._registry.blobs(namespace, repository, [descriptor.digest]).get(descriptor.digest)
        if blob is None:
            raise BlobNotRegistered(f"the configuration {descriptor.digest} is not among the repository's blobs")
        # One byte more than a document may have, and parsing refuses it for its length.
        stream = self._storage.open(blob.locations, blob.path, length=MAX_DOCUMENT_SIZE + 1)
        try:
            chunks = iter(lambda: stream.read(MAX_DOCUMENT_SIZE), b"")
            if descriptor.size <= MAX_DOCUMENT_SIZE:
                chunks = verified(chunks, descriptor.digest, size=descriptor.size, what="the configuration")
            return ImageConfig.parse(b"".join(chunks))
        finally:
            stream.close()
