"""The registry's tables, in Quay's names and columns, and the engine that reaches them.

The law: a table here has the columns of Quay's that we read or must write, under Quay's names; Peewee's foreign keys
end in `_id`. What is read from a database of Quay's is never created or altered by us: only `create_tables` makes
tables, and only who keeps a database of their own calls it.
quay/quay, data/database.py.
"""

import os
import secrets
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Connection, ForeignKey, Index, Text, create_engine, event, insert, select
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool, StaticPool

from util.oci import INDEX_OCI, LIST_V2, MANIFEST_OCI, MANIFEST_V1, MANIFEST_V1_SIGNED, MANIFEST_V2
from util.problem import Problem

__all__ = [
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
    "create_tables",
    "make_engine",
    "now_ms",
    "writing",
]

MARKED_FOR_DELETION = 3
"""The `state` of a repository that is on its way out and must not be seen."""

_BUSY_SECONDS = 30
_CREATING = 0x76657262  # any number of our own: the name of an advisory lock


class UnusableDatabase(Problem):
    """A database URL that cannot be used, or whose folder cannot be made. The text never shows a password."""

    code = "DATABASE_UNUSABLE"


def now_ms() -> int:
    """Return the time in the unit of the tables: milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _uuid() -> str:
    return str(uuid.uuid4())


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


class Base(DeclarativeBase):
    type_annotation_map = {int: BigInteger().with_variant(BigInteger(), "postgresql")}  # noqa: RUF012


class _Numbered:
    # SQLite numbers rows by itself only in a column that is called INTEGER.
    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(__import__("sqlalchemy").Integer, "sqlite"), primary_key=True
    )
