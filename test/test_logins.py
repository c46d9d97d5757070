"""Logins that failed: how long the next one waits, on every database, and what may not be locked out by it."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from data.database import Engine, make_engine
from data.logins import MAX_WAIT_MS, Logins, wait_ms
from data.owntables import LoginRow, changing, reading, upgrade
from test.databases import OWN_KINDS, database
from test.people import failed_before


@pytest.fixture(params=OWN_KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with database(request.param, tmp_path) as engine:
        upgrade(engine)
        yield engine


def failures(engine: Engine) -> dict[str, int]:
    query = select(LoginRow.username, LoginRow.failures)
    return {row.username: row.failures for row in reading(engine, lambda connection: connection.execute(query).all())}


def passed(engine: Engine, milliseconds: int) -> None:
    """Let time pass for what has been counted."""
    earlier = update(LoginRow).values(last_ms=LoginRow.last_ms - milliseconds)
    changing(engine, lambda connection: connection.execute(earlier).rowcount)


# quay/quay, util/backoff.py: 5 * (2^n - 1) tenths of a second
@pytest.mark.parametrize(("count", "milliseconds"), [(0, 0), (1, 500), (2, 1500), (3, 3500), (10, 511_500)])
def test_the_wait_is_quay_s(count: int, milliseconds: int) -> None:
    assert wait_ms(count) == milliseconds


@pytest.mark.parametrize("count", [18, 64, 100_000])
def test_nobody_waits_longer_than_a_day(count: int) -> None:
    assert wait_ms(count) == MAX_WAIT_MS == 86_400_000


def test_who_has_not_failed_does_not_wait(engine: Engine) -> None:
    assert Logins(engine).standing("alice").waiting_ms == 0


def test_each_failure_makes_the_next_login_wait_longer(engine: Engine) -> None:
    logins = Logins(engine)
    failed_before(engine, "alice")
    for wait in (255_500, 511_500, 1_023_500):
        logins.failed("alice")
        assert wait - 60_000 < logins.standing("alice").waiting_ms <= wait
        passed(engine, wait)
        assert logins.standing("alice").waiting_ms == 0
    assert failures(engine) == {"alice": 11}
    assert logins.standing("bob").waiting_ms == 0


def test_a_success_clears_what_was_counted(engine: Engine) -> None:
    logins = Logins(engine)
    logins.failed("alice")
    logins.failed("bob")
    logins.succeeded("alice")
    logins.succeeded("carol")
    assert failures(engine) == {"bob": 1}
    assert logins.standing("alice").waiting_ms == 0


def test_failures_at_the_same_time_are_all_counted(engine: Engine) -> None:
    logins = Logins(engine)
    threads = [threading.Thread(target=logins.failed, args=("alice",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures(engine) == {"alice": 8}


def test_a_registry_that_is_only_read_counts_nothing(engine: Engine) -> None:
    logins = Logins(engine, counts=False)
    Logins(engine).failed("alice")
    logins.failed("alice")
    logins.succeeded("alice")
    assert logins.standing("alice").waiting_ms == 0
    assert failures(engine) == {"alice": 1}


def test_without_our_database_nothing_is_counted_and_nobody_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logins = Logins(make_engine(f"sqlite:///{tmp_path / 'without-tables.db'}"))
    logins.failed("alice")
    logins.succeeded("alice")
    assert logins.standing("alice").waiting_ms == 0
    assert "are not counted" in caplog.text
