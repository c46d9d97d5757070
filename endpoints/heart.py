"""The heart of a process that makes images: keeps up the leases of what is being made, and notes what was fetched.

The law: a lease that is not beaten runs out, and a making that hears that its lease is another's is told at once. The
thread is there while there is something to do, and ends by itself.
"""

import logging
import threading
from collections.abc import Callable

from data.derivedimages import DerivedImages
from endpoints.maker import Maker

log = logging.getLogger(__name__)

_BEATS = 4
"""In the time that a lease lasts."""


class Heart:
    """Beats for what `makers` returns. Safe to use from several threads."""

    def __init__(self, rows: DerivedImages, makers: Callable[[], list[Maker]]) -> None:
        self._rows, self._makers = rows, makers
        self._lock = threading.Lock()
        self._fetched: set[str] = set()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """See to it that it beats. Raises RuntimeError where there are no more threads."""
        with self._lock:
            if self._thread is None and not self._stopped.is_set():
                thread = threading.Thread(target=self._run, name="making heart", daemon=True)
                thread.start()
                self._thread = thread

    def fetched(self, key: str) -> None:
        """Have it noted, within some beats, that the derived image `key` was fetched."""
        with self._lock:
            self._fetched.add(key)
        self.start()

    def stop(self, timeout: float) -> None:
        """Beat no more, and note what is to be noted. Idempotent."""
        self._stopped.set()
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        self._note()

    def _run(self) -> None:
        while not self._stopped.wait(self._rows.lease_seconds / _BEATS):
            with self._lock:
                makers = self._makers()
                if not makers and not self._fetched:
                    self._thread = None
                    return
            self._beat(makers)
            self._note()

    def _beat(self, makers: list[Maker]) -> None:
        beating = {maker: progress for maker in makers if (progress := maker.progress) is not None}
        try:
            held = self._rows.beat(dict(beating.values()))
        except Exception as error:  # noqa: BLE001 a lease outlives some beats
            log.warning("leases cannot be kept up: %s", error)
            return
        for maker, (token, _) in beating.items():
            if token not in held:
                maker.lost()

    def _note(self) -> None:
        with self._lock:
            keys, self._fetched = self._fetched, set()
        if not keys:
            return
        try:
            self._rows.fetched(keys)
        except Exception as error:  # noqa: BLE001 it is only when they were fetched last
            log.warning("that %d images were fetched cannot be noted: %s", len(keys), error)
