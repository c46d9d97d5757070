"""Many faults at random, one on top of the other, under clients that never stop asking.

The law: which faults come, and in which order, follows from a seed; when they hit does not. A fault counts when it has
been carried out: an order to a storage when a storage has obeyed it. Whatever a client gets is right as far as it goes.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from sqlalchemy import text

from data.derivedimages import State
from data.owntables import DatabaseUnavailable
from test import faults
from test.databases import PostgresqlServer
from test.faults import LEASE_SECONDS, Fleet, Got, Site, get, kill, wait_until

CLIENTS = 6
_CROWD = 4  # orders that wait for a storage at most: more would hit one and the same making

KINDS: Mapping[str, int] = {
    # Clients
    "leave": 150,
    "reset": 100,
    "stall": 30,
    # The storage; nothing but a making meets most of them
    "create": 50,
    "write": 130,
    "commit": 50,
    "late": 50,
    "open": 30,
    "size": 30,
    "delete": 10,
    # Somebody else at work
    "drop": 240,
    "lose": 20,
    # Processes and connections
    "sever": 50,
    "kill": 38,
    "freeze": 15,
    "stop": 4,
    "restart": 3,
}
"""How many of a thousand faults are of each kind."""

_CLIENTS_OWN = ("leave", "reset", "stall")
_ORDERS = ("create", "write", "commit", "late", "open", "size", "delete")


class Storm:
    """`count` faults on what `fleet` serves of `site`, whose database is `server`. `right` has the paths and bytes."""

    def __init__(
        self, site: Site, fleet: Fleet, server: PostgresqlServer, right: Mapping[str, bytes], *, count: int, seed: int
    ) -> None:
        self._site, self._fleet, self._server, self._right = site, fleet, server, right
        self._random = random.Random(seed)
        kinds = self._random.choices(list(KINDS), list(KINDS.values()), k=count)
        self._own = deque(kind for kind in kinds if kind in _CLIENTS_OWN)
        self._others = deque(kind for kind in kinds if kind not in _CLIENTS_OWN)
        self._over = threading.Event()
        self._given: Counter[str] = Counter()
        self._thawing: list[threading.Timer] = []
        self._lock = threading.Lock()
        self.done: Counter[str] = Counter()
        self.answers: list[Got] = []
        self.count = count

    def rage(self, seconds: float) -> None:
        """Carry all faults out, in `seconds` at most; then take back what makes more of them."""
        deadline = time.monotonic() + seconds
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(self._ask, random.Random(f"{self._random.random()}")) for _ in range(CLIENTS)]
            try:
                while self._others or self._own or self._waiting():
                    assert time.monotonic() < deadline, f"after {seconds} s only {self.total()} faults: {self.done}"
                    if self._others and self._waiting() < _CROWD:
                        self._strike(self._others.popleft())
                    elif self._waiting():
                        self._strike("drop", counts=False)  # so that something is made, and meets its order
                    time.sleep(self._random.uniform(0, 0.08))
            finally:
                self._over.set()
                for timer in self._thawing:
                    timer.join()
                self._site.orders.withdraw()
            for client in clients:
                client.result()
        self.done.update(self._given)

    def total(self) -> int:
        """Return how many faults have been carried out."""
        return sum(self.done.values())

    def _waiting(self) -> int:
        return self._site.orders.waiting()

    # --- Clients ---

    def _ask(self, chance: random.Random) -> None:
        while not self._over.is_set():
            path = chance.choice(sorted(self._right))
            urls = self._fleet.urls(path)
            if not urls:
                time.sleep(0.05)
                continue
            expected = self._right[path]
            ask = partial(get, chance.choice(urls), expected, timeout=30)
            kind = None
            with contextlib.suppress(IndexError):
                kind = self._own.popleft()
            if kind in ("leave", "reset"):
                got = ask(leave_after=chance.randrange(len(expected)), reset=kind == "reset")
            elif kind == "stall":
                got = ask(stall=chance.uniform(0.5, 2.5))
            else:
                got = ask(offset=chance.choice((0, 0, 0, chance.randrange(len(expected)))))
            with self._lock:
                self.answers.append(got)
                if kind is not None:
                    self.done[kind] += 1
            if got.status not in (200, 206):
                time.sleep(0.1)

    # --- Faults ---

    def _strike(self, kind: str, *, counts: bool = True) -> None:
        if kind in _ORDERS:
            self._site.orders.give(kind, self._random.randrange(1, 8))
            self._given[kind] += 1
            return
        strikes: Mapping[str, Callable[[], bool]] = {
            "drop": self._drop,
            "lose": self._lose,
            "sever": self._sever,
            "kill": self._kill,
            "freeze": self._freeze,
            "stop": self._stop,
            "restart": self._restart,
        }
        hit = strikes[kind]()
        if counts and hit:
            self.done[kind] += 1
        elif counts:
            self._others.append(kind)  # there was nothing to be struck; later there will be

    def _drop(self) -> bool:
        """Delete an image as the admin API does, whether it is stored, being made, or being read."""
        found = faults.records(self._site)
        if not found:
            return False
        record = self._site.services.derived.delete(self._random.choice(found).key)
        if record is not None and record.state is State.COMPLETE:
            with contextlib.suppress(Exception):  # the order to fail may meet us
                self._site.services.storage.preferred.delete(record.path)
        return True

    def _lose(self) -> bool:
        """Take an object away behind everybody's back."""
        found = [record for record in faults.records(self._site) if record.state is State.COMPLETE]
        if not found:
            return False
        (self._site.storage / self._random.choice(found).path).unlink(missing_ok=True)
        return True

    def _sever(self) -> bool:
        """Cut connections to the database, in the middle of whatever they do."""
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename > ''"
        with self._site.services.own_engine.connect() as connection:
            return bool(list(connection.execute(text(f"{query} AND random() < 0.7"))))

    def _victim(self) -> int | None:
        """Return a process that answers; rather one that makes something."""
        makers = self._fleet.makers() if self._random.random() < 0.8 else []
        candidates = sorted(set(makers) & set(self._fleet.workers())) or self._fleet.workers()
        return self._random.choice(candidates) if candidates else None

    def _kill(self) -> bool:
        victim = self._victim()
        if victim is None:
            return False
        kill(victim)
        return True

    def _freeze(self) -> bool:
        """Have a process stand still, maybe for longer than its leases last."""
        victim = self._victim()
        if victim is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGSTOP)
        timer = threading.Timer(self._random.uniform(0.1, 1.5 * LEASE_SECONDS), _thaw, (victim,))
        timer.start()
        self._thawing.append(timer)
        return True

    def _stop(self) -> bool:
        """Restart a server as an operator does."""
        host = self._random.choice(sorted(self._fleet.servers))
        assert self._fleet.stop(host) == 0
        self._fleet.start(host)
        return True

    def _restart(self) -> bool:
        """Have the database crash, and come back."""
        self._server.stop(self._random.choice(("fast", "immediate")))
        time.sleep(self._random.uniform(0, LEASE_SECONDS))
        self._server.start()

        def answers() -> bool:
            try:
                return faults.records(self._site) is not None
            except DatabaseUnavailable:
                return False

        return bool(wait_until(answers))


def _thaw(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
