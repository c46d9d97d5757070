"""Blobs over `/v2`: had whole or in part, looked for, deleted.

The law: a blob is what its digest says, so its answer is good for ever, and its digest is its ETag. A HEAD looks
whether the blob is there: a client that is told so sends none, and one that was lost would stay lost. Where storage
gives out URLs a GET is sent there, unless the client would bring along what is meant for us.
Distribution-spec, "Pulling blobs", "Checking if content exists in the registry", "Deleting Blobs".
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from urllib.parse import urlsplit

from flask import Response, request
from werkzeug.datastructures import Headers
from werkzeug.http import quote_etag

from data.pushedblobs import BlobUnknown
from data.registry import BlobLocation, BlobNotPlaced
from data.storage.base import BlobNotFound, Storage
from endpoints import sending
from endpoints.access import Action
from endpoints.serving import Asked, Validators
from endpoints.streams import read_through
from endpoints.v2 import virtual
from endpoints.v2.blueprint import blueprint
from endpoints.v2.names import Named, readable, services, writable
from util.digest import Digest, Readable

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/octet-stream"
_FOR_EVER = "private, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class _Blob:
    """A blob that can be had: from `storage` at `path`, if there is one. `open` gives so many bytes from an offset."""

    size: int
    open: Callable[[int, int], Iterator[bytes]]
    storage: Storage | None = None
    path: str = ""


@blueprint.get("/<path:name>/blobs/<digest>")
def get_blob(name: str, digest: str) -> Response:
    """Answer with a blob that the repository holds, or with the part of it that is asked for."""
    repository, _ = readable(name)
    wanted = Digest.parse(digest)
    try:
        return _answered(repository, _found(repository, wanted), wanted)
    except (BlobNotFound, BlobNotPlaced) as problem:
        if not services().settings.own_registry:
            raise
        # Whoever has it may push it again, and asks for it before.
        log.error("%s holds %s: %s", repository, wanted, problem)  # noqa: TRY400 a fact needs no traceback
        raise _unknown(repository, wanted) from problem


@blueprint.delete("/<path:name>/blobs/<digest>")
def delete_blob(name: str, digest: str) -> Response:
    """Have the repository not hold a blob any more that was uploaded to it and that no manifest of it has."""
    _, info = writable(name, action=Action.DELETE)
    services().pushed_blobs.unlink(info.id, Digest.parse(digest))
    return Response(status=HTTPStatus.ACCEPTED)


def _answered(repository: Named, blob: _Blob, digest: Digest) -> Response:
    asked, validators = Asked.of(request.method, request.headers.get), Validators(str(digest))
    decided = sending.by_conditions(asked, validators, what="blob", cache=_FOR_EVER)
    if decided is not None:
        decided.headers["Docker-Content-Digest"] = str(digest)
        return decided
    headers = Headers()
    headers["Content-Type"] = MEDIA_TYPE
    headers["Content-Length"] = str(blob.size)
    headers["Docker-Content-Digest"] = str(digest)
    headers["ETag"] = quote_etag(str(digest))
    headers["Accept-Ranges"] = "bytes"
    headers["Cache-Control"] = _FOR_EVER
    if request.method == "HEAD":
        return Response(iter(()), headers=headers, direct_passthrough=True)
    part = sending.asked_span(asked, validators, blob.size)
    if asked.of_us or blob.storage is None:
        elsewhere = None
    else:
        elsewhere = _elsewhere(repository, blob.storage, blob.path, headers)
    if elsewhere is not None:
        return elsewhere
    what = f"blob {digest}"
    return sending.stored(blob.storage, blob.path, blob.size, headers, part=part, read=blob.open, what=what)


def _elsewhere(repository: Named, storage: Storage, path: str, headers: Headers) -> Response | None:
    settings = services().settings
    by_proxy = sending.by_proxy(settings, storage, path, headers)
    if by_proxy is not None:
        return by_proxy
    answer = sending.by_storage(
        settings,
        storage,
        path,
        headers,
        status=HTTPStatus.TEMPORARY_REDIRECT,
        namespace=repository.namespace,
        media_type=MEDIA_TYPE,
    )
    # Clients take their credentials along to another port of the same host, those in Go also to a host below it; they
    # are not for others to see, and S3 refuses who brings two kinds.
    if answer is not None and "Authorization" in request.headers:
        here, there = (urlsplit(url).hostname or "" for url in (request.url, answer.headers["Location"]))
        return None if f".{there}".endswith(f".{here}") else answer
    return answer


def _found(repository: Named, digest: Digest) -> _Blob:
    """Return the blob that the repository holds, or a virtual image of it has. Raises BlobUnknown, BlobNotFound."""
    found = services().registry.blobs(repository.namespace, repository.repository, [digest]).get(digest)
    if found is not None:
        return _held(found)
    made = virtual.blob(repository, digest)
    if made is None:
        raise _unknown(repository, digest)
    if made.content is not None:
        content = made.content
        return _Blob(len(content), lambda offset, length: iter([content[offset : offset + length]]))
    storage, path = services().storage.preferred, made.path or ""
    return _Blob(made.size, partial(_through, lambda *_, **span: storage.open(path, **span), path), storage, path)


def _held(found: BlobLocation) -> _Blob:
    found.check_placed("blob")
    storage = services().storage
    size = found.size
    if size is None or request.method == "HEAD":
        size = storage.size(found.locations, found.path)
    opened = partial(_through, partial(storage.open, found.locations, found.path), f"blob {found.digest}")
    return _Blob(size, opened, storage.nearest(found.locations), found.path)


def _through(opening: Callable[..., Readable], what: str, offset: int, length: int) -> Iterator[bytes]:
    """Open the blob now, and return its bytes as they are read."""
    return read_through(opening(offset=offset, length=length), length, what=what)


def _unknown(repository: Named, digest: Digest) -> BlobUnknown:
    return BlobUnknown(f"{repository} has no blob {digest}")
