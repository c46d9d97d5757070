"""How often a user has been logged in with wrongly: what slows guessing down, as Quay does.

The law: only names of users that exist are counted, so the rows are bounded by them. Time is the database's.
Where our own database cannot be used nothing is counted and nobody waits: who guesses must not be able to lock out
everybody by taking it down.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, delete, select, update

from data.owntables import (
    DatabaseClock,
    DatabaseUnavailable,
    Engine,
    LoginRow,
    changing,
    insert_unless_there,
    reading,
)

log = logging.getLogger(__name__)

MAX_WAIT_MS = 24 * 60 * 60 * 1000
"""The longest wait, which Quay's formula passes after 18 failures: nobody shall be able to lock a user out for ever."""

_Result = TypeVar("_Result")


def wait_ms(failures: int) -> int:
    """Return how long after the last of `failures` in a row the next login may come, as Quay has it."""
    return min(500 * (2 ** min(failures, 40) - 1), MAX_WAIT_MS) if failures > 0 else 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How often in a row a user's logins failed, and for how long still none is even looked at."""

    failures: int
    waiting_ms: int


class Logins:
    """The rows of logins that failed. Nothing is raised where they cannot be reached."""

    def __init__(self, engine: Engine, *, counts: bool = True) -> None:
        """`counts` is false in a registry that is only read: then nothing is written, nor looked at."""
        self._engine, self._counts = engine, counts

    def standing(self, name: str) -> Standing:
        """Return how the last logins of `name` went."""
        query = select(LoginRow.failures, LoginRow.last_ms, DatabaseClock()).where(LoginRow.username == name)
        row = self._try(reading, lambda connection: connection.execute(query).one_or_none())
        if row is None:
            return Standing(0, 0)
        failures, last_ms, now = row
        return Standing(failures, int(max(0, last_ms + wait_ms(failures) - now)))

    def failed(self, name: str) -> None:
        """Count a login of `name` that failed."""
        more = update(LoginRow).where(LoginRow.username == name)
        more = more.values(failures=LoginRow.failures + 1, last_ms=DatabaseClock())

        def count(connection: Connection) -> None:
            first = {"username": name, "failures": 1, "last_ms": DatabaseClock()}
            if connection.execute(more).rowcount == 0 and not insert_unless_there(connection, LoginRow, first):
                connection.execute(more)

        self._try(changing, count)

    def succeeded(self, name: str) -> None:
        """Forget the failures of `name`."""
        query = delete(LoginRow).where(LoginRow.username == name)
        self._try(changing, lambda connection: connection.execute(query).rowcount)

    def _try(
        self, run: Callable[[Engine, Callable[[Connection], _Result]], _Result], work: Callable[[Connection], _Result]
    ) -> _Result | None:
        if not self._counts:
            return None
        try:
            return run(self._engine, work)
        except DatabaseUnavailable as error:
            log.warning("logins that fail are not counted: %s", error)
            return None
