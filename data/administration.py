"""The administration: all that changes accounts, repositories and permissions, as one value.

The law: the parts are modules of their own, and this one says only that they are one.
"""

from data.namespaces import Namespaces
from data.repositories import Repositories
from data.teams import Teams
from data.teamsyncs import TeamSyncs

__all__ = ["Administration"]


class Administration(Namespaces, Teams, TeamSyncs, Repositories):
    """Everything that is done to accounts and repositories."""
