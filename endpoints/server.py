"""The server: gunicorn with settings for downloads that take as long as they take.

The law: a worker is alive as long as its main loop is, however long its answers run: threads serve them. Every worker
makes its own application after the fork, so no connection is shared between processes.
"""

import logging
from collections.abc import Callable
from typing import Any

from gunicorn.app.base import BaseApplication

THREADS = 16
"""Downloads at once in one worker. A stream waits for its client most of the time; compression runs without the GIL."""


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
            "graceful_timeout": 60,
            "keepalive": 75,
            "accesslog": "-",
            "loglevel": "warning",
            "when_ready": self._tell,
        }
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        return self._load()

    def _tell(self, arbiter: Any) -> None:
        for listener in arbiter.LISTENERS:
            host, port, *_ = listener.getsockname()
            self._ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
