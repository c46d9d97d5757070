"""Signatures of derived images: made once, by whoever has made the image, and by whoever is asked for one there is not.

The law: what is signed is what lies in storage, read back whole and held against the SHA-256 that it was stored with;
so a signature is of the exact bytes that are served, or there is none. It is made beside everything else, after the
image is there for all: gpg hashes no faster than an image is made, and would hold up who waits for it. A signature that
cannot be made is an error to who asks for it, and is never left out in silence.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from data.derivedimages import DerivedRecord, State
from data.signatures import KeptSignature, Signatures
from endpoints.signer import Signer, SigningFailed
from endpoints.streams import Stream
from util.digest import Digest, verified
from util.problem import Problem

if TYPE_CHECKING:
    from data.derivedimages import DerivedImages

log = logging.getLogger(__name__)

_AT_ONCE = 2  # signatures of one process: each keeps a processor busy
_WAITING = 8  # requests of one process that wait at a time: its other threads are for everybody else


class NothingToSign(Problem):
    """A derived image that was dropped, or has changed, while it was to be signed."""

    code = "NOTHING_TO_SIGN"


class Signing:
    """Signs what one process makes, or is asked for. Safe for several threads, and to be made before a fork."""

    def __init__(
        self, signer: Signer, rows: Signatures, images: "DerivedImages", read: Callable[[DerivedRecord], Stream]
    ) -> None:
        """`read` gives the stored bytes of a complete image."""
        self.signer = signer
        self._rows, self._images, self._read = rows, images, read
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._works: dict[str, _Work] = {}
        self._turns = threading.BoundedSemaphore(_AT_ONCE)
        self._waiting = threading.BoundedSemaphore(_WAITING)

    def find(self, record: DerivedRecord) -> KeptSignature | None:
        """Return the signature of the complete image `record` by the key that signs now, None where there is none yet.

        Raises SigningFailed where that key is not known, and DatabaseUnavailable.
        """
        return self._rows.find(record, self.signer.fingerprint)

    def begin(self, key: str) -> "_Work":
        """Have the complete image `key` signed, unless that is being done. What goes wrong is logged, and counted."""
        if self._process != os.getpid():  # threads do not come along through a fork
            self._begin_anew()
        with self._lock:
            work = self._works.get(key)
            if work is None:
                work = self._works[key] = _Work(key)
                thread = threading.Thread(target=self._run, args=(work,), name=f"signing {key[:12]}", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no more threads; or the interpreter is on its way out
                    del self._works[key]
                    work.end(error)
            return work

    def wait(self, record: DerivedRecord, seconds: float) -> KeptSignature | None:
        """Return the signature of the complete image `record`, None where it takes longer than `seconds`.

        It is made where it has to be. Raises SigningFailed, NothingToSign, and what storage and database raise.
        """
        work = self.begin(record.key)
        if self._waiting.acquire(blocking=False):
            try:
                work.done.wait(seconds)
            finally:
                self._waiting.release()
        return work.outcome() if work.done.is_set() else None

    def close(self, seconds: float) -> None:
        """Wait for what is being signed, at most so long; what is not signed then is signed when it is asked for."""
        if self._process != os.getpid():
            return
        end = time.monotonic() + seconds
        for work in list(self._works.values()):
            work.done.wait(max(end - time.monotonic(), 0))

    def _run(self, work: "_Work") -> None:
        try:
            with self._turns:
                work.end(self._signed(work.key))
        except Exception as error:
            work.end(error)
            log.error("%s is not signed: %s", work.key, error, exc_info=not isinstance(error, Problem))  # noqa: TRY400
            if not isinstance(error, SigningFailed):  # which are counted there
                from endpoints import metrics

                metrics.signing_failed()
        finally:
            with self._lock:
                self._works.pop(work.key, None)

    def _signed(self, key: str) -> KeptSignature:
        record = self._images.find(key)
        if record is None or record.state is not State.COMPLETE or record.sha256 is None:
            raise NothingToSign(f"the derived image {key} is not there any more")
        found = self.find(record)
        if found is not None:  # another process was faster
            return found
        began = time.monotonic()
        with closing(self._read(record).chunks) as chunks:
            signature = self.signer.sign(
                verified(chunks, Digest("sha256", record.sha256), size=record.size, what="the stored image")
            )
        kept = self._rows.add(record, signature.fingerprint, signature.content.decode())
        if kept is None:
            raise NothingToSign(f"the derived image {key} was dropped while it was signed")
        log.info("%s is signed: %d bytes in %.1f s", record.file_name, record.size, time.monotonic() - began)
        return kept


class _Work:
    """One image that is being signed, or was."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.done = threading.Event()
        self._outcome: KeptSignature | Exception | None = None

    def end(self, outcome: KeptSignature | Exception) -> None:
        self._outcome = outcome
        self.done.set()

    def outcome(self) -> KeptSignature:
        """Return the signature, or raise why there is none."""
        if isinstance(self._outcome, KeptSignature):
            return self._outcome
        raise self._outcome or NothingToSign(f"{self.key} is not signed")
