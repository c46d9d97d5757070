"""How far new tags have been looked at."""

from data.migrations.creating import big, create, text

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    create("verbs_mark", text("name", 255, primary_key=True), big("position"))
