"""Signatures of derived images, by the keys that made them."""

from data.migrations.creating import big, create, long, text

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    create(
        "verbs_signature",
        text("key", 64, primary_key=True),
        text("fingerprint", 64, primary_key=True),
        text("sha256", 64),
        long("armoured"),
        big("created_ms"),
    )
