"""Jobs on many machines: real Redis, real RabbitMQ, real worker processes, one of them killed in the middle."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy
from kombu.connection import Connection

from data.jobs import Job, JobState, NewJob
from data.marks import Marks
from endpoints import stock
from endpoints.celeryapp import CeleryNotInstalled, make_celery, teller
from endpoints.services import Services
from endpoints.settings import Settings
from test.databases import database_uri
from test.held import Held, gone
from test.images import Image, Layer
from test.layers import file
from test.place import Place
from test.waiting import eventually

# A database of Redis that nobody else uses: what a killed worker has not acknowledged lies there under one name.
BROKERS = {"redis": "redis://127.0.0.1:6379/13", "rabbitmq": "amqp://guest:guest@127.0.0.1:5672//"}
LARGE = Image([Layer([file(b"noise", os.urandom(8 << 20))])])
SMALL = Image([Layer([file(b"etc/hostname", b"here\n")])])


@dataclass
class Site:
    """A place with a broker, and its workers."""

    place: Place
    services: Services
    held: Held

    @contextlib.contextmanager
    def worker(self, *, stop: int = signal.SIGTERM) -> "Iterator[subprocess.Popen[str]]":
        command = [sys.executable, "-c", "import app; app.main()", "worker", "--processes", "1"]
        environment = {**os.environ, **self.held.environment}
        environment |= {key: str(value) for key, value in self.place.configuration.items()}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            said = process.stderr
            reader = threading.Thread(target=said.read, daemon=True)  # a pipe that is full would stop it
            reader.start()
            assert process.stdout.readline() == "Waiting for jobs\n"
            try:
                yield process
            finally:
                process.send_signal(stop)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()
                reader.join()

    def ask(self, image: str, verb: str = "rootfs") -> Job:
        path, reference = image.rsplit(":", 1)
        namespace, repository = path.split("/", 1)
        jobs = self.services.jobs.add(
            [NewJob(verb=verb, namespace=namespace, repository=repository, reference=reference)]
        )
        teller(self.services.settings)(jobs)
        return jobs[0]

    def wait(self, job: Job, state: JobState, *, seconds: float = 180) -> Job:
        end = time.monotonic() + seconds
        while (found := stock.job(self.services, job.id)).state is not state:
            assert time.monotonic() < end, f"{found}"
            time.sleep(0.05)
        return found

    def die(self, *pids: int) -> None:
        """Kill processes, and have so much time pass that they count as lost."""
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert all(map(gone, pids))
        with self.services.own_engine.begin() as connection:
            connection.execute(sqlalchemy.text("UPDATE verbs_job SET due_ms = 1 WHERE state = 'running'"))
            connection.execute(sqlalchemy.text("UPDATE verbs_derived SET lease_ends_ms = 1 WHERE state = 'generating'"))

    @property
    def objects(self) -> list[Path]:
        return [path for path in self.place.storage.glob("verbs/derived/**/*") if path.is_file()]


@pytest.fixture(params=BROKERS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    queue = f"verbs-{uuid.uuid4().hex}"
    with database_uri("postgresql", tmp_path) as uri:
        place = Place(
            tmp_path,
            {
                "VERBS_BROKER_URL": BROKERS[request.param],
                "VERBS_QUEUE": queue,
                "VERBS_LEASE_SECONDS": 300,  # only who is dead is not heard of
                "VERBS_DB_URI": uri,
            },
        )
        place.push("acme/large:1.0", LARGE)
        place.push("acme/app:1.0", SMALL)
        services = place.services()
        try:
            yield Site(place, services, Held(tmp_path / "held"))
        finally:
            services.own_engine.dispose()
            with Connection(BROKERS[request.param]) as connection, connection.channel() as channel:  # type: ignore[no-untyped-call] # kombu has no types
                if request.param == "redis":
                    channel.client.flushdb()
                else:
                    channel.queue_delete(queue)
                    channel.exchange_delete(queue)


ON_ONE = pytest.mark.parametrize("site", ["redis"], indirect=True)
"""For what does not depend on the broker."""


def unacknowledged(settings: Settings) -> int:
    """Return how many messages the broker still has, given out or not."""
    with Connection(settings.broker_url) as connection, connection.channel() as channel:  # type: ignore[no-untyped-call] # kombu has no types
        if connection.transport.driver_type == "redis":
            return int(channel.client.llen(settings.queue)) + int(channel.client.hlen("unacked"))
        return int(channel.queue_declare(settings.queue, passive=True).message_count)


def test_what_is_asked_for_is_made_by_a_worker(site: Site) -> None:
    with site.worker() as worker:
        done = site.wait(site.ask("acme/app:1.0", "squash"), JobState.DONE)
        assert (done.worker or "").endswith(f":{worker.pid}")
        assert done.attempts == 1
        eventually(lambda: unacknowledged(site.services.settings) == 0)
    assert len(site.objects) == 1
    assert unacknowledged(site.services.settings) == 0


def test_what_was_asked_for_before_there_was_a_worker_waits(site: Site) -> None:
    jobs = [site.ask("acme/app:1.0", verb) for verb in ("squash", "aci")]
    with site.worker():
        for job in jobs:
            site.wait(job, JobState.DONE)
    assert len(site.objects) == 2


def test_another_worker_finishes_what_a_killed_one_began(site: Site) -> None:
    with site.worker(), site.worker():
        job = site.ask("acme/large:1.0")
        (child,) = site.held.wait()
        first = site.wait(job, JobState.RUNNING)
        site.die(int((first.worker or "").rpartition(":")[2]))
        assert gone(child), "a child ends with its worker"
        site.held.go_on()
        done = site.wait(job, JobState.DONE)
    assert done.attempts == 2
    assert done.worker != first.worker
    assert len(site.objects) == 1
    record = stock.derived(site.services, done.key or "")
    assert site.services.storage.preferred.size(record.path) == record.size


def test_another_worker_finishes_what_died_with_all_its_processes(site: Site) -> None:
    """As when a machine loses its power: nobody gives anything back."""
    with site.worker(), site.worker():
        job = site.ask("acme/large:1.0")
        (child,) = site.held.wait()
        first = site.wait(job, JobState.RUNNING)
        site.die(child, int((first.worker or "").rpartition(":")[2]))
        site.held.go_on()
        done = site.wait(job, JobState.DONE)
    assert (done.attempts, done.worker != first.worker) == (2, True)
    assert len(site.objects) == 1


def test_a_worker_that_is_told_to_end_gives_back_what_it_makes(site: Site) -> None:
    with site.worker() as worker:
        job = site.ask("acme/large:1.0")
        site.held.wait()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0  # what is held would never end
    assert stock.job(site.services, job.id).state is JobState.QUEUED
    site.held.go_on()
    with site.worker():
        site.wait(job, JobState.DONE)
    assert len(site.objects) == 1


@ON_ONE
def test_a_message_twice_or_for_nothing_does_no_harm(site: Site) -> None:
    job = site.ask("acme/app:1.0")
    for _ in range(3):
        teller(site.services.settings)([job])
    with site.worker():
        done = site.wait(job, JobState.DONE)
        teller(site.services.settings)([job])  # the row has ended by now
        site.wait(site.ask("acme/app:1.0", "aci"), JobState.DONE)
    assert stock.job(site.services, job.id) == done


@ON_ONE
def test_a_job_whose_message_is_lost_is_found(site: Site) -> None:
    with site.worker():
        (job,) = site.services.jobs.add([NewJob(verb="squash", namespace="acme", repository="app", reference="1.0")])
        site.wait(job, JobState.DONE)


@ON_ONE
def test_rules_are_looked_after_by_the_worker(site: Site) -> None:
    rules = '[{"repositories": "acme/*", "tags": "v*", "verbs": ["squash"]}]'
    place = Place(site.place.folder, {**site.place.more, "VERBS_PRIME": rules, "VERBS_PRIME_SECONDS": 1})
    with Site(place, site.services, site.held).worker():
        marks = Marks(site.services.own_engine)
        eventually(lambda: marks.find("tags") is not None)  # the first look sets it
        place.push("acme/app:v2", SMALL)
        jobs = eventually(lambda: site.services.jobs.list(state=JobState.DONE), seconds=180)
    assert [(job.reference, job.asked_by) for job in jobs] == [("v2", "VERBS_PRIME")]


# --- Without a broker that answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "amqp://guest:guest@127.0.0.1:1//"])
def test_a_broker_that_is_away_fails_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture, url: str) -> None:
    place = Place(tmp_path, {"VERBS_BROKER_URL": url})
    place.push("acme/app:1.0", SMALL)
    services = place.services()
    begin = time.monotonic()
    job = Site(place, services, Held(tmp_path)).ask("acme/app:1.0")
    assert time.monotonic() - begin < 60
    assert stock.job(services, job.id).state is JobState.QUEUED
    assert "the broker is not told of 1 jobs; workers find them by themselves" in caplog.text


def test_nobody_needs_to_be_told_where_there_is_no_broker() -> None:
    teller(Settings())([])


def test_celery_that_is_not_installed_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "celery", None)
    with pytest.raises(CeleryNotInstalled, match=r"pip install 'registry-verbs\[celery\]'"):
        make_celery(Settings(broker_url="redis://127.0.0.1/0"))
