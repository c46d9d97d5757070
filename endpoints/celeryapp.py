"""Jobs on many machines: Celery carries their ids, over Redis or RabbitMQ.

The law: a message says "look at this row" and nothing else. It may be lost, come twice, or late: workers look at the
rows by themselves too, only less often. It is acknowledged when the job has been run, so that a broker gives it to
another worker when one is lost. Celery is imported only by who has a broker.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from data.jobs import Job, JobState
from endpoints.background import watch
from endpoints.jobpool import MakeServices
from endpoints.jobrunner import JobRunner, Timing, worker_name
from endpoints.priming import Tell
from endpoints.services import Services
from endpoints.settings import Settings
from util.problem import Problem

if TYPE_CHECKING:
    from celery import Celery

log = logging.getLogger(__name__)

TASK = "registry_verbs.look"
_CONNECT_SECONDS = 4
_LOOK_SECONDS = 5.0  # how often a worker looks by itself


class CeleryNotInstalled(Problem):
    """A broker is configured, and the library that speaks to it is not there."""

    code = "CELERY_NOT_INSTALLED"


def make_celery(settings: Settings) -> "Celery":
    """Return the Celery application of the settings' broker and queue. Connects nowhere. Raises CeleryNotInstalled."""
    try:
        from celery import Celery
    except ImportError as error:
        raise CeleryNotInstalled(
            f"VERBS_BROKER_URL is set, and Celery is not installed ({error}): pip install 'registry-verbs[celery]'"
        ) from None
    celery = Celery("registry_verbs", broker=settings.broker_url, set_as_current=False)
    celery.conf.update(
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=_CONNECT_SECONDS,
        broker_transport_options={"socket_connect_timeout": _CONNECT_SECONDS} if _is_redis(settings) else {},
        task_acks_late=True,
        task_default_queue=settings.queue,
        task_ignore_result=True,
        task_reject_on_worker_lost=True,
        task_serializer="json",
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,  # what waits is for whoever is free
        worker_redirect_stdouts=False,
    )
    return celery


def _is_redis(settings: Settings) -> bool:
    return (settings.broker_url or "").startswith("redis")


def teller(settings: Settings) -> Tell:
    """Return what tells workers of jobs: by the broker where there is one, else nobody needs to be told."""
    if settings.broker_url is None:
        return lambda _: None
    return _Teller(make_celery(settings))


class _Teller:
    """Sends a message for each job that waits."""

    def __init__(self, celery: "Celery") -> None:
        self._celery = celery

    def __call__(self, jobs: Sequence[Job]) -> None:
        waiting = [job.id for job in jobs if job.state is JobState.QUEUED]
        if not waiting:
            return
        try:
            with self._celery.producer_or_acquire() as producer:
                for job_id in waiting:
                    self._celery.send_task(TASK, args=(job_id,), producer=producer, retry=False, ignore_result=True)
        except Exception as error:  # noqa: BLE001 each transport has its own
            log.warning("the broker is not told of %d jobs; workers find them by themselves: %s", len(waiting), error)


class CeleryWorker:
    """A worker: runs the jobs that messages name, and those that it finds by itself; looks at new tags."""

    def __init__(self, services: Services, make_services: MakeServices, *, processes: int | None = None) -> None:
        self._services = services
        self._celery = make_celery(services.settings)
        self._runner = JobRunner(
            services.jobs,
            make_services,
            processes=processes or services.settings.job_processes,
            timing=Timing(look=_LOOK_SECONDS),
        )
        self._stopping = threading.Event()

    def run(self, ready: Callable[[], None]) -> int:
        """Work until a signal says to end, and return the exit status. What runs then is given up to others."""
        from celery import signals

        runner = self._runner

        @self._celery.task(name=TASK)  # type: ignore[untyped-decorator] # Celery has no types
        def look(job_id: str) -> None:
            runner.run(job_id)

        def stop(**_: Any) -> None:  # within a signal handler, which must not wait
            self._stopping.set()
            threading.Thread(target=runner.stop, name="stop", daemon=True).start()

        signals.worker_shutting_down.connect(stop, weak=False)
        signals.worker_ready.connect(lambda **_: ready(), weak=False)
        by_itself = threading.Thread(target=runner.serve, name="patrol", daemon=True)
        worker = self._celery.Worker(
            hostname=f"registry-verbs-{worker_name().replace(':', '-')}@%h",
            pool="threads",
            concurrency=runner.processes,
            quiet=True,
            loglevel="WARNING",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )
        by_itself.start()
        watching = watch(self._services, teller(self._services.settings), self._stopping)
        try:
            worker.start()
        finally:
            self._stopping.set()
            runner.stop()
            for thread in (by_itself, *watching):
                thread.join()
        return int(worker.exitcode or 0)
