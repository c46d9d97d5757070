"""Derived images, jobs and admin tokens."""

import sqlalchemy as sa

from data.migrations.creating import big, create, text

revision = "0001"
down_revision = None


def upgrade() -> None:
    create(
        "verbs_derived",
        text("key", 64, primary_key=True),
        text("namespace", 255),
        text("repository", 255),
        text("reference", 255),
        text("manifest_digest", 255),
        text("verb", 255),
        text("platform", 255),
        text("compression", 32),
        text("media_type", 255),
        text("file_name", 1024),
        text("state", 16),
        text("token", 32),
        text("path", 255),
        text("host", 255),
        big("size", nullable=True),
        text("sha256", 64, nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        big("bytes_done"),
        big("bytes_total", nullable=True),
        text("asked_by", 255, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        big("created_ms"),
        big("completed_ms", nullable=True),
        big("failed_ms", nullable=True),
        big("fetched_ms", nullable=True),
        big("lease_ends_ms", nullable=True),
        unique=["token"],
        indexed=["namespace repository", "lease_ends_ms"],
    )
    create(
        "verbs_job",
        text("id", 32, primary_key=True),
        text("group_id", 32),
        text("wish", 64, nullable=True),
        text("verb", 255),
        text("namespace", 255),
        text("repository", 255),
        text("reference", 255),
        text("manifest_digest", 255, nullable=True),
        text("platform", 255, nullable=True),
        text("compression", 32, nullable=True),
        text("key", 64, nullable=True),
        text("state", 16),
        text("asked_by", 255, nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        text("worker", 255, nullable=True),
        big("created_ms"),
        big("started_ms", nullable=True),
        big("finished_ms", nullable=True),
        big("heartbeat_ms", nullable=True),
        big("due_ms", nullable=True),
        unique=["wish"],
        indexed=["due_ms", "group_id"],
    )
    create(
        "verbs_admintoken",
        text("name", 255, primary_key=True),
        text("sha256", 64),
        big("created_ms"),
        big("expires_ms", nullable=True),
        big("last_used_ms", nullable=True),
        unique=["sha256"],
    )
