"""Bytes that have a name and lie in storage, on their way out: conditions, parts, by whom they are sent.

The law: whoever can send a file better than we can does so: the storage itself by a URL, the server before us from its
disk, the kernel. Who is sent elsewhere is told nothing about the bytes but where they are. Headers that tell of the
whole come from who knows what it is; those of a part are made of them here.
"""

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from urllib.parse import quote

from flask import Response, request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import PreconditionFailed, RequestedRangeNotSatisfiable
from werkzeug.http import quote_etag

from data.storage.base import Recipient, Storage
from endpoints import audit
from endpoints.audit import How
from endpoints.serving import Asked, NotSatisfiable, Span, Validators, Verdict, span, verdict
from endpoints.settings import Settings
from endpoints.wire import sent_by_server, whole_or_cut

_ABOUT_THE_BYTES = {"Content-Type", "Content-Length", "Content-Disposition", "Accept-Ranges", "Cache-Control"}


def by_conditions(
    asked: Asked, validators: Validators, *, what: str = "image", cache: str = "no-cache"
) -> Response | None:
    """Answer that nothing has changed; None where all is to be sent. Raises PreconditionFailed.

    `what` is how the error calls the bytes, `cache` the Cache-Control that they have.
    """
    match verdict(asked, validators):
        case Verdict.SEND:
            return None
        case Verdict.FAILED:
            raise PreconditionFailed(f'the {what} has the ETag "{validators.etag}", and a condition wants another one')
        case Verdict.NOT_MODIFIED:
            audit.served(How.NOT_MODIFIED)
            headers = {"ETag": quote_etag(validators.etag), "Cache-Control": cache}
            answer = Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
            del answer.headers["Content-Type"]
            return answer


def asked_span(asked: Asked, validators: Validators, size: int) -> Span | None:
    """Return the part that is asked for, None for the whole. Raises RequestedRangeNotSatisfiable."""
    try:
        return span(asked, validators, size)
    except NotSatisfiable:
        raise RequestedRangeNotSatisfiable(size, description=f"there are {size} bytes") from None


def answer(body: Iterable[bytes], headers: Headers, part: Span | None) -> Response:
    """Answer with `body`, which is `part` of what `headers` tell of, or the whole."""
    if part is None:
        return Response(body, headers=headers, direct_passthrough=True)
    headers["Content-Range"] = part.content_range
    headers["Content-Length"] = str(part.length)
    return Response(body, HTTPStatus.PARTIAL_CONTENT, headers, direct_passthrough=True)


def stored(
    storage: Storage | None,
    path: str,
    size: int,
    headers: Headers,
    *,
    part: Span | None,
    read: Callable[[int, int], Iterator[bytes]],
    what: str,
) -> Response:
    """Answer with `part` of a blob of `size` bytes, or with all of it.

    The kernel sends it where `storage` has it as a file; else `read` returns so many bytes from an offset.
    """
    audit.served(How.STORED if part is None else How.RANGE)
    offset, length = (0, size) if part is None else (part.offset, part.length)
    file = None if storage is None else storage.local_path(path)
    body = None if file is None else sent_by_server(file, offset, length, request.environ, what=what)
    if body is None:
        body = whole_or_cut(read(offset, length), request.environ, what=what, has_length=True)
    return answer(body, headers, part)


def by_proxy(settings: Settings, storage: Storage, path: str, headers: Headers) -> Response | None:
    """Have the server before us send a blob from its disk; None where it cannot."""
    if settings.accel_redirect is None or storage.local_path(path) is None:
        return None
    audit.served(How.REDIRECTED)
    headers["X-Accel-Redirect"] = settings.accel_redirect + quote(path)
    del headers["Content-Length"]
    return Response(headers=headers)


def by_storage(
    settings: Settings,
    storage: Storage,
    path: str,
    headers: Headers,
    *,
    status: HTTPStatus,
    namespace: str,
    file_name: str | None = None,
    media_type: str | None = None,
) -> Response | None:
    """Send who asks to the storage itself; None where that gives out no URLs, or is not to.

    `namespace` is whose repository the blob is asked of.
    """
    if settings.proxy_storage:
        return None
    url = storage.direct_download_url(
        path,
        seconds=settings.url_seconds,
        file_name=file_name,
        media_type=media_type,
        recipient=Recipient(request.remote_addr, request.host, namespace),
    )
    if url is None:
        return None
    audit.served(How.REDIRECTED)
    kept = [(name, value) for name, value in headers if name not in _ABOUT_THE_BYTES]
    # The URL is good for a while and for everybody who has it.
    return Response(status=status, headers=[("Location", url), ("Cache-Control", "no-store"), *kept])
