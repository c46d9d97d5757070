"""Our own tables: derived images, jobs, uploads, and more; how they come to be, and how they are reached.

The law: every table here begins with `verbs_` and has its history in data/migrations; `upgrade` walks it, and touches
no other table. What is due or over is told by the database's clock alone, because many hosts share it. Work on rows is
a function that `reading` or `changing` runs in one transaction: it may be run again when the transaction had to give
way, and a driver's error never leaves, only DatabaseUnavailable.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sqlalchemy import BigInteger, Connection, Index, String, Text, insert, literal, select, text
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.functions import FunctionElement

from data.database import Engine, UnusableDatabase, begun, write_ahead, writing
from util.problem import Problem

__all__ = [
    "HEAD",
    "AdminTokenRow",
    "DatabaseClock",
    "DatabaseUnavailable",
    "DerivedRow",
    "Engine",
    "JobRow",
    "LoginRow",
    "MarkRow",
    "OwnBase",
    "PackedLayerRow",
    "SignatureRow",
    "SuperuserRow",
    "UploadRow",
    "VirtualRow",
    "changing",
    "database_now_ms",
    "insert_unless_there",
    "reading",
    "shortened",
    "upgrade",
    "upgrading",
]

log = logging.getLogger(__name__)

HEAD = "0005"
"""The last step in data/migrations: what `upgrade` makes of a database."""

VERSION_TABLE = "verbs_alembic_version"

_MIGRATIONS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "migrations")
_UPGRADES = "registry_verbs_upgrades"
_ATTEMPTS = 12
_PAUSE = 0.01  # seconds, growing with each attempt
_CHANCE = random.SystemRandom()  # a thread of ours leaves the sequence of `random` to who has seeded it

# What drivers say: SQLSTATE of PostgreSQL, numbers of MySQL.
_NO_TABLE = {"42P01", "42703", 1146, 1054}
_GAVE_WAY = {"40001", "40P01", "55P03", 1213, 1205, 1020}

_Result = TypeVar("_Result")


class DatabaseUnavailable(Problem):
    """The database of our own tables cannot be reached, or does not do what it is asked."""

    code = "DATABASE_UNAVAILABLE"


# --- Tables -----------------------------------------------------------------------------------------------------------


class OwnBase(DeclarativeBase):
    """The tables that are ours. Case and accents count in their texts, on every database."""


_MYSQL = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}


_LONG = Text().with_variant(LONGTEXT(), "mysql", "mariadb")  # its TEXT ends after 64 KiB


class DerivedRow(OwnBase):
    """A derived image that is being made, is there, or could not be made."""

    __tablename__ = "verbs_derived"
    __table_args__ = (
        Index("verbs_derived_token", "token", unique=True),
        Index("verbs_derived_namespace_repository", "namespace", "repository"),
        Index("verbs_derived_lease_ends_ms", "lease_ends_ms"),
        _MYSQL,
    )
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    namespace: Mapped[str] = mapped_column(String(255))
    repository: Mapped[str] = mapped_column(String(255))
    reference: Mapped[str] = mapped_column(String(255))
    manifest_digest: Mapped[str] = mapped_column(String(255))
    verb: Mapped[str] = mapped_column(String(255))
    platform: Mapped[str] = mapped_column(String(255))
    compression: Mapped[str] = mapped_column(String(32))
    media_type: Mapped[str] = mapped_column(String(255))
    file_name: Mapped[str] = mapped_column(String(1024))
    state: Mapped[str] = mapped_column(String(16))
    token: Mapped[str] = mapped_column(String(32))
    path: Mapped[str] = mapped_column(String(255))
    host: Mapped[str] = mapped_column(String(255))
    size: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    reason: Mapped[str | None] = mapped_column(Text)
    bytes_done: Mapped[int] = mapped_column(BigInteger)
    bytes_total: Mapped[int | None] = mapped_column(BigInteger)
    asked_by: Mapped[str | None] = mapped_column(String(255))
    attempts: Mapped[int]
    created_ms: Mapped[int] = mapped_column(BigInteger)
    completed_ms: Mapped[int | None] = mapped_column(BigInteger)
    failed_ms: Mapped[int | None] = mapped_column(BigInteger)
    fetched_ms: Mapped[int | None] = mapped_column(BigInteger)
    lease_ends_ms: Mapped[int | None] = mapped_column(BigInteger)


class JobRow(OwnBase):
    """A derived image that was asked for ahead.

    `due_ms` is when somebody should look at it: a queued one from then on, a running one if its worker has not been
    heard of by then; null once it has ended. `wish` is what no two may have that have not ended.
    """

    __tablename__ = "verbs_job"
    __table_args__ = (
        Index("verbs_job_wish", "wish", unique=True),
        Index("verbs_job_due_ms", "due_ms"),
        Index("verbs_job_group_id", "group_id"),
        _MYSQL,
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    group_id: Mapped[str] = mapped_column(String(32))
    wish: Mapped[str | None] = mapped_column(String(64))
    verb: Mapped[str] = mapped_column(String(255))
    namespace: Mapped[str] = mapped_column(String(255))
    repository: Mapped[str] = mapped_column(String(255))
    reference: Mapped[str] = mapped_column(String(255))
    manifest_digest: Mapped[str | None] = mapped_column(String(255))
    platform: Mapped[str | None] = mapped_column(String(255))
    compression: Mapped[str | None] = mapped_column(String(32))
    key: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    asked_by: Mapped[str | None] = mapped_column(String(255))
    reason: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int]
    worker: Mapped[str | None] = mapped_column(String(255))
    created_ms: Mapped[int] = mapped_column(BigInteger)
    started_ms: Mapped[int | None] = mapped_column(BigInteger)
    finished_ms: Mapped[int | None] = mapped_column(BigInteger)
    heartbeat_ms: Mapped[int | None] = mapped_column(BigInteger)
    due_ms: Mapped[int | None] = mapped_column(BigInteger)


class AdminTokenRow(OwnBase):
    """Who may ask the admin API. The token itself is nowhere."""

    __tablename__ = "verbs_admintoken"
    __table_args__ = (Index("verbs_admintoken_sha256", "sha256", unique=True), _MYSQL)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    created_ms: Mapped[int] = mapped_column(BigInteger)
    expires_ms: Mapped[int | None] = mapped_column(BigInteger)
    last_used_ms: Mapped[int | None] = mapped_column(BigInteger)


class MarkRow(OwnBase):
    """How far something has been looked at, by the name of what looks."""

    __tablename__ = "verbs_mark"
    __table_args__ = (_MYSQL,)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger)


class UploadRow(OwnBase):
    """A blob on its way into a repository. `segments` is a JSON array of the pieces that came: name and bytes of each.

    `digest` is that of all bytes so far, where it is known; `writer` is who may add to them.
    """

    __tablename__ = "verbs_upload"
    __table_args__ = (Index("verbs_upload_touched_ms", "touched_ms"), _MYSQL)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    repository_id: Mapped[int] = mapped_column(BigInteger)
    algorithm: Mapped[str] = mapped_column(String(32))
    size: Mapped[int] = mapped_column(BigInteger)
    segments: Mapped[str] = mapped_column(_LONG)
    digest: Mapped[str | None] = mapped_column(String(160))
    writer: Mapped[str | None] = mapped_column(String(32))
    created_ms: Mapped[int] = mapped_column(BigInteger)
    touched_ms: Mapped[int] = mapped_column(BigInteger)


class LoginRow(OwnBase):
    """How often in a row a name has been logged in with wrongly, and when last."""

    __tablename__ = "verbs_login"
    __table_args__ = (_MYSQL,)
    username: Mapped[str] = mapped_column(String(255), primary_key=True)
    failures: Mapped[int]
    last_ms: Mapped[int] = mapped_column(BigInteger)


class SuperuserRow(OwnBase):
    """A user who may do everything."""

    __tablename__ = "verbs_superuser"
    __table_args__ = (_MYSQL,)
    username: Mapped[str] = mapped_column(String(255), primary_key=True)
    created_ms: Mapped[int] = mapped_column(BigInteger)


class VirtualRow(OwnBase):
    """What a virtual tag gives by its digest: a document in `content`, or the derived image `key` itself.

    Two derived images may be the same to the byte.
    """

    __tablename__ = "verbs_virtual"
    __table_args__ = (Index("verbs_virtual_key", "key"), _MYSQL)
    namespace: Mapped[str] = mapped_column(String(255), primary_key=True)
    repository: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[str] = mapped_column(String(160), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    media_type: Mapped[str] = mapped_column(String(255))
    content: Mapped[str | None] = mapped_column(_LONG)
    created_ms: Mapped[int] = mapped_column(BigInteger)


class PackedLayerRow(OwnBase):
    """What an image is as one layer: its `size` in bytes, the layer's `digest`, and that of what it unwraps to."""

    __tablename__ = "verbs_packedlayer"
    __table_args__ = (Index("verbs_packedlayer_created_ms", "created_ms"), _MYSQL)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    compression: Mapped[str] = mapped_column(String(32))
    digest: Mapped[str] = mapped_column(String(160))
    size: Mapped[int] = mapped_column(BigInteger)
    diff_id: Mapped[str] = mapped_column(String(160))
    created_ms: Mapped[int] = mapped_column(BigInteger)


class SignatureRow(OwnBase):
    """The signature of a derived image that has the SHA-256, by the key with the fingerprint."""

    __tablename__ = "verbs_signature"
    __table_args__ = (_MYSQL,)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    armoured: Mapped[str] = mapped_column(_LONG)
    created_ms: Mapped[int] = mapped_column(BigInteger)


# --- The clock --------------------------------------------------------------------------------------------------------


class DatabaseClock(FunctionElement[int]):
    """The database's own time within a statement, in milliseconds since 1970."""

    type = BigInteger()
    inherit_cache = True
    name = "database_clock"


@compiles(DatabaseClock, "sqlite")
def _clock_of_sqlite(*_: Any, **__: Any) -> str:
    return "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"


@compiles(DatabaseClock, "postgresql")
def _clock_of_postgresql(*_: Any, **__: Any) -> str:
    return "CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS BIGINT)"


@compiles(DatabaseClock, "mysql", "mariadb")
def _clock_of_mysql(*_: Any, **__: Any) -> str:
    return "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6)) DIV 1000)"


def database_now_ms(connection: Connection) -> int:
    """Return the time by the database's clock, in milliseconds since 1970."""
    return int(connection.execute(select(DatabaseClock())).scalar_one())


# --- Transactions -----------------------------------------------------------------------------------------------------


def reading(engine: Engine, work: Callable[[Connection], _Result]) -> _Result:
    """Return what `work` returns, run in a transaction that only reads. Raises DatabaseUnavailable."""
    return _run(engine, work, writes=False)


def changing(engine: Engine, work: Callable[[Connection], _Result]) -> _Result:
    """Return what `work` returns, run in a transaction of its own. Raises DatabaseUnavailable.

    Where the connection broke at the very end, `work` is run again after it may have been committed.
    """
    return _run(engine, work, writes=True)


def _run(engine: Engine, work: Callable[[Connection], _Result], *, writes: bool) -> _Result:
    upgrades = bool(engine.get_execution_options().get(_UPGRADES))
    gave_way = 0
    cut = False
    while True:
        connected = False
        try:
            with begun(engine, writes=writes) as connection:
                connected = True
                return work(connection)
        except DBAPIError as error:
            if upgrades and _facts(error) & _NO_TABLE:
                upgrades = False  # once
                upgrade(engine)
            elif connected and error.connection_invalidated and not cut:
                cut = True  # once: the server is there again at the next attempt, or it is down
            elif gave_way + 1 < _ATTEMPTS and (isinstance(error, IntegrityError) or _facts(error) & _GAVE_WAY):
                gave_way += 1
                time.sleep(_CHANCE.uniform(0, _PAUSE * gave_way))
            elif isinstance(error, (IntegrityError, DataError)):
                raise  # a mistake of ours, and not the database's
            else:
                raise _unavailable(error) from error
        except SQLAlchemyError as error:  # no connection came free in time
            raise _unavailable(error) from error


def _facts(error: DBAPIError) -> set[str | int]:
    """Return what the driver calls the error, for SQLite in PostgreSQL's words."""
    original = error.orig
    said = str(original)
    if said.startswith(("no such table", "no such column")) or "has no column named" in said:
        return {"42P01"}
    number = original.args[0] if original is not None and original.args else None
    facts = {getattr(original, "sqlstate", None), number if isinstance(number, int) else None}
    return {fact for fact in facts if fact is not None}


def _unavailable(error: SQLAlchemyError) -> DatabaseUnavailable:
    said = error.orig if isinstance(error, DBAPIError) else error
    return DatabaseUnavailable(f"the database of derived images cannot be used: {' '.join(str(said).split())}")


def insert_unless_there(connection: Connection, table: type[OwnBase], values: Mapping[str, Any]) -> bool:
    """Insert a row, and tell whether it was: False where another has one of its unique values.

    On MySQL that is instead an error that has `changing` run its work again: a transaction that met another's row
    there holds a lock on it, and two of those would wait for each other.
    """
    returning = {"postgresql": _insert_of_postgresql, "sqlite": _insert_of_sqlite}.get(connection.dialect.name)
    if returning is not None:
        query = returning(table).values(values).on_conflict_do_nothing().returning(literal(1))
        return connection.execute(query).first() is not None
    connection.execute(insert(table).values(values))
    return True


def _insert_of_postgresql(table: type[OwnBase]) -> Any:
    from sqlalchemy.dialects.postgresql import insert

    return insert(table)


def _insert_of_sqlite(table: type[OwnBase]) -> Any:
    from sqlalchemy.dialects.sqlite import insert

    return insert(table)


def shortened(said: str, limit: int = 255) -> str:
    """Return what a column for at most `limit` characters holds of `said`."""
    said = said.replace("\0", "�")
    return said if len(said) <= limit else f"{said[: limit - 1]}…"


# --- History ----------------------------------------------------------------------------------------------------------

_ALEMBIC = threading.Lock()  # its operations are a module that knows one connection at a time


def upgrading(engine: Engine) -> Engine:
    """Return `engine` as one whose tables are made, or brought up to date, when work first meets others."""
    return engine.execution_options(**{_UPGRADES: True})


def upgrade(engine: Engine) -> None:
    """Make our tables, or bring them up to date. Does nothing, fast, where they are.

    Safe to do side by side. Raises DatabaseUnavailable, also where a newer version of the service has been.
    """
    try:
        if _version(engine) == HEAD:
            return
        if engine.dialect.name == "sqlite":
            write_ahead(engine)
        with _ALEMBIC, writing(engine) as connection:
            _migrate(connection)
    except UnusableDatabase as error:
        raise DatabaseUnavailable(f"the database of derived images cannot be used: {error}") from error
    except SQLAlchemyError as error:
        raise _unavailable(error) from error


def _version(engine: Engine) -> str | None:
    try:
        with begun(engine, writes=False) as connection:
            return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608 all ours
    except DBAPIError as error:
        if _facts(error) & _NO_TABLE:
            return None
        raise


def _migrate(connection: Connection) -> None:
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    script = ScriptDirectory(_MIGRATIONS)
    context = MigrationContext.configure(
        connection,
        opts={
            "version_table": VERSION_TABLE,
            "fn": lambda revision, _: script._upgrade_revs("head", revision),  # noqa: SLF001 as Alembic's own commands
        },
    )
    try:
        with Operations.context(context):
            context.run_migrations()
    except CommandError as error:
        raise DatabaseUnavailable(
            f"the tables of derived images are not of this version, which makes them {HEAD}: {error}"
        ) from error
