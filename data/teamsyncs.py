"""Teams whose users are those of a group in a directory, as Quay keeps them: the table `teamsync`.

Invariants: users are put in and taken out in one transaction, and only by who saw the team as it was before: of two who
bring it in line one does. Robots stay. Nothing here asks a directory: who could not be asked changes nothing.
quay/quay, data/model/team.py and data/users/teamsync.py.
"""

import logging
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, insert, or_, select, update

from data.administered import Administered, organization_id
from data.directories.directory import Identity
from data.federated import FederatedUsers, NotLinked
from data.tables import LoginService, Team, TeamMember, TeamSync, User, now_utc
from data.teamgroups import config_of, group_of
from util.problem import Missing

log = logging.getLogger(__name__)

_MOST = 500  # teams that are looked at at once


class SyncNotFound(Missing):
    """A team that an organization does not have, or that is not synced with a group."""

    code = "TEAM_SYNC_UNKNOWN"


@dataclass(frozen=True, slots=True)
class SyncedTeam:
    """A team and its group; `transaction` is what its row held when it was read."""

    id: int
    team_id: int
    organization: str
    team: str
    group: str
    transaction: str

    @property
    def name(self) -> str:
        """The team for people: ORGANIZATION/TEAM."""
        return f"{self.organization}/{self.team}"


@dataclass(frozen=True, slots=True)
class InLine:
    """How many users a team got, and lost."""

    added: int
    removed: int


class TeamSyncs(Administered):
    """The synced teams' part of the administration. Every method may raise RegistryUnavailable."""

    def sync_team(self, organization: str, name: str, group: str, service: str) -> SyncedTeam:
        """Have the users of a team be those of `group` in the directory `service` from now on; nobody is changed yet.

        Raises NamespaceNotFound, SyncNotFound where there is no such team, NotOurRegistry.
        """
        with self._changing() as connection:
            owner = organization_id(connection, organization)
            team = connection.scalar(select(Team.id).where(Team.organization_id == owner, Team.name == name))
            if team is None:
                raise SyncNotFound(f"{organization} has no team {name!r}")
            service_id = connection.execute(select(LoginService.id).where(LoginService.name == service)).scalar_one()
            connection.execute(delete(TeamSync).where(TeamSync.team_id == team))
            values = {"team_id": team, "transaction_id": "", "service_id": service_id, "config": config_of(group)}
            number = connection.execute(insert(TeamSync).values(**values).returning(TeamSync.id)).scalar_one()
        return SyncedTeam(number, team, organization, name, group, "")

    def unsync_team(self, organization: str, name: str) -> None:
        """Leave a team to itself, with who is in it. Raises NamespaceNotFound, SyncNotFound, NotOurRegistry."""
        with self._changing() as connection:
            owner = organization_id(connection, organization)
            team = select(Team.id).where(Team.organization_id == owner, Team.name == name)
            if connection.execute(delete(TeamSync).where(TeamSync.team_id.in_(team))).rowcount == 0:
                raise SyncNotFound(f"{organization} has no team {name!r} that is synced with a group")

    def stale_teams(self, service: str, *, seconds: float) -> list[SyncedTeam]:
        """Return teams of groups in `service` that were not brought in line for `seconds`, the longest first."""
        before = now_utc() - timedelta(seconds=seconds)
        query = (
            select(TeamSync.id, Team.id, User.username, Team.name, TeamSync.config, TeamSync.transaction_id)
            .join(Team, Team.id == TeamSync.team_id)
            .join(User, User.id == Team.organization_id)
            .join(LoginService, LoginService.id == TeamSync.service_id)
            .where(LoginService.name == service, or_(TeamSync.last_updated.is_(None), TeamSync.last_updated <= before))
            .order_by(TeamSync.last_updated.is_not(None), TeamSync.last_updated, TeamSync.id)
            .limit(_MOST)
        )
        with self._reading() as connection:
            rows = connection.execute(query).all()
        teams = []
        for number, team, organization, name, config, transaction in rows:
            group = group_of(config)
            if group is None:
                log.warning("the team %s/%s is synced with a group that cannot be read", organization, name)
            else:
                teams.append(SyncedTeam(number, team, organization, name, group, transaction))
        return teams

    def bring_in_line(self, synced: SyncedTeam, members: Collection[Identity], users: FederatedUsers) -> InLine | None:
        """Have exactly `members` be the users of a team; who is new in the registry is made a user.

        Returns None where another has brought it in line, or ended that it is synced, since `synced` was read. Raises
        DatabaseUnavailable, NotOurRegistry.
        """
        wanted: set[int] = set()
        for identity in members:
            try:
                wanted.add(users.linked(identity, always=True).id)
            except NotLinked as problem:
                log.warning("the team %s does not get %r: %s", synced.name, identity.identifier, problem)
        with self._changing() as connection:
            seen = update(TeamSync).where(TeamSync.id == synced.id, TeamSync.transaction_id == synced.transaction)
            values = {"transaction_id": str(uuid.uuid4()), "last_updated": now_utc()}
            if connection.execute(seen.values(**values)).rowcount == 0:
                return None
            there = set(
                connection.scalars(
                    select(User.id)
                    .join(TeamMember, TeamMember.user_id == User.id)
                    .where(TeamMember.team_id == synced.team_id, User.robot.is_(False))
                )
            )
            new, gone = wanted - there, there - wanted
            if new:
                rows = [{"team_id": synced.team_id, "user_id": number} for number in sorted(new)]
                connection.execute(insert(TeamMember), rows)
            for number in gone:
                row = (TeamMember.team_id == synced.team_id, TeamMember.user_id == number)
                connection.execute(delete(TeamMember).where(*row))
        return InLine(len(new), len(gone))
