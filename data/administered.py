"""What every change to accounts stands on: a registry of our own, one transaction, and rows found by name.

The law: each change is one transaction under the registry's lock, so that looking and then writing is safe; what is to
be done in our own tables comes after it. A live Quay's accounts are changed in Quay.
"""

import secrets
import string
from contextlib import AbstractContextManager

from sqlalchemy import Connection, delete, select
from sqlalchemy.engine import Row

from data.database import Engine
from data.logins import Logins
from data.owntables import SuperuserRow, changing
from data.registry import reached
from data.secretbox import Secrets
from data.tables import (
    AppSpecificAuthToken,
    FederatedLogin,
    RepositoryKind,
    RepositoryPermission,
    RobotAccountToken,
    TeamMember,
    TeamRole,
    User,
    Visibility,
)
from data.tables import Role as RoleRow
from util.problem import Missing, Problem

_TOKEN_LETTERS = string.ascii_uppercase + string.digits
_TOKEN_LENGTH = 64


class NotOurRegistry(Problem):
    """A change to a registry that is only read: a Quay's, or one whose REGISTRY_STATE is readonly."""

    code = "REGISTRY_NOT_OURS"


class NamespaceNotFound(Missing):
    """A namespace that is neither a user nor an organization."""

    code = "NAMESPACE_UNKNOWN"


class UserNotFound(Missing):
    """A name that no user has, or no robot."""

    code = "USER_UNKNOWN"


class NameTaken(Problem):
    """A name that another has already."""

    code = "NAME_TAKEN"


class Administered:
    """Base of what changes accounts, with what they share."""

    def __init__(
        self,
        engine: Engine,
        own_engine: Engine,
        secrets: Secrets,
        *,
        ours: bool = True,
        readonly: bool = False,
    ) -> None:
        """`ours`: the registry's tables are written by us and not by a Quay; `readonly`: not by anybody."""
        self._engine, self._own_engine, self._secrets = engine, own_engine, secrets
        self._ours, self._readonly = ours, readonly

    def _reading(self) -> AbstractContextManager[Connection]:
        return reached(self._engine)

    def _changing(self) -> AbstractContextManager[Connection]:
        """Give a transaction that writes. Raises NotOurRegistry, RegistryUnavailable."""
        if not self._ours:
            raise NotOurRegistry(
                "the registry is a Quay's, and accounts are changed there; VERBS_REGISTRY=own says that it is ours"
            )
        if self._readonly:
            raise NotOurRegistry("the registry is only read: REGISTRY_STATE is readonly")
        return reached(self._engine, writes=True)


def namespace_row(connection: Connection, name: str) -> "Row[int, str, bool, bool]":
    """Return id, username, organization and enabled of a user or an organization. Raises NamespaceNotFound."""
    query = select(User.id, User.username, User.organization, User.enabled)
    row = connection.execute(query.where(User.username == name, User.robot.is_(False))).one_or_none()
    if row is None:
        raise NamespaceNotFound(f"there is no user and no organization {name!r}")
    return row


def organization_id(connection: Connection, name: str) -> int:
    """Return the row of an organization. Raises NamespaceNotFound."""
    query = select(User.id).where(User.username == name, User.organization.is_(True))
    number = connection.scalar(query)
    if number is None:
        raise NamespaceNotFound(f"there is no organization {name!r}")
    return number


def user_id(connection: Connection, name: str) -> int:
    """Return the row of a user or a robot. Raises UserNotFound."""
    number = connection.scalar(select(User.id).where(User.username == name, User.organization.is_(False)))
    if number is None:
        raise UserNotFound(f"there is no {'robot' if '+' in name else 'user'} {name!r}")
    return number


def enumerated(connection: Connection, table: type[Visibility | RepositoryKind | RoleRow | TeamRole], name: str) -> int:
    """Return the row that every registry has for `name`."""
    return connection.execute(select(table.id).where(table.name == name).order_by(table.id).limit(1)).scalar_one()


def delete_account(connection: Connection, number: int) -> None:
    """Delete a user or a robot that has no repositories, with all that it was given."""
    for table, column in (
        (RepositoryPermission, RepositoryPermission.user_id),
        (TeamMember, TeamMember.user_id),
        (RobotAccountToken, RobotAccountToken.robot_account_id),
        (AppSpecificAuthToken, AppSpecificAuthToken.user_id),
        (FederatedLogin, FederatedLogin.user_id),
    ):
        connection.execute(delete(table).where(column == number))
    connection.execute(delete(User).where(User.id == number))


def forget(own_engine: Engine, name: str) -> None:
    """Forget in our own tables what a user `name` was, so that a later one of that name is not it.

    Raises DatabaseUnavailable.
    """
    query = delete(SuperuserRow).where(SuperuserRow.username == name)
    changing(own_engine, lambda connection: connection.execute(query).rowcount)
    Logins(own_engine).succeeded(name)


def new_token() -> str:
    """Return a robot's token, as Quay makes them."""
    return "".join(secrets.choice(_TOKEN_LETTERS) for _ in range(_TOKEN_LENGTH))
