"""One making: an image is generated once, on a thread of its own, into a spool and into storage.

The law: what is stored is whole, at a path that belongs to this making's lease, and a row tells of it afterwards. Who
reads of the spool is never waited for. A storage that fails, or a lease that is lost, costs the stored image and no
reader; a spool that fails costs no stored image. Whatever becomes of it, nothing of it is left but a complete image.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Protocol

from data.derivedimages import DerivedImages, Lease
from data.storage.base import BlobWriter, Storage
from endpoints.following import Follower, Near
from endpoints.spool import Ending, MakerGone, Spool
from endpoints.streams import Stream
from util.problem import Damaged, Problem

log = logging.getLogger(__name__)

COMPLETE_SECONDS = 60.0
"""How long a database that fails is asked again to note that an image is complete."""

_RETRY_SECONDS = (0.1, 5.0)  # the first and the longest pause between two of those


class NotKept(Problem):
    """An image that was made and could not be stored, or not be noted."""

    code = "NOT_KEPT"


class MakingGivenUp(Problem):
    """A making that was told to stop."""

    code = "MAKING_GIVEN_UP"


class OtherLength(Damaged):
    """A derived image that has another length than was planned."""

    code = "OTHER_LENGTH"


class Watcher(Protocol):
    """Who counts makings. One that began has ended or failed at last."""

    def making_began(self, *, takeover: bool = False) -> None: ...
    def making_ended(self, verb: str, *, seconds: float, size: int) -> None: ...
    def making_failed(self, error: BaseException) -> None: ...


class Nobody:
    """A watcher that counts nothing."""

    def making_began(self, *, takeover: bool = False) -> None:
        pass

    def making_ended(self, verb: str, *, seconds: float, size: int) -> None:
        pass

    def making_failed(self, error: BaseException) -> None:
        pass


class Maker:
    """A making that may come to be: `begin` it with a lease, or `abandon` it; before that, followers wait."""

    def __init__(
        self,
        what: str,
        verb: str,
        generate: Callable[[], Stream],
        *,
        rows: DerivedImages,
        storage: Storage,
        folder: str,
        watcher: Watcher,
        stored: Callable[[], object],
        ended: Callable[["Maker"], None],
    ) -> None:
        """`folder` is for spools; `stored` is called when the image is there for all, and raises nothing.

        `ended` is called as soon as nobody should follow any more.
        """
        self._what, self._verb, self._generate = what, verb, generate
        self._rows, self._storage, self._folder, self._watcher = rows, storage, folder, watcher
        self._stored, self._ended = stored, ended
        self._thread: threading.Thread | None = None
        self._settled, self._done, self._stopping = threading.Event(), threading.Event(), threading.Event()
        self._lost = self._unwanted = False
        self._lease: Lease | None = None
        self._spool: Spool | None = None
        self._writer: BlobWriter | None = None
        self._own_spool = self._followed = False
        self._error: Exception | None = None
        self._storage_error: Exception | None = None

    @property
    def done(self) -> threading.Event:
        """Set when nothing runs any more, and the row says how it ended."""
        return self._done

    @property
    def error(self) -> Exception | None:
        """Why the image is not kept, None where it is; known when it is done."""
        return self._error

    @property
    def progress(self) -> tuple[str, int] | None:
        """The lease's token and the bytes made so far; None where there is no lease to be kept up."""
        lease, spool = self._lease, self._spool
        if lease is None or self._lost or self._storage_error is not None or self._done.is_set():
            return None
        return lease.token, 0 if spool is None else spool.state.written

    def begin(self, lease: Lease, *, takeover: bool) -> None:
        """Make the image under `lease`."""
        self._lease = lease
        self._watcher.making_began(takeover=takeover)
        thread = threading.Thread(target=self._run, args=(lease,), name=f"making {lease.key[:12]}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads; or the interpreter is on its way out
            self._watcher.making_failed(error)
            self._tell(lambda: self._rows.release(lease))
            self.abandon()
            raise
        self._thread = thread

    def abandon(self) -> None:
        """Let go of whoever waits for a making that does not come to be."""
        self._ended(self)
        self._settled.set()
        self._done.set()

    def follow(self) -> Follower:
        """Return a follower. Raises MakerGone: BROKEN where the image can be made but not be spooled."""
        self._settled.wait()
        if self._spool is None:
            broken = self._lease is not None
            raise MakerGone("the making has no spool", Ending.BROKEN if broken else Ending.LEFT)
        follower = Near(self._spool)
        self._followed = True
        ending = self._spool.state.ending
        if ending not in (None, Ending.WHOLE):  # who came in time is told why; who comes now may try again
            follower.close()
            raise MakerGone(f"the making is {ending}", ending if ending is Ending.BROKEN else Ending.LEFT)
        return follower

    def lost(self) -> None:
        """Take note that the lease is another's: what is made is for those who follow, and is not stored."""
        self._lost = True

    def unwanted(self) -> None:
        """Have the making given up if nobody follows it."""
        self._unwanted = True

    def stop(self) -> None:
        """Have the making given up, unless all is made and only the storing is left."""
        self._stopping.set()

    def join(self, timeout: float) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self, lease: Lease) -> None:
        began, size = time.monotonic(), 0
        error: BaseException | None = None
        try:
            size = self._make(lease)
        except BaseException as caught:  # noqa: BLE001 whatever it is, nobody may wait for ever
            error = caught
        if error is None:
            seconds = time.monotonic() - began
            log.info("%s is stored: %d bytes in %.1f s", self._what, size, seconds)
            self._watcher.making_ended(self._verb, seconds=seconds, size=size)
            self._stored()
        else:
            self._error = error if isinstance(error, Exception) else MakingGivenUp(f"{self._what}: {error!r}")
            self._abort()
            self._explain(lease, error)
            self._watcher.making_failed(error)
        self._ended(self)
        if self._spool is not None:
            self._spool.close()
        self._done.set()

    def _make(self, lease: Lease) -> int:
        """Generate, spool and store; return the size. Raises why nothing is stored."""
        try:
            spool = self._open(lease)
        finally:
            self._settled.set()
        hasher, written = hashlib.sha256(), 0
        try:
            stream = self._generate()
            with closing(stream.chunks) as chunks:
                self._announce(lease, spool, stream.size)
                for chunk in chunks:
                    self._check_wanted(spool)
                    hasher.update(chunk)
                    written += len(chunk)
                    if stream.size is not None and written > stream.size:
                        break
                    self._put(chunk, spool, lease)
            if stream.size not in (None, written):
                raise OtherLength(f"{self._what} comes to {written} bytes and should have {stream.size}")
        except MakingGivenUp:
            spool.end(Ending.LEFT)
            raise
        except Exception as error:
            spool.end(Ending.FAILED, error)
            raise
        spool.end(Ending.WHOLE)
        self._store(lease, written, hasher.hexdigest())
        return written

    def _open(self, lease: Lease) -> Spool:
        """Begin to write. Raises NotKept where there can be no spool."""
        try:
            self._writer = self._storage.create(lease.path)
        except Exception as error:  # noqa: BLE001 logged there
            self._storage_failed(lease, error)
        growing = None if self._writer is None else self._writer.growing
        self._own_spool = growing is None
        try:
            self._spool = Spool(self._folder, lease.token, growing=growing)
        except OSError as error:
            raise NotKept(f"a spool in {self._folder} cannot be made: {error.strerror or error}") from error
        return self._spool

    def _announce(self, lease: Lease, spool: Spool, size: int | None) -> None:
        if size is not None:
            self._tell(lambda: self._rows.set_total(lease, size))
        try:
            spool.begin(size)
        except OSError as error:
            self._spool_failed(spool, error)

    def _put(self, chunk: bytes, spool: Spool, lease: Lease) -> None:
        """Write `chunk` to where it can still be written."""
        if self._writer is not None:
            try:
                self._writer.write(chunk)
            except Exception as error:  # noqa: BLE001 logged there
                self._storage_failed(lease, error)
                if not self._own_spool:
                    spool.end(Ending.BROKEN)
        if spool.state.ending is None:
            try:
                if self._own_spool:
                    spool.write(chunk)
                else:
                    spool.grown(len(chunk))
            except OSError as error:
                self._spool_failed(spool, error)

    def _check_wanted(self, spool: Spool) -> None:
        """Raise where it would help nobody to go on."""
        if self._stopping.is_set():
            raise MakingGivenUp(f"{self._what} is given up: its process ends")
        if self._writer is None and spool.state.ending is not None:
            raise NotKept("neither storage nor spool take more")
        if self._followed and not spool.followers:
            if self._writer is None:
                raise NotKept(f"storage failed: {self._storage_error}") from self._storage_error
            if self._lost or self._unwanted:
                raise MakingGivenUp(f"{self._what} is given up: {'its lease is lost' if self._lost else 'not wanted'}")

    def _store(self, lease: Lease, size: int, sha256: str) -> None:
        """Have the object visible, and then the row complete. Raises NotKept, and leaves nothing then."""
        if self._writer is None:
            raise NotKept(f"storage failed: {self._storage_error}") from self._storage_error
        if self._lost:
            raise NotKept("the lease was lost")
        try:
            self._writer.commit()
        except Exception as error:
            self._abort()
            self._drop(lease)  # a storage that did not answer may have done it
            self._log_problem(error)
            raise NotKept(f"storage failed: {error}") from error
        self._writer = None
        end, (pause, longest) = time.monotonic() + COMPLETE_SECONDS, _RETRY_SECONDS
        while True:
            try:
                if self._rows.complete(lease, size=size, sha256=sha256):
                    return
                reason = NotKept("the lease was lost")
            except Exception as error:  # noqa: BLE001 asked again, or told
                log.warning("%s cannot be noted as complete: %s", self._what, error)
                if time.monotonic() < end and not self._stopping.wait(pause):
                    pause = min(pause * 2, longest)
                    continue
                reason = NotKept(f"it cannot be noted: {error}")
            self._drop(lease)
            raise reason

    def _storage_failed(self, lease: Lease, error: Exception) -> None:
        """Go on without storage, for those who follow."""
        self._log_problem(error)
        self._abort()
        self._storage_error = error
        self._tell(lambda: self._rows.fail(lease, f"storage failed: {error}"))

    def _spool_failed(self, spool: Spool, error: OSError) -> None:
        """Go on without followers, for storage."""
        log.error("the spool of %s takes no more: %s", self._what, error)
        spool.end(Ending.BROKEN)

    def _abort(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.abort()
            except Exception:
                log.exception("what was written of %s may have stayed", self._what)

    def _drop(self, lease: Lease) -> None:
        try:
            self._storage.delete(lease.path)
        except Exception:
            log.exception("%s cannot be deleted and is left to the sweep", lease.path)

    def _explain(self, lease: Lease, error: BaseException) -> None:
        """Tell the log and the row why there is no stored image."""
        if isinstance(error, MakingGivenUp):
            log.info("%s", error)
            self._tell(lambda: self._rows.release(lease))
            return
        if isinstance(error, Problem):
            log.error("%s is not stored: %s", self._what, error)
        else:
            log.error("%s is not stored", self._what, exc_info=error)
        if self._storage_error is None:
            self._tell(lambda: self._rows.fail(lease, str(error) or type(error).__name__))

    def _log_problem(self, error: Exception) -> None:
        log.error("%s is not kept: storage failed: %s", self._what, error, exc_info=not isinstance(error, Problem))

    def _tell(self, what: Callable[[], object]) -> None:
        """Change the row if that can be done; what is not told there, the lease's end tells."""
        try:
            what()
        except Exception as error:  # noqa: BLE001 a making does not depend on it
            log.warning("the row of %s cannot be changed: %s", self._what, error)
