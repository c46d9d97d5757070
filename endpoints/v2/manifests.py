"""Manifests over `/v2`: had, pushed and deleted, by tag or by digest.

The law: the bytes that come in are the bytes that go out; a manifest is never made into another kind. What a client
says of a manifest, its digest and its type, is compared with what it sent before anything is kept.
Distribution-spec, "Pulling manifests", "Pushing Manifests", "Content Management".
"""

from collections import deque

from flask import Response, current_app, request, url_for
from werkzeug.exceptions import RequestURITooLarge

from data.manifestdocuments import ManifestDocument, read_manifest
from data.pushedmanifests import NamedContentUnknown
from data.registry import ManifestNotFound, RepositoryInfo, RepositoryName, TagManifest, TagNotFound
from endpoints.access import Action
from endpoints.indexing import INDEXING, Indexing
from endpoints.v2 import virtual
from endpoints.v2.blueprint import blueprint
from endpoints.v2.names import Named, readable, services, writable
from util.digest import Digest, verified
from util.names import check_tag
from util.oci import INDEX_OCI, LIST_V2, MANIFEST_OCI, MANIFEST_V2, MAX_DOCUMENT_SIZE
from util.problem import TooLarge, Unsupported

_ACCEPTED = (MANIFEST_OCI, INDEX_OCI, MANIFEST_V2, LIST_V2)
_MOST_TAGS = 100
_PIECE = 256 << 10
_FOR_EVER = "private, max-age=31536000, immutable"


class ManifestTypeRefused(Unsupported):
    """A manifest of a type that is not kept here; the text names those that are."""

    code = "MANIFEST_TYPE_UNSUPPORTED"


class ManifestTooLarge(TooLarge):
    """A manifest of more bytes than are read of one."""

    code = "SIZE_INVALID"


@blueprint.get("/<path:name>/manifests/<reference>")
def get_manifest(name: str, reference: str) -> Response:
    """Answer with a manifest as it was pushed, whatever types the client would rather have."""
    repository, info = readable(name)
    found = _found(repository, info, reference)
    response = Response(found.content, content_type=found.media_type)
    response.headers["Docker-Content-Digest"] = str(found.digest)
    response.headers["Cache-Control"] = _FOR_EVER if ":" in reference else "private, no-cache"
    response.set_etag(str(found.digest))
    response.make_conditional(request)
    return response


@blueprint.put("/<path:name>/manifests/<reference>")
def put_manifest(name: str, reference: str) -> Response:
    """Take a manifest, by its tag, or by its digest and with tags if they are given."""
    repository, info = writable(name, creates=True)
    digest, tags = _asked(reference)
    content = _body()
    document = _read(content, digest)
    _push(repository, info, document, tags)
    if document.is_container_image:
        indexing: Indexing = current_app.extensions[INDEXING]
        indexing.add(repository.namespace, repository.repository, document.digest)
    response = Response(status=201)
    response.headers["Location"] = url_for(".get_manifest", name=name, reference=str(document.digest))
    response.headers["Docker-Content-Digest"] = str(document.digest)
    if document.subject is not None:
        response.headers["OCI-Subject"] = str(document.subject)
    if digest is not None:
        for tag in tags:
            response.headers.add("OCI-Tag", tag)
    return response


@blueprint.delete("/<path:name>/manifests/<reference>")
def delete_manifest(name: str, reference: str) -> Response:
    """Let a tag end, or all tags of a manifest by its digest."""
    repository, info = writable(name, action=Action.DELETE)
    manifests, where = services().pushed_manifests, _where(repository, info)
    if ":" in reference:
        manifests.delete(where, Digest.parse(reference))
    else:
        manifests.delete_tag(where, reference)
    return Response(status=202)


def _found(repository: Named, info: RepositoryInfo, reference: str) -> TagManifest:
    if ":" in reference:
        Digest.parse(reference)
    try:
        return services().registry.manifest(repository.namespace, repository.repository, reference)
    except (TagNotFound, ManifestNotFound):
        found = virtual.manifest(repository, info, reference)
        if found is None:
            raise
        return found


def _asked(reference: str) -> tuple[Digest | None, list[str]]:
    """Return the digest by which a manifest is pushed, None where that is a tag; and its tags."""
    if ":" not in reference:
        check_tag(reference)
        return None, [reference]
    tags = list(dict.fromkeys(request.args.getlist("tag")))
    if len(tags) > _MOST_TAGS:
        raise RequestURITooLarge(f"at most {_MOST_TAGS} tags are taken at once")
    for tag in tags:
        check_tag(tag)
    return Digest.parse(reference), tags


def _body() -> bytes:
    """Return the request's body. Raises ManifestTooLarge, before all of it was read."""
    pieces: list[bytes] = []
    size = request.content_length or 0
    if size <= MAX_DOCUMENT_SIZE:
        size = 0
        while size <= MAX_DOCUMENT_SIZE and (piece := request.stream.read(_PIECE)):
            pieces.append(piece)
            size += len(piece)
    if size > MAX_DOCUMENT_SIZE:
        raise ManifestTooLarge(f"the manifest has more than {MAX_DOCUMENT_SIZE} bytes; no more are accepted")
    return b"".join(pieces)


def _read(content: bytes, digest: Digest | None) -> ManifestDocument:
    """Return the document that was sent, by its digest or by `digest` if that is right.

    Raises DigestMismatch, ManifestTypeRefused, and what read_manifest raises.
    """
    if digest is not None:
        deque(verified((content,), digest, what="the manifest"), maxlen=0)
    document = read_manifest(content, digest or Digest.of(content), request.mimetype or None)
    if document.media_type not in _ACCEPTED:
        raise ManifestTypeRefused(
            f"manifests of type {document.media_type} are not kept here; there are: {', '.join(_ACCEPTED)}"
        )
    return document


def _push(repository: Named, info: RepositoryInfo, document: ManifestDocument, tags: list[str]) -> None:
    manifests, where = services().pushed_manifests, _where(repository, info)
    try:
        manifests.push(where, document, tags)
    except NamedContentUnknown as problem:
        if not virtual.adopt(repository, info, problem.missing):
            raise
        manifests.push(where, document, tags)


def _where(repository: Named, info: RepositoryInfo) -> RepositoryName:
    return RepositoryName(info.id, repository.namespace, repository.repository)
