"""Pushing blobs over `/v2`: in one request, in two, in chunks; or out of another repository, without a byte.

The law: a URL says which upload, and the upload's row how far it has come; nothing is kept between requests but that,
so any process of any host may answer the next one. What a client says of its bytes, where they belong and how many
there are, is held against what is there and what came. Distribution-spec, "Pushing blobs".
"""

import re
from http import HTTPStatus

from flask import Response, request, url_for

from data.registry import RepositoryInfo
from data.uploads import Upload, UploadOutOfOrder
from endpoints.access import Action
from endpoints.v2.answers import Error, answer
from endpoints.v2.blueprint import blueprint
from endpoints.v2.names import Named, may, meant, reader, services, writable
from endpoints.wire import patience
from util.digest import Digest, InvalidDigest
from util.problem import Malformed

_RANGE = re.compile(r"(?:bytes[ =])?([0-9]{1,18})-([0-9]{1,18})(?:/(?:\*|[0-9]+))?")  # some write it as HTTP does
_PATIENCE = 300  # seconds without a byte, until a client counts as gone


class InvalidChunk(Malformed):
    """A chunk whose headers do not agree."""

    code = "BLOB_UPLOAD_INVALID"


class InvalidChunkSize(Malformed):
    """A chunk of another length than its range has."""

    code = "SIZE_INVALID"


class DigestMissing(InvalidDigest):
    """An upload that should end, and nobody says with which digest."""


@blueprint.post("/<path:name>/blobs/uploads/", strict_slashes=False)
def start_upload(name: str) -> Response:
    """Begin an upload; or take the whole blob, or mount it, where the URL says which one it is."""
    mount, source = request.args.get("mount"), request.args.get("from")
    _, info = writable(name, creates=True, out_of=source if mount is not None else None)
    if mount is not None and _mounted(info, wanted := Digest.parse(mount), source):
        return _created(name, wanted)
    uploads = services().uploads
    digest = request.args.get("digest")
    if digest is not None:
        whole = Digest.parse(digest)
        if _has_body() or whole == Digest.of(b"", whole.algorithm):
            upload = uploads.start(info.id, whole.algorithm)
            return _finished(name, info, upload.id, whole)
    upload = uploads.start(info.id, request.args.get("digest-algorithm", "sha256"))
    return _progress(name, upload, HTTPStatus.ACCEPTED)


@blueprint.get("/<path:name>/blobs/uploads/<upload_id>")
def get_upload(name: str, upload_id: str) -> Response:
    """Answer how far an upload has come."""
    _, info = writable(name)
    return _progress(name, services().uploads.find(info.id, upload_id), HTTPStatus.NO_CONTENT)


@blueprint.patch("/<path:name>/blobs/uploads/<upload_id>")
def patch_upload(name: str, upload_id: str) -> Response:
    """Take the next bytes of an upload."""
    _, info = writable(name)
    try:
        return _progress(name, _appended(info, upload_id), HTTPStatus.ACCEPTED)
    except UploadOutOfOrder as problem:
        return _out_of_order(name, problem)


@blueprint.put("/<path:name>/blobs/uploads/<upload_id>")
def put_upload(name: str, upload_id: str) -> Response:
    """Take the last bytes of an upload, if there are any, and make a blob of it."""
    _, info = writable(name)
    digest = request.args.get("digest")
    if digest is None:
        raise DigestMissing("the digest of the blob is missing: ?digest=sha256:…")
    try:
        return _finished(name, info, upload_id, Digest.parse(digest))
    except UploadOutOfOrder as problem:
        return _out_of_order(name, problem)


@blueprint.delete("/<path:name>/blobs/uploads/<upload_id>")
def delete_upload(name: str, upload_id: str) -> Response:
    """Give an upload up."""
    _, info = writable(name)
    services().uploads.cancel(info.id, upload_id)
    return Response(status=HTTPStatus.NO_CONTENT)


def _mounted(info: RepositoryInfo, digest: Digest, source: str | None) -> bool:
    """Mount the blob out of `source`, or out of any repository that who asks may read; tell whether that was done."""
    blobs = services().pushed_blobs
    wanted = None if source is None else meant(source)
    if source is not None and wanted is None:
        return False
    for holder in blobs.holders(digest, reader(), *(() if wanted is None else (wanted.namespace, wanted.repository))):
        repository = Named(holder.namespace, holder.repository)
        if may(repository, Action.READ, public=holder.public) and blobs.mount(info.id, digest, holder.id):
            return True
    return False


def _finished(name: str, info: RepositoryInfo, upload_id: str, digest: Digest) -> Response:
    if _has_body():
        _appended(info, upload_id, digest.algorithm)
    services().uploads.finish(info.id, upload_id, digest)
    return _created(name, digest)


def _appended(info: RepositoryInfo, upload_id: str, algorithm: str | None = None) -> Upload:
    length = request.content_length
    with patience(request.environ, _PATIENCE):
        return services().uploads.append(
            info.id, upload_id, request.stream, offset=_offset(length), length=length, algorithm=algorithm
        )


def _offset(length: int | None) -> int | None:
    """Return where the chunk says that it begins, None where it does not say. Raises InvalidChunk and -Size."""
    text = request.headers.get("Content-Range")
    if text is None:
        return None
    match = _RANGE.fullmatch(text.strip())
    first, last = (int(match[1]), int(match[2])) if match else (0, -1)
    if last < first:
        raise InvalidChunk(f"Content-Range is {text!r}; it should be two numbers, the first and the last byte: 0-99")
    if length is not None and length != last - first + 1:
        raise InvalidChunkSize(f"the chunk has {length} bytes, and its Content-Range {text!r} has {last - first + 1}")
    return first


def _has_body() -> bool:
    return bool(request.content_length) or "Transfer-Encoding" in request.headers


def _progress(name: str, upload: Upload, status: HTTPStatus) -> Response:
    response = Response(status=status)
    response.headers.update(_told(name, upload))
    return response


def _told(name: str, upload: Upload) -> dict[str, str]:
    return {
        "Location": url_for(".get_upload", name=name, upload_id=upload.id),
        "Range": f"0-{max(upload.size - 1, 0)}",
        "Docker-Upload-UUID": upload.id,
    }


def _out_of_order(name: str, problem: UploadOutOfOrder) -> Response:
    told = _told(name, problem.upload)
    return answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, [Error(problem.code, str(problem))], told)


def _created(name: str, digest: Digest) -> Response:
    response = Response(status=HTTPStatus.CREATED)
    response.headers["Location"] = url_for(".get_blob", name=name, digest=str(digest))
    response.headers["Docker-Content-Digest"] = str(digest)
    return response
