"""A registry under everything at once: pushes, deletions, mounts, pulls, garbage, and processes that are killed.

The law: a client of the storm does what clients do, asks before it uploads, and tries again where it is told that what
it asked for has gone meanwhile. Whatever happens, who holds the lock of those who write sees each linked blob whole.
"""

import base64
import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import exists, or_, select, text

from data import tables as db
from data.database import Engine, writing
from data.registry import content_path
from data.storage.distributed import DistributedStorage
from data.tables import now_utc
from endpoints.services import Services
from test.manifests import artifact, digest_of, index
from test.server import Running
from util.digest import Digest

USER, PASSWORD = "alice", "correct-horse"
GRACE = 2
"""Seconds for which the registry of a storm keeps what was uploaded."""

REPOSITORIES = ("alice/one", "alice/two", "alice/three")
TAGS = ("a", "b", "c")
_TRIES = 20
_QUICK = GRACE / 8
"""Seconds of a try that is too short for each of its blobs to have been let go."""

_COLLECTOR = """
import json, os, sys, time
from data import strays
from endpoints.collector import collector_of
from endpoints.services import operators_services

strays.STRAY_SECONDS = 0.2
services = operators_services(json.loads(os.environ["TEST_CONFIGURATION"]))
while True:
    report = collector_of(services, search=True).collect()
    for failure in report.failures:
        print(failure, flush=True)
    for finding in report.dropped:
        print(finding.reason, finding.what, file=sys.stderr, flush=True)
    time.sleep(0.05)
"""


class Cut(Exception):
    """A server died under a request."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def codes(self) -> set[str]:
        return {error["code"] for error in json.loads(self.body)["errors"]}


def allowed(url: str) -> str:
    """Return a token for everything that is done here; a process that has just started need not know the password."""
    basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    scopes = "&".join(f"scope=repository:{name}:pull,push,delete" for name in REPOSITORIES)
    answer = ask(url, "GET", f"/v2/auth?service=storm&{scopes}", authorization=f"Basic {basic}")
    return f"Bearer {json.loads(answer.body)['token']}"


def ask(url: str, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """Return the answer. Raises Cut."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    host = urlsplit(url)
    with closing(http.client.HTTPConnection(host.hostname or "", host.port, timeout=60)) as connection:
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        except (http.client.HTTPException, ConnectionError) as error:
            raise Cut(str(error)) from error


@dataclass
class Client:
    """Somebody who uses the registry at `url` as long as `over` is not set. What should not be is in `wrong`."""

    url: str
    seed: int
    over: threading.Event
    blobs: list[bytes]
    token: str
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def run(self) -> None:
        while not self.over.is_set() and not self.wrong:
            act = self.chance.choice(
                (self.push, self.push, self.push_index, self.pull, self.pull, self.delete, self.delete, self.delete)
            )
            try:
                act(self.chance.choice(REPOSITORIES), self.chance.choice(TAGS))
            except (Cut, TimeoutError) as error:
                self.done[type(error).__name__.lower()] += 1
                time.sleep(0.05)
            except AssertionError as error:
                self.wrong.append(f"{act.__name__}: {error}")

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        answer = ask(self.url, method, path, body, authorization=self.token, **headers)
        assert answer.status < 500, (method, path, answer.status, answer.body[:500])
        return answer

    # --- What clients do ---

    def push(self, repository: str, tag: str) -> None:
        files = self.chance.sample(self.blobs, self.chance.randrange(1, 5))
        self._push(repository, tag, artifact("application/x-storm", *files), [b"{}", *files])
        self.done["push"] += 1

    def push_index(self, repository: str, tag: str) -> None:
        for _ in range(_TRIES):
            children = []
            for _ in range(2):
                files = self.chance.sample(self.blobs, 2)
                children.append(artifact("application/x-storm", *files))
                self._push(repository, digest_of(children[-1]), children[-1], [b"{}", *files])
            if self._put_manifest(repository, tag, index(children)):
                self.done["index"] += 1
                return
            self.done["index again"] += 1

    def _push(self, repository: str, reference: str, manifest: bytes, blobs: list[bytes]) -> None:
        tries = 0
        while tries < _TRIES:
            begun = time.monotonic()
            for blob in blobs:
                if self.ask("HEAD", f"/v2/{repository}/blobs/{digest_of(blob)}").status != 200:
                    self._upload(repository, blob)
            if self._put_manifest(repository, reference, manifest):
                return
            self.done["again"] += 1
            if self.over.is_set():
                raise Cut("the storm is over")
            # On a machine that has much else to do, what was there may be gone by right when the manifest comes.
            tries += time.monotonic() - begun < _QUICK
        raise AssertionError(f"{_TRIES} times something that had just been there was gone")

    def _put_manifest(self, repository: str, reference: str, manifest: bytes) -> bool:
        """Push a manifest, and tell whether all was there that it names."""
        media_type = json.loads(manifest)["mediaType"]
        answer = self.ask("PUT", f"/v2/{repository}/manifests/{reference}", manifest, Content_Type=media_type)
        if answer.status == 400 and answer.codes == {"MANIFEST_BLOB_UNKNOWN"}:
            return False
        assert answer.status == 201, (answer.status, answer.body)
        return True

    def _upload(self, repository: str, blob: bytes) -> None:
        digest = digest_of(blob)
        uploads = f"/v2/{repository}/blobs/uploads/"
        how = self.chance.choice(("mount", "single", "put", "patch"))
        query = ""
        if how == "mount":
            query = f"?mount={digest}&from={self.chance.choice(REPOSITORIES)}"
        elif how == "single":
            query = f"?digest={digest}"
        answer = self.ask("POST", uploads + query, blob if how == "single" else b"")
        if answer.status == 201:
            self.done[how] += 1
            return
        assert answer.status == 202, (how, answer.status, answer.body)
        location = answer.headers["location"]
        if how == "patch":
            half = len(blob) // 2
            answer = self.ask("PATCH", location, blob[:half], Content_Range=f"0-{half - 1}") if half else answer
            assert answer.status == 202, (answer.status, answer.body)
            location, blob = answer.headers["location"], blob[half:]
        answer = self.ask("PUT", f"{location}{'&' if '?' in location else '?'}digest={digest}", blob)
        assert answer.status == 201, (how, answer.status, answer.body)
        self.done["put"] += 1

    def pull(self, repository: str, tag: str) -> None:
        """Pull an image. A blob of it may be gone only when the image is."""
        for _ in range(_TRIES):
            answer = self.ask("GET", f"/v2/{repository}/manifests/{tag}")
            if answer.status == 404 or self._has_all(repository, answer):
                self.done[f"pull {answer.status}"] += 1
                return
            self.done["pull again"] += 1
        raise AssertionError(f"{_TRIES} times {repository}:{tag} was there and its blobs were not")

    def _has_all(self, repository: str, answer: Answer) -> bool:
        assert answer.status == 200, (answer.status, answer.body)
        assert digest_of(answer.body) == answer.headers["docker-content-digest"]
        document = json.loads(answer.body)
        for entry in document.get("manifests", []):
            child = self.ask("GET", f"/v2/{repository}/manifests/{entry['digest']}")
            if child.status == 404 or not self._has_all(repository, child):
                return False
        for entry in [*([document["config"]] if "config" in document else []), *document.get("layers", [])]:
            blob = self.ask("GET", f"/v2/{repository}/blobs/{entry['digest']}")
            if blob.status == 307:
                continue  # the storage's own answer; that the object is there, is seen under the lock
            if blob.status == 404:
                return False
            assert blob.status == 200, (blob.status, blob.body)
            assert digest_of(blob.body) == entry["digest"]
        return True

    def delete(self, repository: str, tag: str) -> None:
        if self.chance.random() < 0.5:
            found = self.ask("HEAD", f"/v2/{repository}/manifests/{tag}")
            tag = found.headers.get("docker-content-digest", tag)
        answer = self.ask("DELETE", f"/v2/{repository}/manifests/{tag}")
        assert answer.status in (202, 404, 405), (answer.status, answer.body)
        self.done[f"delete {answer.status}"] += 1


# --- What has to be true ----------------------------------------------------------------------------------------------


def broken_blobs(engine: Engine, storage: DistributedStorage) -> list[str]:
    """Return what is linked and not whole, as it is seen under the lock."""
    blob = db.ImageStorage
    with writing(engine) as connection:
        linked = or_(
            exists().where(db.ManifestBlob.blob_id == blob.id),
            exists().where(db.UploadedBlob.blob_id == blob.id, db.UploadedBlob.expires_at > now_utc()),
        )
        wrong = []
        for checksum in connection.scalars(select(blob.content_checksum).where(linked)):
            digest = Digest.parse(checksum or "")
            try:
                with closing(storage.preferred.open(content_path(digest))) as stream:
                    content = b"".join(iter(lambda: stream.read(1 << 20), b""))
            except Exception as error:  # noqa: BLE001 told
                wrong.append(f"{digest}: {error}")
                continue
            if Digest.of(content) != digest:
                wrong.append(f"{digest} has other bytes")
        return wrong


@contextlib.contextmanager
def collecting(configuration: Mapping[str, object], folder: Path, number: int) -> Iterator["Collectors"]:
    """Have `number` processes collect garbage all the time."""
    collectors = Collectors(configuration, folder)
    try:
        for _ in range(number):
            collectors.start()
        yield collectors
    finally:
        for process in collectors.processes:
            process.kill()
            process.wait()


class Collectors:
    """Processes that collect."""

    def __init__(self, configuration: Mapping[str, object], folder: Path) -> None:
        self._environment = {**os.environ, "TEST_CONFIGURATION": json.dumps(configuration)}
        self._seen = 0
        self.failures, self.log = folder / "failures", folder / "collected"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        with self.failures.open("ab") as failures, self.log.open("ab") as log:
            command = [sys.executable, "-c", _COLLECTOR]
            self.processes.append(subprocess.Popen(command, env=self._environment, stdout=failures, stderr=log))

    def reasons(self) -> Counter[str]:
        """Return why what was collected went, and how often."""
        return Counter(line.split()[0] for line in self.log.read_text().splitlines() if line)

    def kill(self, chance: random.Random) -> None:
        """Kill one, and start another; but none where nothing was collected since the last one was killed."""
        assert all(each.poll() is None for each in self.processes), self.log.read_text()[-2000:]
        seen = self.reasons().total()
        if seen == self._seen:
            return
        self._seen = seen
        process = self.processes.pop(chance.randrange(len(self.processes)))
        process.kill()
        process.wait()
        self.start()


class Workers:
    """The processes of a server that answer `clients`."""

    def __init__(self, server: Running, clients: list[Client]) -> None:
        self._server, self._clients, self._seen = server, clients, 0

    def kill(self, chance: random.Random) -> None:
        """Kill one, and the server starts another; but none where clients came to nothing since the last one."""
        seen = done_by(self._clients)["push"]
        workers = self._server.workers()
        if workers and seen > self._seen:
            self._seen = seen
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(workers), signal.SIGKILL)


def done_by(clients: list[Client]) -> Counter[str]:
    return sum((Counter(client.done) for client in clients), Counter[str]())  # copies: they go on counting


def forget_at_once(services: Services) -> None:
    """Have no tag's past be kept."""
    with writing(services.engine) as connection:
        connection.execute(text('UPDATE "user" SET removed_tag_expiration_s = 0'))
