"""Makings that stop where a test wants them to, in this process or in one that can be killed.

`python -m test.makers FOLDER SETTINGS VERB AT` makes the image acme/app:1.0 of the Place in FOLDER, says `reached`
after AT bytes, goes on when it reads a line, and says `made` and the bytes' SHA-256 at the end.
"""

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from endpoints.derive import DerivedImage, Deriver, Wish
from endpoints.making import Makings, Stored
from endpoints.streams import Chunks, Stream, close
from test.place import Place


class Gate:
    """Holds every generation after `at` bytes until it is opened, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.generations = 0
        self.reached, self.opened = threading.Event(), threading.Event()

        generate = Deriver.generate

        def generating(deriver: Deriver, image: DerivedImage) -> Stream:
            self.generations += 1
            return held(generate(deriver, image), at, self._wait)

        monkeypatch.setattr(Deriver, "generate", generating)

    def _wait(self) -> None:
        self.reached.set()
        assert self.opened.wait(30)


def held(stream: Stream, at: int, wait: Callable[[], None]) -> Stream:
    """Return `stream`, with `wait` called where `at` bytes have been passed on."""
    return Stream(_held(stream.chunks, at, wait), stream.size)


def _held(chunks: Chunks, at: int, wait: Callable[[], None]) -> Chunks:
    passed = 0
    try:
        for chunk in chunks:
            if passed < at <= passed + len(chunk):
                yield chunk[: at - passed]
                wait()
                yield chunk[at - passed :]
            else:
                yield chunk
            passed += len(chunk)
    finally:
        close(chunks)


@contextlib.contextmanager
def making(place: Place, verb: str, at: int) -> Iterator["subprocess.Popen[str]"]:
    """Give a process that has made `at` bytes of acme/app:1.0; whatever becomes of it, it ends with the block."""
    command = [sys.executable, "-m", "test.makers", str(place.folder), json.dumps(dict(place.more)), verb, str(at)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "reached\n"
            yield process
        finally:
            process.kill()


def go_on(process: "subprocess.Popen[str]") -> str:
    """Let it go on, and return what it says then."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def _terminated(*_: object) -> NoReturn:
    sys.exit(0)


def main(folder: str, settings: str, verb: str, at: str) -> None:
    def wait() -> None:
        print("reached", flush=True)
        reading = threading.Thread(target=sys.stdin.readline, daemon=True)
        reading.start()
        reading.join()

    generate = Deriver.generate
    setattr(Deriver, "generate", lambda deriver, image: held(generate(deriver, image), int(at), wait))  # noqa: B010
    signal.signal(signal.SIGTERM, _terminated)
    services = Place(Path(folder), json.loads(settings)).services()
    makings = Makings(services)
    image = Deriver(services).resolve(Wish(verb, "acme", "app", "1.0"))
    try:
        serving = makings.open(image, asked_by="another process")
        assert not isinstance(serving, Stored)
        hasher = hashlib.sha256()
        for chunk in serving.chunks:
            hasher.update(chunk)
        print("made", hasher.hexdigest(), flush=True)
    finally:
        makings.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
