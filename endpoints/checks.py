"""Whether everything that a configuration names is there and does what is needed of it, one finding after the other.

Invariants:
- Nothing is left changed: no table is made, and the object that is written to try a storage is deleted.
- A check that cannot be finished is a finding too; the others go on. What cannot be tried because something else is
  wrong already is left out.
- No secret is in a finding: of a database's URL its kind, host and name are shown, of a broker's its host.
"""

import os
import resource
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from data import inspection
from data.connecting import UnusableDatabase, check_there, shown, sqlite_file
from data.database import Engine, make_engine
from data.directories.directory import DirectoryUnavailable
from data.owntables import HEAD, DatabaseUnavailable
from data.registry import RegistryUnavailable
from data.schemacheck import Why, advice, all_columns, columns_read, find_lacks
from data.secretbox import UnusableSecret
from data.storage.base import COPY_SIZE, OWN, BlobNotFound, Storage, StorageUnavailable
from data.storage.distributed import DistributedStorage, storage_from_config
from data.storage.drivers import InvalidStorageConfiguration
from endpoints import quaykeys
from endpoints.configuration import Configuration
from endpoints.directories import directory_of
from endpoints.secretfiles import SecretFileUnusable
from endpoints.services import secrets_of
from endpoints.settings import Replica, Settings
from endpoints.signer import Signer, SigningFailed
from formats import installed_formatters
from util.digest import DigestMismatch, verified
from util.problem import Problem

_CONNECT_SECONDS = 5.0
_BLOB_BYTES = 64 << 20  # of the newest tag that are read, and one blob at least
_CLOCK_MS = 5000  # that clocks may differ
_FREE_BYTES = 5 << 30
_OPEN_FILES = 1024
_LAG_SECONDS = 60.0


class Verdict(StrEnum):
    """How something is found."""

    RIGHT = "ok"
    DOUBTFUL = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it was found, and what to do about it."""

    subject: str
    verdict: Verdict
    fact: str
    advice: str | None = None

    @property
    def text(self) -> str:
        """The fact and the advice, in one line."""
        return " ".join(f"{self.fact}; {self.advice}".split() if self.advice else self.fact.split())

    def document(self) -> dict[str, str | None]:
        """Return it as the JSON of `check --json` has it."""
        return {"subject": self.subject, "verdict": str(self.verdict), "fact": self.fact, "advice": self.advice}


def right(subject: str, fact: str) -> Finding:
    return Finding(subject, Verdict.RIGHT, fact)


def doubtful(subject: str, fact: str, advice: str | None = None) -> Finding:
    return Finding(subject, Verdict.DOUBTFUL, fact, advice)


def wrong(subject: str, fact: str, advice: str | None = None) -> Finding:
    return Finding(subject, Verdict.WRONG, fact, advice)


class Site:
    """What is checked: a configuration, and what its checks share. Close it."""

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        """Raise InvalidSetting."""
        self.configuration = configuration
        self.settings = Settings.parse(configuration)
        self._engines: list[Engine] = []
        self.usable: set[str] = set()
        """What has been found to work, for the checks that build on it."""

    @cached_property
    def engine(self) -> Engine:
        """The registry's database. Raises UnusableDatabase."""
        return self._engine(self.settings.db_uri, self.settings.db_arguments)

    @cached_property
    def own_engine(self) -> Engine:
        """The database of our own tables. Raises UnusableDatabase."""
        if self.settings.own_db_uri == self.settings.db_uri:
            return self.engine
        return self._engine(self.settings.own_db_uri, {})

    @cached_property
    def storage(self) -> DistributedStorage:
        """The storages. Raises InvalidStorageConfiguration."""
        return storage_from_config(self.settings)

    def replica(self, replica: Replica) -> Engine:
        """Return the engine of a replica. Raises UnusableDatabase."""
        return self._engine(replica.uri, replica.arguments)

    def _engine(self, uri: str, arguments: Mapping[str, Any]) -> Engine:
        check_there(uri)  # to connect would make it
        engine = make_engine(uri, arguments)
        self._engines.append(engine)
        return engine

    def close(self) -> None:
        """Let go of every connection."""
        for engine in self._engines:
            engine.dispose()


Check = Callable[[Site], Iterator[Finding]]


def findings(site: Site) -> Iterator[Finding]:
    """Yield what is found, check by check, as soon as it is known."""
    for subject, check in CHECKS.items():
        try:
            yield from check(site)
        except Problem as problem:
            yield wrong(subject, str(problem))
        except Exception as error:  # noqa: BLE001 the others are to be told all the same
            # Only its kind: what a library says of an error may quote what it was given, secrets too.
            yield wrong(subject, f"this could not be checked, because of {type(error).__name__}", "please report it")


# --- The configuration ------------------------------------------------------------------------------------------------


def _configuration(site: Site) -> Iterator[Finding]:
    configuration = site.configuration
    source, environment = None, frozenset[str]()
    if isinstance(configuration, Configuration):
        source, environment = configuration.source, configuration.environment
    given = [key for key, value in configuration.items() if value is not None]
    obeyed = sorted(key for key in given if key in Settings.KEYS)
    idle = [key for key in given if quaykeys.passed_over(key) is not None and key not in Settings.KEYS]
    where = f"read from {source}" if source else "no file (VERBS_CONFIG names none)"
    from_there = f", {len(environment)} of them from the environment" if environment else ""
    yield right(
        "configuration",
        f"{where}; {len(obeyed)} keys are obeyed{from_there}, {len(idle)} of Quay's have no meaning here",
    )
    if obeyed:
        yield right("configuration", f"obeyed: {', '.join(obeyed)}")
    told = quaykeys.warnings(configuration, site.settings)
    for line in told:
        fact, _, advice = line.rpartition("; ")
        yield doubtful("configuration", fact, advice)
    named = {line.split()[0] for line in told}
    for key in quaykeys.unknown(configuration):
        if key not in named:
            yield doubtful("configuration", f"{key} is no key of Quay's that is known here, and is passed over")


def _address(site: Site) -> Iterator[Finding]:
    settings = site.settings
    url = f"{settings.url_scheme}://{settings.server_hostname}"
    host = urlsplit(url).hostname or ""
    local = host == "localhost" or host.startswith("127.") or host == "::1"
    if local and not settings.own_registry:
        yield doubtful("address", f"clients are told {url}", "set SERVER_HOSTNAME to the name that clients use")
    elif settings.url_scheme == "http" and not local:
        yield doubtful(
            "address",
            f"clients are told {url}, without TLS: passwords and images go in the clear",
            "put a proxy with TLS before the service and set PREFERRED_URL_SCHEME to https",
        )
    else:
        yield right("address", f"clients are told {url}")


def _secret_key(site: Site) -> Iterator[Finding]:
    if site.settings.secret_key is not None:
        yield right("SECRET_KEY", "it is set")
    elif site.settings.own_registry:
        yield right("SECRET_KEY", f"it is not set: a key is kept in {site.settings.data_dir}, for this host alone")
    else:
        yield doubtful(
            "SECRET_KEY",
            f"it is not set: a key is kept in {site.settings.data_dir}, and tokens of one host are refused by another",
            "set it to the same on every host, if there are several",
        )


# --- The registry's database ------------------------------------------------------------------------------------------


def _database(site: Site) -> Iterator[Finding]:
    settings = site.settings
    where = shown(settings.db_uri)
    file = sqlite_file(settings.db_uri)
    if file is not None and settings.own_registry and not os.path.exists(file):
        yield right("database", f"{where} is not there yet, and is made at the first start")
        return
    try:
        found = inspection.server(site.engine)
    except (RegistryUnavailable, UnusableDatabase) as problem:
        yield wrong("database", f"{where}: {problem}", _connecting_advice(str(problem)))
        return
    site.usable.add("database")
    yield right("database", f"{found.kind} {found.version} at {where} answers in {found.took_ms} ms")
    yield _clock("database", found.ahead_ms)


def _clock(subject: str, ahead_ms: int) -> Finding:
    away = abs(ahead_ms) / 1000
    direction = "ahead of" if ahead_ms > 0 else "behind"
    if abs(ahead_ms) > _CLOCK_MS:
        fact = f"its clock is {away:.1f} seconds {direction} that of this host: tags may come and end late"
        return doubtful(subject, fact, "have both set their clocks by NTP")
    return right(subject, f"its clock differs by {away:.1f} seconds from that of this host")


def _replicas(site: Site) -> Iterator[Finding]:
    for replica in site.settings.replicas:
        where = shown(replica.uri)
        try:
            engine = site.replica(replica)
            found = inspection.server(engine)
            standby = inspection.standby(engine)
            lacks = find_lacks(engine, columns_read())
        except (RegistryUnavailable, UnusableDatabase) as problem:
            yield doubtful(
                "read replica",
                f"{where}: {problem}",
                "until it can be used everything is asked of the database itself",
            )
            continue
        if lacks:
            yield wrong("read replica", f"{where}: {'; '.join(map(str, lacks[:3]))}", advice(lacks))
        elif engine.dialect.name == "postgresql" and not standby.follows:
            yield doubtful(
                "read replica",
                f"{where} follows no other database: what is read there may be out of date for ever",
                "name a standby of the database in DB_URI",
            )
        elif standby.behind_seconds is not None and standby.behind_seconds > _LAG_SECONDS:
            yield doubtful("read replica", f"{where} is {standby.behind_seconds:.0f} seconds behind")
        else:
            yield right("read replica", f"{found.kind} {found.version} at {where} answers in {found.took_ms} ms")


def _schema(site: Site) -> Iterator[Finding]:
    if "database" not in site.usable:
        return
    settings = site.settings
    columns = all_columns() if settings.own_registry else columns_read()
    version = inspection.quay_version(site.engine)
    lacks = find_lacks(site.engine, columns)
    if settings.own_registry and len(lacks) == len(columns) and all(lack.column is None for lack in lacks):
        yield right("schema", "there are no tables yet; they are made at the first start")
        return
    if not lacks:
        site.usable.add("schema")
        count = sum(map(len, columns.values()))
        told = "a registry of our own" if settings.own_registry else _told_version(version)
        yield right("schema", f"{told}: each of the {count} columns of {len(columns)} tables that are used is there")
        return
    for lack in lacks:
        todo = advice([lack])
        if lack.why is Why.FORBIDDEN:
            todo = f"GRANT SELECT ON {lack.table} to the role in DB_URI"
        yield wrong("schema", f"{lack} ({_told_version(version)})", todo)


def _told_version(version: str | None) -> str:
    return "alembic_version names no version" if version is None else f"Quay's alembic_version {version}"


def _rights(site: Site) -> Iterator[Finding]:
    if "schema" not in site.usable:
        return
    tables = list(all_columns())
    writable = inspection.writable_tables(site.engine, tables)
    if site.settings.own_registry and not site.settings.readonly:
        rest = [name for name in tables if name not in writable]
        if rest:
            yield wrong(
                "rights",
                f"the role may not write to {', '.join(rest[:3])}{'…' if len(rest) > 3 else ''}",
                "grant it INSERT, UPDATE and DELETE, or set VERBS_REGISTRY to quay, if this is a Quay's database",
            )
        else:
            yield right("rights", "the role may write to the registry's tables, which are ours")
    elif writable and not site.settings.own_registry:
        fact = f"the role may write to {len(writable)} of Quay's tables, and need not be able to: SELECT is enough"
        yield right("rights", fact)
    else:
        yield right("rights", "the role may read what it has to, and write nothing of the registry's")


def _own_tables(site: Site) -> Iterator[Finding]:
    settings = site.settings
    where = shown(settings.own_db_uri)
    file = sqlite_file(settings.own_db_uri)
    if file is not None and not os.path.exists(file):
        if settings.readonly:
            yield doubtful("own tables", f"{where} is not there; nothing is kept, as REGISTRY_STATE is readonly")
        else:
            yield from _makes_file(where, file)
        return
    if settings.own_db_uri == settings.db_uri and "database" not in site.usable:
        return
    try:
        version = inspection.own_version(site.own_engine)
        if version is None:
            yield right("own tables", f"at {where} there are none yet; they are made at the first start")
            return
        if version != HEAD:
            fact = f"at {where} they are of version {version}, and this service has {HEAD}"
            known = version.isdecimal() and version < HEAD
            todo = (
                "they are brought up to date at the next start" if known else "a newer service has been here: use that"
            )
            yield (doubtful if known else wrong)("own tables", fact, todo)
            return
        if not settings.readonly:
            inspection.check_own_writes(site.own_engine)
    except (RegistryUnavailable, UnusableDatabase, DatabaseUnavailable) as problem:
        yield wrong("own tables", f"{where}: {problem}", _connecting_advice(str(problem)))
        return
    yield right(
        "own tables", f"at {where} they are of version {version}{'' if settings.readonly else ', and writable'}"
    )


def _makes_file(where: str, file: str) -> Iterator[Finding]:
    folder = _existing(os.path.dirname(os.path.abspath(file)))
    if _is_writable(folder):
        yield right("own tables", f"{where} is not there yet, and is made at the first start")
    else:
        yield wrong(
            "own tables", f"{where} is not there, and {folder} cannot be written to", "let the service write there"
        )


def _database_secret(site: Site) -> Iterator[Finding]:
    if "schema" not in site.usable:
        return
    try:
        box = secrets_of(site.settings, make=False)()
    except (UnusableSecret, SecretFileUnusable) as problem:
        yield wrong("DATABASE_SECRET_KEY", str(problem))
        return
    sample = inspection.secret_sample(site.engine, box)
    if sample is None:
        yield right("DATABASE_SECRET_KEY", "there is no robot and no app token to try it on")
    elif sample.readable:
        yield right("DATABASE_SECRET_KEY", f"it decrypts the token of {sample.whose}")
    else:
        yield wrong(
            "DATABASE_SECRET_KEY",
            inspection.secret_problem(sample, given=box is not None),
            "take it from Quay's config.yaml",
        )


# --- The storage ------------------------------------------------------------------------------------------------------


def _storage(site: Site) -> Iterator[Finding]:
    try:
        locations = site.storage.locations
    except InvalidStorageConfiguration as problem:
        yield wrong("storage", str(problem))
        return
    for name in locations:
        subject, storage = f"storage {name}", site.storage.nearest([name])
        driver = site.settings.storage_config[name].driver
        if storage is None:
            continue
        fact = _unreadable(site, storage)
        if fact is not None:
            yield wrong(
                subject, f"{driver}: {fact}", "see DISTRIBUTED_STORAGE_CONFIG, and whether the service may read it"
            )
            continue
        site.usable.add("storage")
        if name != locations[0]:
            yield right(subject, f"{driver} can be read")
        elif site.settings.readonly:
            yield right(subject, f"{driver} can be read; nothing is written, as REGISTRY_STATE is readonly")
        else:
            yield _written(subject, driver, storage)


def _unreadable(site: Site, storage: Storage) -> str | None:
    """Return why nothing can be read from `storage`, None where something could."""
    probe = f"{OWN}/check/{uuid.uuid4().hex}"
    try:
        storage.open(probe).close()
    except StorageUnavailable as problem:
        return str(problem)
    except BlobNotFound:
        pass
    root = storage.local_path("x")
    folder = None if root is None else os.path.dirname(root)
    if folder is not None and not os.path.isdir(folder) and not site.settings.own_registry:
        return f"there is no folder {folder}"
    if folder is not None and os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
        return f"the folder {folder} may not be read"
    return None


def _written(subject: str, driver: str, storage: Storage) -> Finding:
    path, content = f"{OWN}/check/{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        try:
            with storage.create(path) as writer:
                writer.write(content)
                writer.commit()
            with closing(storage.open(path)) as stream:
                same = stream.read(len(content) + 1) == content
        finally:
            storage.delete(path)
    except (StorageUnavailable, BlobNotFound) as problem:
        return wrong(
            subject,
            f"{driver} can be read, and not written to under {OWN}/: {problem}",
            f"let the service write and delete under {OWN}/, or set REGISTRY_STATE to readonly",
        )
    if not same:
        return wrong(subject, f"{driver} gives back other bytes than were written under {OWN}/")
    return right(subject, f"{driver} can be read, and written to under {OWN}/")


def _placements(site: Site) -> Iterator[Finding]:
    if "schema" not in site.usable:
        return
    strange = inspection.strange_placements(site.engine, site.settings.storage_config)
    for each in strange:
        fact = f"{_blobs_in(each.blobs)} should lie in {each.location}, which is not configured"
        todo = f"add {each.location} to DISTRIBUTED_STORAGE_CONFIG"
        if each.nowhere_else:
            yield wrong("placements", f"{fact}, and {each.nowhere_else} of them lie nowhere else", todo)
        else:
            yield doubtful("placements", f"{fact}; each of them lies in another location, too", todo)
    if not strange:
        yield right("placements", "the database names no location that is not configured")


def _blobs_in(count: int) -> str:
    return "1 blob" if count == 1 else f"{count} blobs"


def _blobs(site: Site) -> Iterator[Finding]:
    if not {"schema", "storage"} <= site.usable:
        return
    sample = inspection.newest_tag(site.engine)
    if sample is None:
        yield right("blobs", "there is no tag yet whose blobs could be read")
        return
    read = count = 0
    for blob in sample.blobs:
        if count and read + (blob.size or 0) > _BLOB_BYTES:
            break
        count += 1
        try:
            read += _verify(site, blob)
        except (StorageUnavailable, BlobNotFound) as problem:
            yield wrong("blobs", f"{blob.digest} of {sample} cannot be read: {problem}", "see whether Quay can pull it")
            return
        except DigestMismatch:
            fact = f"{blob.digest} of {sample} has other bytes in storage than its digest says, at {blob.path}"
            yield wrong("blobs", fact, "push the image again")
            return
    yield right("blobs", f"{count} of {len(sample.blobs)} blobs of {sample}, the newest tag, are there and whole")


def _verify(site: Site, blob: inspection.StoredBlob) -> int:
    """Read a blob and return its size. Raises BlobNotFound, StorageUnavailable, DigestMismatch."""
    with closing(site.storage.open(blob.locations, blob.path)) as stream:
        chunks = iter(lambda: stream.read(COPY_SIZE), b"")
        return sum(len(chunk) for chunk in verified(chunks, blob.digest))


# --- What else is configured ------------------------------------------------------------------------------------------


def _accounts(site: Site) -> Iterator[Finding]:
    kind = site.settings.authentication.kind
    directory = directory_of(site.settings)
    if directory is None:
        yield right("accounts", "users' passwords are those of the registry's database")
        return
    if kind in ("OIDC", "AppToken"):
        yield right("accounts", f"AUTHENTICATION_TYPE is {kind}: users come with tokens, and no password is right")
        return
    try:  # whom nobody can be: that they are refused shows that somebody looked
        directory.verify(f"registry-verbs-check-{uuid.uuid4().hex}", uuid.uuid4().hex)
    except DirectoryUnavailable as problem:
        yield wrong("accounts", f"AUTHENTICATION_TYPE is {kind}: {problem}", f"see the keys that begin with {kind}_")
        return
    yield right("accounts", f"AUTHENTICATION_TYPE is {kind}, which answers")


def _signing(site: Site) -> Iterator[Finding]:
    if site.settings.signing_key is None:
        yield right("signing", "no key is configured, and nothing is signed")
        return
    signer = Signer(site.settings.signing_key)
    try:
        signer.check()
        yield right("signing", f"the key {signer.fingerprint} signs, and its public half verifies that")
    except SigningFailed as problem:
        yield wrong("signing", str(problem), "see GPG2_PRIVATE_KEY_NAME and the files of the key")
    finally:
        signer.close()


def _broker(site: Site) -> Iterator[Finding]:
    if site.settings.broker_url is None:
        return
    url = urlsplit(site.settings.broker_url)
    where = f"{url.scheme}://{url.hostname or 'localhost'}{'' if url.port is None else f':{url.port}'}"
    try:
        from kombu.connection import Connection
    except ImportError:
        yield wrong("broker", "Celery is not installed", "pip install 'registry-verbs[celery]'")
        return
    redis = url.scheme.startswith("redis")
    names = ("socket_connect_timeout", "socket_timeout") if redis else ("read_timeout", "write_timeout")
    options = dict.fromkeys(names, _CONNECT_SECONDS)
    try:
        with Connection(  # type: ignore[no-untyped-call]
            site.settings.broker_url, connect_timeout=_CONNECT_SECONDS, transport_options=options
        ) as broker:
            broker.ensure_connection(max_retries=1, timeout=_CONNECT_SECONDS)
            if redis:  # which connects when it is first asked for something
                broker.default_channel.client.ping()
    except Exception as error:  # noqa: BLE001 each transport has errors of its own
        yield wrong("broker", f"{where} cannot be used: {type(error).__name__}", "see VERBS_BROKER_URL")
        return
    yield right("broker", f"{where} answers")


def _formats(site: Site) -> Iterator[Finding]:  # noqa: ARG001 installed for every configuration alike
    made = []
    for verb, formatter in installed_formatters().items():
        if formatter.unavailable is None:
            made.append(verb)
        else:
            yield doubtful("formats", f"{verb} cannot be made here (501): {formatter.unavailable}")
    yield right("formats", f"made here: {', '.join(made)}")


# --- This host --------------------------------------------------------------------------------------------------------


def _folders(site: Site) -> Iterator[Finding]:
    settings = site.settings
    for key, folder in (("VERBS_DATA_DIR", settings.data_dir), ("VERBS_SPOOL_DIR", settings.spool_dir)):
        there = _existing(os.path.abspath(folder))
        if not _is_writable(there):
            yield wrong("folders", f"{key}: {there} cannot be written to", "let the service write there")
            continue
        free = shutil.disk_usage(there).free
        fact = f"{key}: {os.path.abspath(folder)} has {free / (1 << 30):.1f} GiB free"
        if free < _FREE_BYTES:
            yield doubtful("folders", fact, "images that are being made lie there meanwhile: make room")
        else:
            yield right("folders", fact)


def _limits(_: Site) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fact = f"a process may have {'any number of' if soft == resource.RLIM_INFINITY else soft} files open"
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        more = "" if hard == resource.RLIM_INFINITY else f", of {hard} at most"
        yield doubtful("limits", fact, f"raise that to {_OPEN_FILES} (ulimit -n, LimitNOFILE{more})")
    else:
        yield right("limits", fact)


CHECKS: Mapping[str, Check] = {
    "configuration": _configuration,
    "address": _address,
    "database": _database,
    "read replica": _replicas,
    "schema": _schema,
    "rights": _rights,
    "own tables": _own_tables,
    "DATABASE_SECRET_KEY": _database_secret,
    "SECRET_KEY": _secret_key,
    "storage": _storage,
    "placements": _placements,
    "blobs": _blobs,
    "accounts": _accounts,
    "signing": _signing,
    "broker": _broker,
    "formats": _formats,
    "folders": _folders,
    "limits": _limits,
}
"""The checks by their subjects, in the order in which they are made; later ones may build on `Site.usable`."""


# --- Words ------------------------------------------------------------------------------------------------------------


def _connecting_advice(said: str) -> str:
    words = said.lower()
    if "password authentication failed" in words or "access denied" in words:
        return "see the user and the password in DB_URI"
    if "does not exist" in words or "unknown database" in words:
        return "see the name of the database and of the role in DB_URI"
    if "ssl" in words or "certificate" in words:
        return "see DB_CONNECTION_ARGS"
    return "see DB_URI, and whether the database is up and can be reached from here"


def _is_writable(folder: str) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def _existing(folder: str) -> str:
    """Return the nearest of the folder and what it lies in that is there, if only as a file."""
    while not os.path.lexists(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder
