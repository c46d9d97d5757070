"""What the steps of the history share: tables whose texts have case and accents on every database.

The law: MySQL commits each table as it is made, so a step that was cut there finds some of what it makes, and goes on.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

_MYSQL = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}


def create(name: str, *columns: sa.Column[object], unique: Sequence[str] = (), indexed: Sequence[str] = ()) -> None:
    """Make the table `name` and its indexes, each given as the names of its columns, as far as they are not there."""
    op.create_table(name, *columns, if_not_exists=True, **_MYSQL)
    there = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(name)}
    for names in (*unique, *indexed):
        index = f"{name}_{names.replace(' ', '_')}"
        if index not in there:
            op.create_index(index, name, names.split(), unique=names in unique)


def text(name: str, length: int, *, nullable: bool = False, primary_key: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.String(length), nullable=nullable, primary_key=primary_key)


def big(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def long(name: str, *, nullable: bool = False) -> sa.Column[object]:
    """Return a column for texts of any length; MySQL's TEXT ends after 64 KiB."""
    return sa.Column(name, sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb"), nullable=nullable)
