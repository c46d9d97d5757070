"""Servers for tests: `registry-verbs serve` as a process of its own, with its log where a test can read it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from test.place import Place


@dataclass(frozen=True)
class Running:
    """A place and the server that serves it. `log` is what it writes to stderr."""

    place: Place
    url: str
    process: "subprocess.Popen[str]"
    log: Path = field(default=Path("/dev/null"))

    def workers(self) -> list[int]:
        """Return the processes that answer, as Linux knows them."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def served(
    place: Place,
    *,
    workers: int = 1,
    log: Path | None = None,
    more: Mapping[str, Any] | None = None,
    program: str = "import app; app.main()",
) -> Iterator[Running]:
    """Serve `place` on a free port, and end the server with SIGTERM; `more` is for its environment alone."""
    command = [sys.executable, "-c", program, "serve", "--port", "0", "--workers", str(workers)]
    environment = {**os.environ, **place.configuration, **(more or {})}
    log = Path("/dev/null") if log is None else log
    with (
        log.open("ab") as stderr,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        assert process.stdout is not None
        match = re.match(r"Listening on (http://127\.0\.0\.1:\d+)", process.stdout.readline())
        assert match is not None, log.read_text() if log.is_file() else "the server does not start"
        try:
            yield Running(place, match[1], process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.read()


def curl(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["curl", "-s", *arguments], capture_output=True, check=False, timeout=60)
