"""Logins with a password that a directory checks.

Invariants: only what the directory says lets anybody in; a password in the registry's own rows does not. Wrong
passwords are counted as others are, and a directory that does not answer never is: nobody is locked out by that. While
somebody has to wait, the right password does not let them in either. Nothing is locked while the directory is asked.
"""

import logging
import threading

from data.accounts import CredentialsRefused, TooManyLogins
from data.directories.directory import Directory, Refusal
from data.federated import FederatedUsers
from data.logins import Logins

log = logging.getLogger(__name__)

_TURNS = 256
_REFUSED = "the user name or the password is wrong"


class DirectoryLogins:
    """Lets the users of a directory in."""

    def __init__(self, directory: Directory, users: FederatedUsers | None, logins: Logins) -> None:
        """Without `users` nobody has a row, and nobody comes in."""
        self._directory, self._users, self._logins = directory, users, logins
        self._turns = tuple(threading.Lock() for _ in range(_TURNS))

    def authenticate(self, username: str, password: str) -> tuple[int, str, bool]:
        """Return row and name of who has that name in the directory and that password, and whether they are enabled.

        Raises CredentialsRefused, NotLinked, TooManyLogins; DirectoryUnavailable, RegistryUnavailable,
        DatabaseUnavailable.
        """
        if self._users is None or username.startswith("$"):  # `$app` and others bring tokens, which are not to go there
            raise CredentialsRefused(_REFUSED)
        known = self._users.named(username)
        if known is not None:
            self._check_waiting(self._counted(known.identifier))  # and the directory is spared
        answer = self._directory.verify(username, password)
        if isinstance(answer, Refusal):
            log.info("a login is refused: %s", answer.reason)
            identifier = answer.identifier or (None if known is None else known.identifier)
            if identifier is not None:
                self._settle(identifier, right=False)
            raise CredentialsRefused(_REFUSED)
        self._settle(answer.identifier, right=True)
        user = self._users.user(answer)
        return user.id, user.name, user.enabled

    def _settle(self, identifier: str, *, right: bool) -> None:
        """Count a login, one after the other: of many at once only as many are looked at as if they had waited."""
        counted = self._counted(identifier)
        with self._turns[hash(counted) % _TURNS]:
            failures = self._check_waiting(counted)
            if not right:
                self._logins.failed(counted)
            elif failures:
                self._logins.succeeded(counted)

    def _check_waiting(self, counted: str) -> int:
        standing = self._logins.standing(counted)
        if standing.waiting_ms > 0:
            raise TooManyLogins(standing.waiting_ms / 1000)
        return standing.failures

    def _counted(self, identifier: str) -> str:
        """Return what the logins of somebody are counted under: a colon is in no name of a user here."""
        service = "" if self._users is None else self._users.service
        return f"{service}:{identifier}"[:255]
