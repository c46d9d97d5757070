"""Derived images, jobs and admin tokens.

MySQL commits each table as it is made, so a step that was cut there finds some of what it makes.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_MYSQL = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}


def _create(name: str, *columns: sa.Column[object], unique: Sequence[str] = (), indexed: Sequence[str] = ()) -> None:
    op.create_table(name, *columns, if_not_exists=True, **_MYSQL)
    there = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(name)}
    for names in (*unique, *indexed):
        index = f"{name}_{names.replace(' ', '_')}"
        if index not in there:
            op.create_index(index, name, names.split(), unique=names in unique)


def _text(name: str, length: int, *, nullable: bool = False, primary_key: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.String(length), nullable=nullable, primary_key=primary_key)


def _big(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def upgrade() -> None:
    _create(
        "verbs_derived",
        _text("key", 64, primary_key=True),
        _text("namespace", 255),
        _text("repository", 255),
        _text("reference", 255),
        _text("manifest_digest", 255),
        _text("verb", 255),
        _text("platform", 255),
        _text("compression", 32),
        _text("media_type", 255),
        _text("file_name", 1024),
        _text("state", 16),
        _text("token", 32),
        _text("path", 255),
        _text("host", 255),
        _big("size", nullable=True),
        _text("sha256", 64, nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        _big("bytes_done"),
        _big("bytes_total", nullable=True),
        _text("asked_by", 255, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        _big("created_ms"),
        _big("completed_ms", nullable=True),
        _big("failed_ms", nullable=True),
        _big("fetched_ms", nullable=True),
        _big("lease_ends_ms", nullable=True),
        unique=["token"],
        indexed=["namespace repository", "lease_ends_ms"],
    )
    _create(
        "verbs_job",
        _text("id", 32, primary_key=True),
        _text("group_id", 32),
        _text("wish", 64, nullable=True),
        _text("verb", 255),
        _text("namespace", 255),
        _text("repository", 255),
        _text("reference", 255),
        _text("manifest_digest", 255, nullable=True),
        _text("platform", 255, nullable=True),
        _text("compression", 32, nullable=True),
        _text("key", 64, nullable=True),
        _text("state", 16),
        _text("asked_by", 255, nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        _text("worker", 255, nullable=True),
        _big("created_ms"),
        _big("started_ms", nullable=True),
        _big("finished_ms", nullable=True),
        _big("heartbeat_ms", nullable=True),
        _big("due_ms", nullable=True),
        unique=["wish"],
        indexed=["due_ms", "group_id"],
    )
    _create(
        "verbs_admintoken",
        _text("name", 255, primary_key=True),
        _text("sha256", 64),
        _big("created_ms"),
        _big("expires_ms", nullable=True),
        _big("last_used_ms", nullable=True),
        unique=["sha256"],
    )
