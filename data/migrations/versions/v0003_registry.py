"""Uploads, failed logins, superusers, and what virtual tags give."""

import sqlalchemy as sa

from data.migrations.creating import big, create, long, text

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    create(
        "verbs_upload",
        text("id", 32, primary_key=True),
        big("repository_id"),
        text("algorithm", 32),
        big("size"),
        long("segments"),
        text("digest", 160, nullable=True),
        text("writer", 32, nullable=True),
        big("created_ms"),
        big("touched_ms"),
        indexed=["touched_ms"],
    )
    create(
        "verbs_login",
        text("username", 255, primary_key=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        big("last_ms"),
    )
    create("verbs_superuser", text("username", 255, primary_key=True), big("created_ms"))
    create(
        "verbs_virtual",
        text("namespace", 255, primary_key=True),
        text("repository", 255, primary_key=True),
        text("digest", 160, primary_key=True),
        text("key", 64, primary_key=True),
        text("media_type", 255),
        long("content", nullable=True),
        big("created_ms"),
        indexed=["key"],
    )
