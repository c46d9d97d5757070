"""Teams brought in line with groups: at once when an operator says so, and regularly behind a server's answers.

Invariants: a directory that does not answer, a group that is gone and a group whose members are not shown change
nothing in any team; the log says which and why. quay/quay, data/users/teamsync.py.
"""

import logging

from data.directories.directory import Directory, DirectoryUnavailable, GroupNotFound
from data.federated import FederatedUsers
from data.teamsyncs import InLine, SyncedTeam
from endpoints.services import Services
from util.problem import Problem

log = logging.getLogger(__name__)


class SyncingOff(Problem):
    """A registry whose settings do not sync teams, or have no directory that has groups."""

    code = "TEAM_SYNCING_OFF"


class GroupEmpty(Problem):
    """A group without members, where a team should get its members: that is a mistake more often than meant."""

    code = "GROUP_EMPTY"


def syncs(services: Services) -> bool:
    """Tell whether teams are synced here."""
    settings = services.settings
    return (
        settings.authentication.team_syncing
        and settings.authentication.ldap is not None
        and (settings.own_registry and not settings.readonly)
    )


def sync_team(services: Services, organization: str, team: str, group: str) -> InLine:
    """Have the users of a team be those of `group` from now on, and at once.

    `group` is a name (DN), with or without LDAP_BASE_DN. Raises SyncingOff, GroupEmpty, GroupNotFound,
    DirectoryUnavailable, and what the administration raises; nothing is changed by that.
    """
    directory, users = _needed(services)
    ldap = services.settings.authentication.ldap
    base = "" if ldap is None else f",{ldap.base_dn}"
    if group.lower().endswith(base.lower()) and base:
        group = group[: -len(base)]
    members = directory.members(group)
    if not members:
        raise GroupEmpty(f"the group {group} has no members that could be users")
    synced = services.administration.sync_team(organization, team, group, users.service)
    return services.administration.bring_in_line(synced, members, users) or InLine(0, 0)


def sync_stale(services: Services) -> None:
    """Bring every team in line that was not for TEAM_RESYNC_STALE_TIME; one that cannot be is logged and left alone."""
    directory, users = _needed(services)
    seconds = services.settings.authentication.resync_seconds
    for synced in services.administration.stale_teams(users.service, seconds=seconds):
        try:
            _sync(services, synced, directory, users)
        except DirectoryUnavailable as problem:
            log.warning("teams stay as they are, first of all %s: %s", synced.name, problem.reason)
            return
        except GroupNotFound as problem:
            log.warning("the team %s stays as it is: %s", synced.name, problem)


def _sync(services: Services, synced: SyncedTeam, directory: Directory, users: FederatedUsers) -> None:
    members = directory.members(synced.group)
    done = services.administration.bring_in_line(synced, members, users)
    if done is not None and (done.added or done.removed):
        log.info("the team %s got %d users and lost %d", synced.name, done.added, done.removed)


def _needed(services: Services) -> tuple[Directory, FederatedUsers]:
    settings = services.settings.authentication
    if not settings.team_syncing:
        raise SyncingOff("FEATURE_TEAM_SYNCING is not true: no team is synced with a group")
    if services.directory is None or services.federated is None or settings.ldap is None:
        raise SyncingOff(f"AUTHENTICATION_TYPE is {settings.kind}, which has no groups here; LDAP has")
    return services.directory, services.federated
