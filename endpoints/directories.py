"""The directory that the settings name, and what accounts make of it.

Invariants: a directory's library is loaded only where that kind is configured; nothing is connected to by that. One
that cannot be asked at all (a library, a key or a certificate that is missing, a filter that is none) is a directory
that does not answer: images are made without it, and robots and tokens come in.
"""

from data.database import Engine
from data.directories.directory import Directory, UnusableDirectory
from data.directories.unusable import UnusableNow
from data.directorylogins import DirectoryLogins
from data.federated import FederatedUsers
from data.logins import Logins
from data.rights import UserRights
from endpoints.settings import Settings


def directory_of(settings: Settings) -> Directory | None:
    """Return the directory that `settings` name, None where accounts live here."""
    asked = settings.authentication
    try:
        if asked.ldap is not None:
            from data.directories.ldap import LdapDirectory

            return LdapDirectory(asked.ldap)
        if asked.jwt is not None:
            from data.directories.jwtservice import JwtDirectory

            return JwtDirectory(asked.jwt)
    except UnusableDirectory as problem:
        return UnusableNow("ldap" if asked.kind == "LDAP" else "jwtauthn", str(problem))
    if asked.kind in ("OIDC", "AppToken"):
        from data.directories.tokensonly import TokensOnly

        return TokensOnly("oidc" if asked.kind == "OIDC" else None)
    return None


def federated_users(
    settings: Settings, directory: Directory | None, engine: Engine, own_engine: Engine
) -> FederatedUsers | None:
    """Return the users who come from `directory`, None where there is none."""
    service = None if directory is None else directory.service
    if service is None:
        return None
    asked = settings.authentication
    return FederatedUsers(
        engine,
        own_engine,
        service,
        ours=settings.own_registry and not settings.readonly,
        creates=asked.creates_users,
        refused_domains=asked.refused_domains,
    )


def logins_elsewhere(
    directory: Directory | None, users: FederatedUsers | None, logins: Logins
) -> DirectoryLogins | None:
    """Return what checks passwords instead of the registry's own rows, None where those count."""
    return None if directory is None else DirectoryLogins(directory, users, logins)


def rights_of(settings: Settings, directory: Directory | None, users: FederatedUsers | None) -> UserRights:
    """Return what users may do by `settings` and by what `directory` says."""
    asked = settings.authentication
    return UserRights(
        readonly_superusers=asked.readonly_superusers,
        restricts=asked.restricted_users,
        whitelist=asked.whitelist,
        directory=directory,
        users=users,
        seconds=asked.rights_seconds,
    )
