"""Who may make a derived image: one of all who ask, on each database, from threads, processes and hosts."""

import hashlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, text

from data import derivedimages
from data.database import Engine, begun
from data.derivedimages import DerivedImages, DerivedRecord, Lease, NewDerived, State
from data.owntables import DatabaseUnavailable, changing, database_now_ms, reading
from test.databases import cut_connections

THREADS = 32


@pytest.fixture
def rows(engine: Engine) -> DerivedImages:
    return DerivedImages(engine)


def new(name: str = "app", **more: str) -> NewDerived:
    values = {
        "key": hashlib.sha256(name.encode()).hexdigest(),
        "namespace": "acme",
        "repository": name,
        "reference": "1.0",
        "manifest_digest": "sha256:" + "0" * 64,
        "verb": "squash",
        "platform": "linux/amd64",
        "compression": "gzip",
        "media_type": "application/x-tar",
        "file_name": f"{name}.tar.gz",
    }
    return NewDerived(**(values | more))


def claimed(rows: DerivedImages, asked: NewDerived | None = None, *, host: str = "a") -> Lease:
    lease = rows.claim(asked or new(), host=host)
    assert isinstance(lease, Lease)
    return lease


def found(rows: DerivedImages, asked: NewDerived | None = None) -> DerivedRecord:
    record = rows.find((asked or new()).key)
    assert record is not None
    return record


def complete(rows: DerivedImages, name: str = "app") -> DerivedRecord:
    assert rows.complete(claimed(rows, new(name)), size=7, sha256="ab" * 32)
    return found(rows, new(name))


def let_expire(engine: Engine, milliseconds: int = 0) -> None:
    """Have every lease have ended that long ago, by the database's clock."""

    def change(connection: Connection) -> None:
        over = {"over": database_now_ms(connection) - milliseconds}
        connection.execute(text("UPDATE verbs_derived SET lease_ends_ms = :over WHERE state = 'generating'"), over)

    changing(engine, change)


# --- Claiming ---------------------------------------------------------------------------------------------------------


def test_what_nobody_has_asked_for_has_no_record(rows: DerivedImages) -> None:
    assert rows.find(new().key) is None


def test_who_asks_first_gets_the_lease(rows: DerivedImages) -> None:
    lease = rows.claim(new(), host="worker-1", asked_by="alice", bytes_total=100)
    assert isinstance(lease, Lease)
    assert (lease.key, lease.host, lease.seconds, lease.takeover) == (new().key, "worker-1", 30, False)
    assert lease.path == f"verbs/derived/{lease.key[:2]}/{lease.key}/{lease.token}"
    assert len(lease.token) == 32
    record = found(rows)
    assert record.created_ms is not None
    assert record == DerivedRecord(
        **{name: getattr(new(), name) for name in derivedimages._ASKED},
        state=State.GENERATING,
        token=lease.token,
        path=lease.path,
        host="worker-1",
        size=None,
        sha256=None,
        reason=None,
        bytes_done=0,
        bytes_total=100,
        asked_by="alice",
        attempts=1,
        created_ms=record.created_ms,
        completed_ms=None,
        failed_ms=None,
        fetched_ms=None,
        lease_ends_ms=record.created_ms + 30_000,
        lease_live=True,
    )


def test_who_asks_second_gets_the_record(rows: DerivedImages) -> None:
    lease = claimed(rows)
    record = rows.claim(new(), host="b")
    assert isinstance(record, DerivedRecord)
    assert (record.token, record.host, record.lease_live) == (lease.token, "a", True)


def test_what_is_complete_is_not_made_again(rows: DerivedImages) -> None:
    lease = claimed(rows)
    assert rows.complete(lease, size=7, sha256="ab" * 32)
    record = rows.claim(new(), host="b")
    assert record == found(rows)
    assert isinstance(record, DerivedRecord)
    assert (record.state, record.path, record.size, record.sha256) == (State.COMPLETE, lease.path, 7, "ab" * 32)
    assert (record.bytes_done, record.bytes_total, record.lease_ends_ms, record.lease_live) == (7, 7, None, False)
    assert record.completed_ms is not None
    assert record.completed_ms >= record.created_ms


def test_what_failed_is_tried_again_by_the_next(rows: DerivedImages) -> None:
    first = claimed(rows)
    assert rows.fail(first, "the disk is full")
    failed = found(rows)
    assert (failed.state, failed.reason, failed.lease_live) == (State.FAILED, "the disk is full", False)
    assert failed.failed_ms is not None
    second = claimed(rows, host="b")
    assert not second.takeover
    assert second.path != first.path
    again = found(rows)
    assert (again.state, again.reason, again.failed_ms, again.attempts) == (State.GENERATING, None, None, 2)
    assert again.created_ms == failed.created_ms


def test_a_lease_that_ran_out_is_taken_over(
    engine: Engine, rows: DerivedImages, caplog: pytest.LogCaptureFixture
) -> None:
    first = claimed(rows)
    rows.beat({first.token: 50})
    let_expire(engine)
    assert not found(rows).lease_live
    with caplog.at_level(logging.WARNING):
        second = claimed(rows, host="b")
    assert second.takeover
    assert f"the making of {new().key} was lost by its host and is taken over by b" in caplog.text
    assert second.path != first.path
    record = found(rows)
    assert (record.host, record.attempts, record.bytes_done, record.lease_live) == ("b", 2, 0, True)
    assert rows.beat({first.token: 60, second.token: 1}) == {second.token}
    assert not rows.set_total(first, 5)
    assert not rows.fail(first, "late")
    assert not rows.release(first)
    assert not rows.complete(first, size=1, sha256="cd" * 32)
    assert found(rows).state is State.GENERATING
    assert rows.complete(second, size=7, sha256="ab" * 32)
    assert not rows.complete(first, size=1, sha256="cd" * 32)
    assert found(rows).sha256 == "ab" * 32


def test_a_lease_runs_out_by_itself(engine: Engine) -> None:
    rows = DerivedImages(engine, lease_seconds=0.2)
    claimed(rows)
    time.sleep(0.3)
    assert claimed(rows, host="b").takeover


def test_a_lease_is_measured_by_the_database_s_clock(rows: DerivedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed(rows)
    for skew in (-86_400, 86_400):  # a host whose clock is a day off
        with monkeypatch.context() as patch:
            seconds = int(time.time()) + skew
            patch.setattr("time.time", partial(float, seconds))
            patch.setattr("time.time_ns", partial(int, seconds * 10**9))
            assert isinstance(rows.claim(new(), host="b"), DerivedRecord)
            assert list(rows.expired()) == []


def test_a_late_beat_keeps_a_lease_that_nobody_took(engine: Engine, rows: DerivedImages) -> None:
    lease = claimed(rows)
    let_expire(engine, 60_000)
    assert rows.beat({lease.token: 10}) == {lease.token}
    record = found(rows)
    assert record.lease_live
    assert record.bytes_done == 10
    let_expire(engine, 60_000)
    assert rows.complete(lease, size=7, sha256="ab" * 32)


def test_texts_that_are_too_long_are_cut(rows: DerivedImages) -> None:
    lease = rows.claim(new(), host="h" * 300, asked_by="w" * 300)
    assert isinstance(lease, Lease)
    record = found(rows)
    assert (len(record.host), len(record.asked_by or "")) == (255, 255)
    assert record.host == lease.host  # so that a host knows its own
    rows.fail(lease, "r\0" + "é" * 5000)
    assert len(found(rows).reason or "") == 2000


def test_names_of_any_script_and_length_are_kept(rows: DerivedImages) -> None:
    asked = new("z", namespace="n" * 255, repository="r" * 255, file_name="ф" * 1000, reference="sha512:" + "0" * 128)
    claimed(rows, asked)
    record = found(rows, asked)
    assert all(getattr(record, name) == getattr(asked, name) for name in derivedimages._ASKED)


# --- Races ------------------------------------------------------------------------------------------------------------


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    barrier = threading.Barrier(count)

    def start(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


def claiming(rows: DerivedImages, asked: NewDerived) -> Callable[[int], Lease | DerivedRecord]:
    return lambda number: rows.claim(asked, host=str(number))


def test_of_many_threads_one_gets_the_lease(rows: DerivedImages) -> None:
    for attempt in range(3):
        asked = new(str(attempt))
        outcomes = at_once(THREADS, claiming(rows, asked))
        leases = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
        assert len(leases) == 1
        assert {outcome.token for outcome in outcomes} == {leases[0].token}


@pytest.mark.parametrize("before", ["expired", "failed"])
def test_of_many_threads_one_takes_over(engine: Engine, rows: DerivedImages, before: str) -> None:
    first = claimed(rows)
    if before == "failed":
        rows.fail(first, "why not")
    else:
        let_expire(engine)
    outcomes = at_once(THREADS, claiming(rows, new()))
    leases = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    assert len(leases) == 1
    assert leases[0].takeover == (before == "expired")
    assert {outcome.token for outcome in outcomes} == {leases[0].token}
    assert found(rows).attempts == 2


def test_of_many_processes_one_gets_each_lease(engine: Engine, rows: DerivedImages) -> None:
    keys = 20
    program = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from data.database import make_engine
from data.derivedimages import DerivedImages, Lease
from test.test_derivedimages import new
rows = DerivedImages(make_engine(sys.argv[1]))
sys.stdin.read(1)
with ThreadPoolExecutor(4) as pool:
    for key, outcome in pool.map(lambda n: (n, rows.claim(new(str(n % 20)), host="h")), range(40)):
        if isinstance(outcome, Lease):
            print(key % 20, outcome.token)
"""
    uri = engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", program, uri]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.close()
    leases: list[list[str]] = []
    for process in running:
        assert process.stdout is not None
        with process.stdout:
            leases += [line.split() for line in process.stdout]
        assert process.wait() == 0
    assert sorted(int(key) for key, _ in leases) == list(range(keys))
    assert {token for _, token in leases} == {record.token for record in rows.all()}


def test_one_gets_the_lease_on_an_engine_of_a_host_s_own(engine: Engine) -> None:
    # SQLite's driver begins transactions late then, and MySQL repeats its reads.
    own = create_engine(engine.url, pool_size=THREADS)
    if engine.dialect.name == "sqlite":
        own = create_engine(engine.url, connect_args={"timeout": 30})
    try:
        rows = DerivedImages(own)
        for attempt in range(3):
            asked = new(str(attempt))
            outcomes = at_once(THREADS, claiming(rows, asked))
            assert sum(isinstance(outcome, Lease) for outcome in outcomes) == 1
        let_expire(engine)
        outcomes = at_once(THREADS, claiming(rows, new("0")))
        assert sum(isinstance(outcome, Lease) for outcome in outcomes) == 1
    finally:
        own.dispose()


def test_one_completes_while_another_takes_over(engine: Engine, rows: DerivedImages) -> None:
    for attempt in range(8):
        asked = new(str(attempt))
        lease = claimed(rows, asked)
        let_expire(engine)

        def either(number: int, asked: NewDerived = asked, lease: Lease = lease) -> Any:
            return rows.complete(lease, size=7, sha256="ab" * 32) if number else rows.claim(asked, host="b")

        taken, completed = at_once(2, either)
        assert completed == isinstance(taken, DerivedRecord)
        assert found(rows, asked).state is (State.COMPLETE if completed else State.GENERATING)


def test_one_completes_while_another_deletes(rows: DerivedImages) -> None:
    for attempt in range(8):
        asked = new(str(attempt))
        lease = claimed(rows, asked)

        def either(number: int, asked: NewDerived = asked, lease: Lease = lease) -> Any:
            return rows.complete(lease, size=7, sha256="ab" * 32) if number else rows.delete(asked.key)

        deleted, completed = at_once(2, either)
        assert completed == (deleted.state is State.COMPLETE)  # who deletes is told of every object that is there
        assert rows.find(asked.key) is None


def test_a_claim_whose_commit_was_not_heard_of_is_known_again(
    engine: Engine, rows: DerivedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def twice(engine: Engine, work: Callable[[Connection], Any]) -> Any:
        runs.append(changing(engine, work))
        return changing(engine, work)

    monkeypatch.setattr(derivedimages, "changing", twice)
    lease = claimed(rows)
    assert runs == [lease]
    assert rows.complete(lease, size=7, sha256="ab" * 32)
    assert found(rows).attempts == 1


# --- Making -----------------------------------------------------------------------------------------------------------


def test_beats_extend_all_leases_at_once(engine: Engine, rows: DerivedImages) -> None:
    leases = [claimed(rows, new(str(number))) for number in range(5)]
    rows.fail(leases[3], "x")
    rows.release(leases[4])
    before = found(rows, new("0")).lease_ends_ms
    time.sleep(0.02)
    began = reading(engine, database_now_ms)
    held = rows.beat({lease.token: number for number, lease in enumerate(leases)} | {"no such": 1})
    assert held == {lease.token for lease in leases[:3]}
    ended = reading(engine, database_now_ms)
    assert [found(rows, new(str(number))).bytes_done for number in range(3)] == [0, 1, 2]
    after = found(rows, new("0")).lease_ends_ms
    assert before is not None
    assert after is not None
    assert before < after
    assert began <= after - 30_000 <= ended


def test_a_beat_of_nothing_asks_nobody(engine: Engine, rows: DerivedImages) -> None:
    event.listen(engine, "begin", lambda _: pytest.fail("asked"))
    assert rows.beat({}) == set()
    rows.fetched([])


def test_a_lease_that_was_deleted_is_lost(rows: DerivedImages) -> None:
    lease = claimed(rows)
    deleted = rows.delete(new().key)
    assert deleted is not None
    assert (deleted.token, deleted.lease_live) == (lease.token, True)
    assert rows.beat({lease.token: 1}) == set()
    assert not rows.complete(lease, size=7, sha256="ab" * 32)
    assert rows.find(new().key) is None


def test_the_total_may_be_known_later(rows: DerivedImages) -> None:
    lease = claimed(rows)
    assert rows.set_total(lease, 1 << 40)
    assert found(rows).bytes_total == 1 << 40


def test_a_lease_that_is_given_back_leaves_no_row(rows: DerivedImages) -> None:
    lease = claimed(rows)
    assert rows.release(lease)
    assert not rows.release(lease)
    assert rows.find(new().key) is None
    assert not claimed(rows).takeover


def test_what_is_complete_stays(rows: DerivedImages) -> None:
    lease = claimed(rows)
    assert rows.complete(lease, size=7, sha256="ab" * 32)
    assert rows.complete(lease, size=7, sha256="ab" * 32)  # said twice, as after a broken connection
    assert not rows.fail(lease, "too late")
    assert not rows.release(lease)
    assert not rows.set_total(lease, 8)
    assert rows.beat({lease.token: 3}) == set()
    assert found(rows).bytes_done == 7


# --- Looking and keeping ----------------------------------------------------------------------------------------------


def test_records_are_listed_by_key_and_by_what_they_have(rows: DerivedImages) -> None:
    asked = [
        new("a"),
        new("b", verb="aci"),
        new("c", namespace="other"),
        new("d", namespace="other", repository="a"),
        new("e", namespace="ACME"),
    ]
    for each in asked:
        claimed(rows, each)
    complete(rows, "f")
    keys = sorted(each.key for each in (*asked, new("f")))
    assert [record.key for record in rows.list()] == keys
    assert [record.key for record in rows.list(limit=2)] == keys[:2]
    assert [record.key for record in rows.list(after=keys[1], limit=2)] == keys[2:4]
    assert rows.list(after=keys[-1]) == []

    def listed(**given: Any) -> set[str]:
        return {record.repository + record.namespace for record in rows.list(**given)}

    assert listed(namespace="acme") == {"aacme", "bacme", "facme"}
    assert listed(namespace="other", repository="a") == {"aother"}
    assert listed(verb="aci") == {"bacme"}
    assert listed(state=State.COMPLETE) == {"facme"}
    assert listed(state=State.FAILED) == set()


def test_all_and_expired_go_through_every_page(
    engine: Engine, rows: DerivedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derivedimages, "_PAGE", 3)
    for number in range(10):
        claimed(rows, new(str(number)))
    complete(rows, "there")
    assert len(list(rows.all())) == 11
    assert list(rows.expired()) == []
    let_expire(engine)
    assert len(list(rows.expired())) == 10
    for record in rows.all():  # what goes meanwhile does no harm
        rows.delete(record.key)
    assert list(rows.all()) == []


def test_what_is_fetched_is_noted(rows: DerivedImages) -> None:
    first, second = complete(rows, "a"), complete(rows, "b")
    assert first.fetched_ms is None
    rows.fetched([first.key, first.key, "0" * 64])
    fetched = found(rows, new("a")).fetched_ms
    assert fetched is not None
    assert fetched >= (first.completed_ms or 0)
    assert found(rows, new("b")) == second


def test_a_record_whose_object_is_gone_is_forgotten_unless_it_is_another_by_now(rows: DerivedImages) -> None:
    old = complete(rows)
    assert rows.forget(old)
    assert not rows.forget(old)
    newer = complete(rows)
    assert not rows.forget(old)
    assert found(rows) == newer


def test_a_failure_that_was_forgotten_while_it_is_made_anew_stays(rows: DerivedImages) -> None:
    rows.fail(claimed(rows), "x")
    failed = found(rows)
    claimed(rows)
    assert not rows.forget(failed)
    assert found(rows).state is State.GENERATING


def test_what_is_deleted_is_told(rows: DerivedImages) -> None:
    record = complete(rows)
    assert rows.delete(record.key) == record
    assert rows.delete(record.key) is None
    assert rows.find(record.key) is None


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_connections_that_are_cut_are_survived(engine: Engine, rows: DerivedImages) -> None:
    if engine.dialect.name == "sqlite":
        return  # it keeps none
    lease = claimed(rows)
    cut_connections(engine)
    assert rows.beat({lease.token: 5}) == {lease.token}
    cut_connections(engine)
    assert rows.complete(lease, size=7, sha256="ab" * 32)


def test_a_database_that_fails_is_one_error_from_every_method(engine: Engine, rows: DerivedImages) -> None:
    lease = claimed(rows)
    record = replace(found(rows))
    with begun(engine, writes=True) as connection:
        connection.execute(text("DROP TABLE verbs_derived"))
    attempts: list[Callable[[], Any]] = [
        lambda: rows.find(lease.key),
        lambda: rows.claim(new(), host="a"),
        lambda: rows.beat({lease.token: 1}),
        lambda: rows.set_total(lease, 1),
        lambda: rows.complete(lease, size=1, sha256="ab" * 32),
        lambda: rows.fail(lease, "x"),
        lambda: rows.release(lease),
        rows.list,
        lambda: list(rows.all()),
        lambda: list(rows.expired()),
        lambda: rows.fetched([lease.key]),
        lambda: rows.forget(record),
        lambda: rows.delete(lease.key),
    ]
    for attempt in attempts:
        with pytest.raises(DatabaseUnavailable, match="verbs_derived"):
            attempt()
