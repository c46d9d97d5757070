"""Runs jobs: takes them as they are due, has children make them, and says how it went.

The law: the row is the truth. A job is run by who has taken it, who says every few seconds that it is still alive; who
dies is not heard of any more, and another takes over. What failed for a reason that may pass is tried again, later each
time; the rest is failed at once. A job that is cancelled stops within seconds, whatever it is doing.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from data.jobs import Job, Jobs
from data.owntables import DatabaseUnavailable
from endpoints.jobpool import Asked, ChildLost, Ended, JobPool, MakeServices, NotWanted, Outcome

log = logging.getLogger(__name__)


_BEATS = 8
"""At least, for as long as a job without a beat is its worker's."""


@dataclass(frozen=True, slots=True)
class Timing:
    """When things are done, in seconds. `retries` are the pauses between attempts: one more attempt than there are."""

    look: float = 1.0
    beat: float = 2.0
    retries: tuple[float, ...] = (5.0, 30.0)
    idle: float = 60.0


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_name() -> str:
    """Return what this process is called in the rows of the jobs that it runs."""
    return f"{socket.gethostname()}:{os.getpid()}"


class JobRunner:
    """Runs jobs in up to `processes` children, from any thread. Nothing starts before there is something to run.

    `ended` is told the number of each child that has ended.
    """

    def __init__(
        self,
        jobs: Jobs,
        make_services: MakeServices,
        *,
        processes: int | None = None,
        timing: Timing | None = None,
        ended: Ended | None = None,
    ) -> None:
        self._jobs, self._timing = jobs, timing or Timing()
        self.processes = processes or processors()
        self._pool = JobPool(make_services) if ended is None else JobPool(make_services, ended=ended)
        self._slots = threading.Semaphore(self.processes)
        self._worker = worker_name()
        self._lock = threading.Lock()
        self._running: dict[str, Job] = {}
        self._lost: set[str] = set()  # running here, and cancelled or another's by now
        self._beating: threading.Thread | None = None
        self._stopping = threading.Event()

    def run(self, job_id: str) -> bool:
        """Run the job `job_id` to its end, if it is due; wait for a free child before. False where it was not run."""
        while not self._stopping.is_set():
            if self._slots.acquire(timeout=self._timing.look):
                return self._take_and_run(job_id)
        return False

    def serve(self) -> None:
        """Run whatever is due, until `stop`. A database that fails is asked again."""
        with ThreadPoolExecutor(self.processes, thread_name_prefix="job") as threads:
            while not self._stopping.is_set():
                if not self._slots.acquire(timeout=self._timing.look):
                    continue
                if (job := self._take(None)) is None:
                    self._slots.release()
                    self._pool.trim(idle_seconds=self._timing.idle)
                    self._stopping.wait(self._timing.look)
                else:
                    threads.submit(self._run_in_slot, job)

    def stop(self) -> None:
        """Give up what runs, so that others take it, and end all children. Idempotent; from any thread."""
        self._stopping.set()
        self._pool.close()

    def _take_and_run(self, job_id: str) -> bool:
        job = self._take(job_id)
        if job is None:
            self._slots.release()
            return False
        self._run_in_slot(job)
        return True

    def _take(self, job_id: str | None) -> Job | None:
        try:
            return self._jobs.take(self._worker, id=job_id)
        except DatabaseUnavailable as problem:
            log.warning("no job is taken: %s", problem)
            return None

    def _run_in_slot(self, job: Job) -> None:
        try:
            self._run(job)
        except Exception:
            log.exception("job %s is left to whoever finds it", job.id)
        finally:
            self._slots.release()

    def _run(self, job: Job) -> None:
        log.info("job %s: %s (attempt %d)", job.id, described(job), job.attempts)
        begin = time.monotonic()
        with self._lock:
            self._running[job.id] = job
            self._lost.discard(job.id)
            if self._beating is None or not self._beating.is_alive():
                self._beating = threading.Thread(target=self._beat, name="job-beat", daemon=True)
                self._beating.start()
        try:
            outcome = self._pool.make(
                Asked(
                    job.verb, job.namespace, job.repository, job.reference, job.platform, job.compression, job.asked_by
                ),
                wanted=lambda: job.id not in self._lost,
                found=lambda key: self._note(job, key),
            )
        except NotWanted:
            outcome = None
        except ChildLost as problem:
            outcome = Outcome(reason=f"{problem.code}: {problem}")
        finally:
            with self._lock:
                del self._running[job.id]
                self._lost.discard(job.id)
        self._tell(job, outcome, time.monotonic() - begin)

    def _tell(self, job: Job, outcome: Outcome | None, seconds: float) -> None:
        """Write into the row how it went."""
        if outcome is None:
            if self._stopping.is_set():
                self._say(lambda: self._jobs.put_back(job))
            log.info("job %s was given up after %.1f s", job.id, seconds)
        elif outcome.key is not None:
            key = outcome.key
            self._say(lambda: self._jobs.done(job, key))
            log.info("job %s is done after %.1f s", job.id, seconds)
        else:
            reason = outcome.reason or ""
            retries = self._timing.retries
            again = None if outcome.final or job.attempts > len(retries) else retries[job.attempts - 1]
            self._say(lambda: self._jobs.fail(job, reason, retry_in=again))
            when = "" if again is None else f"; it is tried again in {again:g} s"
            log.warning("job %s (%s) failed: %s%s", job.id, described(job), reason, when)

    def _note(self, job: Job, key: str) -> None:
        """Write into the row what it is that is made, if that can be done: so its progress is found."""
        with suppress(DatabaseUnavailable):
            self._jobs.found(job, key)

    def _say(self, say: Callable[[], bool]) -> None:
        """Write to the row, again while the database cannot be used: for as long as the job would stay ours."""
        end = time.monotonic() + self._jobs.heard_seconds
        while True:
            try:
                if not say():
                    log.info("a job has become another's, or was cancelled")
                return
            except DatabaseUnavailable as problem:
                if time.monotonic() > end or self._stopping.wait(self._timing.beat):
                    log.warning("what became of a job cannot be told; it is found again: %s", problem)
                    return

    def _beat(self) -> None:
        """Say that this worker is alive for as long as anything runs, and hear what is not wanted any more."""
        while True:
            time.sleep(min(self._timing.beat, self._jobs.heard_seconds / _BEATS))
            with self._lock:
                running = list(self._running.values())
                if not running:
                    self._beating = None
                    return
            try:
                ours = self._jobs.beat(running)
            except DatabaseUnavailable as problem:
                log.warning("jobs go on without a heartbeat: %s", problem)
                continue
            with self._lock:
                self._lost |= ({job.id for job in running} - ours) & self._running.keys()


def described(job: Job) -> str:
    """Return what a job makes, for people."""
    image = f"{job.namespace}/{job.repository}{'@' if ':' in job.reference else ':'}{job.reference}"
    more = [each for each in (job.platform, job.compression) if each is not None]
    return " ".join((job.verb, "of", image, *(f"({', '.join(more)})",) * bool(more)))
