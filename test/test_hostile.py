"""Images that mean harm, pushed to a real server and asked for: each has its answer, in bounded memory and work.

The memory is that of the server and of all its processes, at its highest for each image; the work is processor time,
so a machine that is busy with something else changes nothing.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from test.faults import memory
from test.hostileimages import IMAGES, Hostile, config_of, manifest_of, packed
from test.images import MANIFEST
from test.server import Running, served
from test.test_pushing import Client, a_place

MEMORY = 900 << 20
"""Bytes that a server with one worker may take, whatever is pushed to it."""
SECONDS = 120
"""Of processor time, for one image; ten times what the slowest takes here."""

FIGURES = os.environ.get("HOSTILE_FIGURES")
"""A file that what each image took is written to, a line each."""

_TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = a_place(tmp_path_factory.mktemp("hostile"), {"VERBS_REGISTRY": "own"})
    with served(place, workers=1) as running:
        yield running


def processes(pid: int) -> list[int]:
    """Return the process and all that it has begun, and they."""
    found = [pid]
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += processes(int(child))
    return found


def seconds(pid: int) -> float:
    """Return the processor time that a process has taken, and those that it has begun and waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def forget_peaks(running: Running) -> None:
    for pid in processes(running.process.pid):
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): resets VmHWM


def used(running: Running) -> float:
    return sum(seconds(pid) for pid in processes(running.process.pid))


def pushed(client: Client, image: Hostile) -> None:
    """Push all that makes the image. That has to work, whatever it is."""
    blobs = [packed(tar) for tar in image.tars]
    config = config_of(image, blobs)
    for content in (*(blob.content for blob in blobs), config):
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        answer = client.ask("POST", f"blobs/uploads/?digest={digest}", data=content)
        assert answer.status_code == 201, answer.text
    manifest = manifest_of(image, blobs, config)
    answer = client.ask("PUT", f"manifests/{image.name}", data=manifest, headers={"Content-Type": MANIFEST})
    assert answer.status_code == 201, answer.text


def asked(client: Client, path: str) -> tuple[int, int, Any]:
    """Return the status of an answer, how many bytes it has, and the error it tells, if it does."""
    answer = client.ask("GET", path, stream=True)
    if answer.status_code == requests.codes.ok:
        return answer.status_code, sum(map(len, answer.iter_content(1 << 20))), None
    return answer.status_code, len(answer.content), answer.json()["errors"][0]


@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_an_image_that_means_harm_has_its_answer_and_does_none(running: Running, image: Hostile) -> None:
    worker = running.workers()
    client = Client(running.url)
    forget_peaks(running)
    before = used(running)
    pushed(client, image)
    status, size, error = asked(client, f"/c1/{image.verb}/acme/app/{image.name}")
    found = None if error is None else error["code"]
    assert (status, found) == ((200, None) if image.code is None else (422, image.code)), error
    if error is not None:
        assert error["message"].isprintable()
        assert len(error["message"]) <= 2001
    assert size <= image.most
    status, _, analyzed = asked(client, f"/api/v1/analysis/acme/app/{image.name}")
    if image.verb == "rootfs":
        assert (None if analyzed is None else analyzed["code"]) == found
    assert status in (200, 422)
    took = used(running) - before
    peak = sum(memory(pid) for pid in processes(running.process.pid))
    assert running.workers() == worker, "the worker died of it"
    assert peak <= MEMORY, f"{peak >> 20} MiB"
    assert took <= SECONDS, f"{took:.1f} s"
    if FIGURES:
        line = {"image": image.name, "MiB": peak >> 20, "seconds": round(took, 1), "bytes": size}
        with Path(FIGURES).open("a") as figures:
            figures.write(json.dumps(line) + "\n")
