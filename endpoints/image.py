"""Which image a reference means: repository, manifest, platform, configuration. Documents only, no layer is read.

The law: permission is asked before anything is looked at, and what is answered never depends on what lies behind a
refusal.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from data.registry import BlobLocation, Registry, RepositoryInfo, RepositoryNotFound
from data.storage.distributed import DistributedStorage
from endpoints.access import Action, Denied, Permission, check
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

_LOOKUPS = 8


class NamespaceDisabled(Problem):
    """A repository whose user or organization has been disabled."""

    code = "NAMESPACE_DISABLED"


class NotAnImageRepository(Problem):
    """A repository that was made for something else than container images."""

    code = "REPOSITORY_KIND_UNSUPPORTED"


class BlobNotRegistered(Damaged):
    """A blob that a manifest names and the repository does not have."""

    code = "BLOB_UNKNOWN"


class BlobCutShort(Damaged):
    """A blob that has another length in storage than the registry says."""

    code = "BLOB_CUT_SHORT"


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


def repository_for(
    registry: Registry,
    permission: Permission,
    namespace: str,
    repository: str,
    *,
    action: Action = Action.READ,
    absent: tuple[Action, ...] = (),
) -> RepositoryInfo:
    """Return what is known of a repository, to who may do `action` with it; for one that is not there, any of `absent`.

    Without `absent` that is `action`, too.
    Raises Denied before anything else, the same whether or not there is one, and after as much work; then
    RepositoryNotFound, NamespaceDisabled, NotAnImageRepository.
    """
    ways = absent or (action,)
    try:
        info = registry.repository(namespace, repository)
    except RepositoryNotFound:
        refusals = _refusals(permission, namespace, repository, ways)
        if len(refusals) < len(ways):
            raise
        # In vain, but for the time that it takes: who is refused shall not tell by that whether there is one.
        _refusals(permission, namespace, repository, {action}.difference(ways))
        raise refusals[0] from None
    try:
        check(permission, namespace, repository, public=info.public, action=action)
    except Denied:
        _refusals(permission, namespace, repository, set(ways).difference({action}))
        raise
    if not info.namespace_enabled:
        raise NamespaceDisabled(f"the namespace {namespace} has been disabled")
    if info.kind != "image":
        raise NotAnImageRepository(
            f"{namespace}/{repository} is of kind {info.kind!r}; only those of kind 'image' hold images"
        )
    return info


def _refusals(permission: Permission, namespace: str, repository: str, actions: Iterable[Action]) -> list[Denied]:
    """Return what refuses those of `actions` that are not allowed, with a repository that is not public."""
    refusals = []
    for action in actions:
        try:
            check(permission, namespace, repository, public=False, action=action)
        except Denied as problem:
            refusals.append(problem)
    return refusals


class ImageFinder:
    """Finds images in a registry, for those who may read them."""

    def __init__(self, registry: Registry, storage: DistributedStorage, permission: Permission) -> None:
        self._registry, self._storage, self._permission = registry, storage, permission

    def find(self, namespace: str, repository: str, reference: str, platform: Platform | None = None) -> Image:
        """Return the image that `reference`, a tag or a manifest's digest, means on `platform`; None is the default.

        Raises Denied before anything else; then NamespaceDisabled, NotAnImageRepository, and what look-ups and
        documents raise: Missing, Unsupported, Malformed, TooLarge, Damaged.
        """
        repository_for(self._registry, self._permission, namespace, repository)
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

    def blobs(self, namespace: str, repository: str, layers: Sequence[Layer]) -> list[BlobLocation]:
        """Return where each layer lies, in their order, after looking whether it does, and whole.

        Raises BlobNotRegistered, BlobNotPlaced, BlobNotFound, BlobCutShort.
        """
        found = self._registry.blobs(namespace, repository, {layer.digest for layer in layers})
        for layer in layers:
            if layer.digest not in found:
                raise BlobNotRegistered(f"layer {layer.digest} is not among the repository's blobs")
            found[layer.digest].check_placed("layer")
        # One after the other would be a round trip to S3 for each of a hundred layers.
        with ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="blob") as pool:
            for _ in pool.map(self._check_blob, found.values()):
                pass
        return [found[layer.digest] for layer in layers]

    def _check_blob(self, blob: BlobLocation) -> None:
        size = self._storage.size(blob.locations, blob.path)
        if blob.size is not None and size != blob.size:
            raise BlobCutShort(f"layer {blob.digest} has {size} bytes in storage and should have {blob.size}")

    def _config(self, namespace: str, repository: str, descriptor: Descriptor) -> ImageConfig:
        blob = self._registry.blobs(namespace, repository, [descriptor.digest]).get(descriptor.digest)
        if blob is None:
            raise BlobNotRegistered(f"the configuration {descriptor.digest} is not among the repository's blobs")
        blob.check_placed("the configuration")
        # One byte more than a document may have, and parsing refuses it for its length.
        stream = self._storage.open(blob.locations, blob.path, length=MAX_DOCUMENT_SIZE + 1)
        try:
            chunks = iter(lambda: stream.read(MAX_DOCUMENT_SIZE), b"")
            if descriptor.size <= MAX_DOCUMENT_SIZE:
                chunks = verified(chunks, descriptor.digest, size=descriptor.size, what="the configuration")
            return ImageConfig.parse(b"".join(chunks))
        finally:
            stream.close()
