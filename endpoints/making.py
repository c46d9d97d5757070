"""Derived images that are made once: whoever asks first has it made, everybody else follows, afterwards it is a file.

The law: a client gets exactly the right bytes or a cut connection. One making stores, under a lease and at a path of
its own, and a row says that an image is complete only after its object is. A making runs at its own pace and to its
own end, whoever reads of it, slowly or no more; it is read from its spool, so memory does not grow with clients.
"""

import atexit
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from data.derivedimages import DerivedImages, DerivedRecord, Lease, NewDerived, State
from data.storage.base import BlobNotFound
from endpoints import following, spool
from endpoints.heart import Heart
from endpoints.maker import Maker, Nobody, NotKept, Watcher
from endpoints.origins import BytesDiffer, How, Live, Plain, Serving, Source, Spooled, Stored, alone, lasting
from endpoints.signing import Signing
from endpoints.spool import Ending, MakerGone, MakingFailed
from endpoints.streams import Stream, read_through, started
from util.problem import Problem

if TYPE_CHECKING:
    from endpoints.derive import DerivedImage
    from endpoints.services import Services

__all__ = [
    "MAKINGS",
    "Advance",
    "Busy",
    "BytesDiffer",
    "How",
    "Live",
    "Makings",
    "NotKept",
    "Serving",
    "Stored",
    "close_all",
]

log = logging.getLogger(__name__)

MAKINGS = "registry_verbs_makings"
"""Where a Flask application keeps the Makings of its Services."""

CLOSE_SECONDS = 5.0
"""For makings to end with their process."""

_PER_CORE = 2  # makings at once, where the settings do not say
_APPEAR_SECONDS = 3.0  # how long the spool of a making of this host may take to show
_WATCH_SECONDS = 0.25  # between two looks at a making that is waited for


class Busy(Problem):
    """As many images are being made by this process as may be. `retry_after` is in seconds."""

    code = "BUSY"
    retry_after = 10


Advance = Callable[[int, int | None], None]
"""Is told how many bytes are made, and of how many where that is known."""


class Makings:
    """The makings of one process. Safe to use from several threads; nothing runs before something is made.

    It may be made before a fork: what runs stays with the process that began it.
    """

    def __init__(self, services: "Services", *, watcher: Watcher | None = None) -> None:
        from endpoints.derive import Deriver

        settings = services.settings
        self._deriver = Deriver(services)
        self._rows: DerivedImages = services.derived
        self._storage = services.storage.preferred
        self._readonly = settings.readonly
        self._folder = settings.spool_dir
        self._limit = settings.max_makings or _PER_CORE * (os.cpu_count() or 1)
        self._watcher = watcher or Nobody()
        self._host = socket.gethostname()
        signer = services.signer
        self.signing = None if signer is None else Signing(signer, services.signatures, self._rows, self.read)
        self.forget()
        _ALL.add(self)

    def forget(self) -> None:
        """Begin anew, in a process that was forked from another one's: its threads have not come along."""
        self._lock = threading.Lock()
        self._running: dict[str, Maker] = {}
        self._busy = 0
        self._orphaned: set[str] = set()
        self._heart = Heart(self._rows, lambda: list(self._running.values()))
        self._closed = threading.Event()

    # --- For those who ask ---

    def stored(self, image: "DerivedImage") -> DerivedRecord | None:
        """Return the record of `image` where it is complete, None elsewhere. Makes nothing and asks storage nothing.

        For a HEAD and for conditions. A database that fails is logged and has nothing.
        """
        try:
            with self._asking(image):
                record = self._rows.find(image.key)
        except _NotAnswered:
            return None
        return record if record is not None and record.state is State.COMPLETE else None

    def kept(self, key: str) -> DerivedRecord | None:
        """Return the record of a complete image after looking that its object is there, None where it is not.

        It counts as fetched. Raises DatabaseUnavailable and StorageUnavailable.
        """
        record = self._rows.find(key)
        if record is None or record.state is not State.COMPLETE:
            return None
        try:
            return self._checked(record).record
        except (_LookAgain, _NotAnswered):
            return None

    def read(self, record: DerivedRecord, *, offset: int = 0, length: int | None = None) -> Stream:
        """Return `length` bytes from `offset` of a complete image, to its end when None. Raises what storage raises."""
        size = record.size or 0
        length = size - offset if length is None else length
        what = f"the stored {record.verb} of {record.namespace}/{record.repository}:{record.reference}"
        stream = self._storage.open(record.path, offset=offset, length=length)
        return Stream(started(read_through(stream, length, what=what)), length)

    def open(self, image: "DerivedImage", *, asked_by: str | None = None) -> Serving:
        """Return `image` as it is best served now, after beginning to make it where nobody has.

        A Stored one has been looked for: its object is there with its whole length. A Live one has begun: whatever can
        be found before the first byte is raised here, by whichever process it is made. Raises Busy before any work,
        and what Deriver.generate raises. A failing database, storage or spool fails nobody: nothing is kept then.
        """
        found = self._found(image, asked_by)
        if isinstance(found, Stored):
            return found
        source = self._straight(image) if found is None else found
        return Live(lasting(str(image), source, partial(self._gone_on, image, asked_by)), source.size, source.how)

    def stream(self, image: "DerivedImage", *, asked_by: str | None = None) -> Stream:
        """Return the bytes of `image` from wherever `open` finds them. Raises as `open` does."""
        serving = self.open(image, asked_by=asked_by)
        if isinstance(serving, Stored):
            return self.read(serving.record)
        return Stream(serving.chunks, serving.size)

    def start(self, image: "DerivedImage", *, asked_by: str | None = None) -> DerivedRecord | None:
        """Return the record of `image` where it is complete; else see to it that it is being made, and return None.

        None also where nothing is kept: in a read-only registry, or without a database. Raises as `open` does.
        """
        found = self._found(image, asked_by)
        if isinstance(found, Stored):
            return found.record
        if found is not None:
            found.close()
        return None

    def make(
        self, image: "DerivedImage", *, asked_by: str | None = None, progress: Advance | None = None
    ) -> DerivedRecord:
        """Return the record of `image` once it is complete, made by us or by whoever holds the lease.

        What `progress` raises ends the waiting, and the making too where nobody reads of it. Raises as `open` does,
        NotKept where the image could not be stored, and the making's own error.
        """
        tell = progress or (lambda _, __: None)
        while True:
            found = self._found(image, asked_by)
            if isinstance(found, Stored):
                return found.record
            if found is not None:
                self._wait_for(found, tell)
                continue
            maker = self._running.get(image.key)  # one of ours that cannot be followed; it ends after its row says so
            record = None if self._readonly else self._rows.find(image.key)
            if record is None or not (record.lease_live or record.state is State.COMPLETE):
                reason = "" if record is None or record.reason is None else f": {record.reason}"
                raise NotKept(f"{image} cannot be kept{reason}")
            try:
                tell(record.bytes_done, record.bytes_total)
            except BaseException:
                if maker is not None:
                    maker.unwanted()
                raise
            if maker is None:
                time.sleep(_WATCH_SECONDS)
            elif maker.done.wait(_WATCH_SECONDS) and maker.error is not None:
                raise maker.error

    def close(self, *, seconds: float = CLOSE_SECONDS) -> None:
        """End what runs: images that are whole are still stored, others are given up and their leases released.

        Their readers are cut. Afterwards nothing of this process is made; `open` raises Busy. What does not end within
        `seconds` is left to end with the process. Idempotent.
        """
        with self._lock:
            self._closed.set()
            makers = list(self._running.values())
        for maker in makers:
            maker.stop()
        end = time.monotonic() + seconds
        for maker in makers:
            maker.join(max(end - time.monotonic(), 0))
        self._heart.stop(max(end - time.monotonic(), 0))
        if self.signing is not None:
            self.signing.close(max(end - time.monotonic(), 0))

    def reached(self, image: "DerivedImage") -> int | None:
        """Return how many bytes of `image` can be followed at once, None where it is not being made by this process."""
        maker = self._running.get(image.key)
        progress = None if maker is None else maker.progress
        return None if progress is None else progress[1]

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Count one more among what is being made, for work on an image that makes none. Raises Busy."""
        with self._lock:
            self._take_place(urgent=False)
        try:
            yield
        finally:
            self._give_place()

    def apart(self, generate: Callable[[], Stream | None]) -> Stream | None:
        """Return what `generate` gives, counted among what is being made until it is closed. Raises Busy before that.

        For a part of an image: nothing of it is kept, and nobody follows it.
        """
        with self._lock:
            self._take_place(urgent=False)
        stream = None
        try:
            stream = generate()
        finally:
            if stream is None:
                self._give_place()
        if stream is None:
            return None
        return Stream(alone(Plain(stream, self._give_place)), stream.size)

    # --- Where the bytes are ---

    def _found(self, image: "DerivedImage", asked_by: str | None, *, urgent: bool = False) -> "Stored | Spooled | None":
        """Return where `image` is, after beginning to make it if nobody has; None where it is not kept for us.

        `urgent`: for a client that has some of it, so that it is too late for Busy.
        """
        if self._closed.is_set():
            raise Busy("the service is being stopped")
        try:
            for pause in _pauses(_APPEAR_SECONDS):
                time.sleep(pause)
                try:
                    return self._look(image, asked_by, urgent=urgent)
                except _LookAgain:
                    continue
        except _NotAnswered:
            return None
        log.warning("%s is not followed: its making does not show", image)
        return None

    def _look(self, image: "DerivedImage", asked_by: str | None, *, urgent: bool) -> "Stored | Spooled | None":
        maker = self._running.get(image.key)
        if maker is not None:
            return self._joined(maker, How.FOLLOWED)
        with self._asking(image):
            record = self._rows.find(image.key)
            if record is not None and record.state is State.COMPLETE:
                return self._checked(record)
        if self._readonly:
            return None
        if record is not None and record.lease_live:
            return self._joined_far(image, record) if record.host == self._host else None
        if record is not None and record.state is State.GENERATING and spool.dead(self._folder, record.token):
            self._bury(image, record)
        return self._joined(*self._claimed(image, asked_by, urgent=urgent))

    def _checked(self, record: DerivedRecord) -> Stored:
        """Return a complete image after looking whether it is there. Raises _LookAgain where it is not."""
        try:
            size = self._storage.size(record.path)
        except BlobNotFound:
            size = None
        if size == record.size:
            if not self._readonly:
                self._heart.fetched(record.key)
            return Stored(record)
        log.error("%s should have %s bytes in storage and has %s; it is made anew", record.path, record.size, size)
        if self._readonly:
            raise _NotAnswered
        self._rows.forget(record)
        self._storage.delete(record.path)
        raise _LookAgain

    def _joined(self, maker: Maker, how: How) -> "Spooled | None":
        """Follow a making of this process."""
        try:
            follower = maker.follow()
            try:
                return Spooled(follower, follower.begun().size, how, maker)
            except BaseException:
                follower.close()
                raise
        except MakerGone as gone:
            if gone.ending is Ending.BROKEN:
                return None
            raise _LookAgain from None

    def _joined_far(self, image: "DerivedImage", record: DerivedRecord) -> "Spooled | None":
        """Follow a making of another process of this host."""
        follower = following.find(self._folder, record.token, held=lambda: self._is_held(record))
        if follower is None:
            raise _LookAgain
        try:
            return Spooled(follower, follower.begun().size, How.FOLLOWED, None)
        except MakingFailed:  # the error itself did not come over; making it here finds it too
            follower.close()
            raise _LookAgain from None
        except MakerGone as gone:
            follower.close()
            if gone.ending is Ending.BROKEN:
                return None
            if gone.ending is None and spool.dead(self._folder, record.token):
                self._bury(image, record)
            raise _LookAgain from None
        except BaseException:
            follower.close()
            raise

    def _bury(self, image: "DerivedImage", record: DerivedRecord) -> None:
        """Have the image made by whoever asks, although its dead maker's lease has not run out."""
        log.warning("the maker of %s died", image)
        with self._asking(image):
            lease = Lease(record.key, record.token, record.path, record.host, self._rows.lease_seconds)
            if self._rows.fail(lease, "its maker died"):
                self._orphaned.add(record.key)
                self._storage.delete(record.path)  # it may have come as far as that
        spool.bury(self._folder, record.token)

    def _is_held(self, record: DerivedRecord) -> bool:
        """Tell whether the maker of `record` may still be waited for."""
        try:
            now = self._rows.find(record.key)
        except Problem as problem:
            log.warning("whether %s is still being made cannot be told: %s", record.key, problem)
            return True
        return now is not None and now.token == record.token and (now.lease_live or now.state is not State.GENERATING)

    def _claimed(self, image: "DerivedImage", asked_by: str | None, *, urgent: bool) -> tuple[Maker, How]:
        """Return a maker of `image` that has begun. Raises Busy, and _LookAgain where another process was faster."""
        with self._lock:
            there = self._running.get(image.key)
            if there is not None:
                return there, How.FOLLOWED
            self._take_place(urgent=urgent)
            maker = self._running[image.key] = Maker(
                str(image),
                image.formatter.verb,
                partial(self._deriver.generate, image),
                rows=self._rows,
                storage=self._storage,
                folder=self._folder,
                watcher=self._watcher,
                stored=partial(self._stored, image.key),
                ended=partial(self._ended, image.key),
            )
        try:
            with self._asking(image):
                lease = self._rows.claim(_asked(image), host=self._host, asked_by=asked_by)
            if not isinstance(lease, Lease):
                raise _LookAgain
        except BaseException:
            maker.abandon()
            raise
        orphaned = image.key in self._orphaned
        self._orphaned.discard(image.key)
        with self._asking(image):  # there may be no more threads
            maker.begin(lease, takeover=lease.takeover or orphaned)
            self._heart.start()
        return maker, How.MADE

    @contextmanager
    def _asking(self, image: "DerivedImage") -> Iterator[None]:
        """Ask rows or storage. Raises _NotAnswered, after logging, where one fails: it serves without being kept."""
        try:
            yield
        except (_LookAgain, _NotAnswered):
            raise
        except Problem as problem:
            level = logging.INFO if self._readonly else logging.ERROR
            log.log(level, "whether %s is kept cannot be told: %s", image, problem)
            raise _NotAnswered from problem
        except Exception as error:
            log.exception("whether %s is kept cannot be told", image)
            raise _NotAnswered from error

    def _straight(self, image: "DerivedImage", *, urgent: bool = False) -> "Plain":
        """Generate `image` for one client. Raises Busy, and what Deriver.generate raises."""
        with self._lock:
            self._take_place(urgent=urgent)
        try:
            return Plain(self._deriver.generate(image), self._give_place)
        except BaseException:
            self._give_place()
            raise

    def _gone_on(self, image: "DerivedImage", asked_by: str | None) -> "Source":
        """Return where the rest of `image` is for a client whose source is gone."""
        found = self._found(image, asked_by, urgent=True)
        if isinstance(found, Stored):
            return Plain(self.read(found.record), lambda: None)
        return self._straight(image, urgent=True) if found is None else found

    def _wait_for(self, found: "Spooled", tell: Advance) -> None:
        """Wait until the making that `found` follows has ended; where it was ours, raise what it failed of."""
        maker = found.maker
        try:
            while maker is not None and not maker.done.wait(_WATCH_SECONDS):
                tell(*found.progress())
            while maker is None and not found.ended(_WATCH_SECONDS):
                tell(*found.progress())
        except BaseException:
            found.close()
            if maker is not None:
                maker.unwanted()
            raise
        found.close()
        if maker is None:
            time.sleep(_WATCH_SECONDS)  # from the last byte to the row
        elif maker.error is not None:
            raise maker.error

    # --- What runs ---

    def _take_place(self, *, urgent: bool) -> None:
        """Count one more that generates, under the lock. Raises Busy."""
        if self._closed.is_set():
            raise Busy("the service is being stopped")
        if self._busy >= self._limit and not urgent:
            raise Busy(f"{self._busy} images are being made here, which is as many as may be (VERBS_MAX_MAKINGS)")
        self._busy += 1

    def _give_place(self) -> None:
        with self._lock:
            self._busy -= 1

    def _stored(self, key: str) -> None:
        if self.signing is not None:
            self.signing.begin(key)

    def _ended(self, key: str, maker: Maker) -> None:
        with self._lock:
            if self._running.get(key) is maker:
                del self._running[key]
                self._busy -= 1


class _LookAgain(Exception):
    """What was found is on its way to something else."""


class _NotAnswered(Exception):
    """Rows or storage failed; it has been logged."""


def _asked(image: "DerivedImage") -> NewDerived:
    source = image.source
    return NewDerived(
        key=image.key,
        namespace=source.namespace,
        repository=source.repository,
        reference=source.tag,
        manifest_digest=str(source.manifest_digest),
        verb=image.formatter.verb,
        platform=str(source.platform),
        compression=str(image.compression),
        media_type=image.media_type,
        file_name=image.file_name,
    )


def _pauses(seconds: float) -> Iterator[float]:
    """Yield how long to wait before each look: nothing at first, then longer and longer, `seconds` in all."""
    pause, left = 0.001, seconds
    yield 0
    while left > 0:
        yield pause
        left -= pause
        pause = min(pause * 2, 0.05)


_ALL: "weakref.WeakSet[Makings]" = weakref.WeakSet()


def close_all() -> None:
    """Close all Makings of this process; for a server's hook at a worker's end."""
    for makings in list(_ALL):
        makings.close()


def _forget_all() -> None:
    for makings in list(_ALL):
        makings.forget()


atexit.register(close_all)
os.register_at_fork(after_in_child=_forget_all)
