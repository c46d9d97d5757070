"""Whether the registry's database has what is read from it: each table and column, and the right to read it.

Invariants: what is looked for is asked for as it is going to be read, by a query that finds no rows; so a view does as
well as a table, a newer schema does as long as the columns are there, and a missing right is told from a missing
column. Nothing is changed.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from sqlalchemy import Connection, column, false, select, table
from sqlalchemy.exc import DBAPIError

from data.database import Engine
from data.quaycolumns import READ
from data.registry import reached
from data.tables import Base
from util.problem import Problem


class Why(Enum):
    """Why a table or a column cannot be read."""

    MISSING = "is missing"
    FORBIDDEN = "may not be read"


@dataclass(frozen=True, slots=True)
class Lack:
    """A table, or a column of one, that cannot be read."""

    table: str
    column: str | None
    why: Why

    @property
    def name(self) -> str:
        return self.table if self.column is None else f"{self.table}.{self.column}"

    def __str__(self) -> str:
        return f"{'the table ' if self.column is None else ''}{self.name} {self.why.value}"


class SchemaMismatch(Problem):
    """A registry's database that lacks what is read from it."""

    code = "SCHEMA_MISMATCH"

    def __init__(self, lacks: Collection[Lack]) -> None:
        self.lacks = tuple(lacks)
        more = f", and {len(self.lacks) - _NAMED} more" if len(self.lacks) > _NAMED else ""
        named = ", ".join(str(lack) for lack in self.lacks[:_NAMED])
        super().__init__(
            f"the registry's database cannot be used: {named}{more}; {advice(self.lacks)} "
            "(`registry-verbs check` tells all of it)"
        )


_NAMED = 3


def advice(lacks: Collection[Lack]) -> str:
    """Return what to do about `lacks`."""
    if any(lack.why is Why.FORBIDDEN for lack in lacks):
        return "grant the role of DB_URI SELECT on it"
    return "DB_URI names another database than a Quay's, or a Quay of another version than this service knows"


def columns_read() -> dict[str, tuple[str, ...]]:
    """Return the columns that are read of a Quay's tables, by table."""
    return {name: tuple(columns) for name, columns in READ.items()}


def all_columns() -> dict[str, tuple[str, ...]]:
    """Return the columns that are read or written in a registry of our own, by table."""
    return {found.name: tuple(each.name for each in found.columns) for found in Base.metadata.sorted_tables}


def check_schema(engine: Engine, columns: Mapping[str, Collection[str]]) -> None:
    """Raise SchemaMismatch where a table or a column cannot be read. One query a table, if all is well.

    Raises RegistryUnavailable.
    """
    lacks = find_lacks(engine, columns)
    if lacks:
        raise SchemaMismatch(lacks)


def find_lacks(engine: Engine, columns: Mapping[str, Collection[str]]) -> list[Lack]:
    """Return what of `columns` cannot be read, in their order. Raises RegistryUnavailable."""
    with reached(engine) as connection:
        return [lack for name, names in columns.items() for lack in _lacks_of_table(connection, name, names)]


def _lacks_of_table(connection: Connection, name: str, columns: Collection[str]) -> Iterator[Lack]:
    why = _unreadable(connection, name, columns)
    if why is None:
        return
    looked = ((each, _unreadable(connection, name, [each])) for each in columns)
    lacks = [Lack(name, each, why) for each, why in looked if why is not None]
    if len(lacks) == len(columns) and len({lack.why for lack in lacks}) == 1:
        yield Lack(name, None, lacks[0].why)
    else:
        yield from lacks


def _unreadable(connection: Connection, name: str, columns: Collection[str]) -> Why | None:
    # Each column is named with its table: SQLite takes a quoted name alone that it does not know for a text.
    found = table(name, *(column(each) for each in columns))
    try:
        connection.execute(select(*found.columns).where(false()))
    except DBAPIError as error:
        connection.rollback()
        why = _why(error)
        if why is None:
            raise
        return why
    return None


# PostgreSQL's states: undefined_table, undefined_column, insufficient_privilege. MySQL's numbers: ER_NO_SUCH_TABLE,
# ER_BAD_FIELD_ERROR, ER_TABLEACCESS_DENIED_ERROR, ER_COLUMNACCESS_DENIED_ERROR.
_CODES: Mapping[str | int, Why] = {
    "42P01": Why.MISSING,
    "42703": Why.MISSING,
    "42501": Why.FORBIDDEN,
    1146: Why.MISSING,
    1054: Why.MISSING,
    1142: Why.FORBIDDEN,
    1143: Why.FORBIDDEN,
}


def _why(error: DBAPIError) -> Why | None:
    original = error.orig
    code = original.args[0] if original is not None and original.args else None
    if isinstance(code, int):  # MySQL's states do not tell its errors apart
        return _CODES.get(code)
    state = getattr(original, "sqlstate", None)
    if state is not None:
        return _CODES.get(state)
    return Why.MISSING if str(code).startswith(("no such table", "no such column")) else None
