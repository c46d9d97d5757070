"""Servers for tests: `registry-verbs serve` as a process of its own, with its log where a test can read it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from test.place import Place
from test.waiting import eventually


@dataclass(frozen=True)
class Running:
    """A place and the server that serves it. `log` and `output` are what it writes to stderr and stdout."""

    place: Place
    url: str
    process: "subprocess.Popen[bytes]"
    log: Path
    output: Path

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
    # Files: a server whose output nobody reads would stand still as soon as a pipe is full.
    output = Path(tempfile.mkdtemp(dir=place.folder)) / "output"
    log = output.with_name("log") if log is None else log
    with log.open("ab") as stderr, output.open("wb") as stdout:
        process = subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr)
    try:
        running = Running(place, _listening(process, output, log), process, log, output)
        eventually(lambda: len(running.workers()) >= workers)  # it listens before it has them
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _listening(process: "subprocess.Popen[bytes]", output: Path, log: Path) -> str:
    """Return the URL of a server once it has told it."""
    while True:
        match = re.match(r"Listening on (http://127\.0\.0\.1:\d+) .*\n", output.read_text())
        if match is not None:
            return match[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)


def curl(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["curl", "-s", *arguments], capture_output=True, check=False, timeout=300)
