"""The registry's database: the engine that reaches it, its transactions, and how its tables come to be.

The law: only `create_tables` makes the registry's tables, and only who keeps a database of their own calls it: one that
is Quay's is never created or altered by us.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Function,
    Integer,
    LargeBinary,
    cast,
    create_engine,
    event,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.pool import NullPool, StaticPool

from data.connecting import UnusableDatabase, driver_arguments
from data.tables import ENUMERATED, Base

__all__ = [
    "Engine",
    "UnusableDatabase",
    "begun",
    "byte_length",
    "create_tables",
    "make_engine",
    "write_ahead",
    "writing",
]

_BUSY_SECONDS = 30
_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 60  # MySQL's driver waits no longer for a server that has gone away
_LOCK = 0x76657262  # names an advisory lock of PostgreSQL; any number of our own
_WRITES = "registry_verbs_writes"


def make_engine(uri: str, arguments: Mapping[str, Any] = MappingProxyType({})) -> Engine:
    """Return an engine for the database at `uri`: SQLite, or PostgreSQL or MySQL as Quay writes them.

    `arguments` is what the driver is told beside it, as in Quay's DB_CONNECTION_ARGS. SQLite's file is relative to the
    working folder, as there.

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
            return _server_engine(url.set(drivername="postgresql+psycopg"), _POSTGRESQL, arguments)
        if backend in ("mysql", "mariadb"):
            return _server_engine(url.set(drivername="mysql+pymysql"), _MYSQL, arguments)
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


def _server_engine(url: URL, connecting: Mapping[str, Any], arguments: Mapping[str, Any]) -> Engine:
    """Return an engine for a database server; what `arguments` and the URL's query say about `connecting` stands."""
    told = {**connecting, **driver_arguments(url, arguments)}
    return create_engine(
        url,
        connect_args={name: value for name, value in told.items() if name not in url.query},
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


def byte_length(connection: Connection, column: ColumnElement[str] | InstrumentedAttribute[str]) -> Function[int]:
    """Return how many bytes of UTF-8 the text in `column` is."""
    if connection.dialect.name == "sqlite":
        return func.length(cast(column, LargeBinary), type_=Integer)
    return func.octet_length(column, type_=Integer)


def create_tables(engine: Engine) -> None:
    """Make the tables and their enumerated rows, as far as they are not there. Safe to do side by side.

    SQLite's file is its owner's alone when it is made here: it has the hashes of passwords.
    """
    if engine.dialect.name == "sqlite":
        _make_file(engine.url.database)
        write_ahead(engine)
    with writing(engine) as connection:
        Base.metadata.create_all(connection)
        for table, names in ENUMERATED.items():
            there = set(connection.scalars(select(table.name)))
            absent = [{"name": name} for name in names if name not in there]
            if absent:
                connection.execute(insert(table), absent)


def _make_file(file: str | None) -> None:
    if file and file != ":memory:" and not file.startswith("file:"):
        with suppress(OSError):  # it is there, or SQLite says better what is wrong
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def write_ahead(engine: Engine) -> None:
    """Set SQLite's write-ahead log, with which readers and a writer work side by side.

    The file remembers it, so this is for who makes tables in it, not for who reads it.
    """
    with closing(engine.raw_connection()) as connection, suppress(sqlite3.OperationalError):
        # Another process that holds the file is doing the same.
        connection.cursor().execute("PRAGMA journal_mode = WAL")
