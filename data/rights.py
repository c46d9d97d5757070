"""What users may do by the settings and by what a directory says of them, remembered for a short time.

Invariants: where the directory does not answer nobody is more than they are without it, and who need not be asked about
goes on: an outage is asked about once in a while, and not by every request. What is remembered has a bound. Robots have
none of these rights.
quay/quay, data/users/__init__.py (FederatedUserManager) and util/config/superusermanager.py.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from data.directories.directory import Directory, DirectoryUnavailable
from data.federated import FederatedUsers

log = logging.getLogger(__name__)

_MOST = 4096  # answers that are remembered
_OUTAGE_SECONDS = 5.0


class UserRights:
    """The rights of users. Safe for several threads."""

    def __init__(
        self,
        *,
        readonly_superusers: AbstractSet[str] = frozenset(),
        restricts: bool = False,
        whitelist: AbstractSet[str] | None = None,
        directory: Directory | None = None,
        users: FederatedUsers | None = None,
        seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`restricts`: whether anybody is restricted at all. Where there is a `whitelist`, those in it never are, and
        all others always. `seconds`: for how long an answer of the directory's is remembered; 0: not at all.
        """
        self._readonly_superusers, self._restricts, self._whitelist = readonly_superusers, restricts, whitelist
        self._directory, self._users = directory, users
        self._seconds, self._clock = seconds, clock
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, int], tuple[float, bool]] = OrderedDict()
        self._outage: tuple[float, str] | None = None

    def is_superuser(self, number: int, name: str) -> bool:
        """Tell whether the directory makes a user a superuser; the settings are not asked here."""
        return self._directory is not None and self._or_not("superuser", number, self._directory.is_superuser)

    def reads_everything(self, number: int, name: str) -> bool:
        if name in self._readonly_superusers:
            return True
        directory = self._directory
        return directory is not None and self._or_not("reader", number, directory.is_readonly_superuser)

    def is_restricted(self, number: int, name: str) -> bool:
        if not self._restricts:
            return False
        if self._whitelist is not None:
            return name not in self._whitelist
        if self._directory is None or self._users is None:
            return True
        return self._asked("restricted", number, self._directory.is_restricted, stranger=True)

    def _or_not(self, question: str, number: int, ask: Callable[[str], bool]) -> bool:
        try:
            return self._asked(question, number, ask, stranger=False)
        except DirectoryUnavailable:
            return False

    def _asked(self, question: str, number: int, ask: Callable[[str], bool], *, stranger: bool) -> bool:
        """Return what the directory says of a user; `stranger` of one who is not from there."""
        if self._users is None:
            return stranger
        key = (question, number)
        with self._lock:
            ends, answer = self._known.get(key, (0.0, False))
            if self._clock() < ends:
                self._known.move_to_end(key)
                return answer
            if self._outage is not None and self._clock() < self._outage[0]:
                raise DirectoryUnavailable(self._outage[1])
        identifier = self._users.identifier(number)
        if identifier is None:
            return stranger
        try:
            answer = ask(identifier)
        except DirectoryUnavailable as problem:
            with self._lock:
                self._outage = (self._clock() + _OUTAGE_SECONDS, problem.reason)
            log.warning("nobody is a superuser by the directory, or known not to be restricted: %s", problem.reason)
            raise
        if self._seconds:
            with self._lock:
                self._known[key] = (self._clock() + self._seconds, answer)
                while len(self._known) > _MOST:
                    self._known.popitem(last=False)
        return answer
