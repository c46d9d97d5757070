"""Child processes that make derived images. Making one keeps a processor busy; so many children, so many processors.

The law: a child works on one wish at a time, and whatever becomes of it becomes of that wish alone: another child takes
its place. Who is not wanted any more is ended from outside, whatever it is doing. A child ends when its parent does,
however that comes about, and gives its lease back where it still can.
"""

import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, NoReturn

from endpoints.loglines import log_to_stderr
from util.problem import Inexpressible, Malformed, Missing, Problem, TooLarge, Unsupported

if TYPE_CHECKING:
    from endpoints.derive import Deriver
    from endpoints.making import Makings
    from endpoints.services import Services

log = logging.getLogger(__name__)

MakeServices = Callable[[], "Services"]
"""Makes what a child works with. It is called there: a function that a module has, or a partial of one."""

Ended = Callable[[int], None]
"""Is told the number of each child process that has ended."""

_LOOK_SECONDS = 0.25  # how soon it is seen that a wish is not wanted any more
_GRACE_SECONDS = 3.0  # for a child that is told to end, to give back what it holds
_FINAL = (Missing, Unsupported, Inexpressible, Malformed, TooLarge)


class ChildLost(Problem):
    """A child process that ended before what it was making did."""

    code = "PROCESS_LOST"


class NotWanted(Problem):
    """A wish that was given up while it was being made."""

    code = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be made, in texts that cross into another process; `asked_by` is noted with the image."""

    verb: str
    namespace: str
    repository: str
    reference: str
    platform: str | None
    compression: str | None
    asked_by: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went: the derived image's key, or else why not, and whether another attempt would end the same way."""

    key: str | None = None
    reason: str | None = None
    final: bool = False


def _nobody(_: int) -> None:
    """Nobody needs to be told."""


class JobPool:
    """Children that are started as they are needed, and kept for the next wish. Safe to use from several threads."""

    def __init__(self, make_services: MakeServices, *, ended: Ended = _nobody) -> None:
        self._make_services, self._ended = make_services, ended
        self._context = multiprocessing.get_context("spawn")  # a fork would share locks and connections
        self._lock = threading.Lock()
        self._idle: list[tuple[float, _Child]] = []
        self._closed = threading.Event()

    def make(self, asked: Asked, *, wanted: Callable[[], bool], found: Callable[[str], None]) -> Outcome:
        """Have `asked` made, and return how it went. `found` is told its key once that is known.

        `wanted` is asked again and again. Raises NotWanted soon after it says no or the pool is closed, and ChildLost.
        """
        while True:
            child = self._take()
            try:
                return self._made(child, asked, wanted, found)
            except _LostIdle:
                continue  # it died while it had nothing to do, which is nobody's attempt

    def _made(self, child: "_Child", asked: Asked, wanted: Callable[[], bool], found: Callable[[str], None]) -> Outcome:
        heard = not child.used
        child.used = True
        sound = False
        try:
            child.connection.send(asked)
            while True:
                if self._closed.is_set() or not wanted():
                    raise NotWanted("it is not wanted any more")
                if child.connection.poll(_LOOK_SECONDS):
                    told = child.connection.recv()
                    heard = True
                    if isinstance(told, Outcome):
                        sound = True
                        return told
                    found(told)
        except (EOFError, OSError):
            if not heard:
                raise _LostIdle from None
            raise ChildLost(f"the process that made it {child.end(patience=_GRACE_SECONDS)}") from None
        finally:
            if sound:
                self._give_back(child)
            else:
                child.end()

    def trim(self, *, idle_seconds: float) -> None:
        """End the children that have had nothing to do for so long."""
        with self._lock:
            kept = [(since, child) for since, child in self._idle if time.monotonic() - since < idle_seconds]
            ended = [child for _, child in self._idle if child not in {each for _, each in kept}]
            self._idle = kept
        for child in ended:
            child.end()

    def close(self) -> None:
        """End all children; what they make is given up. Idempotent."""
        self._closed.set()
        self.trim(idle_seconds=0)

    def _take(self) -> "_Child":
        with self._lock:
            while self._idle:
                _, child = self._idle.pop()
                if child.process.is_alive():
                    return child
                child.end()
        return _Child(self._context, self._make_services, self._ended)

    def _give_back(self, child: "_Child") -> None:
        with self._lock:
            if not self._closed.is_set():
                self._idle.append((time.monotonic(), child))
                return
        child.end()


class _LostIdle(Exception):
    """A child that was kept for the next wish, and was gone when it came."""


class _Child:
    """A child process, seen from its parent."""

    used = False

    def __init__(self, context: multiprocessing.context.SpawnContext, make_services: MakeServices, told: Ended) -> None:
        self._told = told
        self.connection, theirs = context.Pipe()
        level = logging.getLogger().getEffectiveLevel()
        self.process: SpawnProcess = context.Process(
            target=_serve, args=(theirs, make_services, level), name="registry-verbs job", daemon=True
        )
        try:
            self.process.start()
        finally:
            theirs.close()  # so that the end of either is seen by the other
        self._ended = ""

    def end(self, *, patience: float = 0) -> str:
        """Have it end, and return how it did; one that is about to end by itself has `patience` seconds. Idempotent."""
        if self._ended:
            return self._ended
        self.process.join(patience)
        told = self.process.is_alive()
        if told:
            self.process.terminate()
            self.process.join(_GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
        status, pid = self.process.exitcode or 0, self.process.pid
        self.process.close()
        if pid is not None:
            self._told(pid)
        killed = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        self._ended = "was told to end" if told else killed
        return self._ended


def _serve(connection: Connection, make_services: MakeServices, level: int) -> None:
    """Make what `connection` asks for, until it ends. This is what runs in the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who tells us
    signal.signal(signal.SIGTERM, _leave)
    log_to_stderr(level)
    wishes: queue.SimpleQueue[Asked] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, wishes), name="parent", daemon=True).start()
    maker = _Maker(make_services)
    try:
        while True:
            asked = wishes.get()
            connection.send(maker.make(asked, connection.send))
    except OSError:
        pass  # the parent has gone
    finally:
        maker.close()


def _listen(connection: Connection, wishes: "queue.SimpleQueue[Asked]") -> None:
    """Pass on what the parent asks for, and end this process with the parent."""
    try:
        while True:
            wishes.put(connection.recv())
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os._exit(1)


def _leave(number: int, _: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise SystemExit(128 + number)


class _Maker:
    """What a child makes derived images with. Its services are made with the first, so that their failing is told."""

    def __init__(self, make_services: MakeServices) -> None:
        self._make_services = make_services
        self._tools: tuple[Deriver, Makings] | None = None

    def make(self, asked: Asked, found: Callable[[str], None]) -> Outcome:
        from endpoints import metrics
        from endpoints.derive import Deriver, Wish
        from endpoints.making import Makings
        from util.compression import Compression
        from util.platform import Platform

        try:
            if self._tools is None:
                services = self._make_services()
                self._tools = Deriver(services), Makings(services, watcher=metrics)
            deriver, makings = self._tools
            image = deriver.resolve(
                Wish(
                    asked.verb,
                    asked.namespace,
                    asked.repository,
                    asked.reference,
                    None if asked.platform is None else Platform.parse(asked.platform),
                    None if asked.compression is None else Compression(asked.compression),
                )
            )
            found(image.key)
            makings.make(image, asked_by=asked.asked_by)
        except Problem as problem:
            return Outcome(reason=f"{problem.code}: {problem}", final=isinstance(problem, _FINAL))
        except Exception as error:
            log.exception("%s of %s/%s:%s failed", asked.verb, asked.namespace, asked.repository, asked.reference)
            return Outcome(reason=f"UNKNOWN: {type(error).__name__}: {error}")
        return Outcome(key=image.key)

    def close(self) -> None:
        if self._tools is not None:
            self._tools[1].close(seconds=_GRACE_SECONDS / 2)
