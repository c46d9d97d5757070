"""Read replicas of the registry's database, as Quay's DB_READ_REPLICAS names them.

What may be read there is what Quay reads there and what may be a moment old: which manifest a tag means. Quay also
reads repositories with their visibility, and the permissions of who pulls, from a replica; here those always come from
the database itself, so that whoever loses a role, or a repository that becomes private, is not served for as long as a
replica lags. Manifests by digest, blobs and lists are read from the database itself by both.

Invariants:
- A replica that cannot be reached, or cancels a query (a conflict with recovery), costs nobody an answer: the database
  itself is asked. One that could not be reached is not asked again for a while.
- That something is not there is said by the database itself alone: a replica may not have it yet.

quay/quay, data/readreplica.py (AutomaticFailoverWrapper) and the queries with `can_use_read_replica`.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolExhausted

from data.connecting import UnusableDatabase
from data.database import Engine

log = logging.getLogger(__name__)

T = TypeVar("T")

REST_SECONDS = 30.0
"""How long a replica that could not be reached is left alone."""

_CANCELLED = frozenset({"40001", "40P01", "57014"})  # the query was given up for recovery, and the replica is well


class Replicas:
    """What follows the registry's database. Safe for several threads, and to be made before a fork."""

    def __init__(self, followers: Sequence[Engine] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._followers, self._clock = tuple(followers), clock
        self._lock = threading.Lock()
        self._rests_until: dict[Engine, float] = {}

    def find(self, work: Callable[[Connection], T | None]) -> T | None:
        """Return what `work` finds by one of the replicas; None where it finds nothing, or none of them could be asked.

        The database itself is to be asked then. `work` only reads.
        """
        follower = self._choice()
        if follower is None:
            return None
        try:
            with follower.connect() as connection:
                return work(connection)
        except (DBAPIError, PoolExhausted, UnusableDatabase) as error:
            self._failed(follower, error)
            return None

    def dispose(self) -> None:
        """Let go of the connections to the replicas."""
        for follower in self._followers:
            follower.dispose()

    def _choice(self) -> Engine | None:
        if not self._followers:
            return None
        now = self._clock()
        with self._lock:
            awake = [each for each in self._followers if self._rests_until.get(each, now) <= now]
        return random.choice(awake) if awake else None  # noqa: S311 any will do

    def _failed(self, follower: Engine, error: Exception) -> None:
        said = error.orig if isinstance(error, DBAPIError) else error
        where, words = follower.url.render_as_string(hide_password=True), " ".join(str(said).split())
        if getattr(said, "sqlstate", None) in _CANCELLED:
            log.info("the read replica %s gave up a query, and the database is asked: %s", where, words)
            return
        with self._lock:
            self._rests_until[follower] = self._clock() + REST_SECONDS
        log.warning("the read replica %s is not asked for %.0f seconds: %s", where, REST_SECONDS, words)
