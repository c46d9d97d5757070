"""Jobs as rows: derived images that were asked for ahead, and the workers that make them.

The law: the row is the truth, and a queue only says "look". A job is taken by one worker, and is due again when that
one has not been heard of; each taking raises `attempts`, and only who took it last can say how it went. No two jobs
that have not ended ask for the same. `id`s rise with time, by the database's clock.
"""

import hashlib
import json
import secrets
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, delete, func, select, true, update

from data.owntables import (
    DatabaseClock,
    Engine,
    JobRow,
    changing,
    database_now_ms,
    insert_unless_there,
    reading,
    shortened,
)

HEARD_SECONDS = 60
"""How long a worker may be silent before its jobs are due again."""

MAX_LOST = 5
"""How often a job is taken whose workers are all lost; then it is the job that kills them."""

_MAX_REASON = 2000
_BATCH = 100


class JobState(StrEnum):
    """Where a job stands. The last three are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What is asked for. `manifest_digest` is what the reference meant then: a tag that has moved is another job."""

    verb: str
    namespace: str
    repository: str
    reference: str
    manifest_digest: str | None = None
    platform: str | None = None
    compression: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(NewJob):
    """A job. Times are milliseconds by the database's clock.

    `group_id` is common to what was asked for at once; `key` is the derived image's, once it is known; `due_ms` is
    when somebody looks at it next, None once it has ended.
    """

    id: str
    group_id: str
    state: JobState
    key: str | None
    asked_by: str | None
    reason: str | None
    attempts: int
    worker: str | None
    created_ms: int
    started_ms: int | None
    finished_ms: int | None
    heartbeat_ms: int | None
    due_ms: int | None


_ASKED = tuple(field.name for field in fields(NewJob))
_READ = tuple(field.name for field in fields(Job))
_COLUMNS = tuple(JobRow.__table__.columns[name] for name in _READ)
_NOT_ENDED = (JobState.QUEUED, JobState.RUNNING)
JobList = list[Job]


class Jobs:
    """The rows of jobs, for threads, processes and hosts. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine, *, heard_seconds: float = HEARD_SECONDS, max_lost: int = MAX_LOST) -> None:
        self._engine, self.heard_seconds, self._max_lost = engine, heard_seconds, max_lost
        self._heard_ms = round(heard_seconds * 1000)

    # --- Asking ---

    def add(self, wanted: Iterable[NewJob], *, asked_by: str | None = None) -> JobList:
        """Queue jobs for `wanted` as one group, and return them in that order, each once.

        Where the same has been asked for and has not ended, the job that is there is returned.
        """
        wishes = {_wish(new): new for new in wanted}
        group = uuid.uuid4().hex
        asking = shortened(asked_by) if asked_by is not None else None
        jobs: dict[str, Job] = {}
        for start in range(0, len(wishes), _BATCH):
            batch = list(wishes.items())[start : start + _BATCH]
            jobs |= changing(self._engine, partial(_added, batch=batch, group=group, asked_by=asking, start=start))
        return [jobs[wish] for wish in wishes]

    def cancel(self, id: str) -> bool:  # noqa: A002 its name in the API
        """End a job that has not ended; its worker hears of it at its next beat. False where there is none."""
        unended = and_(JobRow.id == id, JobRow.state.in_(_NOT_ENDED))
        return changing(self._engine, partial(_end, which=unended, state=JobState.CANCELLED))

    # --- Looking ---

    def find(self, id: str) -> Job | None:  # noqa: A002 its name in the API
        """Return the job `id`, None where there is none."""
        found = self._read(select(*_COLUMNS).where(JobRow.id == id))
        return found[0] if found else None

    def list(
        self,
        *,
        group_id: str | None = None,
        namespace: str | None = None,
        repository: str | None = None,
        verb: str | None = None,
        state: JobState | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> JobList:
        """Return up to `limit` jobs that have what is given, the newest first, the first older than the job `after`."""
        given = {"group_id": group_id, "namespace": namespace, "repository": repository, "verb": verb, "state": state}
        columns = JobRow.__table__.columns
        query = select(*_COLUMNS).where(*(columns[name] == value for name, value in given.items() if value is not None))
        if after is not None:
            query = query.where(JobRow.id < after)
        return self._read(query.order_by(JobRow.id.desc()).limit(limit))

    def due(self, *, limit: int = 100) -> JobList:
        """Return up to `limit` jobs that somebody should take: queued ones, and those whose worker is silent."""
        return reading(self._engine, lambda connection: _jobs(connection, _due(connection).limit(limit)))

    def counts(self) -> dict[JobState, int]:
        """Return how many jobs there are in each state."""
        query = select(JobRow.state, func.count()).group_by(JobRow.state)
        found = reading(self._engine, lambda connection: {row[0]: row[1] for row in connection.execute(query)})
        return {state: found.get(state, 0) for state in JobState}

    def _read(self, query: Select[Any]) -> JobList:
        return reading(self._engine, lambda connection: _jobs(connection, query))

    # --- Working ---

    def take(self, worker: str, *, id: str | None = None) -> Job | None:  # noqa: A002 its name in the API
        """Take the job that has been due for longest, or the job `id` if it is due; None where there is none.

        A job whose workers have been lost too often is failed instead.
        """
        which = JobRow.id == id if id is not None else true()
        # Most looks find nothing, and one that only reads waits for nobody.
        while reading(self._engine, lambda connection: _jobs(connection, _due(connection).where(which).limit(1))):
            job, again = changing(self._engine, partial(self._take, which=which, worker=shortened(worker)))
            if not again:
                return job
        return None

    def _take(self, connection: Connection, *, which: ColumnElement[bool], worker: str) -> tuple[Job | None, bool]:
        """Return the job that was taken, and whether another look is due without it."""
        query = _due(connection).where(which).limit(1)
        found = _jobs(connection, query.with_for_update(skip_locked=_skips_locked(connection)))
        if not found:
            return None, False
        job = found[0]
        same = and_(JobRow.id == job.id, JobRow.state == job.state, JobRow.attempts == job.attempts)
        if job.state is JobState.RUNNING and job.attempts >= self._max_lost:
            reason = f"its workers were lost {job.attempts} times, the last of them {job.worker}"
            _end(connection, same, state=JobState.FAILED, reason=reason)
            return None, True
        now = database_now_ms(connection)
        values: dict[str, Any] = {
            "state": JobState.RUNNING,
            "attempts": job.attempts + 1,
            "worker": worker,
            "started_ms": now,
            "heartbeat_ms": now,
            "due_ms": now + self._heard_ms,
        }
        taken = connection.execute(update(JobRow).where(same).values(values)).rowcount == 1
        return (replace(job, **values), False) if taken else (None, True)

    def beat(self, jobs: Iterable[Job]) -> set[str]:
        """Say that the worker of `jobs` is alive; return the ids of those that it is still to work on."""
        mine = sorted(jobs, key=lambda job: job.id)

        def beat(connection: Connection) -> set[str]:
            clock = DatabaseClock()
            values = {"heartbeat_ms": clock, "due_ms": clock + self._heard_ms}
            return {job.id for job in mine if _changed(connection, _held(job), values)}

        return changing(self._engine, beat) if mine else set()

    def found(self, job: Job, key: str) -> bool:
        """Note which derived image it is that is made. False where the job is no longer its worker's."""
        return changing(self._engine, partial(_changed, which=_held(job), values={"key": key}))

    def done(self, job: Job, key: str) -> bool:
        """Say that the derived image `key` is there. False where the job is no longer its worker's."""
        return changing(self._engine, partial(_end, which=_held(job), state=JobState.DONE, key=key, reason=None))

    def fail(self, job: Job, reason: str, *, retry_in: float | None = None) -> bool:
        """Say why it could not be made, for good or to be tried again after `retry_in` seconds.

        False where the job is no longer its worker's.
        """
        reason = shortened(reason, _MAX_REASON)
        if retry_in is None:
            return changing(self._engine, partial(_end, which=_held(job), state=JobState.FAILED, reason=reason))
        return self._queue(job, round(retry_in * 1000), reason=reason)

    def put_back(self, job: Job) -> bool:
        """Queue a job again that its worker has no time for. False where it is no longer its worker's."""
        return self._queue(job, 0)

    def _queue(self, job: Job, delay_ms: int, **more: Any) -> bool:
        values = {"state": JobState.QUEUED, "worker": None, "heartbeat_ms": None, **more}
        values["due_ms"] = DatabaseClock() + delay_ms
        return changing(self._engine, partial(_changed, which=_held(job), values=values))

    # --- Keeping ---

    def delete_ended(self, *, older_than: float, dry_run: bool = False) -> int:
        """Delete the jobs that ended more than `older_than` seconds ago, and return how many they are, or would be."""

        def drop(connection: Connection) -> int:
            old = JobRow.finished_ms < database_now_ms(connection) - round(older_than * 1000)
            if dry_run:
                return connection.execute(select(func.count()).select_from(JobRow).where(old)).scalar_one()
            return connection.execute(delete(JobRow).where(old)).rowcount

        return (reading if dry_run else changing)(self._engine, drop)


def _wish(new: NewJob) -> str:
    """Return the name of what is asked for."""
    asked = [getattr(new, name) for name in _ASKED]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _added(
    connection: Connection, *, batch: Sequence[tuple[str, NewJob]], group: str, asked_by: str | None, start: int
) -> dict[str, Job]:
    """Return a job for each of `batch` by its wish: the one that is there, or a new one."""
    wishes = [wish for wish, _ in batch]
    numbered = {wish: start + at for at, wish in enumerate(wishes)}
    absent = dict(batch)
    found: dict[str, Job] = {}
    while absent:
        query = select(JobRow.wish, *_COLUMNS).where(JobRow.wish.in_(absent))
        found |= {row.wish: _job(row) for row in connection.execute(query)}
        now = database_now_ms(connection)
        # In the order of their wishes: two who add the same do not wait for each other.
        for wish, new in sorted((wish, new) for wish, new in absent.items() if wish not in found):
            job = Job(
                **asdict(new),
                id=f"{now:012x}{numbered[wish]:06x}{secrets.token_hex(7)}",
                group_id=group,
                state=JobState.QUEUED,
                key=None,
                asked_by=asked_by,
                reason=None,
                attempts=0,
                worker=None,
                created_ms=now,
                started_ms=None,
                finished_ms=None,
                heartbeat_ms=None,
                due_ms=now,
            )
            if insert_unless_there(connection, JobRow, {**asdict(job), "wish": wish}):
                found[wish] = job
        absent = {wish: new for wish, new in absent.items() if wish not in found}
    return found


def _jobs(connection: Connection, query: Select[Any]) -> list[Job]:
    return [_job(row) for row in connection.execute(query)]


def _job(row: Row[Any]) -> Job:
    values = {name: row._mapping[name] for name in _READ}  # noqa: SLF001 public, in spite of its name
    values["state"] = JobState(values["state"])
    return Job(**values)


def _due(connection: Connection) -> Select[Any]:
    now = database_now_ms(connection)  # a value and not the clock itself: the index is used
    return select(*_COLUMNS).where(JobRow.due_ms <= now).order_by(JobRow.due_ms, JobRow.id)


def _skips_locked(connection: Connection) -> bool:
    """Tell whether the database passes over rows that another is just taking, instead of waiting for them."""
    dialect = connection.dialect
    if dialect.name in ("mysql", "mariadb"):
        return (dialect.server_version_info or ()) >= ((10, 6) if getattr(dialect, "is_mariadb", False) else (8, 0, 1))
    return dialect.name == "postgresql"


def _held(job: Job) -> ColumnElement[bool]:
    return and_(JobRow.id == job.id, JobRow.state == JobState.RUNNING, JobRow.attempts == job.attempts)


def _changed(connection: Connection, which: ColumnElement[bool], values: Any) -> bool:
    return connection.execute(update(JobRow).where(which).values(values)).rowcount == 1


def _end(connection: Connection, which: ColumnElement[bool], **values: Any) -> bool:
    return _changed(connection, which, {"wish": None, "due_ms": None, "finished_ms": DatabaseClock(), **values})
