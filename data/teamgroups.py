"""Which group a team is synced with, as Quay keeps it in `teamsync.config`: JSON, within a text that is JSON itself.

quay/quay, data/model/team.py (set_team_syncing) and data/fields.py (JSONField).
"""

import json

_GROUP = "group_dn"


def config_of(group: str) -> str:
    """Return what `teamsync.config` holds for an LDAP group, a name (DN) that LDAP_BASE_DN is added to."""
    return json.dumps(json.dumps({_GROUP: group}))


def group_of(config: str) -> str | None:
    """Return the LDAP group that `teamsync.config` names, None where it names none."""
    try:
        found = json.loads(config)
        if isinstance(found, str):
            found = json.loads(found)
    except (ValueError, RecursionError):
        return None
    group = found.get(_GROUP) if isinstance(found, dict) else None
    return group if isinstance(group, str) and group else None
