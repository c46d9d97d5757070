"""Accounts: who somebody is, and what they may do with which repository. Quay's tables, in Quay's meaning; only reads.

The law: who may not come in learns no more than that, in no less time: not whether there is such a user, nor whether
they are disabled, unless the password was right. What is allowed is looked up anew each time it is asked, so whoever is
disabled, or loses a role, loses it at once.
quay/quay, auth/credentials.py, auth/permissions.py and data/model/user.py.
"""

import hmac
import logging
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any, ClassVar, NoReturn, Protocol

from sqlalchemy import ColumnElement, and_, exists, literal, or_, select, union_all
from sqlalchemy.orm import aliased

from data.database import Engine
from data.logins import Logins, wait_ms
from data.owntables import DatabaseUnavailable, SuperuserRow, reading
from data.passwords import Passwords
from data.registry import reached, storable
from data.secretbox import Secrets, Undecryptable
from data.tables import (
    MARKED_FOR_DELETION,
    AppSpecificAuthToken,
    Repository,
    RepositoryPermission,
    RobotAccountToken,
    Team,
    TeamMember,
    TeamRole,
    User,
    now_utc,
)
from data.tables import Role as RoleRow
from util.names import robot_owner
from util.problem import Malformed, Problem

log = logging.getLogger(__name__)

APP_TOKEN_USER = "$app"  # noqa: S105 no secret
"""The name that somebody logs in with whose password is an app-specific token."""

_TOKEN_NAME = 60  # characters of an app-specific token that are its name; the others are secret
_TURNS = 256  # names that have the same one are rare
_REFUSED = "the user name or the password is wrong"


class InvalidRole(Malformed):
    """A word that is no role."""

    code = "ROLE_INVALID"


class Role(IntEnum):
    """What somebody may do with a repository; each may do what a lower one may."""

    READ = 1
    WRITE = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """Quay's name for it."""
        return self.name.lower()

    @classmethod
    def parse(cls, word: str) -> "Role":
        """Return the role that Quay calls `word`. Raises InvalidRole."""
        for role in cls:
            if role.word == word:
                return role
        raise InvalidRole(f"{word!r} is no role; there are: {', '.join(role.word for role in cls)}")


@dataclass(frozen=True, slots=True)
class Scopes:
    """What an OAuth token was given for, in Quay's words, e.g. `repo:read`.

    Where one word is unknown, all of them give nothing.

    quay/quay, auth/scopes.py and auth/permissions.py.
    """

    words: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> "Scopes":
        """Return the scopes in `text`, which are separated by spaces or commas; none where one of them is unknown."""
        words = frozenset(text.replace(",", " ").split())
        return cls(words if words <= _SCOPES else frozenset())

    @property
    def role(self) -> Role | None:
        """The highest role that they allow in a repository; None if they allow none."""
        return max((role for word, role in _SCOPE_ROLES.items() if word in self.words), default=None)

    @property
    def creates(self) -> bool:
        """Whether they allow to make repositories."""
        return not self.words.isdisjoint(("repo:create", "org:admin"))

    @property
    def superuser(self) -> bool:
        """Whether a superuser is one by them, too."""
        return "super:user" in self.words


_SCOPES = frozenset(
    ("repo:read", "repo:write", "repo:admin", "repo:create", "user:read", "user:admin", "org:admin", "super:user")
)
_SCOPE_ROLES = {"repo:read": Role.READ, "repo:write": Role.WRITE, "repo:admin": Role.ADMIN}


@dataclass(frozen=True, slots=True)
class Delegate:
    """The one repository that an access token is good for, and the role that it has there."""

    namespace: str
    repository: str
    role: Role


@dataclass(frozen=True, slots=True)
class Account:
    """A user or a robot that is enabled. `superuser`: may do what is everybody's, also where it is not theirs.

    `scopes` are those of the OAuth token by which the user came, None for one who may do all that is theirs. With a
    `delegate` it is no user but an access token, whose id is below zero.
    """

    id: int
    name: str
    robot: bool
    superuser: bool
    reads_everything: bool = False
    scopes: Scopes | None = None
    delegate: Delegate | None = None


class CredentialsRefused(Problem):
    """A name and a password that nobody has."""

    code = "UNAUTHORIZED"


class AccountDisabled(CredentialsRefused):
    """The right password of somebody who is disabled, or whose owner is."""


class TooManyLogins(CredentialsRefused):
    """A user whose last logins failed, and whose next is not looked at for another `retry_after` seconds."""

    code: ClassVar[str] = "TOOMANYREQUESTS"

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(f"too many logins failed; try again in {max(1, round(retry_after))} seconds")


class Elsewhere(Protocol):
    """Users whose passwords are kept in another system."""

    def authenticate(self, username: str, password: str) -> tuple[int, str, bool]:
        """Return row and name of who has that name there and that password, and whether they are enabled here.

        Raises CredentialsRefused, TooManyLogins, RegistryUnavailable, and DirectoryUnavailable.
        """


class Rights(Protocol):
    """What the settings, or another system, say that users may do. `number` and `name` are those of a user's row."""

    def is_superuser(self, number: int, name: str) -> bool:
        """Tell whether a user may administer everything; never where it is not known just now."""

    def reads_everything(self, number: int, name: str) -> bool:
        """Tell whether a user may read everything; never where it is not known just now."""

    def is_restricted(self, number: int, name: str) -> bool:
        """Tell whether a user may not make repositories in their own namespace. Raises DirectoryUnavailable."""


class Accounts(Protocol):
    """What has to be known of accounts. Every method may raise RegistryUnavailable."""

    def authenticate(self, username: str, password: str) -> Account:
        """Return whose credentials these are: a user's, by name or e-mail, a robot's, or an app-specific token's.

        Raises CredentialsRefused, AccountDisabled, TooManyLogins.
        """

    def find(self, name: str) -> Account | None:
        """Return the user or robot `name`; None where there is none, or where it or a robot's owner is disabled."""

    def role(self, account: Account, namespace: str, repository: str) -> Role | None:
        """Return the highest role that `account` has in a repository, which need not exist; None if it has none."""

    def may_create(self, account: Account, namespace: str) -> bool:
        """Tell whether `account` may make repositories in `namespace`; never where there is none that is enabled.

        Raises DirectoryUnavailable where another system would have to be asked and does not answer.
        """


class SqlAccounts:
    """The accounts that a database of Quay's tables describes."""

    def __init__(
        self,
        engine: Engine,
        own_engine: Engine,
        logins: Logins,
        *,
        secrets: Secrets,
        superusers: frozenset[str] = frozenset(),
        superusers_full_access: bool = True,
        app_specific_tokens: bool = True,
        passwords: Passwords | None = None,
        elsewhere: Elsewhere | None = None,
        rights: Rights | None = None,
        superusers_enabled: bool = True,
        robots_allowed: frozenset[str] | None = None,
    ) -> None:
        """With `elsewhere` no password is right that is kept here. `own_engine` has verbs_superuser.

        Where `secrets` gives none, no robot and no app-specific token comes in. Only those of `robots_allowed` come in,
        and every robot where it is None.
        """
        self._engine, self._own_engine, self._logins = engine, own_engine, logins
        self._secrets = secrets
        self._superusers, self._superusers_full_access = superusers, superusers_full_access
        self._app_specific_tokens = app_specific_tokens
        self._superusers_enabled, self._robots_allowed = superusers_enabled, robots_allowed
        self._passwords = Passwords() if passwords is None else passwords
        self._elsewhere, self._rights = elsewhere, rights
        self._told = False
        self._turns = tuple(threading.Lock() for _ in range(_TURNS))

    # --- Who somebody is ----------------------------------------------------------------------------------------------

    def authenticate(self, username: str, password: str) -> Account:
        if not storable(username):
            self._refuse_slowly(password)
        if username == APP_TOKEN_USER and self._app_specific_tokens:
            return self._by_app_token(password)
        owner = robot_owner(username)
        return self._by_password(username, password) if owner is None else self._by_token(username, owner, password)

    def _by_password(self, username: str, password: str) -> Account:
        if self._elsewhere is not None:
            number, name, enabled = self._elsewhere.authenticate(username, password)
            if not enabled:
                raise AccountDisabled(f"the user {name} is disabled")
            return self._account(number, name, robot=False)
        named = User.username == username
        if "@" in username:
            named = or_(named, User.email == username)
        query = select(
            User.id,
            User.username,
            User.password_hash,
            User.enabled,
            User.invalid_login_attempts,
            User.last_invalid_login,
        ).where(named, User.organization.is_(False), User.robot.is_(False))
        with reached(self._engine) as connection:
            row = connection.execute(query.order_by(User.id).limit(1)).one_or_none()
        if row is None:
            self._refuse_slowly(password)
        with self._turn(row.username):
            return self._compared(row, password)

    def _compared(self, row: Any, password: str) -> Account:
        standing = self._logins.standing(row.username)
        waiting = max(standing.waiting_ms, _waiting_ms(row.invalid_login_attempts, row.last_invalid_login))
        if waiting > 0:
            raise TooManyLogins(waiting / 1000)
        if not self._passwords.match(row.username, password, row.password_hash):
            self._logins.failed(row.username)
            raise CredentialsRefused(_REFUSED)
        if standing.failures:
            self._logins.succeeded(row.username)
        if not row.enabled:
            raise AccountDisabled(f"the user {row.username} is disabled")
        return self._account(row.id, row.username, robot=False)

    def _turn(self, name: str) -> threading.Lock:
        """Return what a password for `name` is compared under, one after the other: the next sees that this failed.

        Else many at once would be looked at for the wait of one, and be enough to lock somebody out for a day.
        """
        return self._turns[hash(name) % len(self._turns)]

    def _refuse_slowly(self, password: str) -> NoReturn:
        self._passwords.match("", password, None)
        raise CredentialsRefused(_REFUSED)

    def _by_token(self, username: str, owner: str, password: str) -> Account:
        if not self._lets_in(username):
            raise CredentialsRefused("robots are not let in here")
        owning = aliased(User)
        query = (
            select(User.id, User.enabled, owning.enabled, RobotAccountToken.token)
            .join(RobotAccountToken, RobotAccountToken.robot_account_id == User.id)
            .join(owning, and_(owning.username == owner, owning.robot.is_(False)))
            .where(User.username == username, User.robot.is_(True))
        )
        with reached(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        if row is None or not self._is_secret(password, row.token):
            raise CredentialsRefused(_REFUSED)
        number, enabled, owner_enabled, _ = row
        if not (enabled and owner_enabled):
            raise AccountDisabled(f"the robot {username} is disabled, or its owner is")
        return self._account(number, username, robot=True)

    def _lets_in(self, robot: str) -> bool:
        return self._robots_allowed is None or robot in self._robots_allowed

    def _by_app_token(self, password: str) -> Account:
        name, secret = password[:_TOKEN_NAME], password[_TOKEN_NAME:]
        query = (
            select(User.id, User.username, User.enabled, AppSpecificAuthToken.token_secret)
            .join(AppSpecificAuthToken, AppSpecificAuthToken.user_id == User.id)
            .where(
                AppSpecificAuthToken.token_name == name,
                or_(AppSpecificAuthToken.expiration.is_(None), AppSpecificAuthToken.expiration > now_utc()),
                User.organization.is_(False),
            )
        )
        row = None
        if storable(name) and secret:
            with reached(self._engine) as connection:
                row = connection.execute(query).one_or_none()
        if row is None or not self._is_secret(secret, row.token_secret):
            raise CredentialsRefused("the app-specific token is none, or has expired")
        if not row.enabled:
            raise AccountDisabled(f"the user {row.username} is disabled")
        return self._account(row.id, row.username, robot=False)

    def _is_secret(self, given: str, kept: str) -> bool:
        box = self._secrets()
        if box is None:
            self._tell_once("DATABASE_SECRET_KEY is not set: robots and app-specific tokens are refused")
            return False
        try:
            wanted = box.decrypt(kept)
        except Undecryptable as problem:
            self._tell_once(f"robots and app-specific tokens are refused: {problem}")
            return False
        return hmac.compare_digest(given.encode(errors="surrogatepass"), wanted.encode())

    def _tell_once(self, said: str) -> None:
        if not self._told:
            self._told = True
            log.warning("%s", said)

    def find(self, name: str) -> Account | None:
        if not storable(name):
            return None
        query = select(User.id, User.username, User.robot).where(
            User.username == name, User.enabled.is_(True), User.organization.is_(False)
        )
        owner = robot_owner(name)
        if owner is not None:
            if not self._lets_in(name):
                return None
            owning = aliased(User)
            query = query.where(
                exists(
                    select(owning.id).where(owning.username == owner, owning.enabled.is_(True), owning.robot.is_(False))
                )
            )
        with reached(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        if row is None or row.robot != (owner is not None):
            return None
        return self._account(row.id, row.username, robot=row.robot)

    def _account(self, number: int, name: str, *, robot: bool) -> Account:
        if robot:
            return Account(number, name, robot, superuser=False)
        reads = self._rights is not None and self._rights.reads_everything(number, name)
        # quay/quay, auth/permissions.py: who is both only reads.
        superuser = not reads and self._is_superuser(number, name)
        return Account(number, name, robot, superuser, reads_everything=reads)

    def _is_superuser(self, number: int, name: str) -> bool:
        if not self._superusers_enabled:
            return False
        if name in self._superusers or (self._rights is not None and self._rights.is_superuser(number, name)):
            return True
        query = select(SuperuserRow.username).where(SuperuserRow.username == name)
        try:
            return reading(self._own_engine, lambda connection: connection.execute(query).one_or_none()) is not None
        except DatabaseUnavailable as error:
            log.debug("nobody is a superuser but whom the settings name: %s", error)
            return False

    # --- What they may do ---------------------------------------------------------------------------------------------

    def role(self, account: Account, namespace: str, repository: str) -> Role | None:
        if (account.superuser and self._superusers_full_access) or (account.name == namespace and not account.robot):
            return Role.ADMIN
        if not storable(namespace, repository):
            return None
        theirs = select(TeamMember.team_id).where(TeamMember.user_id == account.id)
        permitted = (
            select(RoleRow.name)
            .join(RepositoryPermission, RepositoryPermission.role_id == RoleRow.id)
            .join(Repository, Repository.id == RepositoryPermission.repository_id)
            .join(User, User.id == Repository.namespace_user_id)
            .where(
                User.username == namespace,
                Repository.name == repository,
                Repository.state != MARKED_FOR_DELETION,
                or_(RepositoryPermission.user_id == account.id, RepositoryPermission.team_id.in_(theirs)),
            )
        )
        everywhere = select(literal(Role.ADMIN.word)).where(_in_team(account, namespace, "admin"))
        with reached(self._engine) as connection:
            words = set(connection.scalars(union_all(permitted, everywhere)))
        least = Role.READ if account.reads_everything else None
        return max((role for role in Role if role.word in words), default=least)

    def may_create(self, account: Account, namespace: str) -> bool:
        if not storable(namespace):
            return False
        query = select(User.id).where(User.username == namespace, User.enabled.is_(True), User.robot.is_(False))
        everywhere = account.superuser and self._superusers_full_access
        if not everywhere and (account.robot or account.name != namespace):
            query = query.where(_in_team(account, namespace, "admin", "creator"))
        elif not everywhere and self._rights is not None and self._rights.is_restricted(account.id, account.name):
            return False
        with reached(self._engine) as connection:
            return connection.execute(query).first() is not None


def _in_team(account: Account, namespace: str, *roles: str) -> ColumnElement[bool]:
    """Tell whether `account` is in a team of the organization `namespace` that has one of `roles` there."""
    organization = aliased(User)
    return exists(
        select(Team.id)
        .join(TeamRole, TeamRole.id == Team.role_id)
        .join(TeamMember, TeamMember.team_id == Team.id)
        .join(organization, organization.id == Team.organization_id)
        .where(
            organization.username == namespace,
            organization.organization.is_(True),
            TeamRole.name.in_(roles),
            TeamMember.user_id == account.id,
        )
    )


def _waiting_ms(failures: int, last: datetime) -> int:
    """Return for how long still Quay itself would not look at a login."""
    ends = last + timedelta(milliseconds=wait_ms(failures))
    return max(0, round((ends - now_utc()).total_seconds() * 1000)) if failures > 0 else 0
