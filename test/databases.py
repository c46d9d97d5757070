"""Databases for tests: an SQLite file, and one of its own on PostgreSQL and on MariaDB, which must be running."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
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
        yield f"{POSTGRESQL}?options={quote(f'-c search_path={schema}')}"


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
