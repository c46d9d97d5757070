"""What images are as one packed layer."""

from data.migrations.creating import big, create, text

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    create(
        "verbs_packedlayer",
        text("key", 64, primary_key=True),
        text("compression", 32),
        text("digest", 160),
        big("size"),
        text("diff_id", 160),
        big("created_ms"),
        indexed=["created_ms"],
    )
