"""What is measured of serving: kept images against nginx, small answers, several images at once, a download resumed.

The law: all over HTTP on loopback, with curl, as a client would have it; nginx serves the very file that we keep.
"""

import os
import shutil
import socket
import statistics
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from test.bench.measuring import PROGRAM, WORK, Server, fetch, free_port, say, serving, wait_for
from test.bench.merging import place

KEPT = WORK / "kept"
TAGS = ("1", "2", "3", "4")
RESUME_AT = 0.9
SECONDS = 3.0
CONNECTIONS = 8


def measure_serving(runs: int) -> dict[str, Any]:
    """Return the figures. The image is `big`; what is derived at once is `many`."""
    _prepare()
    figures: dict[str, Any] = {}
    with serving({"VERBS_DATA_DIR": str(KEPT)}, workers=2) as server:
        url = server.url("big", "rootfs", "none")
        fetch(url)
        kept = _kept()
        with _nginx(kept.parent) as nginx:
            ours, theirs = [], []
            for _ in range(runs):
                ours.append(fetch(url)[0])
                theirs.append(fetch(f"{nginx}/{kept.name}")[0])
        figures["kept"] = {
            "bytes": kept.stat().st_size,
            "seconds": statistics.median(ours),
            "nginx": statistics.median(theirs),
        }
        etag = _etag(url)
        figures["requests/s"] = {
            "HEAD": _rate(server, "HEAD", url, ""),
            "304": _rate(server, "GET", url, f"If-None-Match: {etag}\r\n"),
        }
        size = figures["kept"]["bytes"]
        resumed = f"{int(size * RESUME_AT)}-"
        figures["resume"] = {"kept": _median(lambda: fetch(url, "-r", resumed)[0], runs)}
    say("  kept images are measured")
    with serving(place("indexed"), workers=4) as server:
        url = server.url("big", "rootfs", "none")
        figures["resume"]["planned"] = _median(lambda: fetch(url, "-r", resumed)[0], runs)
        figures["resume"]["whole"] = _median(lambda: fetch(url)[0], runs)
        urls = [server.url("many", "rootfs", "none", tag) for tag in TAGS]
        figures["four images"] = {
            "in turn": _median(lambda: sum(fetch(url)[0] for url in urls), runs),
            "at once": _median(lambda: _at_once(urls), runs),
        }
    return figures


def _prepare() -> None:
    """Make a registry that keeps what is derived, and four tags for what is derived at once."""
    shutil.rmtree(KEPT / "storage" / "verbs" / "derived", ignore_errors=True)
    (KEPT / "registry.db").unlink(missing_ok=True)
    wanted = [(KEPT, "big", "1"), *((WORK / "indexed", "many", tag) for tag in TAGS)]
    for registry, image, tag in wanted:
        subprocess.run(
            [PROGRAM, "import", f"oci:{WORK / 'images' / image}", f"bench/{image}:{tag}"],
            env={**os.environ, "VERBS_DATA_DIR": str(registry)},
            capture_output=True,
            check=True,
        )


def _kept() -> Path:
    """Return the file of the image that is kept; it comes to the disk after its last byte has been sent."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for path in (KEPT / "storage" / "verbs" / "derived").rglob("*"):
            if path.is_file():
                return path
        time.sleep(0.1)
    raise TimeoutError("the derived image is not kept")


def _median(measure: Callable[[], float], runs: int) -> float:
    return statistics.median(measure() for _ in range(runs))


def _at_once(urls: list[str]) -> float:
    start = time.perf_counter()
    clients = [subprocess.Popen(["curl", "-fsS", "-o", "/dev/null", url]) for url in urls]
    if any(client.wait() for client in clients):
        raise SystemExit("a download of several at once failed")
    return time.perf_counter() - start


def _etag(url: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
        etag: str = answer.headers["ETag"]
        return etag


def _rate(server: Server, method: str, url: str, header: str) -> float:
    """Return how many requests without a body are answered a second, on several connections that stay open."""
    path = url.partition(f":{server.port}")[2]
    request = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n".encode()
    counts: list[int] = []

    def ask() -> None:
        count, end = 0, time.perf_counter() + SECONDS
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            while time.perf_counter() < end:
                connection.sendall(request)
                answer = b""
                while not answer.endswith(b"\r\n\r\n"):
                    answer += connection.recv(65536)
                count += 1
        counts.append(count)

    askers = [threading.Thread(target=ask) for _ in range(CONNECTIONS)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    return sum(counts) / SECONDS


@contextmanager
def _nginx(root: Path) -> Iterator[str]:
    """Run an nginx that serves the files in `root`, and give its URL."""
    folder, port = WORK / "nginx", free_port()
    folder.mkdir(exist_ok=True)
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"user root; daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log;\n"
        "events {}\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {folder}/body;\n"
        f"  server {{ listen 127.0.0.1:{port}; root {root}; location = /ping {{ return 204; }} }} }}\n"
    )
    command = ["nginx", "-c", str(configuration), "-p", str(folder), "-e", str(folder / "error.log")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/ping")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    kept, resume, four = figures["kept"], figures["resume"], figures["four images"]
    whole = resume["whole"]
    rows = [
        ("a kept image, against nginx with the same file", kept["seconds"], kept["nginx"] / kept["seconds"], "≥ 0.8"),
        ("resumed at 90 %, kept", resume["kept"], resume["kept"] / whole, ""),
        ("resumed at 90 %, from the plan", resume["planned"], resume["planned"] / whole, ""),
        (
            "four images at once, by four workers, against in turn",
            four["at once"],
            four["at once"] / four["in turn"],
            "",
        ),
    ]
    lines = [
        "",
        f"**serving**: `rootfs` of big ({kept['bytes'] / (1 << 20):.0f} MiB), `rootfs` of many",
        "",
        "| | seconds | ratio | |",
        "|---|---:|---:|---|",
        *(f"| {what} | {seconds:.2f} | {ratio:.2f} | {most} |" for what, seconds, ratio, most in rows),
        "",
        "Answers a second, two workers: "
        + ", ".join(f"{what} {rate:.0f}" for what, rate in figures["requests/s"].items()),
    ]
    return "\n".join(lines)
