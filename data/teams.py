"""Teams of organizations, and who is in them.

The law: a team is of one organization, and gives its members what it was given there. A robot is in teams of its own
organization only, as Quay has it.
"""

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, delete, insert, select

from data.accounts import InvalidRole
from data.administered import Administered, NameTaken, UserNotFound, enumerated, organization_id, user_id
from data.tables import RepositoryPermission, Team, TeamMember, TeamRole, TeamSync, User
from data.teamgroups import group_of
from util.names import check_username, robot_owner
from util.problem import Missing, Problem


class TeamNotFound(Missing):
    """A team that an organization does not have."""

    code = "TEAM_UNKNOWN"


class ForeignRobot(Problem):
    """A robot that is not the organization's, and so is in none of its teams."""

    code = "ROBOT_FOREIGN"


class TeamSynced(Problem):
    """A change to who is in a team whose members are those of a group elsewhere."""

    code = "TEAM_SYNCED"


class Rank(StrEnum):
    """What a team may do in all of its organization: everything, make repositories, or nothing."""

    ADMIN = "admin"
    CREATOR = "creator"
    MEMBER = "member"

    @classmethod
    def parse(cls, word: str) -> "Rank":
        """Return the rank that Quay calls `word`. Raises InvalidRole."""
        try:
            return cls(word)
        except ValueError:
            raise InvalidRole(f"{word!r} is no role of a team; there are: {', '.join(cls)}") from None


@dataclass(frozen=True, slots=True)
class TeamListed:
    """A team, the users and robots in it by name, and the group elsewhere whose members the users are."""

    name: str
    rank: Rank
    members: tuple[str, ...]
    group: str | None = None


class Teams(Administered):
    """The teams' part of the administration. Every method may raise RegistryUnavailable and NamespaceNotFound."""

    def create_team(self, organization: str, name: str, *, rank: Rank = Rank.MEMBER) -> None:
        """Make a team with nobody in it. Raises InvalidName, NameTaken, NotOurRegistry."""
        check_username(name)
        with self._changing() as connection:
            number = organization_id(connection, organization)
            if _team_id(connection, number, name) is not None:
                raise NameTaken(f"{organization} has a team {name!r} already")
            role = enumerated(connection, TeamRole, rank)
            connection.execute(insert(Team).values(name=name, organization_id=number, role_id=role))

    def delete_team(self, organization: str, name: str) -> None:
        """Delete a team; who is in it loses what it was given. Raises TeamNotFound, NotOurRegistry."""
        with self._changing() as connection:
            number = _found(connection, organization, name)
            for table in (RepositoryPermission, TeamMember, TeamSync):
                connection.execute(delete(table).where(table.team_id == number))
            connection.execute(delete(Team).where(Team.id == number))

    def add_member(self, organization: str, name: str, member: str) -> None:
        """Put a user, or a robot of the organization, into a team; nothing changes where they are in it.

        Raises TeamNotFound, UserNotFound, ForeignRobot, TeamSynced, NotOurRegistry.
        """
        with self._changing() as connection:
            number = _found(connection, organization, name)
            values = {"team_id": number, "user_id": user_id(connection, member)}
            _check_not_synced(connection, number, member)
            if robot_owner(member) not in (None, organization):
                raise ForeignRobot(f"the robot {member} is not one of {organization}")
            if connection.execute(select(TeamMember.id).filter_by(**values)).first() is None:
                connection.execute(insert(TeamMember).values(**values))

    def remove_member(self, organization: str, name: str, member: str) -> None:
        """Take a user or a robot out of a team.

        Raises TeamNotFound, UserNotFound, TeamSynced, NotOurRegistry.
        """
        with self._changing() as connection:
            number = _found(connection, organization, name)
            values = {"team_id": number, "user_id": user_id(connection, member)}
            _check_not_synced(connection, number, member)
            if connection.execute(delete(TeamMember).filter_by(**values)).rowcount == 0:
                raise UserNotFound(f"{member} is not in the team {name} of {organization}")

    def teams(self, organization: str) -> list[TeamListed]:
        """Return an organization's teams by name."""
        with self._reading() as connection:
            number = organization_id(connection, organization)
            query = (
                select(Team.name, TeamRole.name, User.username)
                .join(TeamRole, TeamRole.id == Team.role_id)
                .outerjoin(TeamMember, TeamMember.team_id == Team.id)
                .outerjoin(User, User.id == TeamMember.user_id)
                .where(Team.organization_id == number)
            )
            members: dict[tuple[str, str], list[str]] = {}
            for name, role, member in connection.execute(query):
                members.setdefault((name, role), []).extend([member] if member else [])
            synced = select(Team.name, TeamSync.config).join(Team, Team.id == TeamSync.team_id)
            configured = connection.execute(synced.where(Team.organization_id == number))
            groups = {name: group_of(config) for name, config in configured}
        return [
            TeamListed(name, Rank(role), tuple(sorted(who)), groups.get(name))
            for (name, role), who in sorted(members.items())
        ]


def _team_id(connection: Connection, organization: int, name: str) -> int | None:
    return connection.scalar(select(Team.id).where(Team.organization_id == organization, Team.name == name))


def _check_not_synced(connection: Connection, number: int, member: str) -> None:
    if robot_owner(member) is None and connection.scalar(select(TeamSync.id).where(TeamSync.team_id == number)):
        raise TeamSynced("the users of this team are those of a group; change the group, or end that: team sync --off")


def _found(connection: Connection, organization: str, name: str) -> int:
    number = _team_id(connection, organization_id(connection, organization), name)
    if number is None:
        raise TeamNotFound(f"{organization} has no team {name!r}")
    return number
