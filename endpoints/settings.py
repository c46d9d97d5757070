"""The settings: what a mapping of configuration keys says, checked once, as one frozen value.

The law: this module is pure. It is given a mapping (Quay's `config.yaml` as it is, with our `VERBS_*` keys beside
it) and knows neither files nor the environment. A value may be of the key's own type or the text of one, because the
environment has only texts. A value that cannot be used is an error that names the key, the value and what is allowed.
Other keys of Quay's are not looked at (`endpoints.quaykeys` knows them), but an unknown `VERBS_*` key is an error: it
is a misspelling.
"""

import contextlib
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import quote

from endpoints import directorysettings
from endpoints.directorysettings import AuthenticationSettings
from endpoints.rules import InvalidRequest, Rule
from endpoints.settingvalues import InvalidSetting
from endpoints.settingvalues import choice as _choice
from endpoints.settingvalues import count as _count
from endpoints.settingvalues import count_or_none as _count_or_none
from endpoints.settingvalues import flag as _flag
from endpoints.settingvalues import names as _names
from endpoints.settingvalues import refused as _refused
from endpoints.settingvalues import secret as _secret
from endpoints.settingvalues import size as _bytes
from endpoints.settingvalues import structure as _structure
from endpoints.settingvalues import text as _text
from endpoints.settingvalues import usernames as _usernames

__all__ = ["DEFAULT_DATA_DIR", "InvalidSetting", "Location", "Replica", "Settings", "SigningKey"]
from util.layerindex import LayerLimits

DEFAULT_DATA_DIR = "var"
_STORAGES = "DISTRIBUTED_STORAGE_CONFIG"
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Location:
    """One storage of `DISTRIBUTED_STORAGE_CONFIG`: the driver's name and its parameters, as Quay writes them."""

    driver: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Replica:
    """A database that follows the registry's: its URL, and what its driver is told beside it, as Quay writes them."""

    uri: str = field(repr=False)
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The key that signs, as Quay names it: what gpg calls it, and the files that hold it and its public half."""

    name: str
    private_file: str
    public_file: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, checked. `Settings.parse({})` is a working set-up on SQLite and a folder under `var/`."""

    data_dir: str = DEFAULT_DATA_DIR
    db_uri: str = f"sqlite:///{DEFAULT_DATA_DIR}/registry.db"
    own_db_uri: str = f"sqlite:///{DEFAULT_DATA_DIR}/registry.db"
    db_arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    replicas: tuple[Replica, ...] = ()
    spool_dir: str = f"{DEFAULT_DATA_DIR}/spool"
    storage_config: Mapping[str, Location] = field(default_factory=dict)
    storage_preference: tuple[str, ...] = ()
    server_hostname: str = "localhost:8080"
    url_scheme: str = "http"
    readonly: bool = False
    anonymous_access: bool = True
    proxy_storage: bool = False
    nested_repositories: bool = True
    limits: LayerLimits = field(default_factory=LayerLimits)
    max_makings: int | None = None
    lease_seconds: int = 30
    keep_days: int = 30
    quota: int | None = None
    gc_seconds: int = 3600
    prime: tuple[Rule, ...] = ()
    prime_seconds: int = 30
    broker_url: str | None = None
    queue: str = "registry-verbs"
    job_processes: int | None = None
    audit_log: str | None = None
    accel_redirect: str | None = None
    proxies: int = 0
    own_registry: bool = True
    secret_key: str | None = None
    database_secret_key: str | None = None
    superusers: frozenset[str] = frozenset()
    superusers_enabled: bool = True
    robots_allowed: frozenset[str] | None = None
    superusers_full_access: bool = True
    app_specific_tokens: bool = True
    require_encrypted_passwords: bool = False
    service_key_service: str = "quay"
    signed_seconds: int = 3660
    private_on_push: bool = True
    pushes: bool = True
    public_catalog: bool = True
    collects_garbage: bool = True
    library_namespace: str | None = "library"
    max_layer: int | None = None
    url_seconds: int = 60
    token_seconds: int = 300
    grace_seconds: int = 3600
    upload_seconds: int = 86400
    pull_seconds: int = 20
    signing_key: SigningKey | None = None
    authentication: AuthenticationSettings = field(default_factory=AuthenticationSettings)

    KEYS: ClassVar[tuple[str, ...]]
    FILES: ClassVar[tuple[str, ...]] = ("GPG2_PRIVATE_KEY_FILENAME", "GPG2_PUBLIC_KEY_FILENAME")
    """The keys that name files which lie beside the configuration's own."""
    STORAGE_FILES: ClassVar[tuple[str, ...]] = ("cloudfront_privatekey_filename", "cloudflare_privatekey_filename")
    """The parameters of DISTRIBUTED_STORAGE_CONFIG that do so, too."""

    @classmethod
    def beside(cls, folder: str, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """Return `configuration` with the files that it names in `folder`; a full path stays what it is."""
        files = {key: value for key in cls.FILES if isinstance(value := configuration.get(key), str)}
        placed: dict[str, Any] = {key: str(PurePath(folder, file)) for key, file in files.items()}
        storages = configuration.get(_STORAGES)
        with contextlib.suppress(InvalidSetting):  # told when it is parsed
            storages = _structure(_STORAGES, storages, "", secret=True)
        if isinstance(storages, Mapping):
            placed[_STORAGES] = _placed(folder, storages)
        return {**configuration, **placed}

    @classmethod
    def parse(cls, configuration: Mapping[str, Any]) -> "Settings":
        """Return the settings that `configuration` says. Raises InvalidSetting."""
        _refuse_unknown(configuration)
        given = {key: value for key, value in configuration.items() if key in _READERS and value is not None}
        read = {key: _READERS[key](key, value) for key, value in given.items()}
        data_dir = read.get("VERBS_DATA_DIR", DEFAULT_DATA_DIR)
        storages = read.get("DISTRIBUTED_STORAGE_CONFIG") or {
            "default": Location("LocalStorage", {"storage_path": str(PurePath(data_dir, "storage"))})
        }
        preference = _preference(read, storages)
        own_registry = read.get("VERBS_REGISTRY", "quay" if "DB_URI" in read else "own") == "own"
        library = read.get("LIBRARY_NAMESPACE", "library") if read.get("FEATURE_LIBRARY_SUPPORT", True) else None
        db_uri = read.get("DB_URI", f"sqlite:///{quote(str(PurePath(data_dir, 'registry.db')), safe='/')}")
        return cls(
            data_dir=data_dir,
            db_uri=db_uri,
            own_registry=own_registry,
            superusers_full_access=read.get("FEATURE_SUPERUSERS_FULL_ACCESS", own_registry),
            public_catalog=read.get("FEATURE_PUBLIC_CATALOG", own_registry),
            pushes=not read.get("DISABLE_PUSHES", False),
            robots_allowed=read.get("ROBOTS_WHITELIST", frozenset()) if read.get("ROBOTS_DISALLOW") else None,
            replicas=_replicas(read),
            library_namespace=library,
            own_db_uri=read.get("VERBS_DB_URI", db_uri),
            spool_dir=read.get("VERBS_SPOOL_DIR", str(PurePath(data_dir, "spool"))),
            signing_key=_signing_key(read),
            limits=LayerLimits(**{name: read[key] for key, name in _LIMITS.items() if key in read}),
            authentication=directorysettings.authentication(read, own_registry=own_registry),
            storage_config=MappingProxyType(storages),
            storage_preference=preference,
            **{name: read[key] for key, name in _PLAIN.items() if key in read},
        )


def _placed(folder: str, value: object, key: object = None) -> object:
    """Return `value`, in which the files of storages lie in `folder`; `key` is what it stands under."""
    if isinstance(value, Mapping):
        return {name: _placed(folder, item, name) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_placed(folder, item) for item in value]
    return str(PurePath(folder, value)) if key in Settings.STORAGE_FILES and isinstance(value, str) and value else value


def _refuse_unknown(configuration: Mapping[str, Any]) -> None:
    for key in configuration:
        if key.startswith("VERBS_") and key not in _READERS:
            near = difflib.get_close_matches(key, _READERS, n=1, cutoff=0.8)
            ours = ", ".join(known for known in _READERS if known.startswith("VERBS_"))
            hint = f"did you mean {near[0]}?" if near else f"there are: {ours}"
            raise InvalidSetting(f"{key} is not a setting; {hint}")


def _preference(read: Mapping[str, Any], storages: Mapping[str, Location]) -> tuple[str, ...]:
    for key in ("DISTRIBUTED_STORAGE_PREFERENCE", "DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS"):
        for name in read.get(key, ()):
            if name not in storages:
                raise _refused(key, name, f"names of DISTRIBUTED_STORAGE_CONFIG: {', '.join(storages)}")
    preferred = read.get("DISTRIBUTED_STORAGE_PREFERENCE") or read.get("DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS") or ()
    return tuple(dict.fromkeys((*preferred, *storages)))


def _replicas(read: Mapping[str, Any]) -> tuple[Replica, ...]:
    """Return the replicas; one that says nothing of how to connect is connected to as the registry's database is."""
    shared = read.get("DB_CONNECTION_ARGS", {})
    return tuple(Replica(uri, shared if own is None else own) for uri, own in read.get("DB_READ_REPLICAS", ()))


def _signing_key(read: Mapping[str, Any]) -> SigningKey | None:
    if "SIGNING_ENGINE" not in read:
        return None
    for key in ("GPG2_PRIVATE_KEY_NAME", *Settings.FILES):
        if key not in read:
            raise InvalidSetting(f"{key} is not set, and SIGNING_ENGINE {read['SIGNING_ENGINE']} needs it")
    return SigningKey(read["GPG2_PRIVATE_KEY_NAME"], *(read[key] for key in Settings.FILES))


def _host(key: str, value: object) -> str:
    if not isinstance(value, str) or not _HOST.fullmatch(value):
        raise _refused(key, value, "a host name, with a port or without, and no scheme, e.g. registry.example.com")
    return value


def _database(key: str, value: object) -> str:
    if not isinstance(value, str) or "://" not in value:
        raise _refused(key, "…", "a database URL, e.g. postgresql://user:password@host/database or sqlite:///file.db")
    return value  # never shown in an error: it may hold a password


def _arguments(key: str, value: object) -> Mapping[str, Any]:
    allowed = 'what the driver is told, by name, e.g. {"sslmode": "verify-full", "sslrootcert": "/etc/ssl/db.pem"}'
    value = _structure(key, value, allowed, secret=True)
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InvalidSetting(f"{key} is not usable; allowed: {allowed}")  # not shown: it may hold a password
    return MappingProxyType(dict(value))


def _read_replicas(key: str, value: object) -> tuple[tuple[str, Mapping[str, Any] | None], ...]:
    allowed = 'a list of databases, e.g. [{"DB_URI": "postgresql://user:password@replica/quay"}]'
    value = _structure(key, value, allowed, secret=True)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InvalidSetting(f"{key} is not usable; allowed: {allowed}")
    replicas = []
    for number, entry in enumerate(value):
        if not isinstance(entry, Mapping) or entry.get("DB_URI") is None:
            raise InvalidSetting(f"{key}[{number}] has no DB_URI; allowed: {allowed}")
        own = entry.get("DB_CONNECTION_ARGS")
        replicas.append(
            (
                _database(f"{key}[{number}].DB_URI", entry["DB_URI"]),
                None if own is None else _arguments(f"{key}[{number}].DB_CONNECTION_ARGS", own),
            )
        )
    return tuple(replicas)


def _robots(key: str, value: object) -> frozenset[str]:
    return frozenset(_names(key, value, 'a list of robots, e.g. ["acme+mirror"]'))


def _location(key: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"/(?:[A-Za-z0-9._~-]+/)+", value):
        raise _refused(key, value, "the path of an internal location of nginx, e.g. /internal/")
    return value


def _storages(key: str, value: object) -> dict[str, Location]:
    allowed = 'names with a driver and its parameters, e.g. {"default": ["LocalStorage", {"storage_path": "/data"}]}'
    value = _structure(key, value, allowed, secret=True)
    if not isinstance(value, Mapping) or not value:
        raise InvalidSetting(f"{key} is not usable; allowed: {allowed}")
    storages = {}
    for name, pair in value.items():
        if not (
            isinstance(name, str)
            and isinstance(pair, Sequence)
            and not isinstance(pair, str)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and isinstance(pair[1], Mapping)
        ):  # the value is not shown: it holds the storage's secret key
            raise InvalidSetting(f"{key}[{name!r}] is not usable; allowed: {allowed}")
        storages[name] = Location(pair[0], MappingProxyType(dict(pair[1])))
    return storages


def _rules(key: str, value: object) -> tuple[Rule, ...]:
    allowed = 'a list of rules, e.g. [{"repositories": "acme/*", "tags": "v*", "verbs": ["squash"]}]'
    value = _structure(key, value, allowed)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _refused(key, value, allowed)
    rules = []
    for number, document in enumerate(value):
        try:
            rules.append(Rule.parse(document))
        except InvalidRequest as problem:
            raise InvalidSetting(f"{key}[{number}]: {problem}") from None
    return tuple(rules)


def _broker(key: str, value: object) -> str:
    if not isinstance(value, str) or not re.match(r"(?:rediss?|amqps?)://", value):
        raise _refused(key, "…", "a broker's URL, e.g. redis://host:6379/0 or amqp://user:password@host:5672//")
    return value  # never shown in an error: it may hold a password


def _state(key: str, value: object) -> bool:
    return _choice("normal", "readonly")(key, value) == "readonly"


_READERS: dict[str, Callable[[str, object], Any]] = {
    "DB_URI": _database,
    "DB_CONNECTION_ARGS": _arguments,
    "DB_READ_REPLICAS": _read_replicas,
    "DISTRIBUTED_STORAGE_CONFIG": _storages,
    "DISTRIBUTED_STORAGE_PREFERENCE": _names,
    "DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS": _names,
    "SERVER_HOSTNAME": _host,
    "PREFERRED_URL_SCHEME": _choice("http", "https"),
    "REGISTRY_STATE": _state,
    "FEATURE_ANONYMOUS_ACCESS": _flag,
    "FEATURE_PROXY_STORAGE": _flag,
    "FEATURE_EXTENDED_REPOSITORY_NAMES": _flag,
    "SECRET_KEY": _secret,
    "DATABASE_SECRET_KEY": _secret,
    "SUPER_USERS": _usernames,
    "FEATURE_SUPER_USERS": _flag,
    "FEATURE_SUPERUSERS_FULL_ACCESS": _flag,
    "ROBOTS_DISALLOW": _flag,
    "ROBOTS_WHITELIST": _robots,
    "FEATURE_APP_SPECIFIC_TOKENS": _flag,
    "FEATURE_REQUIRE_ENCRYPTED_BASIC_AUTH": _flag,
    "INSTANCE_SERVICE_KEY_SERVICE": _text,
    "REGISTRY_JWT_AUTH_MAX_FRESH_S": _count,
    "CREATE_PRIVATE_REPO_ON_PUSH": _flag,
    "DISABLE_PUSHES": _flag,
    "FEATURE_PUBLIC_CATALOG": _flag,
    "FEATURE_GARBAGE_COLLECTION": _flag,
    "FEATURE_LIBRARY_SUPPORT": _flag,
    "LIBRARY_NAMESPACE": _text,
    "MAXIMUM_LAYER_SIZE": _bytes,
    "SIGNING_ENGINE": _choice("gpg2"),
    "GPG2_PRIVATE_KEY_NAME": _text,
    "GPG2_PRIVATE_KEY_FILENAME": _text,
    "GPG2_PUBLIC_KEY_FILENAME": _text,
    "VERBS_DATA_DIR": _text,
    "VERBS_DB_URI": _database,
    "VERBS_REGISTRY": _choice("own", "quay"),
    "VERBS_URL_SECONDS": _count,
    "VERBS_TOKEN_SECONDS": _count,
    "VERBS_GRACE_SECONDS": _count,
    "VERBS_UPLOAD_SECONDS": _count,
    "VERBS_PULL_SECONDS": _count_or_none,
    "VERBS_MAX_ENTRIES": _count,
    "VERBS_MAX_SIZE": _bytes,
    "VERBS_MAX_EXTENSION": _bytes,
    "VERBS_MAX_NAME": _bytes,
    "VERBS_MAX_DEPTH": _count,
    "VERBS_MAX_ATTRIBUTE": _bytes,
    "VERBS_MAX_ATTRIBUTES": _bytes,
    "VERBS_MAX_GLOBAL": _bytes,
    "VERBS_MAX_PIECES": _count,
    "VERBS_MAX_WHITEOUTS": _count,
    "VERBS_MAX_REPEATS": _count,
    "VERBS_MAX_METADATA": _bytes,
    "VERBS_MAX_GROWTH": _count,
    "VERBS_MAX_LOOKUPS": _count,
    "VERBS_PLAN_SECONDS": _count,
    "VERBS_MAX_MAKINGS": _count,
    "VERBS_SPOOL_DIR": _text,
    "VERBS_LEASE_SECONDS": _count,
    "VERBS_KEEP_DAYS": _count_or_none,
    "VERBS_QUOTA": _bytes,
    "VERBS_GC_SECONDS": _count_or_none,
    "VERBS_PRIME": _rules,
    "VERBS_PRIME_SECONDS": _count,
    "VERBS_BROKER_URL": _broker,
    "VERBS_QUEUE": _text,
    "VERBS_JOB_PROCESSES": _count,
    "VERBS_AUDIT_LOG": _text,
    "VERBS_ACCEL_REDIRECT": _location,
    "VERBS_PROXIES": _count,
    **directorysettings.READERS,
}
_PLAIN = {
    "SERVER_HOSTNAME": "server_hostname",
    "PREFERRED_URL_SCHEME": "url_scheme",
    "REGISTRY_STATE": "readonly",
    "FEATURE_ANONYMOUS_ACCESS": "anonymous_access",
    "FEATURE_PROXY_STORAGE": "proxy_storage",
    "FEATURE_EXTENDED_REPOSITORY_NAMES": "nested_repositories",
    "VERBS_MAX_MAKINGS": "max_makings",
    "VERBS_LEASE_SECONDS": "lease_seconds",
    "VERBS_KEEP_DAYS": "keep_days",
    "VERBS_QUOTA": "quota",
    "VERBS_GC_SECONDS": "gc_seconds",
    "VERBS_PRIME": "prime",
    "VERBS_PRIME_SECONDS": "prime_seconds",
    "VERBS_BROKER_URL": "broker_url",
    "VERBS_QUEUE": "queue",
    "VERBS_JOB_PROCESSES": "job_processes",
    "VERBS_AUDIT_LOG": "audit_log",
    "VERBS_ACCEL_REDIRECT": "accel_redirect",
    "VERBS_PROXIES": "proxies",
    "SECRET_KEY": "secret_key",
    "DATABASE_SECRET_KEY": "database_secret_key",
    "DB_CONNECTION_ARGS": "db_arguments",
    "SUPER_USERS": "superusers",
    "FEATURE_SUPER_USERS": "superusers_enabled",
    "FEATURE_GARBAGE_COLLECTION": "collects_garbage",
    "FEATURE_APP_SPECIFIC_TOKENS": "app_specific_tokens",
    "FEATURE_REQUIRE_ENCRYPTED_BASIC_AUTH": "require_encrypted_passwords",
    "INSTANCE_SERVICE_KEY_SERVICE": "service_key_service",
    "REGISTRY_JWT_AUTH_MAX_FRESH_S": "signed_seconds",
    "CREATE_PRIVATE_REPO_ON_PUSH": "private_on_push",
    "MAXIMUM_LAYER_SIZE": "max_layer",
    "VERBS_URL_SECONDS": "url_seconds",
    "VERBS_TOKEN_SECONDS": "token_seconds",
    "VERBS_GRACE_SECONDS": "grace_seconds",
    "VERBS_UPLOAD_SECONDS": "upload_seconds",
    "VERBS_PULL_SECONDS": "pull_seconds",
}
_LIMITS = {f"VERBS_{limit.name.upper()}": limit.name for limit in fields(LayerLimits)}
Settings.KEYS = tuple(_READERS)
