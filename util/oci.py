"""Manifests and image indexes: which layers make an image, and which image suits a platform.

The law: a document becomes a value here, once, or is refused with the field's name. What is no container image (a
chart, a signature, a module, an attestation) is told apart from what is a broken one. OCI image-spec, manifest.md and
image-index.md; Docker image manifest version 2, schemas 2 and 1.
This module is the door to all documents of an image: what the modules beside it define is offered here too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from util.digest import Digest
from util.document import (
    MAX_DOCUMENT_SIZE,
    DocumentTooLarge,
    Fields,
    MalformedConfig,
    MalformedManifest,
    read_document,
)
from util.imageconfig import History, ImageConfig, chain_id
from util.platform import InvalidPlatform, Platform, PlatformNotFound, is_word
from util.problem import Unsupported
from util.schema1 import MANIFEST_V1, MANIFEST_V1_SIGNED, Schema1Manifest, is_schema1, schema1_of, signed_payload

__all__ = [
    "ANY_CONFIG",
    "CONFIG_OCI",
    "CONFIG_V2",
    "INDEX_OCI",
    "LAYER_OCI",
    "LAYER_OCI_GZIP",
    "LAYER_OCI_ZSTD",
    "LAYER_V2",
    "LAYER_V2_GZIP",
    "LAYER_V2_ZSTD",
    "LIST_V2",
    "MANIFESTS",
    "MANIFEST_OCI",
    "MANIFEST_V1",
    "MANIFEST_V1_SIGNED",
    "MANIFEST_V2",
    "MAX_DOCUMENT_SIZE",
    "Descriptor",
    "DocumentTooLarge",
    "History",
    "ImageConfig",
    "ImageIndex",
    "InvalidPlatform",
    "MalformedConfig",
    "MalformedManifest",
    "Manifest",
    "NestedIndex",
    "NotAnImage",
    "Platform",
    "PlatformNotFound",
    "Schema1Manifest",
    "UnsupportedLayer",
    "chain_id",
    "parse_manifest",
    "signed_payload",
    "told_media_type",
]

MANIFEST_OCI = "application/vnd.oci.image.manifest.v1+json"
INDEX_OCI = "application/vnd.oci.image.index.v1+json"
CONFIG_OCI = "application/vnd.oci.image.config.v1+json"
LAYER_OCI = "application/vnd.oci.image.layer.v1.tar"
LAYER_OCI_GZIP = LAYER_OCI + "+gzip"
LAYER_OCI_ZSTD = LAYER_OCI + "+zstd"
MANIFEST_V2 = "application/vnd.docker.distribution.manifest.v2+json"
LIST_V2 = "application/vnd.docker.distribution.manifest.list.v2+json"
CONFIG_V2 = "application/vnd.docker.container.image.v1+json"
LAYER_V2 = "application/vnd.docker.image.rootfs.diff.tar"
LAYER_V2_GZIP = LAYER_V2 + ".gzip"
LAYER_V2_ZSTD = LAYER_V2 + ".zstd"

LAYERS = frozenset({LAYER_OCI, LAYER_OCI_GZIP, LAYER_OCI_ZSTD, LAYER_V2, LAYER_V2_GZIP, LAYER_V2_ZSTD})
ANY_CONFIG = frozenset({CONFIG_OCI, CONFIG_V2})
# Registries of 2016 served these in the place of the configuration's type (docker/distribution#1621).
_ANY_CONFIG_V2 = ANY_CONFIG | {"", "application/octet-stream", "application/json", "text/html"}
_LAYER_FAMILIES = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_NON_DISTRIBUTABLE = (".nondistributable.", ".foreign.")
_UNSAID = {None, "", "application/json", "application/octet-stream", "text/plain"}
_KINDS = {
    MANIFEST_OCI: "manifest",
    MANIFEST_V2: "manifest",
    INDEX_OCI: "index",
    LIST_V2: "index",
    MANIFEST_V1: "schema 1",
    MANIFEST_V1_SIGNED: "schema 1",
}
MANIFESTS = frozenset(_KINDS)
"""The types of manifests and image indexes that registries keep; old ones too."""
_ATTESTATION = "vnd.docker.reference.type"
_DEFAULT = Platform("linux", "amd64")


class NotAnImage(Unsupported):
    """A sound document that describes something else than a container image; the text names its media type."""

    code = "NOT_AN_IMAGE"


class UnsupportedLayer(Unsupported):
    """A layer that is not a tar archive kept in the registry: foreign, encrypted, of another make."""

    code = "LAYER_UNSUPPORTED"


class NestedIndex(Unsupported):
    """An image index that has the wanted image, if at all, in an index inside."""

    code = "NESTED_INDEX"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a document says of a blob: its name, its length in bytes, what it is."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str | None = None

    @property
    def is_image(self) -> bool:
        """Tell whether an index means a container image by this, and not an attestation or another artifact."""
        unknown = self.platform is not None and (self.platform.os, self.platform.architecture) == ("unknown", "unknown")
        artifact = self.artifact_type and self.artifact_type not in ANY_CONFIG
        return not (unknown or artifact or _ATTESTATION in self.annotations)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image: its configuration and its layers, base first. Every layer is a tar archive kept in the registry."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """Several images for several platforms under one name."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)

    def choose(self, wanted: Platform | None = None) -> Descriptor:
        """Return the image that suits `wanted` best: the same variant first, then the nearest lower one, then order.

        None means linux/amd64, or the only image there is. An image that does not say its platform is returned where
        it is the only one left to try; its configuration tells, and the caller compares.
        Raises PlatformNotFound (listing what there is), NestedIndex, and NotAnImage where no entry is an image.
        """
        kinds = [(_KINDS.get(entry.media_type), entry) for entry in self.manifests if entry.is_image]
        images = [entry for kind, entry in kinds if kind in ("manifest", "schema 1")]
        nested = any(kind == "index" for kind, _ in kinds)
        if wanted is None and len(images) == 1 and not nested:
            return images[0]
        asked = wanted or _DEFAULT
        ranked = [(entry.platform.distance(asked), entry) for entry in images if entry.platform]
        suited = [(distance, entry) for distance, entry in ranked if distance is not None]
        if suited:
            return min(suited, key=lambda pair: pair[0])[1]
        silent = [entry for entry in images if entry.platform is None]
        if len(silent) == 1 and not nested:
            return silent[0]
        if nested:
            raise NestedIndex(f"there is no image for {asked} but perhaps in an image index inside the index")
        if not images:
            held = ", ".join(sorted({entry.artifact_type or entry.media_type for entry in self.manifests})) or "nothing"
            raise NotAnImage(f"the image index has no container image in it, but {held}")
        raise PlatformNotFound(asked, (entry.platform for entry in images if entry.platform))


def parse_manifest(content: bytes, media_type: str | None) -> Manifest | ImageIndex | Schema1Manifest:
    """Return what `content` describes; `media_type` is what it was pushed or served as, if that is known.

    Raises NotAnImage and UnsupportedLayer, MalformedManifest, MalformedConfig (schema 1), DocumentTooLarge.
    """
    document = read_document(content, "manifest", MalformedManifest)
    told = told_media_type(document, media_type)
    kind = _KINDS.get(told) if told else None
    if told and kind is None:
        raise NotAnImage(f"the document is of type {told}, which is no manifest of a container image")
    if is_schema1(document.values):
        if kind not in (None, "schema 1"):
            raise document.error("schemaVersion", f"is 1 in a document of type {told}")
        signed = document.values.get("signatures") is not None
        return schema1_of(document, told or (MANIFEST_V1_SIGNED if signed else MANIFEST_V1))
    if document.number("schemaVersion") not in (None, 2):
        raise document.error("schemaVersion", f"is {document.number('schemaVersion')}; 1 and 2 are known")
    is_index, is_manifest = (document.values.get(name) is not None for name in ("manifests", "layers"))
    # One document with two meanings lets two readers see two images under one digest (CVE-2021-41190).
    if is_index and (is_manifest or document.values.get("config") is not None):
        raise document.error("manifests", "stands beside layers or config; a document is an index or a manifest")
    if kind == "schema 1" or (kind == "index" and is_manifest) or (kind == "manifest" and is_index):
        raise document.error("mediaType", f"is {told}, which the rest of the document is not")
    if kind == "index" or is_index:
        return _index(document, told or INDEX_OCI)
    return _manifest(document, told or MANIFEST_OCI)


def told_media_type(document: Fields, served: str | None) -> str | None:
    """Return the media type of the document, by itself and by who served it, who must not differ; None if unsaid."""
    own, served = document.text("mediaType") or None, (served or "").partition(";")[0].strip().lower()
    if served in _UNSAID:
        return own
    signed_or_not = _KINDS.get(own or "") == _KINDS.get(served) == "schema 1"
    if own and own != served and not signed_or_not:
        raise document.error("mediaType", f"is {own}, and the document came as {served}")
    return served


def _index(document: Fields, media_type: str) -> ImageIndex:
    entries = tuple(_descriptor(entry) for entry in document.each("manifests"))
    return ImageIndex(media_type, entries, document.text_map("annotations"))


def _manifest(document: Fields, media_type: str) -> Manifest:
    config = _descriptor(document.required_fields("config"))
    known = _ANY_CONFIG_V2 if media_type == MANIFEST_V2 else ANY_CONFIG
    artifact_type = document.text("artifactType")
    if config.media_type not in known or (artifact_type and artifact_type not in ANY_CONFIG):
        what = artifact_type or config.media_type or "no media type"
        raise NotAnImage(f"the manifest describes no container image, but an artifact of type {what}")
    layers = tuple(_descriptor(entry) for entry in document.each("layers"))
    for layer in layers:
        _check_layer(layer)
    return Manifest(media_type, config, layers, document.text_map("annotations"))


def _descriptor(entry: Fields) -> Descriptor:
    entry.required("size")
    platform = entry.fields("platform")
    return Descriptor(
        media_type=entry.text("mediaType") or "",
        digest=entry.digest("digest"),
        size=entry.number("size") or 0,
        platform=_platform(platform) if platform else None,
        annotations=entry.text_map("annotations"),
        artifact_type=entry.text("artifactType") or None,
    )


def _platform(fields: Fields) -> Platform | None:
    """Return what an index says, None where that is no platform: the image's own configuration tells then."""
    os, architecture = fields.text("os"), fields.text("architecture")
    variant, version = fields.text("variant"), fields.text("os.version")
    if not os or not architecture or not all(is_word(each) for each in (os, architecture, variant, version) if each):
        return None
    return Platform(os, architecture, variant, version)


def _check_layer(layer: Descriptor) -> None:
    if layer.media_type in LAYERS:
        return
    if any(part in layer.media_type for part in _NON_DISTRIBUTABLE):
        raise UnsupportedLayer(f"layer {layer.digest} is foreign ({layer.media_type}): the registry does not hold it")
    if layer.media_type.startswith(_LAYER_FAMILIES):
        raise UnsupportedLayer(f"layer {layer.digest} is of type {layer.media_type}, which is not read")
    raise NotAnImage(
        f"the manifest describes no container image: {layer.digest} in it is of type {layer.media_type or 'unknown'}"
    )
