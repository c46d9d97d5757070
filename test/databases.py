"""Databases for tests: an SQLite file, and a schema of its own on PostgreSQL, which must be running."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import text

from data.database import Engine, make_engine

POSTGRESQL = "postgresql+psycopg://postgres@127.0.0.1:5432/test"
KINDS = ("sqlite", "postgresql")


@contextmanager
def postgresql() -> Iterator[str]:
    """Give the URI of an empty schema on the PostgreSQL that runs here; it is gone afterwards."""
    schema = f"verbs_{uuid.uuid4().hex}"
    keeper = make_engine(POSTGRESQL)
    try:
        with keeper.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        yield f"{POSTGRESQL}?options={quote(f'-c search_path={schema}')}"
    finally:
        with keeper.begin() as connection:
            connection.execute(text(f"DROP SCHEMA IF EXISTS {schema} CASCADE"))
        keeper.dispose()


@contextmanager
def database_uri(kind: str, folder: Path) -> Iterator[str]:
    """Give the URI of an empty database of `kind`; it is gone afterwards."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'registry.db'}"
        return
    with postgresql() as uri:
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
