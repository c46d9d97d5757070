"""Jobs as rows: asked for once, taken by one worker, taken over when it is lost."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from data import jobs as module
from data.database import Engine, begun
from data.jobs import Job, Jobs, JobState, NewJob
from data.owntables import DatabaseUnavailable, changing, database_now_ms, reading


@pytest.fixture
def jobs(engine: Engine) -> Jobs:
    return Jobs(engine)


def new(reference: str = "1.0", **more: str | None) -> NewJob:
    values = {"verb": "squash", "namespace": "acme", "repository": "app", "reference": reference}
    return NewJob(**(values | more))  # type: ignore[arg-type] # texts, and None where it may be


def found(jobs: Jobs, job: Job) -> Job:
    record = jobs.find(job.id)
    assert record is not None
    return record


def taken(jobs: Jobs, worker: str = "w") -> Job:
    job = jobs.take(worker)
    assert job is not None
    return job


def let_pass(engine: Engine, seconds: float) -> None:
    """Have everything in the rows be that much longer ago."""

    def change(connection: Connection) -> None:
        for column in ("due_ms", "finished_ms", "heartbeat_ms"):
            connection.execute(text(f"UPDATE verbs_job SET {column} = {column} - :ms"), {"ms": round(seconds * 1000)})

    changing(engine, change)


# --- Asking -----------------------------------------------------------------------------------------------------------


def test_what_is_asked_for_is_queued_in_order_as_one_group(engine: Engine, jobs: Jobs) -> None:
    wanted = [new(str(number), platform="linux/arm64", compression=None) for number in range(10, 0, -1)]
    added = jobs.add(wanted, asked_by="alice")
    assert [job.reference for job in added] == [each.reference for each in wanted]
    assert [asdict(new(**asdict(each))) for each in wanted] == [
        {name: getattr(job, name) for name in module._ASKED} for job in added
    ]
    assert len({job.group_id for job in added}) == 1
    assert sorted(job.id for job in added) == [job.id for job in added]
    assert all(len(job.id) == 32 for job in added)
    assert {(job.state, job.asked_by, job.attempts, job.worker) for job in added} == {
        (JobState.QUEUED, "alice", 0, None)
    }
    assert [found(jobs, job) for job in added] == added
    assert abs(added[0].created_ms - reading(engine, database_now_ms)) < 5_000
    assert jobs.add([new("other")])[0].group_id != added[0].group_id
    assert jobs.add([]) == []


def test_what_is_queued_or_running_is_not_queued_twice(jobs: Jobs) -> None:
    (queued,) = jobs.add([new(), new()])
    assert jobs.add([new()], asked_by="another") == [queued]
    running = taken(jobs)
    assert jobs.add([new(), new("2.0")])[0] == running
    assert jobs.done(running, "k" * 64)
    (again,) = jobs.add([new()])
    assert again.id != queued.id
    assert again.state is JobState.QUEUED


@pytest.mark.parametrize(
    "more",
    [
        {"platform": "linux/arm64"},
        {"compression": "zstd"},
        {"verb": "aci"},
        {"manifest_digest": "sha256:" + "1" * 64},  # the tag has moved since
        {"namespace": "ACME"},
        {"repository": "app/x"},
    ],
)
def test_what_differs_in_anything_is_another_job(jobs: Jobs, more: dict[str, str]) -> None:
    assert len({job.id for job in jobs.add([new(), new(**more)])}) == 2


def test_many_are_added_in_batches(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 7)
    wanted = [new(str(number)) for number in range(30)]
    added = jobs.add(wanted)
    assert [job.reference for job in added] == [each.reference for each in wanted]
    assert sorted(job.id for job in added) == [job.id for job in added]
    assert len({job.group_id for job in added}) == 1


def test_of_many_who_ask_for_the_same_each_gets_the_same_jobs(jobs: Jobs) -> None:
    wanted = [new(str(number)) for number in range(30)]
    barrier = threading.Barrier(8)

    def add(number: int) -> list[Job]:
        barrier.wait()
        return sorted(jobs.add(wanted if number % 2 else wanted[::-1]), key=lambda job: job.reference)

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(add, range(8)))
    assert all([job.id for job in outcome] == [job.id for job in outcomes[0]] for outcome in outcomes)
    assert jobs.counts()[JobState.QUEUED] == 30


# --- Taking -----------------------------------------------------------------------------------------------------------


def test_the_oldest_is_taken_first(engine: Engine, jobs: Jobs) -> None:
    first, second = jobs.add([new("1"), new("2")])
    third = jobs.add([new("3")])[0]
    job = taken(jobs, "worker-1")
    assert job.id == first.id
    assert (job.state, job.attempts, job.worker) == (JobState.RUNNING, 1, "worker-1")
    assert job.started_ms == job.heartbeat_ms
    assert job.due_ms == (job.started_ms or 0) + 60_000
    assert found(jobs, job) == job
    assert [taken(jobs).id, taken(jobs).id] == [second.id, third.id]
    assert jobs.take("w") is None


def test_a_certain_job_is_taken_if_it_is_due(jobs: Jobs) -> None:
    _, second = jobs.add([new("1"), new("2")])
    job = jobs.take("w", id=second.id)
    assert job is not None
    assert job.id == second.id
    assert jobs.take("w", id=second.id) is None
    assert jobs.take("w", id="no such") is None


def test_looking_for_a_job_where_there_is_none_locks_nobody_out(engine: Engine, jobs: Jobs) -> None:
    (job,) = jobs.add([new()])
    jobs.take("w")
    with begun(engine, writes=True) as connection:
        connection.execute(text("UPDATE verbs_job SET reason = 'x'"))
        assert jobs.take("another") is None  # at once
        assert jobs.due() == []
    assert found(jobs, job).attempts == 1


def test_each_job_is_taken_by_one_of_many_threads(jobs: Jobs) -> None:
    added = jobs.add([new(str(number)) for number in range(40)])
    barrier = threading.Barrier(16)

    def take_all(number: int) -> list[Job]:
        barrier.wait()
        return list(iter(lambda: jobs.take(str(number)), None))

    with ThreadPoolExecutor(16) as pool:
        took = [job for each in pool.map(take_all, range(16)) for job in each]
    assert sorted(job.id for job in took) == [job.id for job in added]
    assert jobs.counts() == {state: 40 if state is JobState.RUNNING else 0 for state in JobState}


def test_each_job_is_taken_by_one_of_many_processes(engine: Engine, jobs: Jobs) -> None:
    program = """
import sys
from data.database import make_engine
from data.jobs import Jobs
jobs = Jobs(make_engine(sys.argv[1]))
sys.stdin.read(1)
while job := jobs.take("w"):
    print(job.id)
"""
    added = jobs.add([new(str(number)) for number in range(60)])
    uri = engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", program, uri]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.close()
    took: list[str] = []
    for process in running:
        assert process.stdout is not None
        with process.stdout:
            took += [line.strip() for line in process.stdout]
        assert process.wait() == 0
    assert sorted(took) == [job.id for job in added]


def test_a_job_that_is_just_being_taken_is_passed_over(engine: Engine, jobs: Jobs) -> None:
    if engine.dialect.name == "sqlite":
        return  # there one writes at a time
    first, second = jobs.add([new("1"), new("2")])
    with begun(engine, writes=True) as connection:
        connection.execute(text("SELECT id FROM verbs_job WHERE id = :id FOR UPDATE"), {"id": first.id})
        assert taken(jobs).id == second.id
        assert jobs.take("w", id=first.id) is None


@pytest.mark.parametrize(
    ("name", "is_mariadb", "version", "skips"),
    [
        ("mysql", True, (10, 6, 2), True),
        ("mysql", True, (10, 5, 29), False),
        ("mariadb", True, (11, 4, 1), True),
        ("mysql", False, (8, 0, 36), True),
        ("mysql", False, (5, 7, 44), False),
        ("postgresql", False, (15, 3), True),
        ("sqlite", False, (3, 40, 1), False),
    ],
)
def test_rows_are_passed_over_where_the_database_knows_how(
    name: str, is_mariadb: bool, version: tuple[int, ...], skips: bool
) -> None:
    class Dialect:
        pass

    class Connected:
        dialect: Any = Dialect()

    Connected.dialect.name, Connected.dialect.is_mariadb = name, is_mariadb
    Connected.dialect.server_version_info = version
    assert module._skips_locked(Connected()) is skips  # type: ignore[arg-type] # as much of one as is asked


def test_each_is_taken_once_where_the_database_waits_for_locks(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_skips_locked", lambda _: False)
    test_each_job_is_taken_by_one_of_many_threads(jobs)


# --- Working ----------------------------------------------------------------------------------------------------------


def test_a_job_that_is_done_names_what_was_made(jobs: Jobs) -> None:
    jobs.add([new()])
    job = taken(jobs)
    assert jobs.done(job, "ab" * 32)
    done = found(jobs, job)
    assert (done.state, done.key, done.due_ms) == (JobState.DONE, "ab" * 32, None)
    assert (done.finished_ms or 0) >= (done.started_ms or 0)
    assert not jobs.done(job, "cd" * 32)
    assert not jobs.cancel(job.id)
    assert jobs.take("w") is None


def test_a_job_that_failed_says_why(jobs: Jobs) -> None:
    jobs.add([new()])
    job = taken(jobs)
    assert jobs.fail(job, "no such tag" + "!" * 5000)
    failed = found(jobs, job)
    assert (failed.state, failed.due_ms, len(failed.reason or "")) == (JobState.FAILED, None, 2000)
    assert failed.finished_ms is not None
    assert jobs.take("w") is None


def test_a_job_that_is_to_be_tried_again_is_due_later(engine: Engine, jobs: Jobs) -> None:
    jobs.add([new()])
    job = taken(jobs)
    assert jobs.fail(job, "storage is away", retry_in=100)
    again = found(jobs, job)
    assert (again.state, again.reason, again.worker) == (JobState.QUEUED, "storage is away", None)
    assert again.finished_ms is None
    assert jobs.add([new()])[0].id == job.id
    assert jobs.take("w") is None
    let_pass(engine, 101)
    job = taken(jobs)
    assert job.attempts == 2
    assert jobs.done(job, "ab" * 32)
    assert found(jobs, job).reason is None


def test_a_job_that_is_put_back_is_due_at_once(jobs: Jobs) -> None:
    jobs.add([new()])
    job = taken(jobs)
    assert jobs.put_back(job)
    assert not jobs.put_back(job)
    assert found(jobs, job).state is JobState.QUEUED
    assert taken(jobs, "another").id == job.id


def test_a_worker_that_beats_keeps_its_jobs(engine: Engine, jobs: Jobs) -> None:
    jobs.add([new("1"), new("2")])
    mine = [taken(jobs), taken(jobs)]
    let_pass(engine, 40)
    assert jobs.beat(mine) == {job.id for job in mine}
    let_pass(engine, 40)
    assert jobs.take("another") is None
    let_pass(engine, 21)
    assert [job.id for job in jobs.due()] == [job.id for job in mine]


def test_a_job_whose_worker_is_silent_is_taken_over(engine: Engine, jobs: Jobs) -> None:
    jobs.add([new()])
    lost = taken(jobs, "lost")
    let_pass(engine, 61)
    assert jobs.due() != []
    job = taken(jobs, "another")
    assert (job.id, job.worker, job.attempts) == (lost.id, "another", 2)
    # The lost one is heard of again:
    assert jobs.beat([lost]) == set()
    assert not jobs.done(lost, "cd" * 32)
    assert not jobs.fail(lost, "x")
    assert not jobs.fail(lost, "x", retry_in=0)
    assert not jobs.put_back(lost)
    assert jobs.beat([job, lost]) == {job.id}
    assert jobs.done(job, "ab" * 32)


def test_a_worker_that_is_late_and_not_replaced_may_end_its_job(engine: Engine, jobs: Jobs) -> None:
    jobs.add([new()])
    job = taken(jobs)
    let_pass(engine, 1000)
    assert jobs.done(job, "ab" * 32)


def test_a_silence_is_noticed_by_itself(engine: Engine) -> None:
    jobs = Jobs(engine, heard_seconds=0.2)
    jobs.add([new()])
    taken(jobs, "lost")
    time.sleep(0.3)
    assert taken(jobs, "another").attempts == 2


def test_a_job_that_loses_all_its_workers_is_failed(engine: Engine) -> None:
    jobs = Jobs(engine, max_lost=2)
    (added,) = jobs.add([new()])
    for worker in ("a", "b"):
        job = taken(jobs, worker)
        let_pass(engine, 61)
    (other,) = jobs.add([new("other")])
    assert taken(jobs).id == other.id  # and on to the next
    failed = found(jobs, added)
    assert (failed.state, failed.reason) == (JobState.FAILED, "its workers were lost 2 times, the last of them b")
    assert not jobs.done(job, "ab" * 32)


def test_a_job_that_is_cancelled_while_it_waits_is_never_taken(jobs: Jobs) -> None:
    (job,) = jobs.add([new()])
    assert jobs.cancel(job.id)
    assert not jobs.cancel(job.id)
    assert not jobs.cancel("no such")
    assert found(jobs, job).state is JobState.CANCELLED
    assert jobs.take("w") is None
    assert jobs.add([new()])[0].id != job.id


def test_a_job_that_is_cancelled_while_it_runs_is_told_its_worker(jobs: Jobs) -> None:
    jobs.add([new("1"), new("2")])
    first, second = taken(jobs), taken(jobs)
    assert jobs.cancel(first.id)
    assert jobs.beat([first, second]) == {second.id}
    assert not jobs.done(first, "ab" * 32)
    assert not jobs.fail(first, "cancelled", retry_in=0)
    assert found(jobs, first).state is JobState.CANCELLED


def test_a_beat_of_nothing_asks_nobody(engine: Engine, jobs: Jobs) -> None:
    event.listen(engine, "begin", lambda _: pytest.fail("asked"))
    assert jobs.beat([]) == set()


# --- Looking and keeping ----------------------------------------------------------------------------------------------


def test_jobs_are_listed_newest_first_and_by_what_they_have(jobs: Jobs) -> None:
    first = jobs.add([new("1"), new("2", verb="aci")])
    second = jobs.add([new("3", namespace="other"), new("4", repository="b")])
    ids = [job.id for job in (*first, *second)][::-1]
    assert [job.id for job in jobs.list()] == ids
    assert [job.id for job in jobs.list(limit=3)] == ids[:3]
    assert [job.id for job in jobs.list(after=ids[2])] == ids[3:]
    taken(jobs)

    def listed(**given: Any) -> str:
        return "".join(job.reference for job in jobs.list(**given))

    assert listed(group_id=first[0].group_id) == "21"
    assert listed(namespace="other") == "3"
    assert listed(repository="b") == "4"
    assert listed(verb="aci") == "2"
    assert listed(state=JobState.RUNNING) == "1"
    assert listed(state=JobState.QUEUED, namespace="acme") == "42"
    assert jobs.find("no such") is None


def test_old_jobs_that_have_ended_are_deleted(engine: Engine, jobs: Jobs) -> None:
    added = jobs.add([new(str(number)) for number in range(5)])
    jobs.done(taken(jobs), "ab" * 32)
    jobs.fail(taken(jobs), "x")
    jobs.cancel(added[2].id)
    taken(jobs)
    let_pass(engine, 100)
    jobs.add([new("fresh")])
    jobs.cancel(jobs.list(limit=1)[0].id)
    assert jobs.delete_ended(older_than=200) == 0
    assert jobs.delete_ended(older_than=99, dry_run=True) == 3
    assert jobs.delete_ended(older_than=99) == 3
    assert jobs.delete_ended(older_than=99) == 0
    assert [job.reference for job in jobs.list()] == ["fresh", "4", "3"]


def test_a_database_that_fails_is_one_error_from_every_method(engine: Engine, jobs: Jobs) -> None:
    jobs.add([new()])
    job = taken(jobs)
    with begun(engine, writes=True) as connection:
        connection.execute(text("DROP TABLE verbs_job"))
    attempts: list[Callable[[], Any]] = [
        lambda: jobs.add([new()]),
        lambda: jobs.cancel(job.id),
        lambda: jobs.find(job.id),
        jobs.list,
        jobs.due,
        jobs.counts,
        lambda: jobs.take("w"),
        lambda: jobs.beat([job]),
        lambda: jobs.done(job, "ab" * 32),
        lambda: jobs.fail(job, "x"),
        lambda: jobs.fail(job, "x", retry_in=1),
        lambda: jobs.put_back(job),
        lambda: jobs.delete_ended(older_than=0),
    ]
    for attempt in attempts:
        with pytest.raises(DatabaseUnavailable, match="verbs_job"):
            attempt()
