"""What a directory is asked, and what it answers: the interface that LDAP, JWT services and others are behind.

Invariants: a refusal is an answer; a directory that cannot answer raises DirectoryUnavailable, and nobody comes in by
that. No password is in an answer, an error or a log.
quay/quay, data/users/federated.py.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from util.problem import Missing, Problem


class DirectoryUnavailable(Problem):
    """A directory that does not answer, answers nonsense, or does not let us ask: it is down or misconfigured.

    `str()` is what strangers may read; `reason` is for the log alone, and may name hosts and entries.
    """

    code = "DIRECTORY_UNAVAILABLE"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__("the directory of users does not answer; try again later")


class UnusableDirectory(Problem):
    """A directory that cannot be asked with these settings at all; the text names the setting or what is missing."""

    code = "DIRECTORY_UNUSABLE"


class GroupNotFound(Missing):
    """A group that a directory does not have, or does not show us."""

    code = "GROUP_UNKNOWN"


class GroupsUnsupported(Problem):
    """A directory that cannot be asked for the members of groups."""

    code = "GROUPS_UNSUPPORTED"


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody whom a directory knows. `identifier` is what Quay keeps in `federatedlogin.service_ident`."""

    identifier: str
    email: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why somebody is not let in, for the log; `identifier` is whose password was wrong, where that is known."""

    reason: str
    identifier: str | None = None


class Directory(Protocol):
    """A system that knows users. All methods may raise DirectoryUnavailable."""

    @property
    def service(self) -> str | None:
        """The directory's name in `loginservice`; None where it has no users of its own."""

    def verify(self, username: str, password: str) -> Identity | Refusal:
        """Return who has that name or e-mail address and that password. An empty password is always refused."""

    def is_superuser(self, identifier: str) -> bool:
        """Tell whether somebody may administer the whole registry."""

    def is_readonly_superuser(self, identifier: str) -> bool:
        """Tell whether somebody may read everything."""

    def is_restricted(self, identifier: str) -> bool:
        """Tell whether somebody may not make repositories in their own namespace, where the settings restrict users."""

    def members(self, group: str) -> Collection[Identity]:
        """Return everybody in a group. Raises GroupNotFound, GroupsUnsupported."""


@dataclass(frozen=True, slots=True)
class LdapSettings:
    """How an LDAP directory is reached and searched, under Quay's names. Times are in seconds.

    `search_bases` are full names (DN) of subtrees; `tls` is whether a connection to ldap:// begins with StartTLS.
    """

    uris: tuple[str, ...]
    base_dn: str
    search_bases: tuple[str, ...]
    admin_dn: str | None = None
    admin_password: str = field(default="", repr=False)
    uid_attribute: str = "uid"
    email_attribute: str = "mail"
    member_of_attribute: str = "memberOf"
    user_filter: str | None = None
    superuser_filter: str | None = None
    readonly_superuser_filter: str | None = None
    restricted_filter: str | None = None
    requires_email: bool = False
    start_tls: bool = False
    insecure_fallback: bool = False
    follow_referrals: bool = True
    timeout: float = 10.0
    network_timeout: float = 10.0
    pooling: bool = True
    pool_size: int = 10
    pool_wait: float = 5.0
    pool_lifetime: float = 300.0
    trusted: tuple[str, ...] = ()
    """Files, and folders of files, with certificates that are trusted beside the system's own."""


@dataclass(frozen=True, slots=True)
class JwtSettings:
    """How a service that answers with signed tokens is asked. `public_key` is a file; times are in seconds."""

    verify_url: str
    issuer: str
    public_key: str
    fresh_seconds: int = 300
    requires_email: bool = False
    timeout: float = 10.0
    trusted: tuple[str, ...] = ()
