"""Pushes, deletions, mounts, pulls and garbage at once, and processes that are killed: nothing breaks, or is left."""

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from data import strays
from data import tables as db
from data.strays import SIGN
from endpoints.collector import collector_of
from endpoints.services import Services
from test.databases import postgresql
from test.place import Place
from test.registrystorm import (
    GRACE,
    PASSWORD,
    REPOSITORIES,
    TAGS,
    USER,
    Client,
    Collectors,
    Workers,
    allowed,
    broken_blobs,
    collecting,
    done_by,
    forget_at_once,
)
from test.s3server import s3_client, s3_server
from test.server import served

SECONDS = 10.0
LONGEST = 600.0  # on a machine that has much else to do
CLIENTS = 6


@pytest.fixture(params=["sqlite", "postgresql", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    more: dict[str, Any] = {"VERBS_GRACE_SECONDS": GRACE, "VERBS_UPLOAD_SECONDS": 60, "VERBS_GC_SECONDS": 0}
    with ExitStack() as stack:
        # Nobody is to be refused because the machine has much else to do: not for a lock, and not for a connection.
        more |= {"DB_URI": f"sqlite:///{tmp_path}/var/registry.db?timeout=300", "VERBS_REGISTRY": "own"}
        if request.param != "sqlite":
            more["DB_URI"] = f"{stack.enter_context(postgresql())}&connect_timeout=60"
        if request.param == "s3":
            url = stack.enter_context(s3_server())
            bucket = f"storm-{tmp_path.parent.name}"
            s3_client(url).create_bucket(Bucket=bucket)
            host, _, port = url.removeprefix("http://").partition(":")
            parameters = {"hostname": host, "port": int(port), "is_secure": False, "storage_path": "/registry"}
            parameters |= {"access_key": "key", "secret_key": "secret", "bucket_name": bucket}
            more["DISTRIBUTED_STORAGE_CONFIG"] = json.dumps({"default": ["RadosGWStorage", parameters]})
        yield Place(tmp_path, {name: str(value) for name, value in more.items()})


@pytest.fixture
def services(place: Place) -> Iterator[Services]:
    services = place.services()
    yield services
    for engine in (services.engine, services.own_engine):
        engine.dispose()


def test_nothing_breaks_in_a_storm_and_nothing_is_left_after_it(
    place: Place, services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.administration.create_user(USER, PASSWORD)
    forget_at_once(services)
    collector_of(services).collect()  # the storage gets its sign while there is nothing strange in it
    chance = random.Random(4)
    over = threading.Event()
    blobs = [chance.randbytes(chance.choice((1, 100, 5000, 70_000))) for _ in range(30)]
    wrong: list[str] = []
    with served(place, workers=3) as server, collecting(place.configuration, tmp_path, 2) as collectors:
        token = allowed(server.url)
        clients = [Client(server.url, seed, over, blobs, token) for seed in range(CLIENTS)]
        kills = (Workers(server, clients).kill, collectors.kill)
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        begun = time.monotonic()
        looks = 0
        while not wrong and not any(client.wrong for client in clients):
            seconds = time.monotonic() - begun
            if seconds > LONGEST or (seconds > SECONDS and _met(clients, collectors)):
                break
            wrong += broken_blobs(services.engine, services.storage)
            looks += 1
            time.sleep(chance.uniform(0, 0.4))
            if chance.random() < 0.2:  # a process takes a second or two to begin
                chance.choice(kills)(chance)
        over.set()
        for thread in threads:
            thread.join()
        wrong += broken_blobs(services.engine, services.storage)
        wrong += [said for client in clients for said in client.wrong]
        done = done_by(clients)
        print(done, f"{looks} looks under the lock")
        assert wrong == []
        assert collectors.failures.read_text() == ""
        print(collectors.reasons())
        assert _met(clients, collectors), (done, collectors.reasons())
        _all_can_be_pulled(clients[0])
        for repository in REPOSITORIES:
            for tag in TAGS:
                assert clients[0].ask("DELETE", f"/v2/{repository}/manifests/{tag}").status in (202, 404)
    _nothing_is_left(services, monkeypatch)


def _met(clients: list[Client], collectors: Collectors) -> bool:
    """Tell whether all that the storm is about has happened."""
    done = done_by(clients)
    return (
        {"untagged", "unreferenced", "ended"} <= set(collectors.reasons())
        and {"push", "index", "put", "single", "mount", "pull 200", "delete 202"} <= set(done)
        and done["push"] > 2 * CLIENTS
    )


def _all_can_be_pulled(client: Client) -> None:
    for repository in REPOSITORIES:
        for tag in TAGS:
            answer = client.ask("GET", f"/v2/{repository}/manifests/{tag}")
            assert answer.status == 404 or client._has_all(repository, answer), f"{repository}:{tag}"


def _nothing_is_left(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strays, "STRAY_SECONDS", 0)
    for repository in REPOSITORIES:  # with what was pushed by its digest alone, and no index came for
        services.administration.delete_repository(*repository.split("/"))
    for _ in range(3):
        report = collector_of(services, search=True).collect()
        assert report.failures == ()
        time.sleep(GRACE + 0.1)
    with services.engine.connect() as connection:
        tables = (db.Tag, db.Manifest, db.ManifestBlob, db.UploadedBlob, db.ImageStorage, db.Repository)
        left = {table.__tablename__: connection.scalar(select(func.count()).select_from(table)) for table in tables}
    assert left == dict.fromkeys(left, 0)
    objects = [blob.path for folder in ("sha256", "verbs") for blob in services.storage.preferred.list(folder)]
    assert [path for path in objects if not path.startswith("verbs/uploads/")] == [SIGN]
