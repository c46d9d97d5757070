"""Who a user of a directory is here: Quay's table `federatedlogin` leads from what the directory calls them to a row.

Invariants: a live Quay's rows are only read. In a registry of our own a user who is new gets a row, and a name that is
free: what another user, an organization or a robot is called is nobody else's, whatever a directory says. An e-mail
address belongs to one user.
quay/quay, data/users/federated.py and data/model/user.py.
"""

import itertools
import json
import logging
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Select, func, insert, or_, select, update

from data.accounts import CredentialsRefused
from data.administered import forget
from data.database import Engine
from data.directories.directory import Identity
from data.owntables import DatabaseUnavailable
from data.registry import reached, storable
from data.tables import FederatedLogin, LoginService, User
from util.names import MAX_NAME

log = logging.getLogger(__name__)

_MIN_NAME = 2
_ENDINGS = string.digits + string.ascii_lowercase
_MOST_NAMES = 1 + len(_ENDINGS) + len(_ENDINGS) ** 2
_MAX_EMAIL = 254


class NotLinked(CredentialsRefused):
    """The right password of somebody whom the directory knows, and who is no user of this registry."""


@dataclass(frozen=True, slots=True)
class LinkedUser:
    """A user's row, and what the directory calls them."""

    id: int
    name: str
    enabled: bool
    identifier: str


class FederatedUsers:
    """The users of one directory. Every method may raise RegistryUnavailable."""

    def __init__(
        self,
        engine: Engine,
        own_engine: Engine,
        service: str,
        *,
        ours: bool = False,
        creates: bool = True,
        refused_domains: Iterable[str] = (),
    ) -> None:
        """`service` is the directory's name in `loginservice`; `ours`: rows may be written; `creates`: also new ones.

        Nobody is made a user who has an e-mail address in one of `refused_domains`, or below.
        """
        self._engine, self._own_engine, self._service = engine, own_engine, service
        self._ours, self._creates = ours, creates
        self._refused_domains = tuple(refused_domains)

    @property
    def service(self) -> str:
        """The directory's name in `loginservice`."""
        return self._service

    def named(self, name: str) -> LinkedUser | None:
        """Return who would log in with `name`, as far as the rows know: what the directory calls them, or their name
        or e-mail address here.
        """
        if not storable(name):
            return None
        given = or_(FederatedLogin.service_ident == name, User.username == name)
        if "@" in name:
            given = or_(given, User.email == name)
        query = self._linked().where(given).order_by(FederatedLogin.service_ident != name, User.id).limit(1)
        with reached(self._engine) as connection:
            return _read(connection, query)

    def identifier(self, number: int) -> str | None:
        """Return what the directory calls the user `number`, None for who is not from there."""
        with reached(self._engine) as connection:
            found = _read(connection, self._linked().where(User.id == number))
        return None if found is None else found.identifier

    def find(self, identifier: str) -> LinkedUser | None:
        """Return the user whom the directory calls `identifier`."""
        if not storable(identifier):
            return None
        with reached(self._engine) as connection:
            return self._find(connection, identifier)

    def user(self, identity: Identity) -> LinkedUser:
        """Return the user who is `identity`: made now, where that may be done.

        Raises NotLinked, and DatabaseUnavailable where one has to be made.
        """
        found = self.find(identity.identifier)
        if found is None:
            return self.linked(identity)
        if self._ours and identity.email is not None:
            self._keep_email(found, identity.email)
        return found

    def linked(self, identity: Identity, *, always: bool = False) -> LinkedUser:
        """Return the user who is `identity`, made where there is none; with `always` whatever rules new users out.

        Raises NotLinked, DatabaseUnavailable.
        """
        identifier = identity.identifier
        if not storable(identifier) or not 0 < len(identifier) <= MAX_NAME:
            raise self._refusal(identifier, "the registry cannot keep that name")
        if not self._ours:
            raise self._refusal(identifier, "there is no account in Quay yet; log in to Quay once first")
        if not always and not self._creates:
            raise self._refusal(identifier, "FEATURE_USER_CREATION (or FEATURE_INVITE_ONLY_…) rules out new users")
        email = identity.email if identity.email and _is_email(identity.email) else None
        if not always and email is not None and self._is_refused(email):
            raise self._refusal(identifier, f"BLACKLISTED_EMAIL_DOMAINS rules out {email}")
        with reached(self._engine) as connection:
            name = _free_name(connection, identifier)
        if name is not None:
            try:
                forget(self._own_engine, name)  # what was left of one who had that name before
            except DatabaseUnavailable as problem:
                log.warning("%s is not made a user: %s", identifier, problem)
                raise
        with reached(self._engine, writes=True) as connection:
            found = self._find(connection, identifier)
            if found is not None:  # by another, meanwhile
                return found
            if name is None or _is_taken(connection, name):
                raise self._refusal(identifier, "no name is free; try again")
            if email is not None and _has_email(connection, email):
                raise self._refusal(identifier, f"another user has the e-mail address {email}")
            return self._make(connection, name, identifier, email)

    def _make(self, connection: Connection, name: str, identifier: str, email: str | None) -> LinkedUser:
        values = {"username": name, "verified": True} | ({} if email is None else {"email": email})
        number = connection.execute(insert(User).values(**values).returning(User.id)).scalar_one()
        service = connection.execute(select(LoginService.id).where(LoginService.name == self._service)).scalar_one()
        login = {"user_id": number, "service_id": service, "service_ident": identifier, "metadata_json": json.dumps({})}
        connection.execute(insert(FederatedLogin).values(**login))
        log.info("%s of %s is now the user %s", identifier, self._service, name)
        return LinkedUser(number, name, enabled=True, identifier=identifier)

    def _keep_email(self, user: LinkedUser, email: str) -> None:
        if not _is_email(email):
            return
        query = select(User.email).where(User.id == user.id)
        with reached(self._engine) as connection:
            if connection.scalar(query) == email:
                return
        with reached(self._engine, writes=True) as connection:
            if _has_email(connection, email, but=user.id):
                log.warning("%s keeps their e-mail address: another user has %s", user.name, email)
                return
            connection.execute(update(User).where(User.id == user.id).values(email=email))

    def _refusal(self, identifier: str, reason: str) -> NotLinked:
        log.warning("%r of %s is refused: %s", identifier, self._service, reason)
        return NotLinked(f"the directory knows you, but {reason}")

    def _is_refused(self, email: str) -> bool:
        domain = email.rpartition("@")[2].lower()
        return any(domain == refused or domain.endswith(f".{refused}") for refused in self._refused_domains)

    def _find(self, connection: Connection, identifier: str) -> LinkedUser | None:
        return _read(connection, self._linked().where(FederatedLogin.service_ident == identifier))

    def _linked(self) -> "Select[int, str, bool, str]":
        return (
            select(User.id, User.username, User.enabled, FederatedLogin.service_ident)
            .join(FederatedLogin, FederatedLogin.user_id == User.id)
            .join(LoginService, LoginService.id == FederatedLogin.service_id)
            .where(LoginService.name == self._service, User.organization.is_(False), User.robot.is_(False))
        )


def usernames(identifier: str) -> Iterator[str]:
    """Give the names that a user may have here, the best first: ASCII, as names are here, and not endlessly many."""
    decomposed = unicodedata.normalize("NFKD", identifier).encode("ascii", "ignore").decode().lower()
    stem = re.sub(r"[_-]{2,}", "_", re.sub(r"[^a-z0-9_-]", "_", decomposed)).strip("_-")
    for length in range(max(0, _MIN_NAME - len(stem)), max(0, _MIN_NAME - len(stem)) + 3):
        for ending in itertools.product(_ENDINGS, repeat=length):
            yield stem[: MAX_NAME - length].rstrip("_-") + "".join(ending)


def _free_name(connection: Connection, identifier: str) -> str | None:
    names = itertools.islice(usernames(identifier), _MOST_NAMES)
    return next((name for name in names if not _is_taken(connection, name)), None)


def _is_taken(connection: Connection, name: str) -> bool:
    return connection.execute(select(User.id).where(User.username == name)).first() is not None


def _has_email(connection: Connection, email: str, *, but: int | None = None) -> bool:
    query = select(User.id).where(func.lower(User.email) == email.lower(), User.organization.is_(False))
    return any(number != but for number in connection.scalars(query))


def _is_email(text: str) -> bool:
    return 0 < len(text) <= _MAX_EMAIL and "@" in text and storable(text)


def _read(connection: Connection, query: "Select[int, str, bool, str]") -> LinkedUser | None:
    row = connection.execute(query).one_or_none()
    return None if row is None else LinkedUser(row[0], row[1], row[2], row[3])
