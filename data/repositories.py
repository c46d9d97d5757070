"""Repositories and who may do what with them: made, deleted, made public, granted and revoked.

The law: a repository that is deleted is gone at once and its name is free; its rows are the garbage's, which knows it
by its state. Whoever makes a repository is its admin.
"""

import uuid
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, or_, select, update

from data.accounts import Role
from data.administered import Administered, NamespaceNotFound, UserNotFound, enumerated, namespace_row, user_id
from data.registry import RepositoryInfo, RepositoryNotFound
from data.tables import (
    MARKED_FOR_DELETION,
    Repository,
    RepositoryKind,
    RepositoryPermission,
    Team,
    User,
    Visibility,
)
from data.tables import Role as RoleRow
from util.names import check_repository
from util.problem import Missing

TEAM = "team:"
"""What stands before a team's name where it might be a user's."""


class PermissionNotFound(Missing):
    """A permission that nobody has granted."""

    code = "PERMISSION_UNKNOWN"


@dataclass(frozen=True, slots=True)
class RepositoryListed:
    """A repository as its administration sees it."""

    namespace: str
    name: str
    kind: str
    public: bool


@dataclass(frozen=True, slots=True)
class Granted:
    """A role in a repository. `who` is a user, a robot `owner+name`, or `team:name`."""

    who: str
    role: Role


class Repositories(Administered):
    """The repositories' part of the administration. Every method may raise RegistryUnavailable."""

    def create_repository(
        self, namespace: str, name: str, *, public: bool, creator: int | None = None
    ) -> RepositoryInfo:
        """Make a repository of images, of which the account `creator` is admin, and return it.

        One that is there stays as it is and is returned. Raises InvalidName, NamespaceNotFound, NotOurRegistry.
        """
        check_repository(name)
        with self._changing() as connection:
            owner = namespace_row(connection, namespace)
            found = _repository_row(connection, owner.id, name)
            if found is not None:
                number, kind, visibility = found
                return RepositoryInfo(number, kind, visibility == "public", owner.enabled)
            number = connection.execute(
                insert(Repository)
                .values(
                    namespace_user_id=owner.id,
                    name=name,
                    visibility_id=enumerated(connection, Visibility, "public" if public else "private"),
                    kind_id=enumerated(connection, RepositoryKind, "image"),
                )
                .returning(Repository.id)
            ).scalar_one()
            if creator is not None:
                role = enumerated(connection, RoleRow, Role.ADMIN.word)
                values = {"user_id": creator, "repository_id": number, "role_id": role}
                connection.execute(insert(RepositoryPermission).values(**values))
            return RepositoryInfo(number, "image", public, owner.enabled)

    def set_visibility(self, namespace: str, name: str, *, public: bool) -> None:
        """Let everybody read a repository, or only who may. Raises RepositoryNotFound, NotOurRegistry."""
        with self._changing() as connection:
            number = _repository_id(connection, namespace, name)
            visibility = enumerated(connection, Visibility, "public" if public else "private")
            connection.execute(update(Repository).where(Repository.id == number).values(visibility_id=visibility))

    def delete_repository(self, namespace: str, name: str) -> None:
        """Delete a repository: nobody finds it from now on. Raises RepositoryNotFound, NotOurRegistry."""
        with self._changing() as connection:
            mark_for_deletion(connection, _repository_id(connection, namespace, name))

    def repositories(self, namespace: str | None = None) -> list[RepositoryListed]:
        """Return all repositories, or a namespace's, by name."""
        query = (
            select(User.username, Repository.name, RepositoryKind.name, Visibility.name)
            .join(User, User.id == Repository.namespace_user_id)
            .join(RepositoryKind, RepositoryKind.id == Repository.kind_id)
            .join(Visibility, Visibility.id == Repository.visibility_id)
            .where(Repository.state != MARKED_FOR_DELETION)
        )
        if namespace is not None:
            query = query.where(User.username == namespace)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return [
            RepositoryListed(owner, name, kind, visibility == "public")
            for owner, name, kind, visibility in sorted(tuple(row) for row in rows)
        ]

    # --- Permissions --------------------------------------------------------------------------------------------------

    def grant(self, namespace: str, name: str, who: str, role: Role) -> None:
        """Give `who` (see Granted) a role in a repository, instead of the one they had.

        Raises RepositoryNotFound, UserNotFound, NotOurRegistry.
        """
        with self._changing() as connection:
            number = _repository_id(connection, namespace, name)
            grantee = _grantee(connection, namespace, who)
            values = {**grantee, "repository_id": number}
            connection.execute(delete(RepositoryPermission).filter_by(**values))
            role_id = enumerated(connection, RoleRow, role.word)
            connection.execute(insert(RepositoryPermission).values(**values, role_id=role_id))

    def revoke(self, namespace: str, name: str, who: str) -> None:
        """Take from `who` (see Granted) the role in a repository.

        Raises RepositoryNotFound, UserNotFound, PermissionNotFound, NotOurRegistry.
        """
        with self._changing() as connection:
            number = _repository_id(connection, namespace, name)
            values = {**_grantee(connection, namespace, who), "repository_id": number}
            if connection.execute(delete(RepositoryPermission).filter_by(**values)).rowcount == 0:
                raise PermissionNotFound(f"{who} has been granted nothing in {namespace}/{name}")

    def permissions(self, namespace: str, name: str) -> list[Granted]:
        """Return who has been granted what in a repository, by name. Raises RepositoryNotFound."""
        with self._reading() as connection:
            number = _repository_id(connection, namespace, name)
            query = (
                select(User.username, Team.name, RoleRow.name)
                .select_from(RepositoryPermission)
                .join(RoleRow, RoleRow.id == RepositoryPermission.role_id)
                .outerjoin(User, User.id == RepositoryPermission.user_id)
                .outerjoin(Team, Team.id == RepositoryPermission.team_id)
                .where(RepositoryPermission.repository_id == number, or_(User.id.is_not(None), Team.id.is_not(None)))
            )
            rows = connection.execute(query).all()
        granted = (Granted(user or f"{TEAM}{team}", Role.parse(word)) for user, team, word in rows)
        return sorted(granted, key=lambda each: each.who)


def mark_for_deletion(connection: Connection, number: int) -> None:
    """Hide the repository for good, under a name that nobody can ask for."""
    name = f"deleted:{uuid.uuid4()}"
    connection.execute(update(Repository).where(Repository.id == number).values(name=name, state=MARKED_FOR_DELETION))
    connection.execute(delete(RepositoryPermission).where(RepositoryPermission.repository_id == number))


def _repository_row(connection: Connection, owner: int, name: str) -> tuple[int, str, str] | None:
    query = (
        select(Repository.id, RepositoryKind.name, Visibility.name)
        .join(RepositoryKind, RepositoryKind.id == Repository.kind_id)
        .join(Visibility, Visibility.id == Repository.visibility_id)
        .where(Repository.namespace_user_id == owner, Repository.name == name, Repository.state != MARKED_FOR_DELETION)
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


def _repository_id(connection: Connection, namespace: str, name: str) -> int:
    try:
        found = _repository_row(connection, namespace_row(connection, namespace).id, name)
    except NamespaceNotFound:
        found = None
    if found is None:
        raise RepositoryNotFound(f"there is no repository {namespace}/{name}")
    return found[0]


def _grantee(connection: Connection, namespace: str, who: str) -> dict[str, int]:
    if not who.startswith(TEAM):
        return {"user_id": user_id(connection, who)}
    team = who.removeprefix(TEAM)
    query = select(Team.id).join(User, User.id == Team.organization_id)
    number = connection.scalar(query.where(User.username == namespace, Team.name == team))
    if number is None:
        raise UserNotFound(f"{namespace} has no team {team!r}")
    return {"team_id": number}
