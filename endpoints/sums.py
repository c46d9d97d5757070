"""Checksums by the folder: `SHA256SUMS` beside the images of a repository, and its signatures, as systemd wants them.

The law: it lists what is kept, each under the last part of its URL, which is the tag; so a line says what is got there
now, and what a tag meant before is in none. What is being made when it is asked for is waited for, as long as anybody
is, because systemd asks for image, list and signature at once.

`systemd-pull` first asks for the image's own `.sha256`, and compares by the last part of the URL, where people have the
name that the file is saved under; signed it would have to be in a third form. So it is told that there is none, and
takes the list.
"""

import hashlib
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from flask import Response, request
from werkzeug.datastructures import Headers
from werkzeug.http import quote_etag

from data.derivedimages import DerivedRecord, State
from endpoints import sending
from endpoints.access import everything
from endpoints.delivery import SIGNATURE_TYPE, ChecksumUnknown, Delivery, SignerNotFound
from endpoints.derive import Deriver, Wish
from endpoints.services import Services
from endpoints.serving import Asked, Validators, checksum_line
from util.problem import Damaged, Malformed, Missing, Unsupported

log = logging.getLogger(__name__)

SUMS = "SHA256SUMS"
NAMES = {SUMS: None, f"{SUMS}.gpg": False, f"{SUMS}.asc": True}
"""The list, and its detached signatures: whether they are in ASCII armour."""

_SYSTEMD = "systemd-pull/"
_LOOKUPS = 8
_PAGE = 1000
_PAUSE = 0.5
_WAITING = threading.BoundedSemaphore(8)  # requests of one process: its other threads are for everybody else


def answer(services: Services, name: str, wish: Wish) -> Response:
    """Answer with the list of what is kept, of `wish`'s verb in its repository, or with a signature of that list.

    `name` is one of NAMES. Whoever asks may read the repository. Raises SignerNotFound, SigningFailed.
    """
    armoured, signer = NAMES[name], services.signer
    if armoured is not None and signer is None:
        raise SignerNotFound("this registry signs nothing: SIGNING_ENGINE is not set")
    if _WAITING.acquire(blocking=False):
        try:
            _wait(services, wish)
        finally:
            _WAITING.release()
    content = _list(services, wish)
    validators = Validators(hashlib.sha256(content).hexdigest() + name.removeprefix(SUMS))
    media_type = "text/plain; charset=utf-8"
    if armoured is None or signer is None:
        decided = sending.by_conditions(Asked.of(request.method, request.headers.get), validators, what="list")
        if decided is not None:
            return decided
    else:
        content, media_type = signer.sign([content], armoured=armoured).content, SIGNATURE_TYPE
    headers = Headers({"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"})
    if armoured is None:
        headers["ETag"] = quote_etag(validators.etag)
    return Response(content, headers=headers, content_type=media_type)


def checksum(delivery: Delivery) -> Response:
    """Answer with the image's checksum; to systemd, that it is in the list. Raises ChecksumUnknown, and as there."""
    if _of_systemd():
        delivery.makings.start(delivery.image, asked_by=delivery.asked_by)
        raise ChecksumUnknown(f"the checksum of {delivery.image} is in {SUMS}, for systemd")
    told = delivery.checksum()
    told.vary.add("User-Agent")
    return told


def _of_systemd() -> bool:
    return request.user_agent.string.startswith(_SYSTEMD)


def _wait(services: Services, wish: Wish) -> None:
    """Wait until nothing of the list is being made, as long as the settings say."""
    end = time.monotonic() + services.settings.pull_seconds
    if _of_systemd():
        time.sleep(min(_PAUSE, services.settings.pull_seconds))  # until what it has asked for just now is known of
    while time.monotonic() < end and any(record.lease_live for record in _records(services, wish, State.GENERATING)):
        time.sleep(_PAUSE)


def _list(services: Services, wish: Wish) -> bytes:
    kept = {record.key: record for record in _records(services, wish, State.COMPLETE)}
    deriver = Deriver(replace(services, permission=everything))  # they have been asked for permission

    def line(reference: str) -> str:
        try:
            record = kept.get(deriver.resolve(replace(wish, reference=reference)).key)
        except (Missing, Unsupported, Malformed, Damaged) as problem:
            log.info("%s is not in the list: %s", reference, problem)
            return ""
        return "" if record is None or record.sha256 is None else checksum_line(record.sha256, reference)

    references = sorted({record.reference for record in kept.values()})
    with ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="sums") as pool:
        return "".join(pool.map(line, references)).encode()


def _records(services: Services, wish: Wish, state: State) -> list[DerivedRecord]:
    records: list[DerivedRecord] = []
    after = None
    while page := services.derived.list(
        namespace=wish.namespace,
        repository=wish.repository,
        verb=wish.verb,
        state=state,
        after=after,
        limit=_PAGE,
    ):
        records += page
        after = page[-1].key
    return records
