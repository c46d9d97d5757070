"""How an image comes to who asked for it: whole or in part, from its making, its plan, its file, or from elsewhere.

The law: a HEAD is a GET without its body, and never makes anything; where a GET is sent elsewhere, the HEAD tells what
will come, because the URL it would be sent to is good for a GET alone. The ETag names the bytes, made or not, so it is
strong, and a part of what is not made yet is a part of what will be. An answer that has begun is finished or cut.

Nobody is sent elsewhere who would come there with what is meant for us: credentials, which S3 takes for an error, or
validators (serving.py).
"""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

from flask import Response, json, request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import PreconditionFailed, RequestedRangeNotSatisfiable
from werkzeug.http import http_date, quote_etag

from data.owntables import DatabaseUnavailable
from data.storage.base import BlobNotFound
from endpoints import audit
from endpoints.audit import How
from endpoints.derive import DerivedImage, Deriver
from endpoints.making import Busy, Live, Makings, Stored
from endpoints.services import Services
from endpoints.serving import (
    Asked,
    NotSatisfiable,
    Span,
    Validators,
    Verdict,
    checksum_line,
    repr_digest,
    span,
    verdict,
    wants_part,
)
from endpoints.streams import Stream, close
from endpoints.wire import part_of, sent_by_server, whole_or_cut
from util.compression import Compression
from util.problem import Missing

if TYPE_CHECKING:
    from data.derivedimages import DerivedRecord

CHECKSUM = ".sha256"
"""What stands after the path of an image in that of its checksum, and after its name in the checksum's own."""

_URL_SECONDS = 600
_RETRY_SECONDS = 5


class ChecksumUnknown(Missing):
    """The checksum of an image that is not stored, in a registry that stores none."""

    code = "CHECKSUM_UNKNOWN"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One image, for the request that is being answered. `redirect` is what its sender says of being sent elsewhere."""

    services: Services
    makings: Makings
    image: DerivedImage
    redirect: bool | None = None
    asked_by: str | None = None

    def answer(self) -> Response:
        """Answer with the image. Raises what makes the answer an error, before anything of it is sent."""
        asked = Asked.of(request.method, request.headers.get)
        if not asked.dated:  # the tag decides, and what is stored need not be looked up
            decided = _by_conditions(asked, Validators(self.image.etag))
            if decided is not None:
                return decided
        record = self.makings.stored(self.image)
        validators = self._validators(record)
        decided = _by_conditions(asked, validators)
        if decided is not None:
            return decided
        if request.method == "HEAD":
            return self._head(record)
        if record is None and wants_part(asked, validators):
            planned = self._planned(asked, validators)
            if planned is not None:
                return planned
        serving = self.makings.open(self.image, asked_by=self.asked_by)
        if isinstance(serving, Stored):
            with contextlib.suppress(BlobNotFound):
                return self._stored(serving, asked)
            serving = self.makings.open(self.image, asked_by=self.asked_by)  # it was dropped just now
        return self._stored(serving, asked) if isinstance(serving, Stored) else self._live(serving, asked)

    def checksum(self) -> Response:
        """Answer with the image's SHA-256 as `sha256sum` writes it; until it is known, with how far its making is.

        Raises ChecksumUnknown, and as `answer` does.
        """
        record = self.makings.stored(self.image)
        if record is None and request.method == "GET":
            record = self.makings.start(self.image, asked_by=self.asked_by)
        if record is None or record.sha256 is None:
            return self._checksum_to_come()
        validators = self._validators(record, suffix=CHECKSUM)
        decided = _by_conditions(Asked.of(request.method, request.headers.get), validators)
        if decided is not None:
            return decided
        name = self.image.file_name
        headers = _headers(validators, name + CHECKSUM, "text/plain; charset=utf-8")
        return Response(checksum_line(record.sha256, name), headers=headers)

    # --- What is not there yet ---

    def _planned(self, asked: Asked, validators: Validators) -> Response | None:
        """Answer with the part that is asked for, out of the layers it lies in; None where the making is as good.

        That is where the part is all or takes all, and where it is made already and can be followed.
        """
        part: Span | None = None

        def generate() -> Stream | None:
            nonlocal part
            plan = Deriver(self.services).plan(self.image)
            part = None if plan is None else _span(asked, validators, plan.size)
            if plan is None or part is None or part.length == plan.size or plan.needs_all(part.offset, part.length):
                return None
            reached = self.makings.reached(self.image)
            return None if reached is not None and reached > part.offset else plan.stream(part.offset, part.length)

        if self.image.compression is not Compression.NONE:
            return None
        try:
            stream = self.makings.apart(generate)
        except Busy:
            if self.makings.reached(self.image) is None:
                raise
            return None
        if stream is None or part is None:
            return None
        audit.served(How.PLANNED)
        return self._body(stream.chunks, self._headers(None, part.size), part)

    def _live(self, live: Live, asked: Asked) -> Response:
        audit.served(live.how.value)
        if live.size is None:
            return self._body(live.chunks, self._headers(None, None), None)
        try:
            part = _span(asked, self._validators(None), live.size)
        except RequestedRangeNotSatisfiable:
            close(live.chunks)
            raise
        chunks = live.chunks if part is None else part_of(live.chunks, part.offset, part.length)
        return self._body(chunks, self._headers(None, live.size), part)

    def _checksum_to_come(self) -> Response:
        record = None
        with contextlib.suppress(DatabaseUnavailable):
            record = self.services.derived.find(self.image.key)
        if self.services.settings.readonly and not (record is not None and record.lease_live):
            raise ChecksumUnknown(f"{self.image} is not stored, and the registry is read-only: its checksum is unknown")
        status = {
            "state": "absent" if record is None else record.state,
            "bytes_done": 0 if record is None else record.bytes_done,
            "bytes_total": None if record is None else record.bytes_total,
            "attempts": 0 if record is None else record.attempts,
            "reason": None if record is None else record.reason,
        }
        answer = Response(json.dumps(status) + "\n", HTTPStatus.ACCEPTED, content_type="application/json")
        answer.headers["Retry-After"] = str(_RETRY_SECONDS)
        answer.headers["Cache-Control"] = "no-store"
        answer.headers["X-Content-Type-Options"] = "nosniff"
        return answer

    # --- What is stored ---

    def _stored(self, stored: Stored, asked: Asked) -> Response:
        record = stored.record
        size = _size(record)
        part = _span(asked, self._validators(record), size)
        headers = self._headers(record, size)
        elsewhere = None if asked.of_us else self._elsewhere(record, headers)
        if elsewhere is not None:
            return elsewhere
        audit.served(How.STORED if part is None else How.RANGE)
        offset, length = (0, size) if part is None else (part.offset, part.length)
        path = self.services.storage.preferred.local_path(record.path)
        what = f"the stored {self.image}"
        body = None if path is None else sent_by_server(path, offset, length, request.environ, what=what)
        if body is not None:
            return _answer(body, headers, part)
        return self._body(self.makings.read(record, offset=offset, length=length).chunks, headers, part)

    def _elsewhere(self, record: "DerivedRecord", headers: Headers) -> Response | None:
        """Have another one send the stored image: the storage itself, or the server before us from its disk."""
        settings, storage = self.services.settings, self.services.storage.preferred
        if settings.accel_redirect is not None and storage.local_path(record.path) is not None:
            audit.served(How.REDIRECTED)
            headers["X-Accel-Redirect"] = settings.accel_redirect + quote(record.path)
            del headers["Content-Length"]
            return Response(headers=headers)
        wanted = "Authorization" not in request.headers if self.redirect is None else self.redirect
        if settings.proxy_storage or not wanted:
            return None
        url = storage.direct_download_url(
            record.path,
            seconds=_URL_SECONDS,
            file_name=self.image.file_name,
            media_type=self.image.media_type,
        )
        if url is None:
            return None
        audit.served(How.REDIRECTED)
        sent = {"Content-Type", "Content-Length", "Content-Disposition", "Accept-Ranges", "Cache-Control"}
        kept = [(name, value) for name, value in headers if name not in sent]
        # The URL is good for a while and for everybody who has it.
        return Response(status=HTTPStatus.FOUND, headers=[("Location", url), ("Cache-Control", "no-store"), *kept])

    # --- Headers ---

    def _head(self, record: "DerivedRecord | None") -> Response:
        size = Deriver(self.services).planned_size(self.image) if record is None else _size(record)
        return Response(iter(()), headers=self._headers(record, size), direct_passthrough=True)

    def _validators(self, record: "DerivedRecord | None", *, suffix: str = "") -> Validators:
        etag = self.image.etag + suffix
        if record is None or record.completed_ms is None:
            return Validators(etag)
        # A tag that goes back to an older image gives something new; and no date is in the future (RFC 9110, 8.8.2.1).
        return Validators(etag, min(max(record.completed_ms, self.image.tagged_ms or 0) // 1000, int(time.time())))

    def _headers(self, record: "DerivedRecord | None", size: int | None) -> Headers:
        """Return the headers of the whole image, of `size` bytes where that is known; `record` says it is stored."""
        headers = _headers(self._validators(record), self.image.file_name, self.image.media_type)
        if size is not None:
            headers["Content-Length"] = str(size)
            headers["Accept-Ranges"] = "bytes"
        if record is not None and record.sha256 is not None:
            headers["Repr-Digest"] = repr_digest(record.sha256)
        return headers

    def _body(self, chunks: Iterator[bytes], headers: Headers, part: Span | None) -> Response:
        has_length = "Content-Length" in headers
        body = whole_or_cut(chunks, request.environ, what=str(self.image), has_length=has_length)
        return _answer(body, headers, part)


def _headers(validators: Validators, file_name: str, media_type: str) -> Headers:
    headers = Headers()
    headers["ETag"] = quote_etag(validators.etag)
    if validators.modified is not None:
        headers["Last-Modified"] = http_date(validators.modified)
    headers["Cache-Control"] = "no-cache"  # a tag moves; the ETag tells whether it has
    headers["Content-Type"] = media_type
    headers["Content-Disposition"] = f'attachment; filename="{file_name}"'
    headers["X-Content-Type-Options"] = "nosniff"
    return headers


def _answer(body: Iterable[bytes], headers: Headers, part: Span | None) -> Response:
    """Answer with `body`, which is `part` of what `headers` tell of, or the whole."""
    if part is None:
        return Response(body, headers=headers, direct_passthrough=True)
    headers["Content-Range"] = part.content_range
    headers["Content-Length"] = str(part.length)
    return Response(body, HTTPStatus.PARTIAL_CONTENT, headers, direct_passthrough=True)


def _by_conditions(asked: Asked, validators: Validators) -> Response | None:
    """Answer that nothing has changed; None where all is to be sent. Raises PreconditionFailed."""
    match verdict(asked, validators):
        case Verdict.SEND:
            return None
        case Verdict.FAILED:
            raise PreconditionFailed(f'the image has the ETag "{validators.etag}", and a condition wants another one')
        case Verdict.NOT_MODIFIED:
            audit.served(How.NOT_MODIFIED)
            headers = {"ETag": quote_etag(validators.etag), "Cache-Control": "no-cache"}
            answer = Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
            del answer.headers["Content-Type"]
            return answer


def _span(asked: Asked, validators: Validators, size: int) -> Span | None:
    """Return the part that is asked for, None for the whole. Raises RequestedRangeNotSatisfiable."""
    try:
        return span(asked, validators, size)
    except NotSatisfiable:
        raise RequestedRangeNotSatisfiable(size, description=f"there are {size} bytes") from None


def _size(record: "DerivedRecord") -> int:
    return cast("int", record.size)  # what is complete has one
