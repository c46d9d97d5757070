"""Jobs as they are run, in real child processes: done, failed, tried again, killed, cancelled, given back."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy

from data.derivedimages import State
from data.jobs import Job, Jobs, JobState, NewJob
from data.owntables import DatabaseUnavailable
from endpoints import jobpool, stock
from endpoints.jobpool import Asked, ChildLost, JobPool, NotWanted
from endpoints.jobrunner import JobRunner, Timing, described, processors
from endpoints.services import Services, operators_services
from test.held import Held, alive, gone
from test.images import Image, Layer
from test.layers import file
from test.place import Place
from test.waiting import eventually

SMALL = Image([Layer([file(b"etc/hostname", b"here\n")])])
LARGE = Image([Layer([file(b"noise", os.urandom(8 << 20))])])
QUICK = Timing(look=0.05, beat=0.1, retries=(0.1, 0.2), idle=60)
ALWAYS: Callable[[], bool] = lambda: True  # noqa: E731


@dataclass
class Site:
    """A place, and whoever runs its jobs."""

    place: Place
    services: Services
    held: Held
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def make_services(self) -> "partial[Services]":
        return partial(operators_services, self.place.configuration)

    def ask(self, image: str, *, verb: str = "rootfs") -> Job:
        path, reference = image.rsplit(":", 1)
        namespace, repository = path.split("/", 1)
        new = NewJob(verb=verb, namespace=namespace, repository=repository, reference=reference)
        (job,) = self.services.jobs.add([new], asked_by="test")
        return job

    @contextmanager
    def running(self, *, processes: int = 1, timing: Timing = QUICK) -> Iterator[JobRunner]:
        runner = JobRunner(self.services.jobs, self.make_services, processes=processes, timing=timing)
        thread = threading.Thread(target=runner.serve)
        thread.start()
        try:
            yield runner
        finally:
            runner.stop()
            thread.join(60)
            assert not thread.is_alive()
            assert multiprocessing.active_children() == []

    def let_pause_pass(self) -> None:
        """Have what waits for its next attempt wait no longer, as if the time had passed."""
        with self.services.own_engine.begin() as connection:
            connection.execute(sqlalchemy.text("UPDATE verbs_job SET due_ms = 1 WHERE state = 'queued'"))

    def found(self, job: Job) -> Job:
        return stock.job(self.services, job.id)

    def wait(self, job: Job, *states: JobState, seconds: float = 120) -> Job:
        end = time.monotonic() + seconds
        while (found := self.found(job)).state not in states:
            assert time.monotonic() < end, f"{found}"
            time.sleep(0.02)
        return found


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Leases last so long that none runs out on a busy machine, but where a test is `BRIEF`."""
    place = Place(tmp_path, {"VERBS_LEASE_SECONDS": getattr(request, "param", 300)})
    place.push("acme/app:1.0", SMALL)
    place.push("acme/large:1.0", LARGE)
    held = Held(tmp_path / "held")
    for name, value in held.environment.items():
        monkeypatch.setenv(name, value)
    return Site(place, place.services(), held)


BRIEF = pytest.mark.parametrize("site", [2], indirect=True, ids=["brief"])
"""For what waits until a lease has run out, or hears of its beats."""


def test_a_job_is_made_and_says_what_it_made(site: Site) -> None:
    job = site.ask("acme/app:1.0", verb="squash")
    with site.running():
        done = site.wait(job, JobState.DONE)
    assert done.key is not None
    record = stock.derived(site.services, done.key)
    assert (record.state, record.verb, record.asked_by) == (State.COMPLETE, "squash", "test")
    assert (done.attempts, done.reason, done.worker is not None) == (1, None, True)
    assert len(site.place.files()) > 0


def test_what_is_there_already_is_done_at_once(site: Site) -> None:
    first = site.ask("acme/app:1.0")
    with site.running():
        site.wait(first, JobState.DONE)
        files = site.place.files()
        assert site.wait(site.ask("acme/app:1.0"), JobState.DONE).id != first.id
    assert site.place.files() == files


def test_what_will_never_be_there_is_failed_at_once(site: Site) -> None:
    missing, unknown = site.ask("acme/app:9.9"), site.ask("acme/app:1.0", verb="floppy")
    with site.running():
        failed = site.wait(missing, JobState.FAILED)
        assert failed.reason is not None
        assert failed.reason.startswith("TAG_UNKNOWN: acme/app has no tag '9.9'")
        assert failed.attempts == 1
        assert (site.wait(unknown, JobState.FAILED).reason or "").startswith("VERB_UNKNOWN")


def test_what_may_pass_is_tried_again_and_again_and_then_no_more(site: Site) -> None:
    site.place.blob(SMALL.layers[0]).unlink()
    job = site.ask("acme/app:1.0")
    with site.running():
        failed = site.wait(job, JobState.FAILED)
    assert failed.attempts == 3
    assert (failed.reason or "").startswith("BLOB_")


def test_what_has_passed_is_made_by_the_next_attempt(site: Site) -> None:
    blob = site.place.blob(SMALL.layers[0])
    content = blob.read_bytes()
    blob.unlink()
    job = site.ask("acme/app:1.0")
    with site.running(timing=Timing(look=0.05, beat=0.1, retries=(300, 300))):
        eventually(lambda: site.found(job).reason, seconds=120)
        found = site.found(job)
        assert (found.state, found.attempts) == (JobState.QUEUED, 1)
        blob.write_bytes(content)
        site.let_pause_pass()
        assert site.wait(job, JobState.DONE).attempts == 2


@BRIEF
def test_how_far_it_is_can_be_read_while_it_runs(site: Site) -> None:
    job = site.ask("acme/large:1.0")
    with site.running():
        site.held.wait()
        end = time.monotonic() + 60
        while not (made := stock.progress(site.services, [site.found(job)]).get(job.id)) or made.done < 1 << 18:
            assert time.monotonic() < end, f"{made}"
            time.sleep(0.05)
        assert made.total is not None
        assert made.done < made.total
        site.held.go_on()
        site.wait(job, JobState.DONE)
    assert stock.progress(site.services, [site.found(job)]) == {}


@BRIEF
def test_a_short_lease_is_kept_up_by_as_many_beats(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[int] = []
    beat = Jobs.beat

    def noted(jobs: Jobs, running: list[Job]) -> set[str]:
        beats.append(len(running))
        return beat(jobs, running)

    monkeypatch.setattr(Jobs, "beat", noted)
    job = site.ask("acme/large:1.0")
    with site.running(timing=Timing(look=0.05, beat=1000)):
        site.held.wait()
        eventually(lambda: len(beats) >= 3)
        site.held.go_on()
        site.wait(job, JobState.DONE)


def test_a_child_that_is_killed_takes_nothing_with_it_but_its_attempt(site: Site) -> None:
    site.place.push("acme/other:1.0", LARGE)
    jobs = [site.ask("acme/large:1.0"), site.ask("acme/other:1.0")]
    with site.running(processes=2):
        victim, _ = sorted(site.held.wait(2))
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: any(site.found(job).attempts == 2 for job in jobs), seconds=120)
        site.held.go_on()
        done = [site.wait(job, JobState.DONE) for job in jobs]
    assert sorted(job.attempts for job in done) == [1, 2]
    assert len(list(site.place.storage.glob("verbs/derived/*/*/*"))) == 2


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it waited longer for a child that was killed until it has ended: that tells what it ended of."""
    monkeypatch.setattr(jobpool, "_GRACE_SECONDS", 60)


@pytest.mark.usefixtures("unhurried")
def test_a_job_whose_child_is_killed_each_time_fails_and_says_so(site: Site) -> None:
    job = site.ask("acme/large:1.0")
    killed: set[int] = set()
    with site.running():
        for count in (1, 2, 3):
            (victim,) = site.held.wait(count) - killed
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)
        failed = site.wait(job, JobState.FAILED)
    assert failed.attempts == 3
    assert failed.reason == "PROCESS_LOST: the process that made it was killed by SIGKILL"


@BRIEF
def test_a_job_that_is_cancelled_stops_within_seconds_and_leaves_nothing(site: Site) -> None:
    job = site.ask("acme/large:1.0")
    with site.running():
        (child,) = site.held.wait()
        begin = time.monotonic()
        assert stock.cancel(site.services, job.id).state is JobState.CANCELLED
        assert gone(child)
        assert time.monotonic() - begin < 30
        key = site.found(job).key
        assert key is not None
        end = time.monotonic() + 60
        while (record := site.services.derived.find(key)) is not None and record.lease_live:
            assert time.monotonic() < end
            time.sleep(0.05)
        other = site.ask("acme/app:1.0")
        site.wait(other, JobState.DONE)  # by another child
    assert site.found(job).state is JobState.CANCELLED
    assert not [path for path in site.place.files() if key in str(path)]


def test_a_runner_that_is_stopped_gives_back_what_it_runs(site: Site) -> None:
    job = site.ask("acme/large:1.0")
    with site.running():
        (child,) = site.held.wait()
    assert not alive(child)
    assert site.found(job).state is JobState.QUEUED
    site.held.go_on()
    with site.running():
        assert site.wait(job, JobState.DONE).attempts == 2


@BRIEF
def test_a_job_of_somebody_who_died_is_taken_over(site: Site) -> None:
    """The other worker is a process of its own, and has no time to say anything."""
    job = site.ask("acme/large:1.0")
    program = (
        "import sys, json; from functools import partial; from endpoints.jobrunner import JobRunner\n"
        "from endpoints.services import operators_services\n"
        "make = partial(operators_services, json.loads(sys.argv[1]))\n"
        "JobRunner(make().jobs, make, processes=1).serve()\n"
    )
    command = [sys.executable, "-c", program, json.dumps(site.place.configuration)]
    with subprocess.Popen(command) as worker:
        (child,) = site.held.wait()
        worker.kill()
    assert gone(child), "a child ends with its parent"
    lost = site.found(job)
    assert lost.state is JobState.RUNNING
    site.held.go_on()
    with site.running():
        done = site.wait(job, JobState.DONE)
    assert (done.attempts, done.worker != lost.worker) == (2, True)
    assert len(list(site.place.storage.glob("verbs/derived/*/*/*"))) == 1


def test_idle_children_end_and_others_come(site: Site) -> None:
    with site.running(timing=Timing(look=0.05, beat=0.1, retries=(), idle=0.2)):
        site.wait(site.ask("acme/app:1.0"), JobState.DONE)
        eventually(lambda: not multiprocessing.active_children(), seconds=60)
        site.wait(site.ask("acme/app:1.0", verb="aci"), JobState.DONE)


def test_one_job_can_be_run_by_its_id(site: Site) -> None:
    first, second = site.ask("acme/app:1.0"), site.ask("acme/app:1.0", verb="aci")
    runner = JobRunner(site.services.jobs, site.make_services, processes=1, timing=QUICK)
    try:
        assert runner.run(second.id)
        assert not runner.run(second.id)
        assert [site.found(job).state for job in (first, second)] == [JobState.QUEUED, JobState.DONE]
    finally:
        runner.stop()
    assert not runner.run(first.id)


def test_services_that_cannot_be_made_fail_the_attempt_and_say_why(site: Site) -> None:
    job = site.ask("acme/app:1.0")
    configuration = {**site.place.configuration, "DB_URI": "postgresql://postgres@127.0.0.1:1/nothing"}
    runner = JobRunner(site.services.jobs, partial(operators_services, configuration), processes=1, timing=QUICK)
    try:
        assert runner.run(job.id)
    finally:
        runner.stop()
    assert site.found(job).state is JobState.QUEUED
    assert "connection" in (site.found(job).reason or "")


def test_a_database_that_fails_for_a_time_loses_no_job(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job = site.ask("acme/app:1.0")
    jobs = site.services.jobs
    failures = {"take": 3, "done": 2, "found": 1, "beat": 2}

    def failing(name: str, work: Callable[..., object]) -> Callable[..., object]:
        def fail(*arguments: object, **named: object) -> object:
            if failures[name]:
                failures[name] -= 1
                raise DatabaseUnavailable("gone for a time")
            return work(*arguments, **named)

        return fail

    for name in failures:
        monkeypatch.setattr(jobs, name, failing(name, getattr(jobs, name)))
    with site.running():
        site.wait(job, JobState.DONE)
    assert failures | {"beat": 0} == {"take": 0, "done": 0, "found": 0, "beat": 0}


# --- The pool by itself -----------------------------------------------------------------------------------------------


ASKED = Asked("rootfs", "acme", "large", "1.0", None, None, None)


def test_what_is_not_wanted_any_more_is_ended_from_outside(site: Site) -> None:
    pool = JobPool(site.make_services)
    found: list[str] = []
    try:
        with pytest.raises(NotWanted):
            pool.make(ASKED, wanted=lambda: not site.held.halted(), found=found.append)
    finally:
        pool.close()
    (child,) = site.held.halted()
    assert not alive(child)
    assert len(found[0]) == 64


def test_a_pool_that_is_closed_gives_up_what_it_makes(site: Site) -> None:
    pool = JobPool(site.make_services)

    def close() -> None:
        site.held.wait()
        pool.close()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(NotWanted):
        pool.make(ASKED, wanted=ALWAYS, found=lambda _: None)
    closing.join()
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("unhurried")
def test_a_child_that_ends_is_told_with_how_it_did(site: Site) -> None:
    pool = JobPool(site.make_services)

    def kill() -> None:
        for pid in site.held.wait():
            os.kill(pid, signal.SIGKILL)

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        with pytest.raises(ChildLost, match="the process that made it was killed by SIGKILL"):
            pool.make(ASKED, wanted=ALWAYS, found=lambda _: None)
    finally:
        killing.join()
        pool.close()


def test_an_idle_child_that_was_killed_is_replaced(site: Site) -> None:
    pool = JobPool(site.make_services)
    small = Asked("rootfs", "acme", "app", "1.0", "linux/amd64", "zstd", "test")
    try:
        assert pool.make(small, wanted=ALWAYS, found=lambda _: None).key is not None
        (child,) = multiprocessing.active_children()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        assert gone(child.pid)
        assert pool.make(small, wanted=ALWAYS, found=lambda _: None).key is not None
    finally:
        pool.close()


# --- Names ------------------------------------------------------------------------------------------------------------


def test_a_job_is_described_for_people(site: Site) -> None:
    new = NewJob(verb="squash", namespace="acme", repository="app", reference="sha256:0", platform="linux/arm64")
    (job,) = site.services.jobs.add([new])
    assert described(job) == "squash of acme/app@sha256:0 (linux/arm64)"
    assert described(site.ask("acme/app:1.0")) == "rootfs of acme/app:1.0"


def test_there_is_at_least_one_processor() -> None:
    assert processors() >= 1
