"""Marks: how far something has been looked at, so that a restart goes on from there.

The law: a mark only moves forward, whoever moves it; of several who look at the same, the one that got furthest counts.
"""

from sqlalchemy import Connection, select, update

from data.owntables import Engine, MarkRow, changing, insert_unless_there, reading


class Marks:
    """The rows of marks. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def find(self, name: str) -> int | None:
        """Return how far `name` has come, None where it has not begun."""
        query = select(MarkRow.position).where(MarkRow.name == name)
        return reading(self._engine, lambda connection: connection.execute(query).scalar_one_or_none())

    def advance(self, name: str, position: int) -> None:
        """See to it that `name` has come to `position` at least."""

        def advance(connection: Connection) -> None:
            query = select(MarkRow.position).where(MarkRow.name == name)
            if connection.execute(query).scalar_one_or_none() is None:
                insert_unless_there(connection, MarkRow, {"name": name, "position": position})
            behind = update(MarkRow).where(MarkRow.name == name, MarkRow.position < position)
            connection.execute(behind.values(position=position))

        changing(self._engine, advance)
