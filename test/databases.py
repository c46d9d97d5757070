"""Databases for tests: an SQLite file, and one of its own on PostgreSQL and on MariaDB, which must be running."""

import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import text

from data.database import Engine, make_engine

POSTGRESQL = "postgresql+psycopg://postgres@127.0.0.1:5432/test"
MARIADB = "mysql+pymysql://root@127.0.0.1:3306/"
KINDS = ("sqlite", "postgresql")
OWN_KINDS = (*KINDS, "mariadb")
"""Where our own tables may live."""


@contextmanager
def postgresql() -> Iterator[str]:
    """Give the URI of an empty schema on the PostgreSQL that runs here; it is gone afterwards."""
    schema = f"verbs_{uuid.uuid4().hex}"
    with _made(POSTGRESQL, f"CREATE SCHEMA {schema}", f"DROP SCHEMA IF EXISTS {schema} CASCADE"):
        yield f"{POSTGRESQL}?options={quote(f'-c search_path={schema}')}&application_name={schema}"


@contextmanager
def mariadb() -> Iterator[str]:
    """Give the URI of an empty database on the MariaDB that runs here; it is gone afterwards."""
    name = f"verbs_{uuid.uuid4().hex}"
    with _made(f"{MARIADB}test", f"CREATE DATABASE {name}", f"DROP DATABASE IF EXISTS {name}"):
        yield f"{MARIADB}{name}"


@contextmanager
def _made(uri: str, create: str, drop: str) -> Iterator[None]:
    keeper = make_engine(uri)
    try:
        with keeper.begin() as connection:
            connection.execute(text(create))
        yield
    finally:
        with keeper.begin() as connection:
            connection.execute(text(drop))
        keeper.dispose()


@contextmanager
def database_uri(kind: str, folder: Path) -> Iterator[str]:
    """Give the URI of an empty database of `kind`; it is gone afterwards."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'registry.db'}"
        return
    with {"postgresql": postgresql, "mariadb": mariadb}[kind]() as uri:
        yield uri


@contextmanager
def database(kind: str, folder: Path) -> Iterator[Engine]:
    """Give an engine for an empty database of `kind`, without tables."""
    with database_uri(kind, folder) as uri:
        engine = make_engine(uri)
        try:
            yield engine
        finally:
            engine.dispose()


def cut_connections(engine: Engine) -> None:
    """Cut every connection of `engine`, to a database of a test's own, from the server's side."""
    keeper = make_engine(POSTGRESQL if engine.dialect.name == "postgresql" else f"{MARIADB}test")
    with keeper.connect() as connection:
        if engine.dialect.name == "postgresql":
            query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = :name"
            connection.execute(text(query), {"name": engine.url.query["application_name"]})
        else:
            query = "SELECT id FROM information_schema.processlist WHERE db = :name"
            for process in list(connection.scalars(text(query), {"name": engine.url.database})):
                connection.execute(text(f"KILL {process}"))
    keeper.dispose()


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class PostgresqlServer:
    """A PostgreSQL of a test's own, which may be stopped under those who use it."""

    data: Path
    port: int

    @property
    def uri(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        where = f"-h 127.0.0.1 -p {self.port} -k {self.data} -c fsync=off"
        self._control("start", "--options", where, "--log", str(self.data / "log"))

    def stop(self, mode: str = "fast") -> None:
        """Stop it: `fast` cuts all connections, `immediate` is a crash."""
        self._control("stop", "--mode", mode)

    def _control(self, *arguments: str) -> None:
        _as_postgres("pg_ctl", "--pgdata", str(self.data), "--wait", "--silent", *arguments)


@contextmanager
def postgresql_server() -> Iterator[PostgresqlServer]:
    """Give a PostgreSQL of one's own that runs; it is gone afterwards."""
    data = Path("/tmp") / f"verbs-postgresql-{uuid.uuid4().hex}"  # a folder whose parents another user may enter
    _as_postgres("initdb", "--pgdata", str(data), "--auth", "trust", "--username", "postgres", "--no-sync")
    server = PostgresqlServer(data, free_port())
    try:
        server.start()
        yield server
    finally:
        if (data / "postmaster.pid").exists():
            server.stop("immediate")
        shutil.rmtree(data)


@contextmanager
def standby(server: PostgresqlServer) -> Iterator[PostgresqlServer]:
    """Give a PostgreSQL that follows `server`, as a hot standby by streaming replication; it is gone afterwards.

    Its queries give way at once to what it replays.
    """
    data = Path("/tmp") / f"verbs-postgresql-{uuid.uuid4().hex}"
    _as_postgres("pg_basebackup", "--pgdata", str(data), "--dbname", server.uri, "--write-recovery-conf", "--no-sync")
    with (data / "postgresql.auto.conf").open("a") as file:
        file.write("max_standby_streaming_delay = 0\nwal_receiver_status_interval = 1\n")
    (data / "log").unlink(missing_ok=True)
    following = PostgresqlServer(data, free_port())
    try:
        following.start()
        yield following
    finally:
        if (data / "postmaster.pid").exists():
            following.stop("immediate")
        shutil.rmtree(data)


def _as_postgres(program: str, *arguments: str) -> None:
    """Run a program of the newest PostgreSQL here, which refuses to be run by root."""
    newest = max(Path("/usr/lib/postgresql").iterdir(), key=lambda path: int(path.name))
    command = ["runuser", "-u", "postgres", "--", str(newest / "bin" / program), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")
