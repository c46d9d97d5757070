"""What goes on behind the answers of a server: jobs are run and new tags are looked at, by one process of a machine.

The law: nothing here starts by itself. Of the processes that share a data folder and a database one has the lock and
works; when it ends, however that comes about, another takes its place.
"""

import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from endpoints.jobpool import Ended, MakeServices
from endpoints.jobrunner import JobRunner
from endpoints.priming import Tell, Watch
from endpoints.services import Services
from endpoints.teamsyncing import sync_stale, syncs
from util.problem import Problem

log = logging.getLogger(__name__)

_ELECTION_SECONDS = 2.0
_STOP_SECONDS = 10.0

_running: "set[Background]" = set()


class Background:
    """The threads that make derived images ahead. One in a process is enough."""

    def __init__(self, services: Services, make_services: MakeServices, *, ended: Ended | None = None) -> None:
        self._services, self._make_services, self._ended = services, make_services, ended
        self._stopping = threading.Event()
        self._runner: JobRunner | None = None
        self._thread = threading.Thread(target=self._work, name="background", daemon=True)

    def start(self) -> None:
        """Begin to stand by, and to work as soon as no other process of this machine does."""
        _running.add(self)
        self._thread.start()

    def stop(self) -> None:
        """Give up what runs, and wait until it has ended. Idempotent."""
        self._stopping.set()
        runner = self._runner
        if runner is not None:
            runner.stop()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)
        _running.discard(self)

    def _work(self) -> None:
        try:
            with _elected(self._services, self._stopping) as elected:
                if elected:
                    self._work_alone()
        except Exception:
            log.exception("nothing is made ahead any more by this process")

    def _work_alone(self) -> None:
        settings = self._services.settings
        self._runner = JobRunner(
            self._services.jobs, self._make_services, processes=settings.job_processes, ended=self._ended
        )
        watching = watch(self._services, lambda _: None, self._stopping)
        if self._stopping.is_set():  # since before there was a runner that it could have stopped
            self._runner.stop()
        self._runner.serve()
        for thread in watching:
            thread.join(_STOP_SECONDS)


def stop_all() -> None:
    """Stop what runs behind the answers of this process; for a server's hook at a worker's end."""
    for background in tuple(_running):
        background.stop()


def watch(services: Services, tell: Tell, stopping: threading.Event) -> Sequence[threading.Thread]:
    """Look at new tags until `stopping`, if there are rules for them, and at groups, if teams are synced with some.

    Returns the threads that do.
    """
    threads = []
    if services.settings.prime:
        threads.append(_priming(services, tell, stopping))
    if syncs(services):
        threads.append(_syncing(services, stopping))
    for thread in threads:
        thread.start()
    return threads


def _priming(services: Services, tell: Tell, stopping: threading.Event) -> threading.Thread:
    looking = Watch(services, tell)

    def look() -> None:
        while True:
            regularly(looking.look, "new tags are not looked at")
            if stopping.wait(services.settings.prime_seconds):
                return

    return threading.Thread(target=look, name="watch", daemon=True)


def _syncing(services: Services, stopping: threading.Event) -> threading.Thread:
    """Return the thread, not yet begun, that brings teams in line with groups until `stopping`."""

    def work() -> None:
        while True:
            regularly(lambda: sync_stale(services), "teams are not brought in line with groups")
            if stopping.wait(services.settings.authentication.sync_seconds):
                return

    return threading.Thread(target=work, name="team-sync", daemon=True)


def regularly(work: Callable[[], object], otherwise: str) -> None:
    """Do `work`; that it fails is logged, and the next time comes."""
    try:
        work()
    except Problem as problem:
        log.warning("%s: %s", otherwise, problem)
    except Exception:
        log.exception("%s", otherwise)


@contextmanager
def _elected(services: Services, stopping: threading.Event) -> Iterator[bool]:
    """Wait until this process is the one that works, and stay it within the context. False when `stopping` comes first.

    Where there can be no lock everybody works; that is only more looks at the same rows.
    """
    settings = services.settings
    database = hashlib.sha256(settings.own_db_uri.encode()).hexdigest()[:8]
    path = os.path.join(settings.data_dir, f"background-{database}.lock")
    try:
        os.makedirs(settings.data_dir, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        log.warning("%s cannot be made (%s): every process makes images ahead", path, error.strerror)
        yield True
        return
    try:
        yield _locked(descriptor, stopping)
    finally:
        os.close(descriptor)  # and with it the lock


def _locked(descriptor: int, stopping: threading.Event) -> bool:
    while not stopping.is_set():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            stopping.wait(_ELECTION_SECONDS)
    return False
