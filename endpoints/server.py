"""The server: gunicorn with settings for downloads that take as long as they take.

The law: a worker is alive as long as its main loop is, however long its answers run: threads serve them. Every worker
makes its own application after the fork, so no connection is shared between processes. Told to stop, a worker finishes
its answers, for a minute at most; what it still makes then is given up, before it is killed, and its leases released.
"""

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from endpoints import background, indexing, making, metrics
from endpoints.extension import RegistryVerbs
from endpoints.loglines import OneLine, RequestIds

THREADS = 16
"""Downloads at once in one worker. A stream waits for its client most of the time; compression runs without the GIL."""

_GRACE = 60  # seconds that answers have to end after a SIGTERM
_CLOSING = 8  # seconds of them that giving up may take


class Server(BaseApplication):  # type: ignore[misc] # gunicorn has no types
    """Serves what `load` makes on `host` and `port` (0: any that is free) until it is told to stop."""

    def __init__(
        self, load: Callable[[], Any], *, host: str, port: int, workers: int, ready: Callable[[str], None]
    ) -> None:
        self._load, self._ready = load, ready
        address = f"[{host}]" if ":" in host else host
        self._options = {
            "bind": f"{address}:{port}",
            "workers": workers,
            "worker_class": "gthread",
            "threads": THREADS,
            "timeout": 120,
            "graceful_timeout": _GRACE,
            "keepalive": 75,
            "accesslog": "-",
            "loglevel": "warning",
            "when_ready": self._tell,
            "post_worker_init": _worker_began,
            "worker_exit": _worker_ends,
            "child_exit": self._worker_ended,
            "control_socket_disable": True,
        }
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            if name in self.cfg.settings:  # not every gunicorn has each
                self.cfg.set(name, value)

    def run(self) -> None:
        """Serve. Returns never: SystemExit is raised when all has ended."""
        parent, folder = os.getpid(), tempfile.mkdtemp(prefix="registry-verbs-metrics-")
        # gunicorn sets it for the workers, where prometheus_client is imported, and looks for it.
        self._options["raw_env"] = [f"PROMETHEUS_MULTIPROC_DIR={folder}"]
        self._metrics = folder
        self.load_config()
        try:
            super().run()
        finally:
            if os.getpid() == parent:  # a worker's end passes here too
                shutil.rmtree(folder, ignore_errors=True)

    def load(self) -> Any:
        handler = logging.StreamHandler()
        handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s"))
        handler.addFilter(RequestIds())
        logging.basicConfig(level=logging.INFO, handlers=[handler])
        app = self._load()
        if isinstance(app, Flask):  # any WSGI application can be served
            RegistryVerbs().start_background(app, ended=lambda pid: metrics.process_ended(pid, self._metrics))
        return app

    def _worker_ended(self, _: Any, worker: Any) -> None:
        metrics.process_ended(worker.pid, self._metrics)

    def _tell(self, arbiter: Any) -> None:
        for listener in arbiter.LISTENERS:
            host, port, *_ = listener.getsockname()
            self._ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def _worker_began(worker: Any) -> None:
    """Have a worker that is told to stop give up its makings before its time is over, if its answers do not end."""

    def stop(number: int, frame: Any) -> None:
        timer = threading.Timer(_GRACE - _CLOSING, making.close_all)
        timer.daemon = True
        timer.start()
        threading.Thread(target=background.stop_all, daemon=True).start()  # others may take its jobs at once
        threading.Thread(target=indexing.stop_all, daemon=True).start()
        worker.handle_exit(number, frame)

    signal.signal(signal.SIGTERM, stop)


def _worker_ends(_: Any, __: Any) -> None:
    background.stop_all()
    indexing.stop_all()
    making.close_all()
