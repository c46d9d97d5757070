"""How an image comes to who asked for it: whole or in part, from its making, its plan, its file, or from elsewhere.

The law: a HEAD is a GET without its body, and never makes anything; where a GET is sent elsewhere, the HEAD tells what
will come, because the URL it would be sent to is good for a GET alone. The ETag names the bytes, made or not, so it is
strong, and a part of what is not made yet is a part of what will be. An answer that has begun is finished or cut.

Nobody is sent elsewhere who would come there with what is meant for us: credentials, which S3 takes for an error, or
validators (serving.py).
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from flask import Response, json, request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.http import http_date, quote_etag

from data.owntables import DatabaseUnavailable
from data.storage.base import BlobNotFound
from endpoints import audit, sending
from endpoints.audit import How
from endpoints.derive import DerivedImage, Deriver
from endpoints.making import Busy, Live, Makings, Stored
from endpoints.services import Services
from endpoints.serving import Asked, Span, Validators, checksum_line, repr_digest, wants_part
from endpoints.streams import Stream, close
from endpoints.wire import part_of, whole_or_cut
from util.compression import Compression
from util.problem import Missing

if TYPE_CHECKING:
    from data.derivedimages import DerivedRecord

CHECKSUM = ".sha256"
"""What stands after the path of an image in that of its checksum, and after its name in the checksum's own."""

SIGNATURE = ".asc"
"""What stands there in that of its signature."""

SIGNATURE_TYPE = "application/pgp-signature"
PUBLIC_KEY_TYPE = "application/pgp-keys"

_RETRY_SECONDS = 5


class SignerNotFound(Missing):
    """A signature that is asked for where nothing is signed."""

    code = "SIGNER_UNKNOWN"


class SignatureUnknown(Missing):
    """The signature of an image that is not signed, in a registry that signs nothing any more."""

    code = "SIGNATURE_UNKNOWN"


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
            decided = sending.by_conditions(asked, Validators(self.image.etag))
            if decided is not None:
                return decided
        record = self.makings.stored(self.image)
        validators = self._validators(record)
        decided = sending.by_conditions(asked, validators)
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
            self._check_comes(ChecksumUnknown, "its checksum is unknown")
            return self._to_come()
        validators = self._validators(record, suffix=CHECKSUM)
        decided = sending.by_conditions(Asked.of(request.method, request.headers.get), validators)
        if decided is not None:
            return decided
        name = self.image.file_name
        headers = _headers(validators, name + CHECKSUM, "text/plain; charset=utf-8")
        return Response(checksum_line(record.sha256, name), headers=headers)

    def signature(self) -> Response:
        """Answer with the image's detached signature in ASCII armour; until there is one, with how far its making is.

        Raises SignerNotFound, SignatureUnknown, and SigningFailed where there can be none; and as `answer` does.
        """
        signing, settings = self.makings.signing, self.services.settings
        if signing is None:
            raise SignerNotFound("this registry signs nothing: SIGNING_ENGINE is not set")
        record = self.makings.stored(self.image)
        kept = None if record is None else signing.find(record)
        if kept is None:
            if record is not None and settings.readonly:
                raise SignatureUnknown(f"{self.image} is not signed, and the registry is read-only")
            self._check_comes(SignatureUnknown, "it is not signed")
            if (trouble := signing.signer.trouble) is not None:  # nobody is to wait for what will not come
                raise trouble
            if request.method == "GET":
                record = self.makings.start(self.image, asked_by=self.asked_by)
                kept = None if record is None else signing.wait(record, settings.pull_seconds)
        if kept is None:
            return self._to_come()
        etag = f"{self.image.etag}-{kept.created_ms}{SIGNATURE}"
        validators = Validators(etag, kept.created_ms // 1000)
        decided = sending.by_conditions(Asked.of(request.method, request.headers.get), validators)
        if decided is not None:
            return decided
        headers = _headers(validators, self.image.file_name + SIGNATURE, SIGNATURE_TYPE)
        return Response(kept.armoured, headers=headers)

    # --- What is not there yet ---

    def _planned(self, asked: Asked, validators: Validators) -> Response | None:
        """Answer with the part that is asked for, out of the layers it lies in; None where the making is as good.

        That is where the part is all or takes all, and where it is made already and can be followed.
        """
        part: Span | None = None

        def generate() -> Stream | None:
            nonlocal part
            plan = Deriver(self.services).plan(self.image)
            part = None if plan is None else sending.asked_span(asked, validators, plan.size)
            if plan is None or part is None or part.length == plan.size or plan.needs_all(part.offset, part.length):
                return None
            reached = self.makings.reached(self.image)
            return None if reached is not None and reached > part.offset else plan.stream(part.offset, part.length)

        if self.image.wrapping is not Compression.NONE:
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
            part = sending.asked_span(asked, self._validators(None), live.size)
        except RequestedRangeNotSatisfiable:
            close(live.chunks)
            raise
        chunks = live.chunks if part is None else part_of(live.chunks, part.offset, part.length)
        return self._body(chunks, self._headers(None, live.size), part)

    def _check_comes(self, unknown: type[Missing], text: str) -> None:
        """Raise `unknown` where the image will not be stored, because the registry is read-only."""
        if self.services.settings.readonly:
            record = self._record()
            if record is None or not record.lease_live:
                raise unknown(f"{self.image} is not stored, and the registry is read-only: {text}")

    def _record(self) -> "DerivedRecord | None":
        with contextlib.suppress(DatabaseUnavailable):
            return self.services.derived.find(self.image.key)
        return None

    def _to_come(self) -> Response:
        """Answer with how far the making is."""
        record = self._record()
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
        part = sending.asked_span(asked, self._validators(record), size)
        headers = self._headers(record, size)
        elsewhere = None if asked.of_us else self._elsewhere(record, headers)
        if elsewhere is not None:
            return elsewhere
        return sending.stored(
            self.services.storage.preferred,
            record.path,
            size,
            headers,
            part=part,
            read=lambda offset, length: self.makings.read(record, offset=offset, length=length).chunks,
            what=f"the stored {self.image}",
        )

    def _elsewhere(self, record: "DerivedRecord", headers: Headers) -> Response | None:
        """Have another one send the stored image: the storage itself, or the server before us from its disk."""
        settings, storage = self.services.settings, self.services.storage.preferred
        by_proxy = sending.by_proxy(settings, storage, record.path, headers)
        wanted = "Authorization" not in request.headers if self.redirect is None else self.redirect
        if by_proxy is not None or not wanted:
            return by_proxy
        return sending.by_storage(
            settings,
            storage,
            record.path,
            headers,
            status=HTTPStatus.FOUND,
            namespace=self.image.source.namespace,
            file_name=self.image.file_name,
            media_type=self.image.media_type,
        )

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
        return sending.answer(body, headers, part)


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


def _size(record: "DerivedRecord") -> int:
    return cast("int", record.size)  # what is complete has one
