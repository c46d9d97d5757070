"""LDAP: users are found by a search, and their passwords are checked by logging in as them.

Invariants: an empty password is refused before anything is sent, because a server would let it in as nobody. A name is
only ever a value in a filter. Two entries that fit are nobody, unless one alone has the name as its user name: else
whoever sets an e-mail address of theirs could be taken for another. An administrator's login that is refused is a
directory that is misconfigured, not a user who is refused. Referrals are followed once, and never to another host.
How long a refusal takes may tell whether the directory has a name, as in Quay: of others no password is tried.
quay/quay, data/users/externalldap.py; RFC 4513, 4515.
"""

import contextlib
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from data.directories.directory import (
    DirectoryUnavailable,
    GroupNotFound,
    Identity,
    LdapSettings,
    Refusal,
    UnusableDirectory,
)
from data.directories.ldapconnection import (
    NO_SUCH_OBJECT,
    REFERRAL,
    SIZE_LIMIT_EXCEEDED,
    Entry,
    LdapConnection,
    checked_filter,
    escaped,
)
from data.directories.trust import client_context

log = logging.getLogger(__name__)

_DOWN_SECONDS = 2.0
"""For how long nobody asks again after no server could be reached; else every request would wait for all of them."""

_MEMBERS = ("member", "uniqueMember", "memberUid")

_MAX_NAME = 512  # characters of a user name or an e-mail address

_Result = TypeVar("_Result")


class LdapDirectory:
    """An LDAP directory as `settings` describe it. Safe for several threads, and across a fork."""

    service = "ldap"

    def __init__(self, settings: LdapSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is connected yet. Raises UnusableDirectory for a filter or a certificate that is none."""
        self._settings = settings
        trust = client_context(settings.trusted)  # once: to read all of the system's takes as long as many logins
        filters = {
            "LDAP_USER_FILTER": settings.user_filter,
            "LDAP_SUPERUSER_FILTER": settings.superuser_filter,
            "LDAP_GLOBAL_READONLY_SUPERUSER_FILTER": settings.readonly_superuser_filter,
            "LDAP_RESTRICTED_USER_FILTER": settings.restricted_filter,
        }
        self._filters = {key: checked_filter(key, text) for key, text in filters.items() if text}
        for attribute in (settings.uid_attribute, settings.email_attribute, settings.member_of_attribute):
            if not attribute.replace("-", "").replace(".", "").replace(";", "").isalnum():
                raise UnusableDirectory(f"{attribute!r} is no name of an attribute (LDAP_UID_ATTR and others)")
        self._connections = _Connections(settings, trust, clock)

    def __repr__(self) -> str:
        return f"LdapDirectory({', '.join(self._settings.uris)})"

    # --- Who somebody is ----------------------------------------------------------------------------------------------

    def verify(self, username: str, password: str) -> Identity | Refusal:
        if not password:
            return Refusal("an empty password")
        if not username or len(username) > _MAX_NAME or not _encodable(username, password):
            return Refusal("a name or a password that no directory has")
        uid, email = self._settings.uid_attribute, self._settings.email_attribute
        value = escaped(username)
        entries = self._search(f"(|({uid}={value})({email}={value}))")
        if len(entries) > 1:
            named = [each for each in entries if (each.first(uid) or "").lower() == username.lower()]
            entries = named if len(named) == 1 else entries
        if not entries:
            return Refusal("the directory has no such user")
        if len(entries) > 1:
            log.warning("%r is refused: the directory has several users of that name or e-mail address", username)
            return Refusal("the directory has several such users")
        return self._bound(entries[0], password)

    def _bound(self, entry: Entry, password: str) -> Identity | Refusal:
        identity = self._identity(entry)
        if isinstance(identity, Refusal):
            log.warning("%r is refused: %s", entry.dn, identity.reason)
            return identity
        connection = self._connections.fresh()
        try:
            if connection.bind(entry.dn, password):
                return identity
        finally:
            connection.close()
        return Refusal("the password is wrong, or the directory does not let them log in", identity.identifier)

    def _identity(self, entry: Entry) -> Identity | Refusal:
        identifier = entry.first(self._settings.uid_attribute)
        email = entry.first(self._settings.email_attribute)
        if not identifier:
            return Refusal(f"the entry has no {self._settings.uid_attribute}")
        if self._settings.requires_email and not email:
            return Refusal(f"the entry has no {self._settings.email_attribute}, and FEATURE_MAILING needs one")
        return Identity(identifier, email)

    # --- What they may do ---------------------------------------------------------------------------------------------

    def is_superuser(self, identifier: str) -> bool:
        return self._fits(identifier, "LDAP_SUPERUSER_FILTER")

    def is_readonly_superuser(self, identifier: str) -> bool:
        return self._fits(identifier, "LDAP_GLOBAL_READONLY_SUPERUSER_FILTER")

    def is_restricted(self, identifier: str) -> bool:
        if "LDAP_RESTRICTED_USER_FILTER" not in self._filters:
            return True  # everybody is
        return self._fits(identifier, "LDAP_RESTRICTED_USER_FILTER")

    def _fits(self, identifier: str, key: str) -> bool:
        if key not in self._filters or not identifier or not _encodable(identifier):
            return False
        named = f"({self._settings.uid_attribute}={escaped(identifier)})"
        return len(self._search(f"(&{named}{self._filters[key]})")) == 1

    # --- Groups -------------------------------------------------------------------------------------------------------

    def members(self, group: str) -> Collection[Identity]:
        """Return who is in the group `group`, a name (DN) that LDAP_BASE_DN is added to. Raises GroupNotFound."""
        dn = f"{group},{self._settings.base_dn}" if self._settings.base_dn else group
        if not group or not _encodable(group):
            raise GroupNotFound("a group has a name")
        text = self._with_user_filter(f"({self._settings.member_of_attribute}={escaped(dn)})")
        return self._asked(lambda connection: self._members(connection, dn, text))

    def _members(self, connection: LdapConnection, dn: str, text: str) -> Collection[Identity]:
        named = connection.names(dn, _MEMBERS)
        if named is None:
            raise GroupNotFound(f"the directory has no group {dn}, or does not show it")
        found: dict[str, Identity] = {}
        for base in self._settings.search_bases:
            for page in connection.pages(base, text, self._attributes):
                if page.code == SIZE_LIMIT_EXCEEDED:
                    raise DirectoryUnavailable(f"the directory does not tell all members of {dn}")
                if page.code == NO_SUCH_OBJECT:
                    raise DirectoryUnavailable(f"the directory has nothing at {base}, where users are looked for")
                for entry in page.entries:
                    identity = self._identity(entry)
                    if isinstance(identity, Refusal):
                        log.warning("%r is passed over in the group %s: %s", entry.dn, dn, identity.reason)
                    else:
                        found.setdefault(identity.identifier, identity)
        if not found and named:
            # Nobody in it is a user here, or we are not shown what leads to them: that must take nobody's rights.
            member_of = self._settings.member_of_attribute
            raise DirectoryUnavailable(f"the group {dn} has members, and by {member_of} none of them is a user")
        return found.values()

    # --- Searching ----------------------------------------------------------------------------------------------------

    @property
    def _attributes(self) -> tuple[str, str]:
        return self._settings.uid_attribute, self._settings.email_attribute

    def _with_user_filter(self, text: str) -> str:
        return f"(&{text}{self._filters['LDAP_USER_FILTER']})" if "LDAP_USER_FILTER" in self._filters else text

    def _search(self, text: str) -> list[Entry]:
        """Return up to a few users whom the filter is true of, of the first subtree that has any."""
        text = self._with_user_filter(text)
        return self._asked(lambda connection: self._searched(connection, text))

    def _searched(self, connection: LdapConnection, text: str) -> list[Entry]:
        absent = []
        for base in self._settings.search_bases:
            found = connection.search(base, text, self._attributes, limit=3)
            if found.code == REFERRAL and self._settings.follow_referrals:
                entries = self._referred(connection, found.referrals, text)
            else:
                entries = [each for each in found.entries if each.dn]
            if found.code == NO_SUCH_OBJECT:
                absent.append(base)
            if entries:
                return entries
        if len(absent) == len(self._settings.search_bases):
            raise DirectoryUnavailable(f"the directory has nothing at {'; '.join(absent)}, where users are looked for")
        if absent:
            log.warning("the directory has nothing at %s, where users are looked for", "; ".join(absent))
        return []

    def _referred(self, connection: LdapConnection, referrals: Collection[str], text: str) -> list[Entry]:
        for uri in referrals:
            parts = urlsplit(uri)
            if parts.scheme == "ldap" and not parts.netloc and parts.path.strip("/"):
                found = connection.search(unquote(parts.path.lstrip("/")), text, self._attributes, limit=3)
                return [each for each in found.entries if each.dn]
            log.warning("the directory refers to %s, which is another host and is not asked", uri)
        return []

    def _asked(self, ask: Callable[[LdapConnection], _Result]) -> _Result:
        """Return what `ask` does with a connection of the administrator's; again, once, where a kept one has died."""
        kept = False
        try:
            with self._connections.lent() as (connection, kept):
                return ask(connection)
        except DirectoryUnavailable as problem:
            if not kept:
                raise
            log.debug("a connection that was kept is of no use any more: %s", problem.reason)
        self._connections.forget()
        with self._connections.lent() as (connection, _):
            return ask(connection)


class _Connections:
    """Connections of the administrator's, kept for the next who asks, and other ones."""

    def __init__(self, settings: LdapSettings, trust: ssl.SSLContext, clock: Callable[[], float]) -> None:
        self._settings, self._trust, self._clock = settings, trust, clock
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(settings.pool_size)
        self._kept: list[LdapConnection] = []
        self._process = os.getpid()
        self._down: tuple[float, str] | None = None

    def __del__(self) -> None:
        for connection in self.__dict__.get("_kept", ()):
            connection.close()

    def fresh(self) -> LdapConnection:
        """Return a connection that nobody has logged in by, to the first server that can be reached.

        After a failure one thread at a time tries again, and the others are told at once.
        """
        with self._lock:
            if self._down is not None:
                ends, reason = self._down
                if self._clock() < ends:
                    raise DirectoryUnavailable(reason)
                patience = self._settings.network_timeout * len(self._settings.uris) + self._settings.timeout
                self._down = (self._clock() + patience, reason)
        reasons = []
        for uri in self._settings.uris:
            try:
                connection = LdapConnection(uri, self._settings, self._trust)
                with self._lock:
                    self._down = None
                return connection
            except DirectoryUnavailable as problem:
                reasons.append(problem.reason)
        raise self._failed(DirectoryUnavailable("; ".join(reasons)))

    def _failed(self, problem: DirectoryUnavailable) -> DirectoryUnavailable:
        with self._lock:
            self._down = (self._clock() + _DOWN_SECONDS, problem.reason)
        return problem

    @contextlib.contextmanager
    def lent(self) -> Iterator[tuple[LdapConnection, bool]]:
        """Give a connection of the administrator's, and whether it was kept; it is kept again after success."""
        waited = self._slots.acquire(timeout=self._settings.pool_wait)
        try:
            connection = self._taken()
            kept = connection is not None
            if connection is None:
                connection = self._administrator()
            try:
                yield connection, kept
            except GroupNotFound:
                self._give_back(connection)
                raise
            except BaseException:
                connection.close()
                raise
            self._give_back(connection)
        finally:
            if waited:
                self._slots.release()

    def forget(self) -> None:
        """Close what is kept: one of them was found dead, and the others are as old."""
        with self._lock:
            dead, self._kept = self._kept, []
        for connection in dead:
            connection.close()

    def _administrator(self) -> LdapConnection:
        connection, settings = self.fresh(), self._settings
        try:
            if not connection.bind(settings.admin_dn, settings.admin_password):
                who = "nobody" if settings.admin_dn is None else settings.admin_dn
                raise DirectoryUnavailable(f"the directory does not let {who} (LDAP_ADMIN_DN) log in")
        except DirectoryUnavailable as problem:
            connection.close()
            raise self._failed(problem) from None
        with self._lock:
            self._down = None
        return connection

    def _taken(self) -> LdapConnection | None:
        with self._lock:
            if self._process != os.getpid():
                self._process, self._kept = os.getpid(), []  # the other process uses them
            return self._kept.pop() if self._kept else None

    def _give_back(self, connection: LdapConnection) -> None:
        young = time.monotonic() - connection.opened < self._settings.pool_lifetime
        with self._lock:
            if self._settings.pooling and young and len(self._kept) < self._settings.pool_size:
                self._kept.append(connection)
                return
        connection.close()


def _encodable(*texts: str) -> bool:
    return all(not any("\ud800" <= character <= "\udfff" for character in text) for text in texts)
