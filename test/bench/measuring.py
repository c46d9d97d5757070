"""How the benchmark measures: whole processes, as a shell would start them, in turns, and the median counts."""

import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

WORK = Path("var/bench").absolute()
MIB = 1 << 20
_LOOK_SECONDS = 0.01  # between two looks at how much memory a process has had
PROGRAM = str(Path(sys.executable).with_name("registry-verbs"))


@dataclass(frozen=True, slots=True)
class Run:
    """One process: seconds from its start to its end, and the most memory it had (MiB), but for its last moment."""

    seconds: float
    peak: float


@dataclass(slots=True)
class Row:
    """One line of the table. `limit` is what `seconds` is divided by; `target` is the most that the ratio may be."""

    what: str
    seconds: float = 0.0
    limit: float | None = None
    target: float | None = None
    peak: float | None = None
    peak_target: float | None = None
    first_byte: float | None = None
    first_byte_target: float | None = None
    runs: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        return self.seconds / self.limit if self.limit else None

    @property
    def verdict(self) -> str:
        pairs = [(self.ratio, self.target), (self.peak, self.peak_target), (self.first_byte, self.first_byte_target)]
        judged = [value <= most for value, most in pairs if value is not None and most is not None]
        return "" if not judged else "pass" if all(judged) else "miss"


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to measure: `run` does it once; `first_byte` tells how long its first byte takes."""

    row: Row
    run: Callable[[], Run]
    first_byte: Callable[[], float] | None = None
    once: bool = False
    """What tells the same after one run: peers, and compressions whose cost another row shows."""


def measure(command: Sequence[str], environment: Mapping[str, str] | None = None, *, stdin: Path | None = None) -> Run:
    """Run a process to its end; its output goes nowhere. Raises CalledProcessError."""
    with open(stdin or os.devnull, "rb") as source:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=source,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        with _watching(process.pid) as peaks:
            process.wait()
            seconds = time.perf_counter() - start
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Run(seconds, max(peaks))


@contextmanager
def _watching(pid: int) -> Iterator[list[float]]:
    """Collect the most memory that a process has had so far, again and again: its usage at the end has ours in it."""
    peaks, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_SECONDS):
            with suppress(OSError):
                peaks.append(_peak_of(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def measure_first_byte(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Return the seconds until a process has written something; it is ended then."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
    ) as process:
        assert process.stdout is not None
        got = os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - start
        process.kill()
    if not got:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds


def take(subjects: Sequence[Subject], runs: int) -> None:
    """Measure all `subjects` in turns and leave the medians in their rows; the first, the limit, warms the cache."""
    subjects[0].run()
    for turn in range(1, runs + 1):
        for subject in subjects:
            if subject.once and turn != 1:
                continue
            try:
                done = subject.run()
            except subprocess.CalledProcessError as error:
                raise SystemExit(f"{subject.row.what}: {' '.join(error.cmd)} exits with {error.returncode}") from None
            subject.row.runs.append(done.seconds)
            subject.row.peak = max(done.peak, subject.row.peak or 0)
            say(f"  {turn}/{runs} {subject.row.what}: {done.seconds:.2f} s", end="\r")
    for subject in subjects:
        subject.row.seconds = statistics.median(subject.row.runs)
        if subject.first_byte:
            first = subject.first_byte
            subject.row.first_byte = statistics.median(first() for _ in range(3))


def say(text: str, end: str = "\n") -> None:
    """Tell of the progress, on a terminal only when it is overwritten at once."""
    if end == "\n" or sys.stderr.isatty():
        print(f"{text:78}", end=end, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Server:
    """Gunicorn on loopback, with one worker, so that a request finds it idle and warm."""

    process: subprocess.Popen[bytes]
    port: int

    def url(self, image: str, verb: str, compression: str, tag: str = "1") -> str:
        return f"http://127.0.0.1:{self.port}/c1/{verb}/bench/{image}/{tag}?compression={compression}"

    def run(self, image: str, verb: str, compression: str) -> Run:
        for pid in self._processes():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew: proc_pid_clear_refs(5)
        seconds, _ = fetch(self.url(image, verb, compression))
        return Run(seconds, max(map(_peak_of, self._processes())))

    def first_byte(self, image: str, verb: str, compression: str) -> float:
        return fetch(self.url(image, verb, compression))[1]

    def _processes(self) -> list[int]:
        return [self.process.pid, *_below(self.process.pid)]


def fetch(url: str, *options: str) -> tuple[float, float]:
    """Return the seconds that curl takes for `url`, and those to the first byte."""
    command = ["curl", "-fsS", "-o", "/dev/null", "-w", "%{time_total} %{time_starttransfer}", *options, url]
    done = subprocess.run(command, capture_output=True, check=True)
    total, first = map(float, done.stdout.split())
    return total, first


def _below(pid: int) -> Iterator[int]:
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        yield child
        yield from _below(child)


def _peak_of(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


@contextmanager
def serving(environment: Mapping[str, str], *, workers: int = 1) -> Iterator[Server]:
    port = free_port()
    command = [PROGRAM, "serve", "--port", str(port), "--workers", str(workers)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
    ) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/c1/_internal_ping")
            yield Server(process, port)
        finally:
            process.send_signal(signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_for(url: str) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"{url} does not answer")
