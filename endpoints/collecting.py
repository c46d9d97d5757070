"""The collector in the background of a server: every now and then, by one process of a machine at a time.

The law: nothing here starts by itself, and no failure ends it. Where processes cannot heed each other, all collect:
that costs look-ups and harms nothing.
"""

import fcntl
import logging
import math
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from endpoints.collector import Collector, Report, collector_of
from endpoints.services import Services

log = logging.getLogger(__name__)

_CHANCE = random.SystemRandom()  # a thread of ours leaves the sequence of `random` to who has seeded it


class Collecting:
    """Collects every now and then, on a thread of this process.

    Of the processes that share the file `turns` one collects at a time, and none when another has lately.
    """

    def __init__(self, collector: Collector, *, seconds: float, turns: str) -> None:
        """`seconds` are from one collection to the next, 0: none. No thread is started yet."""
        self._collector, self._seconds, self._turns = collector, seconds, turns
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> None:
        """Begin. In a read-only registry, or where it is turned off, nothing happens."""
        if self._seconds and not self._collector.storage.readonly:
            self._thread.start()

    def stop(self) -> None:
        """End; a collection that runs is not waited for, and harms nothing when it is cut off."""
        self._stopping.set()

    def _run(self) -> None:
        last: float | None = None
        # Each process looks often, and not when the others do, so that one is missed by nobody when it ends.
        while not self._stopping.wait(self._seconds * _CHANCE.uniform(0.05, 0.15)):
            if last is not None and time.monotonic() - last < self._seconds:
                continue
            try:
                with _turn(self._turns, self._seconds) as ours:
                    if ours:
                        last = time.monotonic()
                        _log(self._collector.collect())
            except Exception:
                log.exception("what is kept of derived images could not be bounded")


def _log(report: Report) -> None:
    log.info("%s", report.summary)
    for finding in report.dropped:
        log.debug("dropped, %s: %s", finding.reason, finding.what)
    for failure in report.failures:
        log.warning("%s", failure)


@contextmanager
def _turn(file: str, seconds: float) -> Iterator[bool]:
    """Tell whether it is this process's turn: nobody else's now, and nobody's in the last `seconds`."""
    try:
        os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:  # nothing to share: two at once harm nothing
        log.warning("other processes of this host are not heeded: %s", error)
        yield True
        return
    try:
        ours = _locked(descriptor) and not 0 <= time.time() - _told(os.pread(descriptor, 32, 0)) < seconds
        yield ours
        if ours:
            os.ftruncate(descriptor, 0)
            # To the last digit: one that is rounded up lies ahead, and what lies ahead nobody can have had.
            os.pwrite(descriptor, repr(time.time()).encode(), 0)
    finally:
        os.close(descriptor)  # and with it the lock


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _told(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return -math.inf


def collecting(services: Services) -> Collecting:
    """Return what collects in the background of a server, as often as the settings say; it has not begun."""
    turns = os.path.join(services.settings.data_dir, "collector.turns")
    return Collecting(collector_of(services), seconds=services.settings.gc_seconds, turns=turns)
