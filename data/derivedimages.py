"""Derived images as rows: who may make one, until when, and what is stored of it.

The law: a key has one row, and of any number that claim it at once, on whatever hosts, one holds its lease. A row is
complete only after its object is in storage; the object's path belongs to that one lease and is written once. A lease
that ran out is still its holder's until somebody else takes it, and is gone for good then: only the holder of the
row's token can beat, complete, fail or release it.
"""

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, delete, select, update

from data.owntables import (
    DatabaseClock,
    DerivedRow,
    Engine,
    changing,
    database_now_ms,
    insert_unless_there,
    reading,
    shortened,
)

log = logging.getLogger(__name__)

LEASE_SECONDS = 30
_MAX_REASON = 2000
_PAGE = 200


class State(StrEnum):
    """What a row says of its derived image. One that nobody has asked for has no row."""

    GENERATING = "generating"
    COMPLETE = "complete"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDerived:
    """A derived image that is asked for. `key` is its SHA-256 name in hexadecimal."""

    key: str
    namespace: str
    repository: str
    reference: str
    manifest_digest: str
    verb: str
    platform: str
    compression: str
    media_type: str
    file_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedRecord(NewDerived):
    """A row. Times are milliseconds by the database's clock; `lease_live` is what that clock said when it was read."""

    state: State
    token: str
    path: str
    host: str
    size: int | None
    sha256: str | None
    reason: str | None
    bytes_done: int
    bytes_total: int | None
    asked_by: str | None
    attempts: int
    created_ms: int
    completed_ms: int | None
    fetched_ms: int | None
    lease_ends_ms: int | None
    lease_live: bool
    failed_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to make a derived image and to store it at `path`, for `seconds` after the claim and each beat.

    `takeover` says that another held it and was not heard of any more.
    """

    key: str
    token: str
    path: str
    host: str
    seconds: float
    takeover: bool = False


Records = list[DerivedRecord]

_ASKED = tuple(field.name for field in fields(NewDerived))
_READ = tuple(field.name for field in fields(DerivedRecord) if field.name != "lease_live")
_MOVING = ("key", "token", "state", "completed_ms", "fetched_ms", "lease_ends_ms")
_COLUMNS = tuple(DerivedRow.__table__.columns[name] for name in _READ)


class DerivedImages:
    """The rows of derived images, for threads, processes and hosts. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._engine, self.lease_seconds = engine, lease_seconds
        self._lease_ms = round(lease_seconds * 1000)

    # --- Making ---

    def claim(
        self, new: NewDerived, *, host: str, asked_by: str | None = None, bytes_total: int | None = None
    ) -> Lease | DerivedRecord:
        """Return a lease on `new`, or its record where it is complete or another holds a live lease on it."""
        found = self.find(new.key)
        if found is not None and _settled(found):
            return found
        token = uuid.uuid4().hex
        host = shortened(host)
        path = f"verbs/derived/{new.key[:2]}/{new.key}/{token}"

        def claim(connection: Connection) -> Lease | DerivedRecord | None:
            query = _records().where(DerivedRow.key == new.key)
            row = connection.execute(query).one_or_none()
            if row is not None:  # MySQL may lock the place of a row that is not there, and all who want to fill it
                row = connection.execute(query.with_for_update()).one_or_none()
            before = _record(row) if row is not None else None
            if before is not None and before.token == token:  # committed, and the connection broke before it said so
                return Lease(new.key, token, path, host, self.lease_seconds)
            if before is not None and _settled(before):
                return before
            now = database_now_ms(connection)  # after the lock was waited for
            values: dict[str, Any] = {
                **{name: getattr(new, name) for name in _ASKED},
                "state": State.GENERATING,
                "token": token,
                "path": path,
                "host": host,
                "size": None,
                "sha256": None,
                "reason": None,
                "bytes_done": 0,
                "bytes_total": bytes_total,
                "asked_by": shortened(asked_by) if asked_by is not None else None,
                "completed_ms": None,
                "failed_ms": None,
                "fetched_ms": None,
                "lease_ends_ms": now + self._lease_ms,
            }
            if before is None:
                values |= {"attempts": 1, "created_ms": now}
                if not insert_unless_there(connection, DerivedRow, values):
                    return None
                return Lease(new.key, token, path, host, self.lease_seconds)
            same = and_(DerivedRow.key == new.key, DerivedRow.token == before.token, DerivedRow.state == before.state)
            values["attempts"] = before.attempts + 1
            if connection.execute(update(DerivedRow).where(same).values(values)).rowcount != 1:
                return None
            return Lease(new.key, token, path, host, self.lease_seconds, takeover=before.state is State.GENERATING)

        while (outcome := changing(self._engine, claim)) is None:
            pass  # another was faster; its row is there now
        if isinstance(outcome, Lease) and outcome.takeover:
            log.warning("the making of %s was lost by its host and is taken over by %s", new.key, host)
        return outcome

    def beat(self, progress: Mapping[str, int]) -> set[str]:
        """Extend the leases whose tokens `progress` has, with the bytes done; return the tokens that are still held."""

        def beat(connection: Connection) -> set[str]:
            return {
                token
                for token, done in sorted(progress.items())
                if self._changed(connection, token, bytes_done=done, lease_ends_ms=DatabaseClock() + self._lease_ms)
            }

        return changing(self._engine, beat) if progress else set()

    def set_total(self, lease: Lease, bytes_total: int) -> bool:
        """Note how many bytes there will be. False where the lease is lost."""
        return changing(
            self._engine, lambda connection: self._changed(connection, lease.token, bytes_total=bytes_total)
        )

    def complete(self, lease: Lease, *, size: int, sha256: str) -> bool:
        """Say that the object lies at the lease's path, whole. False where the lease was lost: it is to be deleted."""
        values = {
            "state": State.COMPLETE,
            "size": size,
            "sha256": sha256,
            "bytes_done": size,
            "bytes_total": size,
            "lease_ends_ms": None,
        }
        done = and_(DerivedRow.token == lease.token, DerivedRow.state == State.COMPLETE)

        def complete(connection: Connection) -> bool:
            if self._changed(connection, lease.token, completed_ms=DatabaseClock(), **values):
                return True
            # Also where it was committed before, and the connection broke before it said so.
            return connection.execute(select(DerivedRow.key).where(done)).one_or_none() is not None

        return changing(self._engine, complete)

    def fail(self, lease: Lease, reason: str) -> bool:
        """Say why it could not be made; the next who asks may try. False where the lease was lost."""
        values: dict[str, Any] = {
            "state": State.FAILED,
            "reason": shortened(reason, _MAX_REASON),
            "failed_ms": DatabaseClock(),
            "lease_ends_ms": None,
        }
        return changing(self._engine, lambda connection: self._changed(connection, lease.token, **values))

    def release(self, lease: Lease) -> bool:
        """Give the lease back, so that the next who asks makes it at once. False where it was lost."""
        held = and_(DerivedRow.token == lease.token, DerivedRow.state == State.GENERATING)
        return changing(self._engine, lambda connection: _deleted(connection, held))

    def _changed(self, connection: Connection, token: str, **values: Any) -> bool:
        """Change the row of a lease that is held."""
        held = and_(DerivedRow.token == token, DerivedRow.state == State.GENERATING)
        return connection.execute(update(DerivedRow).where(held).values(values)).rowcount == 1

    # --- Looking ---

    def now_ms(self) -> int:
        """Return the time by the clock that the records are stamped with."""
        return reading(self._engine, database_now_ms)

    def find(self, key: str) -> DerivedRecord | None:
        """Return the record of `key`, None where nobody has asked for it."""
        found = self._read(_records().where(DerivedRow.key == key))
        return found[0] if found else None

    def list(
        self,
        *,
        namespace: str | None = None,
        repository: str | None = None,
        verb: str | None = None,
        state: State | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Records:
        """Return up to `limit` records that have what is given, by their keys, the first behind the key `after`."""
        given = {"namespace": namespace, "repository": repository, "verb": verb, "state": state}
        query = _records().where(
            *(DerivedRow.__table__.columns[name] == value for name, value in given.items() if value is not None)
        )
        return self._page(query, after, limit)

    def all(self) -> Iterator[DerivedRecord]:
        """Yield every record, by its key. What comes and goes meanwhile may be among them or not."""
        return self._each(_records())

    def expired(self) -> Iterator[DerivedRecord]:
        """Yield the records of makings that have not been heard of in time."""
        over = and_(DerivedRow.state == State.GENERATING, DerivedRow.lease_ends_ms <= DatabaseClock())
        return self._each(_records().where(over))

    def _each(self, query: Select[Any]) -> Iterator[DerivedRecord]:
        after = None
        while page := self._page(query, after, _PAGE):
            yield from page
            after = page[-1].key

    def _page(self, query: Select[Any], after: str | None, limit: int) -> Records:
        if after is not None:
            query = query.where(DerivedRow.key > after)
        return self._read(query.order_by(DerivedRow.key).limit(limit))

    def _read(self, query: Select[Any]) -> Records:
        return reading(self._engine, lambda connection: [_record(row) for row in connection.execute(query)])

    # --- Keeping ---

    def fetched(self, keys: Iterable[str]) -> None:
        """Note that the derived images `keys` have been fetched now."""
        fetched = sorted(set(keys))

        def note(connection: Connection) -> None:
            for key in fetched:  # in order: two that note the same do not wait for each other
                query = update(DerivedRow).where(DerivedRow.key == key).values(fetched_ms=DatabaseClock())
                connection.execute(query)

        if fetched:
            changing(self._engine, note)

    def forget(self, record: DerivedRecord) -> bool:
        """Drop the row of `record`, whose object is not in storage, unless it has become another's."""
        same = and_(DerivedRow.key == record.key, DerivedRow.token == record.token, DerivedRow.state == record.state)
        return changing(self._engine, lambda connection: _deleted(connection, same))

    def drop(self, record: DerivedRecord) -> bool:
        """Drop the row of `record` if it is as it was read: not fetched since, nor made anew, nor heard of."""
        row = DerivedRow.__table__.columns
        same = [row[name].is_not_distinct_from(getattr(record, name)) for name in _MOVING]
        return changing(self._engine, lambda connection: _deleted(connection, and_(*same)))

    def delete(self, key: str) -> DerivedRecord | None:
        """Drop the row of `key` and return what it was, so that its object can be deleted; None where there is none.

        A making that is under way loses its lease, and drops its object by itself.
        """

        def drop(connection: Connection) -> DerivedRecord | None:
            row = connection.execute(_records().where(DerivedRow.key == key).with_for_update()).one_or_none()
            if row is None:
                return None
            record = _record(row)
            _deleted(connection, and_(DerivedRow.key == key, DerivedRow.token == record.token))
            return record

        return changing(self._engine, drop)


def _records() -> Select[Any]:
    return select(*_COLUMNS, DatabaseClock().label("now"))


def _record(row: Row[Any]) -> DerivedRecord:
    values = {name: row._mapping[name] for name in _READ}  # noqa: SLF001 public, in spite of its name
    values["state"] = State(values["state"])
    live = values["state"] is State.GENERATING and values["lease_ends_ms"] > row.now
    return DerivedRecord(**values, lease_live=live)


def _settled(record: DerivedRecord) -> bool:
    return record.state is State.COMPLETE or record.lease_live


def _deleted(connection: Connection, which: ColumnElement[bool]) -> bool:
    return connection.execute(delete(DerivedRow).where(which)).rowcount == 1
