"""What is counted, for Prometheus: one set of metrics a process, summed over a server's processes when it is asked.

The law: counting never fails a request, and labels are bounded: a verb that nobody installed is `unknown`, a code is a
problem's own. prometheus_client is imported with the first thing that is counted and not before: at its import it looks
in the environment for the folder that processes share, and our server sets that for its workers only (server.py). Where
none is set, as under a host with one process, the metrics are in the client's own registry, beside the host's.
"""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from flask import Blueprint, Response, current_app

from util.problem import Problem

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

log = logging.getLogger(__name__)

blueprint = Blueprint("registry_verbs_metrics", __name__)
"""`/metrics`. Our own application has it; a host that wants it registers it."""

GAUGES = "registry_verbs_metrics_gauges"
"""Where a Flask application keeps what is looked up when metrics are asked for: name -> (help, label, look)."""

_Look = Callable[[], dict[str, float]]
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_GAUGES = re.compile(r"gauge_live[a-z]*_(?P<pid>[0-9]+)\.db")
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LONG_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_RATES = tuple(megabytes * 1e6 for megabytes in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000))


class _Metrics:
    """The metrics of this process. Made once."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self.requests: Final = Counter(
            "registry_verbs_requests", "Requests for derived images that have ended.", ("verb", "status", "how")
        )
        self.sent: Final = Counter(
            "registry_verbs_sent_bytes", "Bytes of derived images handed to clients.", ("verb", "how")
        )
        self.cut: Final = Counter(
            "registry_verbs_cut_answers", "Answers that did not come to their end: clients that left too.", ("verb",)
        )
        self.first_byte: Final = Histogram(
            "registry_verbs_first_byte_seconds",
            "From the request to the first byte of its body.",
            ("verb", "how"),
            buckets=_SECONDS,
        )
        self.hits: Final = Counter(
            "registry_verbs_cache_hits", "Requests answered with a kept derived image.", ("verb",)
        )
        self.misses: Final = Counter(
            "registry_verbs_cache_misses", "Requests for which a derived image had to be made.", ("verb",)
        )
        self.followers: Final = Counter(
            "registry_verbs_followers", "Requests answered from a making that ran already.", ("verb",)
        )
        self.making_seconds: Final = Histogram(
            "registry_verbs_generation_seconds",
            "Time that a derived image took to be made and kept.",
            ("verb",),
            buckets=_LONG_SECONDS,
        )
        self.making_rate: Final = Histogram(
            "registry_verbs_generation_bytes_per_second",
            "Bytes of a derived image by the seconds that making it took.",
            ("verb",),
            buckets=_RATES,
        )
        self.made: Final = Counter("registry_verbs_generated_bytes", "Bytes of derived images made.", ("verb",))
        # "live": what a process that ended had in hand is in nobody's.
        self.makings: Final = Gauge(
            "registry_verbs_makings_running", "Derived images that are being made.", multiprocess_mode="livesum"
        )
        self.takeovers: Final = Counter(
            "registry_verbs_lease_takeovers", "Makings begun because the lease of another had run out."
        )
        self.registry_requests: Final = Counter(
            "registry_verbs_registry_requests", "Requests to /v2 that have ended.", ("route", "status")
        )
        self.registry_sent: Final = Counter(
            "registry_verbs_registry_sent_bytes", "Bytes that /v2 handed to clients.", ("route",)
        )
        self.signing_failures: Final = Counter(
            "registry_verbs_signing_failures", "Signatures that could not be made, those of checks among them."
        )
        self.failures: Final = Counter(
            "registry_verbs_failures",
            "Problems by code: of an answer before its first byte, of a body, of a making.",
            ("stage", "code"),
        )


_lock = threading.Lock()
_metrics: _Metrics | None = None


def _of_process() -> _Metrics:
    global _metrics  # noqa: PLW0603 one a process is what prometheus_client wants
    if _metrics is None:
        with _lock:
            if _metrics is None:
                _metrics = _Metrics()
    return _metrics


@contextmanager
def _counting() -> Iterator[None]:
    try:
        yield
    except Exception:
        log.exception("something could not be counted")


def answered(
    verb: str, *, status: int, how: str | None, size: int, first_byte: float | None, complete: bool, get: bool
) -> None:
    """Count an answer that has ended; `how` is one of audit.How. `get`: a body was asked for."""
    with _counting():
        metrics, how = _of_process(), how or "none"
        metrics.requests.labels(verb, str(status), how).inc()
        if size:
            metrics.sent.labels(verb, how).inc(size)
        if not complete:
            metrics.cut.labels(verb).inc()
        if first_byte is not None:
            metrics.first_byte.labels(verb, how).observe(first_byte)
        if get and how in _CACHE:
            getattr(metrics, _CACHE[how]).labels(verb).inc()


def registry_answered(
    route: str,
    *,
    status: int,
    how: str | None,  # noqa: ARG001 a pull is the same however it is sent
    size: int,
    first_byte: float | None,  # noqa: ARG001
    complete: bool,
    get: bool,  # noqa: ARG001
) -> None:
    """Count an answer of /v2 that has ended; `route` is the name of its function."""
    with _counting():
        metrics = _of_process()
        metrics.registry_requests.labels(route, str(status)).inc()
        if size:
            metrics.registry_sent.labels(route).inc(size)
        if not complete:
            metrics.cut.labels(route).inc()


_CACHE = {
    "stored": "hits",
    "redirected": "hits",
    "range": "hits",
    "made": "misses",
    "streamed": "misses",
    "followed": "followers",
}


def making_began(*, takeover: bool = False) -> None:
    """Count a making that begins; with `takeover` it is that of somebody whose lease ran out."""
    with _counting():
        _of_process().makings.inc()
        if takeover:
            _of_process().takeovers.inc()


def making_ended(verb: str, *, seconds: float, size: int) -> None:
    """Count a making that has come to its end, kept or not."""
    with _counting():
        metrics = _of_process()
        metrics.makings.dec()
        metrics.making_seconds.labels(verb).observe(seconds)
        metrics.made.labels(verb).inc(size)
        if seconds > 0:
            metrics.making_rate.labels(verb).observe(size / seconds)


def making_failed(error: BaseException) -> None:
    """Count a making that ended without its image."""
    with _counting():
        _of_process().makings.dec()
    failed("making", error)


def failed(stage: str, error: BaseException | str | None) -> None:
    """Count a failure by its problem's code; `error` may be the code itself. `stage`: answer, body or making."""
    with _counting():
        code = error.code if isinstance(error, Problem) else error if isinstance(error, str) else "UNKNOWN"
        _of_process().failures.labels(stage, code if _CODE.fullmatch(code) else "UNKNOWN").inc()


def signing_failed() -> None:
    """Count a signature that could not be made."""
    with _counting():
        _of_process().signing_failures.inc()


class _Looked:
    """A collector of gauges that are looked up, not counted: every process would give the same."""

    def __init__(self, gauges: dict[str, tuple[str, str, _Look]]) -> None:
        self._gauges = gauges

    def collect(self) -> "Iterable[Metric]":
        from prometheus_client.core import GaugeMetricFamily

        for name, (text, label, look) in self._gauges.items():
            try:
                values = look()
            except Exception:
                log.exception("%s cannot be told", name)
                continue
            family = GaugeMetricFamily(name, text, labels=(label,))
            for value, number in sorted(values.items()):
                family.add_metric((value,), number)
            yield family


def _registry(gauges: dict[str, tuple[str, str, _Look]]) -> "CollectorRegistry":
    from prometheus_client import REGISTRY, CollectorRegistry, multiprocess

    _of_process()
    registry = CollectorRegistry()
    try:
        shared = multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call] # it has no types
        _bury(shared._path)  # noqa: SLF001 only prometheus_client looks in the environment, and keeps it there
    except ValueError:  # no folder is shared: this process is all there is
        registry.register(REGISTRY)
    registry.register(_Looked(gauges))
    return registry


def look_up(app: Any, name: str, text: str, label: str, look: _Look) -> None:
    """Have `/metrics` of `app` tell what `look` returns, by the values of `label`. A look that fails is left out."""
    app.extensions.setdefault(GAUGES, {})[name] = (text, label, look)


def process_ended(pid: int, folder: str) -> None:
    """Take the gauges of the process `pid` out of the sums in `folder`; its counters stay."""
    from prometheus_client import multiprocess

    with suppress(FileNotFoundError):  # somebody else was faster
        multiprocess.mark_process_dead(pid, path=folder)  # type: ignore[no-untyped-call] # it has no types


def _bury(folder: str) -> None:
    """Take the gauges of processes out that ended without a word: children of a worker that was killed."""
    for name in os.listdir(folder):
        match = _GAUGES.fullmatch(name)
        if match is not None and not _runs(int(match["pid"])):
            process_ended(int(match["pid"]), folder)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@blueprint.get("/metrics")
def metrics() -> Response:
    """Answer with the metrics of all processes of this server, in Prometheus' text format."""
    from prometheus_client import generate_latest

    body = generate_latest(_registry(current_app.extensions.get(GAUGES, {})))
    return Response(body, content_type=_TEXT, headers={"Cache-Control": "no-store"})
