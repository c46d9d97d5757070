"""The blueprint `/c1`: derived images over HTTP, under the URLs that Quay gave them.

The law: a HEAD is a GET without its body and never makes anything; an answer that has begun is finished or cut; the
ETag names the bytes, so it is strong. RFC 9110; distribution-spec for the form of errors.
"""

from http import HTTPStatus

from flask import Blueprint, Response, current_app, jsonify, redirect, request, url_for
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, NotFound, RequestedRangeNotSatisfiable
from werkzeug.http import quote_etag
from werkzeug.wrappers import Response as AnyResponse

from endpoints import answers, audit
from endpoints.derive import DerivedImage, Deriver, Wish
from endpoints.services import Services
from endpoints.streams import Stream
from endpoints.wire import whole_or_cut
from formats.aci import platform_of_appc
from util.compression import Compression
from util.oci import InvalidPlatform, Platform
from util.problem import Problem

EXTENSION = "registry_verbs"
"""Where a Flask application keeps our Services."""

_URL_SECONDS = 600

blueprint = Blueprint("registry_verbs", __name__, url_prefix="/c1")
audit.watch(blueprint)
blueprint.register_error_handler(Problem, answers.of_problem)
blueprint.register_error_handler(HTTPException, answers.of_http_exception)
blueprint.register_error_handler(Exception, answers.of_exception)


@blueprint.get("/_internal_ping")
def ping() -> Response:
    """Answer that the service runs; asks nothing of database and storage."""
    return Response("true", content_type="application/json")


@blueprint.get("/")
def verbs() -> Response:
    """List what can be made of an image."""
    formatters = _services().formatters
    return jsonify(
        {
            "verbs": [
                {
                    "verb": formatter.verb,
                    "summary": formatter.summary,
                    "media_type": formatter.media_type,
                    "file_extension": formatter.file_extension,
                    "default_compression": str(formatter.default_compression),
                    "url": f"{request.base_url}{formatter.verb}/{{namespace}}/{{repository}}/{{tag}}",
                }
                for formatter in formatters.values()
            ],
            "compression": [str(compression) for compression in Compression],
        }
    )


@blueprint.get("/aci/<_>/<namespace>/<path:repository>/<tag>/aci/<os>/<arch>/")
def appc(_: str, *, namespace: str, repository: str, tag: str, os: str, arch: str) -> AnyResponse:
    """Answer as App Container discovery asks: `os` and `arch` in its own names; what it calls us does not matter."""
    platform = platform_of_appc(os, arch)
    return _derived(Wish("aci", namespace, repository, tag, platform, _compression()))


@blueprint.get("/<verb>/<namespace>/<path:repository>/<tag>")
def derived(verb: str, namespace: str, repository: str, tag: str) -> AnyResponse:
    """Answer with the tag, or the manifest of that digest, as `verb` makes it."""
    return _derived(Wish(verb, namespace, repository, tag, _platform(), _compression()))


@blueprint.get("/<path:_>")
def unknown(_: str) -> AnyResponse:
    """Answer what is no URL of ours in our own form, whatever application we are mounted in."""
    verbs = ", ".join(_services().formatters)
    base = url_for(".verbs")
    raise NotFound(
        f"there is nothing at {request.path}; write {base}VERB/NAMESPACE/REPOSITORY/TAG, VERB one of {verbs}"
    )


def _services() -> Services:
    services: Services = current_app.extensions[EXTENSION]
    return services


def _platform() -> Platform | None:
    text = _parameter("platform")
    try:
        return None if text is None else Platform.parse(text)
    except InvalidPlatform as problem:
        raise answers.InvalidQuery(f"platform: {problem}") from None


def _compression() -> Compression | None:
    text = _parameter("compression")
    try:
        return None if text is None else Compression(text)
    except ValueError:
        raise answers.InvalidQuery(f"compression is {text!r}; allowed: {', '.join(Compression)}") from None


def _parameter(name: str) -> str | None:
    values = request.args.getlist(name)
    if len(values) > 1:
        raise answers.InvalidQuery(f"{name} is given {len(values)} times; allowed: once")
    return values[0] if values else None


def _derived(wish: Wish) -> AnyResponse:
    services = _services()
    deriver = Deriver(services)
    image = deriver.resolve(wish)
    headers = _headers(image)
    if request.if_none_match.contains(image.etag):
        return Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    stored = deriver.stored_size(image)
    if request.method == "HEAD":
        size = deriver.planned_size(image) if stored is None else stored
        return _body(None, size, image, headers, stored=stored is not None)
    if stored is None:
        stream = deriver.make(image)
        return _body(stream, stream.size, image, headers, stored=False)
    url = _direct_url(services, image)
    if url is not None:
        return redirect(url, HTTPStatus.FOUND)
    return _from_storage(deriver, image, stored, headers)


def _from_storage(deriver: Deriver, image: DerivedImage, size: int, headers: Headers) -> AnyResponse:
    """Answer with the kept image, or with the one range of it that is asked for."""
    wanted = request.range
    same = (request.if_range.etag is None and request.if_range.date is None) or request.if_range.etag == image.etag
    if wanted is None or wanted.units != "bytes" or len(wanted.ranges) != 1 or not same:
        return _body(deriver.stored(image, size), size, image, headers, stored=True)
    span = wanted.range_for_length(size)
    if span is None:
        raise RequestedRangeNotSatisfiable(size, description=f"{image} has {size} bytes")
    begin, end = span
    headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    stream = deriver.stored(image, size, offset=begin, length=end - begin)
    return _body(stream, end - begin, image, headers, stored=True, status=HTTPStatus.PARTIAL_CONTENT)


def _direct_url(services: Services, image: DerivedImage) -> str | None:
    """Return where the client may fetch a kept image without us; None where it is to come through us."""
    if services.settings.proxy_storage:
        return None
    return services.storage.preferred.direct_download_url(
        image.path, seconds=_URL_SECONDS, file_name=image.file_name, media_type=image.media_type
    )


def _headers(image: DerivedImage) -> Headers:
    headers = Headers()
    headers["ETag"] = quote_etag(image.etag)
    headers["Cache-Control"] = "no-cache"  # a tag moves; the ETag tells whether it has
    headers["Content-Type"] = image.media_type
    headers["Content-Disposition"] = f'attachment; filename="{image.file_name}"'
    headers["X-Content-Type-Options"] = "nosniff"
    return headers


def _body(
    stream: Stream | None,
    size: int | None,
    image: DerivedImage,
    headers: Headers,
    *,
    stored: bool,
    status: HTTPStatus = HTTPStatus.OK,
) -> Response:
    """Answer with `stream`, or with its headers alone."""
    if size is not None:
        headers["Content-Length"] = str(size)
    if stored:
        headers["Accept-Ranges"] = "bytes"
    # An iterator also where there is nothing to send: of a sequence Flask would tell the length.
    chunks = (
        iter(())
        if stream is None
        else whole_or_cut(stream.chunks, request.environ, what=str(image), has_length=size is not None)
    )
    return Response(chunks, status=status, headers=headers, direct_passthrough=True)
