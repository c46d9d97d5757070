"""A manifest or an image index as its rows have it: what is read of the document, whichever way it came in.

The law: a document that has been read names its blobs and manifests, each by digest and size, and is a container image,
an image index or an artifact. What it names need not be there; who keeps it looks.
"""

from dataclasses import dataclass

from util.digest import Digest
from util.document import Fields, MalformedManifest, read_document
from util.oci import (
    INDEX_OCI,
    MANIFEST_OCI,
    Descriptor,
    ImageIndex,
    NotAnImage,
    Schema1Manifest,
    UnsupportedLayer,
    parse_manifest,
    told_media_type,
)
from util.problem import Unsupported

_ELSEWHERE = (".foreign.", ".nondistributable.")


class Schema1NotImported(Unsupported):
    """A manifest of Docker's schema 1, which says neither its configuration nor its blobs' sizes."""

    code = "SCHEMA1_NOT_IMPORTED"


@dataclass(frozen=True, slots=True)
class NamedBlob:
    """A blob that a manifest names; `is_layer` for one of a container image."""

    descriptor: Descriptor
    is_layer: bool = False

    @property
    def elsewhere(self) -> bool:
        """Tell whether the registry need not have it: a layer that its maker alone hands out."""
        return any(part in self.descriptor.media_type for part in _ELSEWHERE)


@dataclass(frozen=True, slots=True)
class ManifestDocument:
    """A manifest with its blobs, or an image index with its `entries`; `content` as it came.

    The blobs of a container image are its configuration and then its layers, base first, all of them in the registry.
    """

    digest: Digest
    media_type: str
    content: bytes
    config_media_type: str | None = None
    subject: Digest | None = None
    artifact_type: str | None = None
    blobs: tuple[NamedBlob, ...] = ()
    entries: tuple[Descriptor, ...] = ()
    is_container_image: bool = False


def read_manifest(content: bytes, digest: Digest, media_type: str | None = None) -> ManifestDocument:
    """Return what `content` says, which came as `media_type`, if that is known.

    Raises MalformedManifest, DocumentTooLarge, MalformedConfig, and Schema1NotImported.
    """
    fields = read_document(content, "manifest", MalformedManifest)
    told = told_media_type(fields, media_type) or (INDEX_OCI if fields.values.get("manifests") else MANIFEST_OCI)
    is_container_image = False
    blobs: tuple[NamedBlob, ...] = ()
    entries: tuple[Descriptor, ...] = ()
    try:
        manifest = parse_manifest(content, media_type)
    except (NotAnImage, UnsupportedLayer):
        blobs = _blobs_of_artifact(fields)
    else:
        told = manifest.media_type
        if isinstance(manifest, Schema1Manifest):
            raise Schema1NotImported(f"{digest} is of Docker's schema 1; convert it to schema 2 or OCI first")
        if isinstance(manifest, ImageIndex):
            entries = manifest.manifests
        else:
            is_container_image = True
            blobs = (NamedBlob(manifest.config), *(NamedBlob(layer, is_layer=True) for layer in manifest.layers))
    fields.text_map("annotations")  # a list of referrers shows them
    config, subject = fields.fields("config"), fields.fields("subject")
    return ManifestDocument(
        digest,
        told,
        content,
        config_media_type=config.text("mediaType") if config else None,
        subject=subject.digest("digest") if subject else None,
        artifact_type=fields.text("artifactType"),
        blobs=blobs,
        entries=entries,
        is_container_image=is_container_image,
    )


def _blobs_of_artifact(fields: Fields) -> tuple[NamedBlob, ...]:
    config = fields.fields("config")
    entries = (*((config,) if config else ()), *fields.each("layers"), *fields.each("blobs"))
    for entry in entries:
        entry.required("size")
    return tuple(
        NamedBlob(Descriptor(entry.text("mediaType") or "", entry.digest("digest"), entry.number("size") or 0))
        for entry in entries
    )
