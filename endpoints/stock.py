"""What there is of derived images, as an operator looks at it and changes it; over HTTP and on the command line alike.

The law: a row goes before its object, so that nobody is sent to an object that is gone; an object that stays behind
without a row is found by the garbage collection.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from data.derivedimages import DerivedRecord, State
from data.jobs import Job, JobState
from data.storage.base import StorageUnavailable
from endpoints.priming import check_writable
from endpoints.services import Services
from util.problem import Missing, Problem

log = logging.getLogger(__name__)


class DerivedNotFound(Missing):
    """A key under which no derived image is known."""

    code = "DERIVED_UNKNOWN"


class JobNotFound(Missing):
    """An id that no job has, or none any more."""

    code = "JOB_UNKNOWN"


class JobEnded(Problem):
    """A job that has ended, and so cannot be cancelled."""

    code = "JOB_ENDED"


@dataclass(frozen=True, slots=True)
class Made:
    """How much of a derived image is made, in bytes; `total` is None where only the end will tell."""

    done: int
    total: int | None


def derived(services: Services, key: str) -> DerivedRecord:
    """Return what is known of the derived image `key`. Raises DerivedNotFound."""
    record = services.derived.find(key)
    if record is None:
        raise DerivedNotFound(f"there is no derived image {key}")
    return record


def drop(services: Services, key: str) -> DerivedRecord:
    """Delete the derived image `key`, or the making of it, and return what it was.

    Raises DerivedNotFound, ReadOnlyRegistry.
    """
    check_writable(services)
    record = services.derived.delete(key)
    if record is None:
        raise DerivedNotFound(f"there is no derived image {key}")
    if record.state is State.COMPLETE:
        try:
            services.storage.preferred.delete(record.path)
        except StorageUnavailable:
            log.exception("%s stays in storage until it is collected", record.path)
    return record


def job(services: Services, job_id: str) -> Job:
    """Return the job `job_id`. Raises JobNotFound."""
    found = services.jobs.find(job_id)
    if found is None:
        raise JobNotFound(f"there is no job {job_id}")
    return found


def cancel(services: Services, job_id: str) -> Job:
    """Cancel the job `job_id`, and return it; one that was cancelled before stays so. Raises JobNotFound, JobEnded."""
    check_writable(services)
    services.jobs.cancel(job_id)
    found = job(services, job_id)
    if found.state is not JobState.CANCELLED:
        raise JobEnded(f"job {job_id} has ended: it is {found.state}")
    return found


def cancel_group(services: Services, group_id: str) -> int:
    """Cancel what has not ended of the jobs that were asked for at once, and return how many they are."""
    check_writable(services)
    cancelled = 0
    for state in (JobState.QUEUED, JobState.RUNNING):
        after = None
        while page := services.jobs.list(group_id=group_id, state=state, after=after):
            cancelled += sum(services.jobs.cancel(each.id) for each in page)
            after = page[-1].id
    return cancelled


def repositories_of_group(services: Services, group_id: str) -> set[tuple[str, str]]:
    """Return namespace and name of the repositories whose images were asked for at once."""
    found, after = set(), None
    while page := services.jobs.list(group_id=group_id, after=after):
        found |= {(each.namespace, each.repository) for each in page}
        after = page[-1].id
    return found


def progress(services: Services, jobs: Iterable[Job]) -> dict[str, Made]:
    """Return how far those of `jobs` have come that are running, by their ids, as far as it is known."""
    found = {}
    for each in jobs:
        if each.state is JobState.RUNNING and each.key is not None:
            record = services.derived.find(each.key)
            if record is not None and record.state is not State.FAILED:
                found[each.id] = Made(record.bytes_done, record.bytes_total)
    return found


def unended(services: Services, jobs: Iterable[Job]) -> dict[str, Job]:
    """Return those of `jobs` that have not ended, as they are now, by their ids."""
    wanted = {each.id: each.group_id for each in jobs}
    states = (JobState.QUEUED, JobState.RUNNING)
    found: dict[str, Job] = {}
    for group in set(wanted.values()):
        for state in states:
            after = None
            while page := services.jobs.list(group_id=group, state=state, after=after, limit=1000):
                found |= {each.id: each for each in page if each.id in wanted}
                after = page[-1].id
    for absent in wanted.keys() - found.keys():  # it has ended, or changed from one state to the other meanwhile
        now = services.jobs.find(absent)
        if now is not None and now.state in states:
            found[absent] = now
    return found
