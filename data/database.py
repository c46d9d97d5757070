"""The registry's tables, in Quay's names and columns, and the engine that reaches them.

The law: a table here has the columns of Quay's that we read or that a row cannot be without, under Quay's names;
foreign keys end in `_id`. Only `create_tables` makes tables, and only who keeps a database of their own calls it: one
that is Quay's is never created or altered by us.
quay/quay, data/database.py.
"""

import os
import secrets
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Connection, ForeignKey, Index, Text, create_engine, event, insert, select, text
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool, StaticPool

from util.oci import INDEX_OCI, LIST_V2, MANIFEST_OCI, MANIFEST_V1, MANIFEST_V1_SIGNED, MANIFEST_V2
from util.problem import Problem

__all__ = [
    "MARKED_FOR_DELETION",
    "Base",
    "Engine",
    "ImageStorage",
    "ImageStorageLocation",
    "ImageStoragePlacement",
    "Manifest",
    "ManifestBlob",
    "ManifestChild",
    "MediaType",
    "Repository",
    "RepositoryKind",
    "Tag",
    "TagKind",
    "UnusableDatabase",
    "User",
    "Visibility",
    "begun",
    "create_tables",
    "make_engine",
    "now_ms",
    "write_ahead",
    "writing",
]

MARKED_FOR_DELETION = 3
"""The `state` of a repository that is on its way out and must not be seen."""

_BUSY_SECONDS = 30
_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 60  # MySQL's driver waits no longer for a server that has gone away
_LOCK = 0x76657262  # names an advisory lock of PostgreSQL; any number of our own
_WRITES = "registry_verbs_writes"


class UnusableDatabase(Problem):
    """A database URL that cannot be used, or a folder that cannot be made. The text never shows a password."""

    code = "DATABASE_UNUSABLE"


def now_ms() -> int:
    """Return the time as the tables have it: milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _uuid() -> str:
    return str(uuid.uuid4())


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


class Base(DeclarativeBase):
    """The tables. Their defaults are made here and not by the database, as Quay's are."""

    id: Mapped[int] = mapped_column(primary_key=True)


class User(Base):
    """A namespace: a user, an organization or a robot."""

    __tablename__ = "user"
    uuid: Mapped[str | None] = mapped_column(default=_uuid, index=True)
    username: Mapped[str] = mapped_column(unique=True)
    email: Mapped[str] = mapped_column(index=True, default=lambda: secrets.token_hex(32))
    verified: Mapped[bool] = mapped_column(default=False)
    organization: Mapped[bool] = mapped_column(default=False, index=True)
    robot: Mapped[bool] = mapped_column(default=False, index=True)
    invoice_email: Mapped[bool] = mapped_column(default=False)
    invalid_login_attempts: Mapped[int] = mapped_column(default=0)
    last_invalid_login: Mapped[datetime] = mapped_column(default=_now)
    removed_tag_expiration_s: Mapped[int] = mapped_column(BigInteger, default=14 * 24 * 60 * 60)
    enabled: Mapped[bool] = mapped_column(default=True)
    creation_date: Mapped[datetime | None] = mapped_column(default=_now)


# An Index with a dialect's own words would load that dialect, and another, whenever the command line starts.
@event.listens_for(User.__table__, "after_create")
def _make_partial_index(_: object, connection: Connection, **__: object) -> None:
    if connection.dialect.name in ("sqlite", "postgresql"):
        partial = 'CREATE UNIQUE INDEX user_email_unique_non_org ON "user" (email) WHERE organization = false'
        connection.execute(text(partial))


class Visibility(Base):
    """`public` or `private`."""

    __tablename__ = "visibility"
    name: Mapped[str] = mapped_column(unique=True)


class RepositoryKind(Base):
    """`image` or `application`."""

    __tablename__ = "repositorykind"
    name: Mapped[str] = mapped_column(unique=True)


class Repository(Base):
    """A repository; `name` may have slashes."""

    __tablename__ = "repository"
    __table_args__ = (Index("repository_namespace_user_id_name", "namespace_user_id", "name", unique=True),)
    namespace_user_id: Mapped[int | None] = mapped_column(ForeignKey("user.id"))
    name: Mapped[str]
    visibility_id: Mapped[int] = mapped_column(ForeignKey("visibility.id"), index=True)
    description: Mapped[str | None] = mapped_column(Text)
    badge_token: Mapped[str] = mapped_column(default=_uuid)
    kind_id: Mapped[int] = mapped_column(ForeignKey("repositorykind.id"), index=True)
    trust_enabled: Mapped[bool] = mapped_column(default=False)
    state: Mapped[int] = mapped_column(default=0, index=True)


class MediaType(Base):
    """What a manifest is."""

    __tablename__ = "mediatype"
    name: Mapped[str] = mapped_column(unique=True)


class Manifest(Base):
    """A manifest or an image index, once in a repository."""

    __tablename__ = "manifest"
    __table_args__ = (
        Index("manifest_repository_id_digest", "repository_id", "digest", unique=True),
        Index("manifest_repository_id_media_type_id", "repository_id", "media_type_id"),
        Index("manifest_repository_id_config_media_type", "repository_id", "config_media_type"),
        Index("manifest_repository_id_subject", "repository_id", "subject"),
        Index("manifest_repository_id_artifact_type", "repository_id", "artifact_type"),
    )
    repository_id: Mapped[int] = mapped_column(ForeignKey("repository.id"))
    digest: Mapped[str] = mapped_column(index=True)
    media_type_id: Mapped[int] = mapped_column(ForeignKey("mediatype.id"), index=True)
    manifest_bytes: Mapped[str] = mapped_column(Text)
    config_media_type: Mapped[str | None]
    layers_compressed_size: Mapped[int | None] = mapped_column(BigInteger)
    subject: Mapped[str | None]
    subject_backfilled: Mapped[bool] = mapped_column(default=False, index=True)
    artifact_type: Mapped[str | None]
    artifact_type_backfilled: Mapped[bool] = mapped_column(default=False, index=True)


class ManifestChild(Base):
    """Which manifests an image index has."""

    __tablename__ = "manifestchild"
    __table_args__ = (
        Index("manifestchild_manifest_id_child_manifest_id", "manifest_id", "child_manifest_id", unique=True),
        Index("manifestchild_repository_id_child_manifest_id", "repository_id", "child_manifest_id"),
    )
    repository_id: Mapped[int] = mapped_column(ForeignKey("repository.id"))
    manifest_id: Mapped[int] = mapped_column(ForeignKey("manifest.id"))
    child_manifest_id: Mapped[int] = mapped_column(ForeignKey("manifest.id"), index=True)


class TagKind(Base):
    """`tag`."""

    __tablename__ = "tagkind"
    name: Mapped[str] = mapped_column(unique=True)


class Tag(Base):
    """A name of a manifest for a time: a tag that is moved ends, and another row begins."""

    __tablename__ = "tag"
    __table_args__ = (
        Index("tag_repository_id_name", "repository_id", "name"),
        Index("tag_repository_id_name_lifetime_end_ms", "repository_id", "name", "lifetime_end_ms", unique=True),
        Index("tag_manifest_id_lifetime_end_ms", "manifest_id", "lifetime_end_ms"),
    )
    name: Mapped[str]
    repository_id: Mapped[int] = mapped_column(ForeignKey("repository.id"))
    manifest_id: Mapped[int | None] = mapped_column(ForeignKey("manifest.id"))
    lifetime_start_ms: Mapped[int] = mapped_column(BigInteger, default=now_ms)
    lifetime_end_ms: Mapped[int | None] = mapped_column(BigInteger, index=True)
    hidden: Mapped[bool] = mapped_column(default=False)
    reversion: Mapped[bool] = mapped_column(default=False)
    tag_kind_id: Mapped[int] = mapped_column(ForeignKey("tagkind.id"), index=True)
    linked_tag_id: Mapped[int | None] = mapped_column(ForeignKey("tag.id"), index=True)


class ImageStorage(Base):
    """A blob. `content_checksum` is its digest; with `cas_path` its place follows from that, else from `uuid`."""

    __tablename__ = "imagestorage"
    uuid: Mapped[str] = mapped_column(unique=True, default=_uuid)
    image_size: Mapped[int | None] = mapped_column(BigInteger)
    uncompressed_size: Mapped[int | None] = mapped_column(BigInteger)
    uploading: Mapped[bool | None] = mapped_column(default=True)
    cas_path: Mapped[bool] = mapped_column(default=True)
    content_checksum: Mapped[str | None] = mapped_column(index=True)


class ManifestBlob(Base):
    """Which blobs a manifest has, and by that which a repository has."""

    __tablename__ = "manifestblob"
    __table_args__ = (Index("manifestblob_manifest_id_blob_id", "manifest_id", "blob_id", unique=True),)
    repository_id: Mapped[int] = mapped_column(ForeignKey("repository.id"), index=True)
    manifest_id: Mapped[int] = mapped_column(ForeignKey("manifest.id"))
    blob_id: Mapped[int] = mapped_column(ForeignKey("imagestorage.id"), index=True)


class ImageStorageLocation(Base):
    """A storage by its name in DISTRIBUTED_STORAGE_CONFIG."""

    __tablename__ = "imagestoragelocation"
    name: Mapped[str] = mapped_column(unique=True)


class ImageStoragePlacement(Base):
    """Which storages hold a blob."""

    __tablename__ = "imagestorageplacement"
    __table_args__ = (Index("imagestorageplacement_storage_id_location_id", "storage_id", "location_id", unique=True),)
    storage_id: Mapped[int] = mapped_column(ForeignKey("imagestorage.id"))
    location_id: Mapped[int] = mapped_column(ForeignKey("imagestoragelocation.id"), index=True)


_ENUMERATED: dict[type[Visibility | RepositoryKind | TagKind | MediaType], tuple[str, ...]] = {
    Visibility: ("public", "private"),
    RepositoryKind: ("image", "application"),
    TagKind: ("tag",),
    MediaType: (MANIFEST_V1, MANIFEST_V1_SIGNED, MANIFEST_V2, LIST_V2, MANIFEST_OCI, INDEX_OCI),
}


def make_engine(uri: str) -> Engine:
    """Return an engine for the database at `uri`: SQLite, or PostgreSQL or MySQL as Quay writes them.

    Nothing is connected yet, and a connection that broke while it was kept is replaced when it is asked for. SQLite's
    folder is made where it is missing, and no connection of it is kept, so that the engine may cross a fork. Raises
    UnusableDatabase.
    """
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        raise UnusableDatabase("the database URL is none; write postgresql://… or sqlite:///…") from None
    backend = url.drivername.partition("+")[0]
    try:
        if backend == "sqlite":
            return _sqlite_engine(url)
        if backend in ("postgresql", "postgres"):
            return _server_engine(url.set(drivername="postgresql+psycopg"), _POSTGRESQL)
        if backend in ("mysql", "mariadb"):
            return _server_engine(url.set(drivername="mysql+pymysql"), _MYSQL)
    except ImportError as error:
        raise UnusableDatabase(f"the driver for {backend} is not installed: {error}") from None
    raise UnusableDatabase(f"databases of kind {backend} are not read; there are: postgresql, mysql, sqlite")


_POSTGRESQL = {
    "connect_timeout": _CONNECT_SECONDS,
    # A server that went away without a word is noticed within half a minute, also in the middle of an answer.
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
_MYSQL = {
    "charset": "utf8mb4",
    "connect_timeout": _CONNECT_SECONDS,
    "read_timeout": _ANSWER_SECONDS,
    "write_timeout": _ANSWER_SECONDS,
}


def _server_engine(url: URL, connecting: Mapping[str, Any]) -> Engine:
    """Return an engine for a database server; what the URL's query says about `connecting` stands."""
    return create_engine(
        url,
        connect_args={name: value for name, value in connecting.items() if name not in url.query},
        isolation_level="READ COMMITTED",  # MySQL's own default shows a transaction what was before its last lock
        pool_pre_ping=True,
        pool_recycle=1800,  # seconds; proxies and MySQL drop what is idle for long
        max_overflow=20,  # a server has that many threads, and each holds a connection for milliseconds
    )


def _sqlite_engine(url: URL) -> Engine:
    url = url.set(drivername="sqlite+pysqlite")
    file = url.database
    if not file or file == ":memory:":
        engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        try:
            if not file.startswith("file:"):
                os.makedirs(os.path.dirname(os.path.abspath(file)), exist_ok=True)
        except OSError as error:
            raise UnusableDatabase(f"the folder of the database {file} cannot be made: {error.strerror}") from error
        connecting = {} if "timeout" in url.query else {"timeout": _BUSY_SECONDS}
        engine = create_engine(url, poolclass=NullPool, connect_args=connecting)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    # The driver's own transactions begin late, and never around DDL; ours are begun below.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    # Who means to write takes the lock at once: two who read first and write then would wait for each other.
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def begun(engine: Engine, *, writes: bool) -> Iterator[Connection]:
    """Give a connection in one transaction: committed at the end, rolled back on an error."""
    with engine.connect().execution_options(**{_WRITES: writes}) as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Give a connection in one transaction that writes: committed at the end, rolled back on an error.

    No two of ours write at a time, so that looking and then inserting is safe.
    """
    if engine.dialect.name in ("mysql", "mariadb"):
        with _lock_of_mysql(engine), begun(engine, writes=True) as connection:
            yield connection
        return
    with begun(engine, writes=True) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        yield connection


@contextmanager
def _lock_of_mysql(engine: Engine) -> Iterator[None]:
    """Hold the lock that MySQL has for applications: one a database, of a connection and not of a transaction."""
    name = "CONCAT('registry_verbs.', MD5(DATABASE()))"
    with engine.connect() as connection:
        if connection.scalar(text(f"SELECT GET_LOCK({name}, {_BUSY_SECONDS})")) != 1:
            raise UnusableDatabase(f"another has been writing to the database for {_BUSY_SECONDS} seconds")
        try:
            yield
        finally:
            connection.execute(text(f"SELECT RELEASE_LOCK({name})"))


def create_tables(engine: Engine) -> None:
    """Make the tables and their enumerated rows, as far as they are not there. Safe to do side by side."""
    if engine.dialect.name == "sqlite":
        write_ahead(engine)
    with writing(engine) as connection:
        Base.metadata.create_all(connection)
        for table, names in _ENUMERATED.items():
            there = set(connection.scalars(select(table.name)))
            absent = [{"name": name} for name in names if name not in there]
            if absent:
                connection.execute(insert(table), absent)


def write_ahead(engine: Engine) -> None:
    """Set SQLite's write-ahead log, with which readers and a writer work side by side.

    The file remembers it, so this is for who makes tables in it, not for who reads it.
    """
    with closing(engine.raw_connection()) as connection, suppress(sqlite3.OperationalError):
        # Another process that holds the file is doing the same.
        connection.cursor().execute("PRAGMA journal_mode = WAL")
