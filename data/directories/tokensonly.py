"""No passwords: who comes in has a token, an app-specific one or a robot's.

So it is where AUTHENTICATION_TYPE is AppToken, and for us where it is OIDC: people log in to Quay with a browser there,
and make tokens for their programs. quay/quay, data/users/apptoken.py and externaloidc.py.
"""

from collections.abc import Collection

from data.directories.directory import GroupsUnsupported, Identity, Refusal


class TokensOnly:
    """Refuses every password."""

    def __init__(self, service: str | None) -> None:
        self.service = service

    def verify(self, username: str, password: str) -> Identity | Refusal:
        return Refusal("nobody logs in with a password here; an app-specific token is asked for")

    def is_superuser(self, identifier: str) -> bool:
        return False

    def is_readonly_superuser(self, identifier: str) -> bool:
        return False

    def is_restricted(self, identifier: str) -> bool:
        return self.service is None

    def members(self, group: str) -> Collection[Identity]:
        raise GroupsUnsupported("there is no directory that is asked for the members of groups")
