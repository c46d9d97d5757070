"""How far new tags have been looked at."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_MYSQL = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}


def upgrade() -> None:
    op.create_table(
        "verbs_mark",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("position", sa.BigInteger(), nullable=False),
        if_not_exists=True,
        **_MYSQL,
    )
