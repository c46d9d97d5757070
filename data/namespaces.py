"""Users, organizations and robots: made, listed, disabled and deleted.

The law: a password and a robot's token are told to nobody again. A namespace is not deleted by accident: one that has
repositories goes only with them, and that must be said. What a deleted name was given is not a later one's.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update

from data.accounts import Account
from data.administered import (
    Administered,
    NameTaken,
    UserNotFound,
    delete_account,
    enumerated,
    forget,
    namespace_row,
    new_token,
    organization_id,
    user_id,
)
from data.logins import Logins
from data.owntables import DatabaseUnavailable, SuperuserRow, changing, database_now_ms, insert_unless_there, reading
from data.passwords import hashed
from data.repositories import mark_for_deletion
from data.robotfederation import CONFIGURATION, ROBOTS, Trusted
from data.tables import (
    MARKED_FOR_DELETION,
    FederatedLogin,
    LoginService,
    Repository,
    RepositoryPermission,
    RobotAccountToken,
    Team,
    TeamMember,
    TeamRole,
    TeamSync,
    User,
)
from util.names import check_robot, check_username
from util.problem import Malformed, Problem

OWNERS = "owners"
"""The team of an organization that may do everything in it, as Quay makes it."""


class InvalidEmail(Malformed):
    """A text that is no e-mail address."""

    code = "EMAIL_INVALID"


class NamespaceNotEmpty(Problem):
    """A namespace that has repositories, and was to be deleted without them."""

    code = "NAMESPACE_NOT_EMPTY"


class NoSecretKey(Problem):
    """A robot's token that nothing can be encrypted with."""

    code = "SECRET_KEY_MISSING"


@dataclass(frozen=True, slots=True)
class NamespaceListed:
    """A user or an organization as the administration sees it. `superuser`: by our own table, not by the settings."""

    name: str
    email: str | None
    enabled: bool
    superuser: bool = False


@dataclass(frozen=True, slots=True)
class RobotListed:
    """A robot, `owner+name`. It is enabled if its owner is, too."""

    name: str
    enabled: bool


class Namespaces(Administered):
    """The accounts' part of the administration. Every method may raise RegistryUnavailable and DatabaseUnavailable."""

    # --- Users --------------------------------------------------------------------------------------------------------

    def create_user(self, name: str, password: str, *, email: str | None = None, superuser: bool = False) -> Account:
        """Make a user and return them.

        Raises InvalidName, InvalidPassword, InvalidEmail, NameTaken, NotOurRegistry.
        """
        check_username(name)
        if email is not None:
            _check_email(email)
        kept = hashed(password)  # takes a while, and not under the lock
        with self._changing() as connection:
            _check_free(connection, name)
        forget(self._own_engine, name)  # what was left of one who had that name before
        with self._changing() as connection:
            _check_free(connection, name)
            values = {"username": name, "password_hash": kept, "verified": True}
            if email is not None:
                if _has_email(connection, email):
                    raise NameTaken(f"another user has the e-mail address {email}")
                values["email"] = email
            number = connection.execute(insert(User).values(**values).returning(User.id)).scalar_one()
        if superuser:
            changing(self._own_engine, lambda connection: _make_superuser(connection, name))
        return Account(number, name, robot=False, superuser=superuser)

    def set_password(self, name: str, password: str) -> None:
        """Let a user log in with `password` alone from now on, and at once. Raises InvalidPassword, UserNotFound."""
        kept = hashed(password)
        with self._changing() as connection:
            number = _person_id(connection, name)
            values = {"password_hash": kept, "invalid_login_attempts": 0}
            connection.execute(update(User).where(User.id == number).values(**values))
        Logins(self._own_engine).succeeded(name)

    def set_superuser(self, name: str, *, superuser: bool) -> None:
        """Let a user do everything, everywhere, or not any more; whom the settings name stays one. Idempotent.

        Raises UserNotFound, NotOurRegistry.
        """
        with self._changing() as connection:
            _person_id(connection, name)
        change = _make_superuser if superuser else _make_superuser_no_more
        changing(self._own_engine, lambda connection: change(connection, name))

    def set_enabled(self, name: str, *, enabled: bool) -> None:
        """Let a user or a robot log in, or not; of one who may not, nor of such an organization, nothing can be had.

        Raises UserNotFound, NotOurRegistry.
        """
        with self._changing() as connection:
            query = update(User).where(User.username == name).values(enabled=enabled)
            if connection.execute(query).rowcount == 0:
                raise UserNotFound(f"there is no user, organization or robot {name!r}")

    def delete_user(self, name: str, *, with_repositories: bool = False) -> None:
        """Delete a user, their robots, and their repositories if that is said.

        Raises UserNotFound, NamespaceNotEmpty, NotOurRegistry.
        """
        with self._changing() as connection:
            _delete_namespace(connection, _person_id(connection, name), name, with_repositories=with_repositories)
        forget(self._own_engine, name)

    def users(self) -> list[NamespaceListed]:
        """Return all users, by name."""
        with self._reading() as connection:
            rows = _listed(connection, organization=False)
        query = select(SuperuserRow.username)
        superusers: set[str] = set()
        with suppress(DatabaseUnavailable):  # beside a Quay that is only read there is none
            superusers |= set(reading(self._own_engine, lambda connection: connection.scalars(query).all()))
        return [NamespaceListed(name, email, enabled, name in superusers) for name, email, enabled in rows]

    # --- Organizations ------------------------------------------------------------------------------------------------

    def create_organization(self, name: str, *, owner: str | None = None) -> None:
        """Make an organization with a team `owners`, which is its admin and which the user `owner` is in.

        Raises InvalidName, NameTaken, UserNotFound, NotOurRegistry.
        """
        check_username(name)
        with self._changing() as connection:
            _check_free(connection, name)
            member = None if owner is None else _person_id(connection, owner)
            values = {"username": name, "organization": True}
            number = connection.execute(insert(User).values(**values).returning(User.id)).scalar_one()
            role = enumerated(connection, TeamRole, "admin")
            team = insert(Team).values(name=OWNERS, organization_id=number, role_id=role).returning(Team.id)
            team_id = connection.execute(team).scalar_one()
            if member is not None:
                connection.execute(insert(TeamMember).values(user_id=member, team_id=team_id))

    def delete_organization(self, name: str, *, with_repositories: bool = False) -> None:
        """Delete an organization, its teams and robots, and its repositories if that is said.

        Raises NamespaceNotFound, NamespaceNotEmpty, NotOurRegistry.
        """
        with self._changing() as connection:
            number = organization_id(connection, name)
            _delete_namespace(connection, number, name, with_repositories=with_repositories)

    def organizations(self) -> list[NamespaceListed]:
        """Return all organizations, by name."""
        with self._reading() as connection:
            return [NamespaceListed(*row) for row in _listed(connection, organization=True)]

    # --- Robots -------------------------------------------------------------------------------------------------------

    def create_robot(self, name: str) -> str:
        """Make the robot `owner+name` and return its token, which is not told again.

        Raises InvalidName, NamespaceNotFound for its owner, NameTaken, NoSecretKey, SecretFileUnusable, NotOurRegistry.
        """
        owner = check_robot(name)
        token = new_token()
        with self._changing() as connection:
            namespace_row(connection, owner)
            _check_free(connection, name)
            kept = self._encrypted(token)
            number = connection.execute(insert(User).values(username=name, robot=True).returning(User.id)).scalar_one()
            _keep_token(connection, number, kept)
        return token

    def renew_robot(self, name: str) -> str:
        """Give a robot another token and return it, which is not told again; the one before is good for nothing.

        Raises InvalidName, UserNotFound, NoSecretKey, SecretFileUnusable, NotOurRegistry.
        """
        check_robot(name)
        token = new_token()
        with self._changing() as connection:
            number = user_id(connection, name)
            kept = self._encrypted(token)
            connection.execute(delete(RobotAccountToken).where(RobotAccountToken.robot_account_id == number))
            _keep_token(connection, number, kept)
        return token

    def federate_robot(self, name: str, trusted: Sequence[Trusted]) -> None:
        """Have a robot come in by tokens of those who are `trusted`, in the place of whom it trusted before.

        Raises InvalidName, UserNotFound, NotOurRegistry.
        """
        check_robot(name)
        document = json.dumps({CONFIGURATION: [each.document for each in trusted]} if trusted else {})
        with self._changing() as connection:
            number = user_id(connection, name)
            query = select(LoginService.id).where(LoginService.name == ROBOTS)
            same = {"user_id": number, "service_id": connection.execute(query).scalar_one()}
            changed = update(FederatedLogin).filter_by(**same).values(metadata_json=document)
            if connection.execute(changed).rowcount == 0:
                ident = f"robot:{number}"  # as Quay calls them
                connection.execute(insert(FederatedLogin).values(**same, service_ident=ident, metadata_json=document))

    def _encrypted(self, token: str) -> str:
        box = self._secrets()
        if box is None:
            raise NoSecretKey("DATABASE_SECRET_KEY is not set, so no token can be kept")
        return box.encrypt(token)

    def delete_robot(self, name: str) -> None:
        """Delete a robot. Raises InvalidName, UserNotFound, NotOurRegistry."""
        check_robot(name)
        with self._changing() as connection:
            delete_account(connection, user_id(connection, name))

    def robots(self, owner: str | None = None) -> list[RobotListed]:
        """Return all robots, or a namespace's, by name."""
        query = select(User.username, User.enabled).where(User.robot.is_(True))
        if owner is not None:
            query = query.where(User.username.startswith(f"{owner}+", autoescape=True))
        with self._reading() as connection:
            return sorted((RobotListed(*row) for row in connection.execute(query)), key=lambda each: each.name)


def _check_email(email: str) -> None:
    local, at, domain = email.partition("@")
    labels = domain.split(".")
    if not (local and at and len(labels) > 1 and all(labels) and email.isprintable() and " " not in email) or (
        "@" in domain or len(email) > 254
    ):
        raise InvalidEmail(f"{email!r} is no e-mail address")


def _check_free(connection: Connection, name: str) -> None:
    query = select(User.organization, User.robot).where(User.username == name)
    row = connection.execute(query).one_or_none()
    if row is not None:
        kind = "a robot" if row.robot else "an organization" if row.organization else "a user"
        raise NameTaken(f"there is {kind} {name!r} already")


def _has_email(connection: Connection, email: str) -> bool:
    query = select(User.id).where(func.lower(User.email) == email.lower(), User.organization.is_(False))
    return connection.execute(query).first() is not None


def _person_id(connection: Connection, name: str) -> int:
    """Return the row of a user who is no robot. Raises UserNotFound."""
    query = select(User.id).where(User.username == name, User.organization.is_(False), User.robot.is_(False))
    number = connection.scalar(query)
    if number is None:
        raise UserNotFound(f"there is no user {name!r}")
    return number


def _make_superuser(connection: Connection, name: str) -> None:
    insert_unless_there(connection, SuperuserRow, {"username": name, "created_ms": database_now_ms(connection)})


def _make_superuser_no_more(connection: Connection, name: str) -> None:
    connection.execute(delete(SuperuserRow).where(SuperuserRow.username == name))


def _listed(connection: Connection, *, organization: bool) -> list[tuple[str, str | None, bool]]:
    query = select(User.username, User.email, User.enabled)
    query = query.where(User.organization.is_(organization), User.robot.is_(False))
    # An address that nobody gave is filled in, without an @.
    return sorted(
        (name, email if "@" in email else None, enabled) for name, email, enabled in connection.execute(query)
    )


def _keep_token(connection: Connection, number: int, kept: str) -> None:
    values = {"robot_account_id": number, "token": kept, "fully_migrated": True}
    connection.execute(insert(RobotAccountToken).values(**values))


def _delete_namespace(connection: Connection, number: int, name: str, *, with_repositories: bool) -> None:
    theirs = Repository.namespace_user_id == number
    alive = connection.scalars(select(Repository.id).where(theirs, Repository.state != MARKED_FOR_DELETION)).all()
    if alive and not with_repositories:
        raise NamespaceNotEmpty(f"{name} has {len(alive)} repositories; delete them first, or say that they go with it")
    for repository in alive:
        mark_for_deletion(connection, repository)
    connection.execute(update(Repository).where(theirs).values(namespace_user_id=None))  # the garbage knows their state
    of_teams = select(Team.id).where(Team.organization_id == number)
    for table in (RepositoryPermission, TeamMember):
        connection.execute(delete(table).where(table.team_id.in_(of_teams)))
    connection.execute(delete(TeamSync).where(TeamSync.team_id.in_(of_teams)))
    connection.execute(delete(Team).where(Team.organization_id == number))
    robots = select(User.id).where(User.robot.is_(True), User.username.startswith(f"{name}+", autoescape=True))
    for robot in connection.scalars(robots).all():
        delete_account(connection, robot)
    delete_account(connection, number)
