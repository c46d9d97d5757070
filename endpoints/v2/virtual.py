"""Virtual tags: `TAG.squash` is the image of TAG in one layer, though nobody has pushed it.

The law: what is in the registry goes before it, so a route asks here only when its own look-up has found nothing, and
after it has asked for permission. A virtual image is of the repository that TAG is in: its digests mean something
there, and nowhere else. What has no virtual image is answered as if there were no virtual ones.
"""

import logging
import re
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from flask import current_app

from data.owntables import DatabaseUnavailable
from data.registry import RepositoryInfo, TagManifest, TagNotFound, content_path
from data.storage.base import BlobNotFound, Storage
from data.virtuals import Virtual
from endpoints.audit import AUDIT
from endpoints.derive import Deriver, Wish
from endpoints.making import MAKINGS, Makings
from endpoints.v2.names import Named, services
from endpoints.virtualimages import COMPRESSION, VERB, VIRTUAL_IMAGES, VirtualImages
from util.digest import Digest, verified
from util.oci import MANIFEST_OCI
from util.platform import Platform

log = logging.getLogger(__name__)

_PIECE = 1 << 20
_TAG = re.compile(r"(.+)\.squash(?:-([a-z0-9]+)-([a-z0-9_]+)(?:-([a-z0-9._]+))?)?")


@dataclass(frozen=True, slots=True)
class VirtualTag:
    """The image of `tag` in one layer; for `platform`, where one is said."""

    tag: str
    platform: Platform | None = None

    @classmethod
    def parse(cls, text: str) -> "VirtualTag | None":
        """Return what `TAG.squash` or `TAG.squash-OS-ARCHITECTURE[-VARIANT]` means, None where it is neither."""
        match = _TAG.fullmatch(text)
        if match is None:
            return None
        tag, os, architecture, variant = match.groups()
        return cls(tag, None if os is None else Platform(os, architecture, variant))


def manifest(repository: Named, info: RepositoryInfo, reference: str) -> TagManifest | None:
    """Return the manifest that a virtual tag means, or one of those by its digest; None where there is none.

    Has it made, and waits for that. Raises StillMaking, NotStored, Busy, and why it cannot be made; PlatformNotFound;
    DatabaseUnavailable, StorageUnavailable, RegistryUnavailable.
    """
    if ":" in reference:
        found = _find(repository, Digest.parse(reference))
        return None if found is None or found.media_type != MANIFEST_OCI else _served(found, info)
    asked = VirtualTag.parse(reference)
    if asked is None:
        return None
    wish = Wish(VERB, repository.namespace, repository.repository, asked.tag, asked.platform, COMPRESSION)
    try:
        image = Deriver(services()).resolve(wish)
    except TagNotFound:
        return None
    images: VirtualImages = current_app.extensions[VIRTUAL_IMAGES]
    return _served(images.manifest(image, asked_by=current_app.extensions[AUDIT].who()), info)


def blob(repository: Named, digest: Digest) -> Virtual | None:
    """Return a virtual image's configuration, or where its layer lies in the preferred storage; None where it is none.

    A layer counts as fetched then, and its object has been looked for. Raises StorageUnavailable.
    """
    found = _find(repository, digest)
    if found is None or found.content is not None:
        return found
    makings: Makings = current_app.extensions[MAKINGS]
    record = makings.kept(found.key)
    return found if record is not None and record.path == found.path else None


def adopt(repository: Named, info: RepositoryInfo, digests: Iterable[Digest]) -> bool:
    """Make those of `digests` which are virtual here blobs as others are, so that a manifest may name them.

    A client that has pulled a virtual image and pushes it to where it came from finds its blobs there, and sends none.
    Returns whether that were all. Raises as PushedBlobs.keep does, and DigestMismatch.
    """
    ours, storage = services(), services().storage.preferred
    for digest in digests:
        found = blob(repository, digest)
        if found is None:
            return False
        try:
            ours.pushed_blobs.keep(info.id, digest, found.size, partial(_put, storage, found))
        except BlobNotFound:
            return False
    return True


def _put(storage: Storage, virtual: Virtual) -> None:
    target = content_path(virtual.digest)
    if virtual.path is not None:
        with closing(storage.open(virtual.path)) as stream:  # whoever has its digest is given it from now on
            for _ in verified(iter(partial(stream.read, _PIECE), b""), virtual.digest, size=virtual.size):
                pass
        storage.copy(virtual.path, target)
        return
    with storage.create(target) as writer:
        writer.write(virtual.content or b"")
        writer.commit()


def _find(repository: Named, digest: Digest) -> Virtual | None:
    ours = services()
    try:
        has = partial(ours.registry.has_manifest, repository.namespace, repository.repository)
        return ours.virtuals.find(repository.namespace, repository.repository, digest, has=has)
    except DatabaseUnavailable as problem:  # what the registry does not have is still absent
        log.log(
            logging.INFO if ours.settings.readonly else logging.WARNING, "%s is not looked for: %s", digest, problem
        )
        return None


def _served(found: Virtual, info: RepositoryInfo) -> TagManifest:
    return TagManifest(found.digest, found.media_type, found.content or b"", info.id)
