"""The settings of accounts that live elsewhere: AUTHENTICATION_TYPE, and what goes with it, under Quay's keys.

Invariants: as in settings.py, which has these read. What a kind of directory cannot work without is asked for by name.
A password of a directory is in no error. quay/quay, data/users/__init__.py and util/config/schema.py.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from data.directories.directory import JwtSettings, LdapSettings
from endpoints.settingvalues import InvalidSetting, count, flag, names, refused, secret, structure, text, usernames

KINDS = ("Database", "LDAP", "JWT", "OIDC", "AppToken")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_MOST_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class AuthenticationSettings:
    """Where accounts live, and what is derived of that. Times are in seconds.

    `rights_seconds`: for how long it is remembered what a directory said that somebody may do. `whitelist`: the users
    who are not restricted; None where none is set.
    """

    kind: str = "Database"
    ldap: LdapSettings | None = None
    jwt: JwtSettings | None = None
    creates_users: bool = True
    refused_domains: frozenset[str] = frozenset()
    readonly_superusers: frozenset[str] = frozenset()
    restricted_users: bool = False
    whitelist: frozenset[str] | None = None
    rights_seconds: float = 5.0
    team_syncing: bool = False
    resync_seconds: int = 1800
    sync_seconds: int = 60
    trusted: tuple[str, ...] = ()
    """Files, and folders of files, with certificates that are trusted beside the system's own."""


def authentication(read: Mapping[str, Any], *, own_registry: bool) -> AuthenticationSettings:
    """Return what the keys in `read` say, which the READERS have read. Raises InvalidSetting."""
    read = {key: value for key, value in read.items() if value is not None}
    kind = read.get("AUTHENTICATION_TYPE", "Database")
    requires_email = read.get("FEATURE_MAILING", not own_registry)
    beside = read.get("VERBS_CONFIG_DIR", "")
    refused_domains = read.get("BLACKLISTED_EMAIL_DOMAINS", ()) if read.get("FEATURE_BLACKLISTED_EMAILS") else ()
    invited_only = read.get("FEATURE_INVITE_ONLY_USER_CREATION", False)  # and there are no invitations here
    return AuthenticationSettings(
        kind=kind,
        ldap=_ldap(read, beside, requires_email=requires_email) if kind == "LDAP" else None,
        jwt=_jwt(read, beside, requires_email=requires_email) if kind == "JWT" else None,
        creates_users=read.get("FEATURE_USER_CREATION", True) and not invited_only,
        refused_domains=frozenset(domain.lower() for domain in refused_domains),
        readonly_superusers=read.get("GLOBAL_READONLY_SUPER_USERS", frozenset()),
        restricted_users=read.get("FEATURE_RESTRICTED_USERS", False),
        whitelist=read.get("RESTRICTED_USERS_WHITELIST") or None,  # an empty one is none: so Quay has it
        rights_seconds=_rights_seconds(read),
        team_syncing=read.get("FEATURE_TEAM_SYNCING", False),
        resync_seconds=read.get("TEAM_RESYNC_STALE_TIME", 1800),
        sync_seconds=read.get("TEAM_SYNC_WORKER_FREQUENCY", 60),
        trusted=_trusted(beside),
    )


def _rights_seconds(read: Mapping[str, Any]) -> float:
    if not read.get("FEATURE_LDAP_CACHING", True):
        return 0.0
    return float(read.get("LDAP_CACHE_TTL", 5))


def _ldap(read: Mapping[str, Any], beside: str, *, requires_email: bool) -> LdapSettings:
    base, relative = _needed(read, "LDAP_BASE_DN", "LDAP"), read.get("LDAP_USER_RDN", ())
    admin, password = read.get("LDAP_ADMIN_DN"), read.get("LDAP_ADMIN_PASSWD", "")
    if admin is not None and not password:
        raise InvalidSetting("LDAP_ADMIN_PASSWD is not set, and LDAP_ADMIN_DN needs it: who has none logs in as nobody")
    base_dn = ",".join(base)
    bases = [",".join((*relative, *base)), *(f"{rdn},{base_dn}" for rdn in read.get("LDAP_SECONDARY_USER_RDNS", ()))]
    return LdapSettings(
        uris=read.get("LDAP_URI", ("ldap://localhost",)),
        base_dn=base_dn,
        search_bases=tuple(dict.fromkeys(bases)),
        admin_dn=admin,
        admin_password=password,
        requires_email=requires_email,
        trusted=_trusted(beside, "ldap.crt"),
        **{name: read[key] for key, name in _LDAP.items() if key in read},
    )


def _jwt(read: Mapping[str, Any], beside: str, *, requires_email: bool) -> JwtSettings:
    return JwtSettings(
        verify_url=_needed(read, "JWT_VERIFY_ENDPOINT", "JWT"),
        issuer=_needed(read, "JWT_AUTH_ISSUER", "JWT"),
        public_key=os.path.join(beside, "jwt-authn.cert"),
        fresh_seconds=read.get("JWT_AUTH_MAX_FRESH_S", 300),
        requires_email=requires_email,
        trusted=_trusted(beside),
    )


def _trusted(beside: str, *files: str) -> tuple[str, ...]:
    return tuple(os.path.join(beside, name) for name in (*files, "extra_ca_certs")) if beside else ()


def _needed(read: Mapping[str, Any], key: str, kind: str) -> Any:
    if key not in read:
        raise InvalidSetting(f"{key} is not set, and AUTHENTICATION_TYPE {kind} needs it")
    return read[key]


# --- Readers ----------------------------------------------------------------------------------------------------------


def _kind(key: str, value: object) -> str:
    if value == "Keystone":
        raise InvalidSetting(
            f"{key} is 'Keystone', whose users cannot log in here; with AppToken robots and app-specific tokens can"
        )
    if value not in KINDS:
        raise refused(key, value, ", ".join(KINDS))
    return str(value)


def _uris(key: str, value: object) -> tuple[str, ...]:
    allowed = "an LDAP URL, e.g. ldaps://ldap.example.com, or several with spaces between"
    found = tuple(value.split()) if isinstance(value, str) else ()
    if not found:
        raise refused(key, value, allowed)
    for uri in found:
        try:
            parts = urlsplit(uri)
            usable = parts.scheme in ("ldap", "ldaps") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or "@" in uri:  # a password may stand before it
            raise refused(key, "…", allowed)
    return found


def _url(key: str, value: object) -> str:
    try:
        parts = urlsplit(value) if isinstance(value, str) and value.isprintable() and " " not in value else None
        usable = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts is None or parts.username is not None:
        raise refused(key, "…", "a URL without a user, e.g. https://people.example.com/verify")
    return str(value)


def _pieces(key: str, value: object) -> tuple[str, ...]:
    """Return a name (DN) in pieces, which Quay writes as a list: `[dc=example, dc=com]`. One text will do."""
    allowed = 'a list of the pieces of a name, e.g. ["dc=example", "dc=com"]'
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = [value]
    pieces = tuple(piece.strip() for piece in names(key, value, allowed) if piece.strip())
    if not all("=" in piece for piece in pieces):
        raise refused(key, value, allowed)
    return pieces


def _base(key: str, value: object) -> tuple[str, ...]:
    pieces = _pieces(key, value)
    if not pieces:
        raise refused(key, value, 'a list of the pieces of a name, e.g. ["dc=example", "dc=com"]')
    return pieces


def _or_none(read: Callable[[str, object], Any]) -> Callable[[str, object], Any]:
    """Return a reader to which an empty text is nothing: Quay's own tools leave such behind."""
    return lambda key, value: None if value == "" else read(key, value)


def _seconds(key: str, value: object) -> float:
    try:
        found = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else 0.0
    except ValueError:
        found = 0.0
    if not 0 < found <= _MOST_SECONDS:
        raise refused(key, value, "a number of seconds above zero")
    return found


def _time(key: str, value: object) -> int:
    """Return seconds of what Quay writes as `30m` or `2h`."""
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", value.strip(), re.ASCII) if isinstance(value, str) else None
    if match is None or int(match[1]) == 0:
        raise refused(key, value, "a time, e.g. 90s, 30m, 2h, 1d or 1w")
    return int(match[1]) * _SECONDS[match[2]]


def _list(key: str, value: object) -> tuple[str, ...]:
    return names(key, structure(key, value, "a list of texts"), "a list of texts")


_DIRECTORIES: dict[str, Callable[[str, object], Any]] = {
    "LDAP_URI": _uris,
    "LDAP_BASE_DN": _base,
    "LDAP_USER_RDN": _pieces,
    "LDAP_SECONDARY_USER_RDNS": _list,
    "LDAP_ADMIN_DN": text,
    "LDAP_ADMIN_PASSWD": secret,
    "LDAP_UID_ATTR": text,
    "LDAP_EMAIL_ATTR": text,
    "LDAP_MEMBEROF_ATTR": text,
    "LDAP_USER_FILTER": text,
    "LDAP_SUPERUSER_FILTER": text,
    "LDAP_GLOBAL_READONLY_SUPERUSER_FILTER": text,
    "LDAP_RESTRICTED_USER_FILTER": text,
    "LDAP_ALLOW_INSECURE_FALLBACK": flag,
    "VERBS_LDAP_STARTTLS": flag,
    "LDAP_TIMEOUT": _seconds,
    "LDAP_NETWORK_TIMEOUT": _seconds,
    "LDAP_FOLLOW_REFERRALS": flag,
    "LDAP_CONNECTION_POOLING": flag,
    "LDAP_POOL_SIZE": count,
    "LDAP_POOL_MAX_WAIT": _seconds,
    "LDAP_POOL_CONNECTION_LIFETIME": _seconds,
    "FEATURE_LDAP_CACHING": flag,
    "LDAP_CACHE_TTL": _seconds,
    "JWT_VERIFY_ENDPOINT": _url,
    "JWT_AUTH_ISSUER": text,
    "JWT_AUTH_MAX_FRESH_S": count,
}
READERS: dict[str, Callable[[str, object], Any]] = {
    "AUTHENTICATION_TYPE": _kind,
    "VERBS_CONFIG_DIR": text,
    **{key: _or_none(read) for key, read in _DIRECTORIES.items()},
    "FEATURE_MAILING": flag,
    "FEATURE_USER_CREATION": flag,
    "FEATURE_INVITE_ONLY_USER_CREATION": flag,
    "FEATURE_BLACKLISTED_EMAILS": flag,
    "BLACKLISTED_EMAIL_DOMAINS": _list,
    "GLOBAL_READONLY_SUPER_USERS": usernames,
    "FEATURE_RESTRICTED_USERS": flag,
    "RESTRICTED_USERS_WHITELIST": usernames,
    "FEATURE_TEAM_SYNCING": flag,
    "TEAM_RESYNC_STALE_TIME": _time,
    "TEAM_SYNC_WORKER_FREQUENCY": count,
}
_LDAP = {
    "LDAP_UID_ATTR": "uid_attribute",
    "LDAP_EMAIL_ATTR": "email_attribute",
    "LDAP_MEMBEROF_ATTR": "member_of_attribute",
    "LDAP_USER_FILTER": "user_filter",
    "LDAP_SUPERUSER_FILTER": "superuser_filter",
    "LDAP_GLOBAL_READONLY_SUPERUSER_FILTER": "readonly_superuser_filter",
    "LDAP_RESTRICTED_USER_FILTER": "restricted_filter",
    "LDAP_ALLOW_INSECURE_FALLBACK": "insecure_fallback",
    "VERBS_LDAP_STARTTLS": "start_tls",
    "LDAP_TIMEOUT": "timeout",
    "LDAP_NETWORK_TIMEOUT": "network_timeout",
    "LDAP_FOLLOW_REFERRALS": "follow_referrals",
    "LDAP_CONNECTION_POOLING": "pooling",
    "LDAP_POOL_SIZE": "pool_size",
    "LDAP_POOL_MAX_WAIT": "pool_wait",
    "LDAP_POOL_CONNECTION_LIFETIME": "pool_lifetime",
}
