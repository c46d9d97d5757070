"""Admin tokens: who may ask the admin API.

The law: a token is shown once, when it is made; what is kept is its SHA-256, which 256 random bits need no salt for.
When it ends is told by the database's clock.
"""

import hashlib
import hmac
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select, update

from data.owntables import (
    AdminTokenRow,
    DatabaseClock,
    DatabaseUnavailable,
    Engine,
    changing,
    database_now_ms,
    insert_unless_there,
    reading,
)
from util.problem import Malformed, Problem

PREFIX = "rvt_"
"""What every token begins with, so that it is known where it leaks to."""

_TOKEN = re.compile(r"rvt_[A-Za-z0-9_-]{43}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,254}", re.ASCII)
_DAY_MS = 24 * 60 * 60 * 1000
_USE_MS = 60_000  # a use is noted once in that time: asking writes no row each time


class InvalidTokenName(Malformed):
    """A name that an admin token cannot have."""

    code = "TOKEN_NAME_INVALID"


class TokenNameTaken(Problem):
    """A name that another admin token has."""

    code = "TOKEN_NAME_TAKEN"


@dataclass(frozen=True, slots=True)
class AdminToken:
    """What is known of a token. Times are milliseconds by the database's clock; one without an end has None."""

    name: str
    created_ms: int
    expires_ms: int | None
    last_used_ms: int | None
    expired: bool


class AdminTokens:
    """The rows of admin tokens. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, name: str, *, days: float | None = None) -> str:
        """Return a new token, which nobody can tell again, valid for `days` or until it is revoked.

        Raises InvalidTokenName, TokenNameTaken.
        """
        if not _NAME.fullmatch(name):
            raise InvalidTokenName(f"{name!r} is no name for a token: letters, digits and ._@+-, the first no sign")
        token = PREFIX + secrets.token_urlsafe(32)
        values = {"name": name, "sha256": _sha256(token), "last_used_ms": None}

        def create(connection: Connection) -> bool:
            now = database_now_ms(connection)
            expires = None if days is None else now + round(days * _DAY_MS)
            query = select(AdminTokenRow.sha256).where(AdminTokenRow.name == name)
            there = connection.execute(query).scalar()
            if there is not None:
                return there == values["sha256"]  # committed, and the connection broke before it said so
            return insert_unless_there(connection, AdminTokenRow, {**values, "created_ms": now, "expires_ms": expires})

        if not changing(self._engine, create):
            raise TokenNameTaken(f"there is a token {name!r} already; revoke it first, or take another name")
        return token

    def check(self, token: str) -> str | None:
        """Return the name of a token that is valid, None for any other text."""
        if not _TOKEN.fullmatch(token):
            return None
        wanted = _sha256(token)
        query = select(
            AdminTokenRow.name,
            AdminTokenRow.sha256,
            AdminTokenRow.expires_ms,
            AdminTokenRow.last_used_ms,
            DatabaseClock().label("now"),
        ).where(AdminTokenRow.sha256 == wanted)
        row = reading(self._engine, lambda connection: connection.execute(query).one_or_none())
        if row is None or not hmac.compare_digest(row.sha256, wanted):
            return None
        if row.expires_ms is not None and row.expires_ms <= row.now:
            return None
        if row.last_used_ms is None or row.last_used_ms < row.now - _USE_MS:
            self._note_use(wanted)
        return str(row.name)

    def _note_use(self, sha256: str) -> None:
        query = update(AdminTokenRow).where(AdminTokenRow.sha256 == sha256).values(last_used_ms=DatabaseClock())
        with suppress(DatabaseUnavailable):  # a database that only reads still tells who may ask
            changing(self._engine, lambda connection: connection.execute(query).rowcount)

    def list(self) -> "Tokens":
        """Return all tokens, by name."""
        query = select(
            AdminTokenRow.name,
            AdminTokenRow.created_ms,
            AdminTokenRow.expires_ms,
            AdminTokenRow.last_used_ms,
            DatabaseClock().label("now"),
        ).order_by(AdminTokenRow.name)
        rows = reading(self._engine, lambda connection: connection.execute(query).all())
        return [
            AdminToken(name, created, expires, used, expired=expires is not None and expires <= now)
            for name, created, expires, used, now in rows
        ]

    def revoke(self, name: str) -> bool:
        """Delete the token `name`, which is not valid from then on. False where there is none."""
        query = delete(AdminTokenRow).where(AdminTokenRow.name == name)
        return changing(self._engine, lambda connection: connection.execute(query).rowcount == 1)


Tokens = list[AdminToken]


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
