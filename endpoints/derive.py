"""From an image to a derived image: what it is called, how large it is, and the stream of it. Knows no HTTP.

The law: `resolve` reads documents only and says all that can be said of a derived image without its layers: its key,
its name, its type. `generate` makes its bytes, keeps none of them, and has found whatever can be found when it
returns: every layer is there, indexed and merged, and the stream has begun. Between the two stands `planned_size`,
which never reads a layer.

Everything that varies in the bytes is in the key, and nothing else is.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from data.registry import BlobLocation
from endpoints.image import ImageFinder, Layer
from endpoints.packing import Packing
from endpoints.services import Services
from endpoints.streams import Stream, started, verified
from formats.formatter import Formatter, SourceImage
from util.compression import Compression, compressed, compression_revision
from util.layerindex import LayerIndex
from util.oci import Platform
from util.problem import Missing, Unavailable, letting_go
from util.streamlayerformat import LayerSource, StreamLayerMerger

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_COMPRESSED = {Compression.GZIP: "application/gzip", Compression.ZSTD: "application/zstd"}


class VerbNotFound(Missing):
    """A verb that no installed format has. `existing` holds those there are."""

    code = "VERB_UNKNOWN"

    def __init__(self, verb: str, existing: Iterable[str]) -> None:
        self.existing = tuple(existing)
        super().__init__(f"there is no verb {verb!r}; there are: {', '.join(self.existing)}")


class VerbUnavailable(Unavailable):
    """A verb that is installed, and that something is missing for."""

    code = "VERB_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asks for. `reference` is a tag or a manifest's digest; None means the default.

    `options` are the format's, as they were written.
    """

    verb: str
    namespace: str
    repository: str
    reference: str
    platform: Platform | None = None
    compression: Compression | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DerivedImage:
    """A derived image, made or not. `key` names its bytes: two with one key are the same to the byte.

    `tagged_ms` is since when the tag means it, in milliseconds since 1970; None for one asked for by its digest.
    """

    key: str
    source: SourceImage
    formatter: Formatter
    compression: Compression
    layers: tuple[Layer, ...]
    tagged_ms: int | None = None

    @property
    def etag(self) -> str:
        """What the bytes are called over HTTP, without the quotes: a strong validator."""
        return self.key

    @property
    def file_name(self) -> str:
        """A telling name in safe characters, e.g. `library_alpine_3.20-linux-amd64.aci`."""
        tag = self.source.tag
        reference = tag.replace(":", "-")[:19] if ":" in tag else tag
        image = "_".join((self.source.namespace, *self.source.repository.split("/"), reference))
        extension = self.formatter.file_extension
        # A name that means something wrapped keeps it, whatever wraps it: rkt wants `.aci`.
        wrapped = not extension.endswith(".tar") and self.formatter.default_compression is not Compression.NONE
        suffix = "" if wrapped else self.wrapping.suffix
        return _UNSAFE.sub("-", f"{image}-{self.source.platform}") + extension + suffix

    @property
    def wrapping(self) -> Compression:
        """What the bytes are wrapped in as a whole: the compression, unless that is of a layer within."""
        return Compression.NONE if self.formatter.packs else self.compression

    @property
    def media_type(self) -> str:
        """What the bytes are: the wrapping's type, or the format's own."""
        return _COMPRESSED.get(self.wrapping, self.formatter.media_type)

    def __str__(self) -> str:
        return f"{self.formatter.verb} of {self.source.namespace}/{self.source.repository}:{self.source.tag}"


@dataclass(frozen=True, slots=True)
class Planned:
    """What an uncompressed derived image will be, byte for byte, before it is made: `size` bytes. Opens no layer."""

    image: DerivedImage
    rootfs: StreamLayerMerger
    size: int

    def needs_all(self, offset: int, length: int) -> bool:
        """Tell whether a part costs as much as the whole, because it names the digest of all that is before it."""
        return self.image.formatter.needs_all(self.image.source, self.rootfs, offset, length)

    def stream(self, offset: int, length: int) -> Stream:
        """Return `length` bytes from `offset`. Reads the layers they lie in, and keeps nothing.

        Raises as `Deriver.generate` does; what the iteration raises makes the bytes before it worthless, and then they
        are not all.
        """
        part = self.image.formatter.range_generator(self.image.source, self.rootfs, offset, length)
        return Stream(started(verified(part)), length)


class Deriver:
    """Makes derived images of what a registry and a storage hold."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._finder = ImageFinder(services.registry, services.storage, services.permission)
        self._packing = Packing(services)

    def resolve(self, wish: Wish) -> DerivedImage:
        """Return the image that `wish` means. Reads no layer.

        Raises what ImageFinder.find raises, Denied first of all, VerbNotFound, InvalidOption, and VerbUnavailable.
        """
        settings = self._services.settings
        formatter = self._services.formatters.get(wish.verb)
        if formatter is None:
            raise VerbNotFound(wish.verb, self._services.formatters)
        formatter = formatter.with_options(wish.options)
        image = self._finder.find(wish.namespace, wish.repository, wish.reference, wish.platform)
        if formatter.unavailable is not None:
            raise VerbUnavailable(f"{formatter.verb} cannot be made here: {formatter.unavailable}")
        compression = formatter.default_compression if wish.compression is None else wish.compression
        identity: dict[str, object] = {
            "manifest": str(image.manifest_digest),
            "verb": formatter.verb,
            "revision": formatter.revision,
            "host": settings.server_hostname,
            "url_scheme": settings.url_scheme,
            "namespace": wish.namespace,
            "repository": wish.repository,
            "tag": wish.reference,
            "platform": str(image.platform),
        }
        if formatter.program is not None:
            identity["program"] = formatter.program
        if formatter.chosen:
            identity["options"] = dict(formatter.chosen)
        wrapping = {"compression": str(compression), "compression_revision": compression_revision(compression)}
        source = SourceImage(
            host=settings.server_hostname,
            url_scheme=settings.url_scheme,
            namespace=wish.namespace,
            repository=wish.repository,
            tag=wish.reference,
            manifest_digest=image.manifest_digest,
            platform=image.platform,
            config=image.config,
            layer_count=len(image.layers),
            image_id=_hash(identity),  # without the wrapping: what is unwrapped is the same whatever it was wrapped in
        )
        return DerivedImage(_hash(identity | wrapping), source, formatter, compression, image.layers, image.tagged_ms)

    def planned_size(self, image: DerivedImage) -> int | None:
        """Return how large `image` will be when it is made, None where only making it would tell. Reads no layer.

        It is known where the image is unwrapped, its format can tell, and all its layers are indexed. Raises what
        `generate` raises about layers that are missing, or cannot be merged or expressed.
        """
        if image.wrapping is not Compression.NONE:
            return None
        image = self._packing.told(image)
        blobs = self._blobs(image)
        with letting_go():
            indexes = self._services.indexes.peek_many(blobs)
            if indexes is None:
                return None
            return image.formatter.size(image.source, self._rootfs(image, blobs, indexes))

    def plan(self, image: DerivedImage) -> Planned | None:
        """Return what `image` will be, None for one that is wrapped, or whose format has to make it to know.

        Reads the layers that are not indexed yet.

        Raises what `generate` raises about layers.
        """
        if image.wrapping is not Compression.NONE:
            return None
        image = self._packing.told(image)
        rootfs = self._merged(image)
        size = image.formatter.size(image.source, rootfs)
        return None if size is None else Planned(image, rootfs, size)

    def generate(self, image: DerivedImage) -> Stream:
        """Return `image` as it is being generated; nothing is kept of it.

        Everything that can be found before the first byte is raised here: Damaged, Malformed, TooLarge,
        Inexpressible. What the iteration raises later makes the bytes before it worthless; the last of them comes only
        when nothing can be raised any more.
        """
        rootfs = self._merged(image)
        image = self._packing.packed(image, rootfs)
        size = image.formatter.size(image.source, rootfs) if image.wrapping is Compression.NONE else None
        made = image.formatter.stream(image.source, rootfs, folder=self._services.settings.spool_dir)
        chunks = self._packing.watched(image, compressed(made, image.wrapping))
        return Stream(started(verified(chunks)), size)

    def _merged(self, image: DerivedImage) -> StreamLayerMerger:
        """Return the merged root file system, after indexing the layers that are not."""
        blobs = self._blobs(image)
        with letting_go():
            return self._rootfs(
                image, blobs, self._services.indexes.many(blobs, [layer.diff_id for layer in image.layers])
            )

    def _blobs(self, image: DerivedImage) -> list[BlobLocation]:
        """Return where each layer lies, base first. Raises Damaged."""
        return self._finder.blobs(image.source.namespace, image.source.repository, image.layers)

    def _rootfs(
        self, image: DerivedImage, blobs: Sequence[BlobLocation], indexes: Sequence[LayerIndex]
    ) -> StreamLayerMerger:
        storage = self._services.storage
        sources = [
            LayerSource(blob.digest, blob.size, index, partial(storage.open, blob.locations, blob.path))
            for blob, index in zip(blobs, indexes, strict=True)
        ]
        rootfs = StreamLayerMerger(
            sources,
            path_prefix=image.formatter.path_prefix,
            changes=image.formatter.changes(image.source),
            limits=self._services.limits,
        )
        image.formatter.check(image.source, rootfs)
        return rootfs


def _hash(identity: Mapping[str, object]) -> str:
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
