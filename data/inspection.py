"""What a look at a database tells of it: its kind and clock, its schema, what the role may do, and samples to try.

Invariants: nothing is changed; each question is one short query, or a few that are bounded by a limit. What cannot be
reached raises RegistryUnavailable.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, case, column, delete, exists, func, insert, select, table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import aliased

from data.database import Engine
from data.lifetimes import alive
from data.owntables import VERSION_TABLE, DatabaseUnavailable, MarkRow, database_now_ms, reading
from data.registry import content_path, reached
from data.secretbox import SecretBox, Undecryptable
from data.tables import (
    MARKED_FOR_DELETION,
    AppSpecificAuthToken,
    ImageStorage,
    ImageStorageLocation,
    ImageStoragePlacement,
    ManifestBlob,
    Repository,
    RobotAccountToken,
    Tag,
    User,
    now_ms,
)
from util.digest import Digest, InvalidDigest

_SAMPLES = 5  # secrets that are tried: one may have been damaged
_TAGS = 100  # the newest tags, of which one is looked for that has blobs in storage
_NOBODY = "check"  # the name of a mark that nothing leaves
_WRITES = ("INSERT", "UPDATE", "DELETE")


@dataclass(frozen=True, slots=True)
class Server:
    """A database as it answers. `ahead_ms` is how far its clock is ahead of ours, for the time the question took."""

    kind: str
    version: str
    ahead_ms: int
    took_ms: int


@dataclass(frozen=True, slots=True)
class Standby:
    """Whether a database follows another, and how many seconds ago what it shows last changed there."""

    follows: bool
    behind_seconds: float | None


@dataclass(frozen=True, slots=True)
class Strange:
    """A location that is not configured: how many blobs it should hold, and how many of them no other holds."""

    location: str
    blobs: int
    nowhere_else: int


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob of the newest tag: where it lies, and in which locations."""

    digest: Digest
    path: str
    size: int | None
    locations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TagSample:
    """The newest tag that has blobs in storage, and those, the smallest first."""

    namespace: str
    repository: str
    tag: str
    blobs: tuple[StoredBlob, ...]

    def __str__(self) -> str:
        return f"{self.namespace}/{self.repository}:{self.tag}"


@dataclass(frozen=True, slots=True)
class SecretSample:
    """Whose secret was tried (`robot acme+ci`), and whether any of those tried could be read."""

    whose: str
    readable: bool


def server(engine: Engine) -> Server:
    """Return which database answers, and what its clock says."""
    with reached(engine) as connection:
        before = time.time()
        theirs = database_now_ms(connection)
        after = time.time()
        kind, version = _version(connection)
    return Server(kind, version, round(theirs - (before + after) * 500), round((after - before) * 1000))


def _version(connection: Connection) -> tuple[str, str]:
    if connection.dialect.name == "sqlite":
        return "SQLite", str(connection.scalar(text("SELECT sqlite_version()")))
    said = str(connection.scalar(text("SELECT version()")))
    if connection.dialect.name == "postgresql":
        return "PostgreSQL", said.split()[1]
    return ("MariaDB" if "MariaDB" in said else "MySQL"), said.partition("-")[0]


def standby(engine: Engine) -> Standby:
    """Return whether the database behind `engine` is a replica of another's; of PostgreSQL's alone it is known."""
    if engine.dialect.name != "postgresql":
        return Standby(follows=False, behind_seconds=None)
    with reached(engine) as connection:
        query = text(
            "SELECT pg_is_in_recovery(), "
            "CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0 "
            "ELSE extract(epoch FROM now() - pg_last_xact_replay_timestamp()) END"
        )
        follows, behind = connection.execute(query).one()
    return Standby(follows, None if behind is None or not follows else float(behind))


def quay_version(engine: Engine) -> str | None:
    """Return the revision that Quay's migrations have brought the database to; None where none has been noted."""
    return _noted(engine, "alembic_version")


def own_version(engine: Engine) -> str | None:
    """Return the revision of our own tables, None where there are none yet."""
    return _noted(engine, VERSION_TABLE)


def _noted(engine: Engine, name: str) -> str | None:
    query: Select[Any] = select(column("version_num")).select_from(table(name))
    with reached(engine) as connection:
        try:
            found = connection.execute(query).scalars().first()
        except DBAPIError:
            connection.rollback()
            connection.execute(select(1))  # it is the table that is not there, and not the database
            return None
    return None if found is None else str(found)


def writable_tables(engine: Engine, tables: Iterable[str]) -> list[str]:
    """Return those of `tables` that the role may write to: insert, update or delete."""
    dialect = engine.dialect.name
    if dialect == "sqlite":
        return list(tables) if _is_writable_file(engine) else []
    with reached(engine) as connection:
        return [name for name in tables if _may_write(connection, name)]


def _is_writable_file(engine: Engine) -> bool:
    file = engine.url.database
    if not file or file == ":memory:":
        return True
    return os.access(file, os.W_OK) and os.access(os.path.dirname(file) or ".", os.W_OK)


def _may_write(connection: Connection, name: str) -> bool:
    if connection.dialect.name == "postgresql":
        quoted = connection.dialect.identifier_preparer.quote_identifier(name)
        query = text("SELECT has_table_privilege(:name, :rights)")
        return bool(connection.scalar(query, {"name": quoted, "rights": ",".join(_WRITES)}))
    granted = text(
        "SELECT COUNT(*) FROM ("
        " SELECT privilege_type FROM information_schema.user_privileges WHERE grantee = :role"
        " UNION ALL SELECT privilege_type FROM information_schema.schema_privileges"
        "  WHERE grantee = :role AND DATABASE() LIKE table_schema"
        " UNION ALL SELECT privilege_type FROM information_schema.table_privileges"
        "  WHERE grantee = :role AND table_schema = DATABASE() AND table_name = :name"
        ") AS granted WHERE privilege_type IN ('INSERT', 'UPDATE', 'DELETE')"
    )
    role = str(connection.scalar(text("SELECT CURRENT_USER()"))).rpartition("@")
    grantee = f"'{role[0]}'@'{role[2]}'"
    return bool(connection.scalar(granted, {"role": grantee, "name": name}))


def check_own_writes(engine: Engine) -> None:
    """Raise DatabaseUnavailable where our own tables, which are there, cannot be written to. Nothing is left."""
    try:
        with engine.connect() as connection:
            connection.execute(delete(MarkRow).where(MarkRow.name == _NOBODY))
            connection.execute(insert(MarkRow), {"name": _NOBODY, "position": 0})
            connection.rollback()
    except DBAPIError as error:
        said = " ".join(str(error.orig).split())
        raise DatabaseUnavailable(f"our own tables cannot be written to: {said}") from error


def own_clock(engine: Engine) -> int:
    """Return the milliseconds of the clock that our own tables are kept by. Raises DatabaseUnavailable."""
    return reading(engine, database_now_ms)


def strange_placements(engine: Engine, known: Iterable[str]) -> list[Strange]:
    """Return the locations that are not among `known` and are said to hold blobs, in the order of their names."""
    names = sorted(known)
    other = aliased(ImageStoragePlacement)
    elsewhere = exists(
        select(other.id)
        .join(ImageStorageLocation, ImageStorageLocation.id == other.location_id)
        .where(other.storage_id == ImageStoragePlacement.storage_id, ImageStorageLocation.name.in_(names))
        .correlate(ImageStoragePlacement)
    )
    strange = aliased(ImageStorageLocation)
    query = (
        select(strange.name, func.count(), func.sum(case((elsewhere, 0), else_=1)))
        .join(ImageStoragePlacement, ImageStoragePlacement.location_id == strange.id)
        .where(strange.name.not_in(names))
        .group_by(strange.name)
        .order_by(strange.name)
    )
    with reached(engine) as connection:
        return [Strange(name, blobs, int(nowhere or 0)) for name, blobs, nowhere in connection.execute(query)]


def newest_tag(engine: Engine) -> TagSample | None:
    """Return the newest tag that is alive and has blobs in storage; None where the newest hundred have none."""
    placed = exists(
        select(ImageStoragePlacement.id)
        .join(ManifestBlob, ManifestBlob.blob_id == ImageStoragePlacement.storage_id)
        .where(ManifestBlob.manifest_id == Tag.manifest_id, ManifestBlob.repository_id == Tag.repository_id)
    )
    newest = select(Tag.id).where(alive(now_ms())).order_by(Tag.id.desc()).limit(_TAGS).subquery()
    query = (
        select(User.username, Repository.name, Tag.name, Tag.manifest_id)
        .join(newest, newest.c.id == Tag.id)
        .join(Repository, Repository.id == Tag.repository_id)
        .join(User, User.id == Repository.namespace_user_id)
        .where(placed, Repository.state != MARKED_FOR_DELETION)
        .order_by(Tag.id.desc())
        .limit(1)
    )
    blobs = (
        select(
            ImageStorage.content_checksum,
            ImageStorage.uuid,
            ImageStorage.cas_path,
            ImageStorage.image_size,
            ImageStorageLocation.name,
        )
        .join(ManifestBlob, ManifestBlob.blob_id == ImageStorage.id)
        .join(ImageStoragePlacement, ImageStoragePlacement.storage_id == ImageStorage.id)
        .join(ImageStorageLocation, ImageStorageLocation.id == ImageStoragePlacement.location_id)
        .order_by(func.coalesce(ImageStorage.image_size, 0), ImageStorage.id, ImageStorageLocation.name)
    )
    with reached(engine) as connection:
        found = connection.execute(query).first()
        if found is None:
            return None
        namespace, repository, tag, manifest = found
        rows = connection.execute(blobs.where(ManifestBlob.manifest_id == manifest)).all()
    return TagSample(namespace, repository, tag, tuple(_blobs(rows)))


def _blobs(rows: Iterable[Any]) -> list[StoredBlob]:
    blobs: dict[str, StoredBlob] = {}
    for checksum, uuid, cas_path, size, location in rows:
        try:
            digest = Digest.parse(checksum or "")
        except InvalidDigest:
            continue
        path = content_path(digest) if cas_path else f"sharedimages/{uuid}/layer"
        before = blobs[path].locations if path in blobs else ()
        blobs[path] = StoredBlob(digest, path, size, (*before, location))
    return list(blobs.values())


def secret_sample(engine: Engine, box: SecretBox | None) -> SecretSample | None:
    """Return whether `box` reads the newest secrets of the registry; None where there are none to try.

    None of them can be read without a box.
    """
    robots = (
        select(User.username, RobotAccountToken.token)
        .join(RobotAccountToken, RobotAccountToken.robot_account_id == User.id)
        .order_by(RobotAccountToken.id.desc())
        .limit(_SAMPLES)
    )
    tokens = (
        select(User.username, AppSpecificAuthToken.token_secret)
        .join(AppSpecificAuthToken, AppSpecificAuthToken.user_id == User.id)
        .order_by(AppSpecificAuthToken.id.desc())
        .limit(_SAMPLES)
    )
    with reached(engine) as connection:
        kept = [(f"robot {name}", secret) for name, secret in connection.execute(robots)]
        kept += [(f"an app token of {name}", secret) for name, secret in connection.execute(tokens)]
    if not kept:
        return None
    for whose, secret in kept:
        if box is not None and _reads(box, secret):
            return SecretSample(whose, readable=True)
    return SecretSample(kept[0][0], readable=False)


def _reads(box: SecretBox, secret: str | None) -> bool:
    try:
        box.decrypt(secret or "")
    except Undecryptable:
        return False
    return True


def secret_problem(sample: SecretSample, *, given: bool) -> str:
    """Return what is wrong with a key that does not read `sample`; `given` tells whether there is one at all."""
    fact = (
        f"DATABASE_SECRET_KEY does not decrypt the token of {sample.whose}"
        if given
        else "DATABASE_SECRET_KEY is not set"
    )
    return f"{fact}: robots and app tokens will be refused"
