"""Derived images that are made once, whatever fails: real servers, real clients, real kills.

The law: no client is ever handed a wrong byte, nor takes a part for the whole; of any number that ask at once one has
the image written; and when all is over nothing is left but what is whole.
"""

import contextlib
import os
import resource
import signal
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from threading import Semaphore

import pytest

from test import faults
from test.databases import database_uri, postgresql_server
from test.faults import (
    LEASE_SECONDS,
    SHORT_LEASES,
    Clients,
    Got,
    Site,
    collect,
    fetch,
    get,
    kill,
    left_behind,
    let_time_pass,
    stand_still,
    wait_until,
)
from test.proxy import Proxy, proxy
from test.s3server import s3_client, s3_server
from test.storm import Storm

SIZE = 11 << 20
NAMES = ("acme/one:1.0", "acme/two:1.0")
IMAGES = {name: faults.noise(name, SIZE) for name in NAMES}
PATHS = ("/c1/rootfs/acme/one/1.0?compression=none", "/c1/squash/acme/two/1.0?compression=zstd")
PLAIN, PACKED = PATHS


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return faults.right_bytes(tmp_path_factory.mktemp("right") / "place", IMAGES, PATHS)


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A registry with the images, on two servers: of one machine with SQLite, of two with PostgreSQL."""
    with on(request.param, tmp_path) as site:
        yield site


@contextlib.contextmanager
def on(kind: str, folder: Path) -> Iterator[Site]:
    if kind == "sqlite":
        with filled(Site(folder)) as site:
            yield site
        return
    with database_uri(kind, folder) as uri, filled(Site(folder, uri)) as site:
        yield site


@contextlib.contextmanager
def filled(site: Site) -> Iterator[Site]:
    with contextlib.closing(site):
        for name, image in IMAGES.items():
            site.push(name, image)
        yield site


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Site]:
    """A registry on SQLite."""
    with filled(Site(tmp_path)) as site:
        yield site


def clean(site: Site, *, gc: bool = False) -> None:
    """Check that nothing is left behind, with `gc` after a time and a collection on each host."""
    if gc:
        let_time_pass(site)
        for host in range(2):
            collect(site, host)
    end = time.monotonic() + 60  # a making ends after the last byte that it sends
    while (left := left_behind(site)) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == []


def whole(answers: Iterable[list[Got]]) -> bool:
    """Tell whether every client has come to the image, by tries that were all right as far as they went."""
    return all(tries[-1].whole and all(got.right for got in tries) for tries in answers)


def nothing_runs(url: str) -> bool:
    with urllib.request.urlopen(url) as answer:
        return b"registry_verbs_makings_running 0.0\n" in answer.read()


@pytest.mark.parametrize("path", PATHS)
def test_of_16_clients_at_once_one_has_the_image_written_and_all_get_it(
    site: Site, right: dict[str, bytes], path: str
) -> None:
    site.orders.slow(0.02)
    with site.served() as fleet:
        urls = fleet.urls(path)
        with Clients([partial(get, urls[at % len(urls)], right[path]) for at in range(16)]) as clients:
            answers = clients.results()
        assert all(got.status == 200 and got.whole and got.right for got in answers)
        wait_until(lambda: site.orders.noted()["commit"])
        assert site.orders.noted() == {"create": 1, "commit": 1}
        assert all(get(url, right[path]).whole for url in urls)
        assert site.orders.noted() == {"create": 1, "commit": 1}
    (record,) = faults.records(site)
    assert (record.size, record.attempts) == (len(right[path]), 1)
    clean(site)


def test_when_the_writer_is_killed_another_goes_on_and_all_get_the_image(site: Site, right: dict[str, bytes]) -> None:
    path = PACKED if site.database is None else PLAIN
    site.orders.hold(SIZE // 4)
    with site.served() as fleet:
        urls = fleet.urls(path)
        with Clients([partial(fetch, urls[at % len(urls) :] + urls, right[path]) for at in range(16)]) as clients:
            wait_until(lambda: fleet.made() > SIZE // 4)
            (writer,) = fleet.makers()
            host = fleet.host_of(writer)
            kill(writer)
            site.orders.release()
            answers = clients.results()
        assert whole(answers)
        # Who was answered by another server was not even interrupted.
        assert all(len(tries) == 1 for at, tries in enumerate(answers) if at % 2 != host)
        wait_until(lambda: get(urls[0], right[path]).whole and faults.records(site)[0].state == "complete")
    clean(site, gc=True)


def test_a_client_at_10_kb_a_second_slows_nobody_and_takes_no_memory(
    alone: Site, right: dict[str, bytes], tmp_path: Path
) -> None:
    site = alone
    with site.served() as fleet:
        urls = fleet.urls(PLAIN)
        for url in urls:
            get(url + "&platform=none/none", b"")
        before = {pid: faults.memory(pid) for pid in fleet.workers()}
        slow = [
            subprocess.Popen(["curl", "-s", "--limit-rate", "10k", "-o", tmp_path / f"slow{at}", urls[0]])
            for at in range(3)
        ]
        stalling = Clients([partial(get, urls[0], right[PLAIN], stall=4)])
        with Clients([partial(get, urls[at % len(urls)], right[PLAIN]) for at in range(12)]) as clients:
            assert all(got.whole and got.right for got in clients.results())
        wait_until(lambda: site.orders.noted()["commit"])
        parts = [tmp_path / f"slow{at}" for at in range(3)]
        wait_until(lambda: all(part.exists() and part.stat().st_size for part in parts))
        assert [process.poll() for process in slow] == [None] * 3  # by far not done yet
        for process in slow:
            process.kill()
            process.wait()
        for part in parts:
            assert right[PLAIN].startswith(part.read_bytes())
        with stalling:
            (got,) = stalling.results()
            assert got.whole
            assert got.right
        assert max(faults.memory(pid) - size for pid, size in before.items()) < 64 << 20
        assert site.orders.noted() == {"create": 1, "commit": 1}
    clean(site)


def test_what_clients_who_leave_at_once_began_is_kept(site: Site, right: dict[str, bytes]) -> None:
    site.orders.slow(0.01)
    with site.served() as fleet:
        urls = fleet.urls(PACKED)
        with Clients(
            [
                partial(get, urls[at % len(urls)], right[PACKED], leave_after=at % 3, reset=at % 4 > 1)
                for at in range(16)
            ]
        ) as clients:
            assert all(got.right and not got.whole for got in clients.results())
        wait_until(lambda: site.orders.noted()["commit"])
        assert site.orders.noted() == {"create": 1, "commit": 1}
        assert get(urls[0], right[PACKED]).whole
    clean(site)


@pytest.mark.parametrize("step", ["create", "write", "commit", "late"])
def test_a_storage_that_fails_costs_no_client_a_byte_and_keeps_nothing(
    alone: Site, right: dict[str, bytes], step: str
) -> None:
    site = alone
    site.orders.slow(0.01)
    site.orders.give(step, 5)
    with site.served() as fleet:
        urls = fleet.urls(PLAIN)
        with Clients([partial(get, urls[at % len(urls)], right[PLAIN]) for at in range(16)]) as clients:
            assert all(got.whole and got.right for got in clients.results())
        site.orders.slow(0)
        wait_until(lambda: get(urls[0], right[PLAIN]).whole and faults.records(site)[0].state == "complete")
        assert site.orders.noted()["commit"] == (2 if step == "late" else 1)
    clean(site)


def test_a_disk_that_takes_no_more_costs_no_client_a_byte(tmp_path: Path, right: dict[str, bytes]) -> None:
    """No file may grow beyond a third of the image; that fails as a full disk does, in the middle of a write."""
    with filled(Site(tmp_path)) as site, site.served() as fleet:
        url = fleet.urls(PLAIN)[0]
        for pid in fleet.workers():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (SIZE // 3, resource.RLIM_INFINITY))
        with Clients([partial(get, url, right[PLAIN]) for _ in range(8)]) as clients:
            assert all(got.whole and got.right for got in clients.results())
        wait_until(lambda: faults.records(site)[0].state == "failed")
        assert "File too large" in str(faults.records(site)[0].reason)
        for pid in fleet.workers():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert get(url, right[PLAIN]).whole
        wait_until(lambda: faults.records(site)[0].state == "complete")
        clean(site)


@contextlib.contextmanager
def on_s3(folder: Path) -> Iterator[tuple[Site, Proxy]]:
    """Give a registry in a bucket, behind a proxy."""
    bucket = f"registry-{uuid.uuid4().hex}"  # all servers in this process are one
    with s3_server() as url, proxy(url) as passing:
        with contextlib.closing(s3_client(url)) as client:
            client.create_bucket(Bucket=bucket)
        inner = {
            "s3_bucket": bucket,
            "s3_access_key": "key",
            "s3_secret_key": "secret",
            "s3_region": "us-east-1",
            "endpoint_url": passing.url,
            "minimum_chunk_size_mb": 5,
        }
        with filled(Site(folder, inner=["S3Storage", inner])) as site:
            yield site, passing


@pytest.mark.parametrize("refusal", ["refuse", "cut"])
def test_an_s3_that_fails_on_a_part_costs_no_client_a_byte_and_keeps_nothing(
    tmp_path: Path, right: dict[str, bytes], refusal: str
) -> None:
    with on_s3(tmp_path) as (site, passing), site.served() as fleet:
        url = fleet.urls(PLAIN)[0]
        passing.refuses = lambda method, target: refusal if method == "PUT" and "partNumber=2" in target else None
        with Clients([partial(get, url, right[PLAIN]) for _ in range(16)]) as clients:
            assert all(got.whole and got.right for got in clients.results())
        wait_until(lambda: faults.records(site)[0].state == "failed")
        passing.refuses = lambda _, __: None
        clean(site)
        assert get(url, right[PLAIN]).whole
        wait_until(lambda: faults.records(site)[0].state == "complete")
        clean(site)


def test_an_upload_to_s3_whose_writer_is_killed_is_given_back(tmp_path: Path, right: dict[str, bytes]) -> None:
    with on_s3(tmp_path) as (site, _), site.served() as fleet:
        site.orders.hold(SIZE * 2 // 3)
        url = fleet.urls(PLAIN)[0]
        with Clients([partial(fetch, [url], right[PLAIN]) for _ in range(8)]) as clients:
            wait_until(lambda: fleet.made() > SIZE * 2 // 3)
            (maker,) = fleet.makers()
            kill(maker)
            site.orders.release()
            assert whole(clients.results())
        wait_until(lambda: faults.records(site)[0].state == "complete")
        assert site.services.storage.preferred.sweep(older_than=0) == 1
        let_time_pass(site)
        collect(site)
        clean(site)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_database_that_is_restarted_in_the_middle_costs_no_client_a_byte(
    tmp_path: Path, right: dict[str, bytes], mode: str
) -> None:
    with (
        postgresql_server() as server,
        filled(Site(tmp_path, server.uri, more=SHORT_LEASES)) as site,
        site.served() as fleet,
    ):
        site.orders.slow(0.05)
        site.orders.hold(SIZE // 4)
        urls, begun = fleet.urls(PLAIN), Semaphore(0)
        asking = [partial(fetch, urls[at % 2 :] + urls, right[PLAIN], begun=begun.release) for at in range(16)]
        with Clients(asking) as clients:
            for _ in asking:  # who came later could be the first to take the lease that has run out
                assert begun.acquire(timeout=180)
            server.stop(mode)
            refused = [get(url, right[PLAIN]) for url in urls]
            site.orders.release()
            time.sleep(LEASE_SECONDS)
            server.start()
            answers = clients.results()
        assert whole(answers)
        # What had begun came to its end; only who came when there was no database was told to come again.
        assert [len(tries) for tries in answers] == [1] * 16
        assert {got.status for got in refused} == {503}
        wait_until(lambda: site.orders.noted()["commit"])
        wait_until(lambda: faults.records(site)[0].state == "complete")
        site.orders.slow(0)
        assert all(get(url, right[PLAIN]).whole for url in urls)
        assert site.orders.noted() == {"create": 1, "commit": 1}
        clean(site)


def test_a_writer_that_stands_still_loses_its_lease_and_drops_what_it_had(site: Site, right: dict[str, bytes]) -> None:
    site.orders.hold(SIZE // 4)
    with site.served() as fleet:
        urls = fleet.urls(PLAIN)
        with Clients([partial(fetch, urls[at % len(urls) :] + urls, right[PLAIN]) for at in range(8)]) as clients:
            wait_until(lambda: fleet.made() > SIZE // 4)
            (writer,) = fleet.makers()
            stand_still(site, writer)
            site.orders.release()

            def taken_over() -> bool:
                assert get(urls[0], right[PLAIN], timeout=5).right  # it may be the one that stands still who is asked
                return site.orders.noted()["commit"] > 0

            wait_until(taken_over, what="nobody takes the lease over")
            os.kill(writer, signal.SIGCONT)
            answers = clients.results()
        assert whole(answers)
        wait_until(lambda: not fleet.makers())
        assert [record.state for record in faults.records(site)] == ["complete"]
    clean(site)


def test_an_image_that_is_deleted_while_it_is_made_is_not_stored(alone: Site, right: dict[str, bytes]) -> None:
    site = alone
    site.orders.hold(SIZE // 2)
    with site.served() as fleet:
        urls, begun = fleet.urls(PLAIN), Semaphore(0)
        with Clients([partial(get, urls[at % 2], right[PLAIN], begun=begun.release) for at in range(8)]) as clients:
            for _ in range(8):  # who came later would have it made anew
                assert begun.acquire(timeout=180)
            wait_until(lambda: fleet.made() > SIZE // 2)
            (record,) = faults.records(site)
            deleted = site.services.derived.delete(record.key)
            assert deleted is not None
            assert deleted.token == record.token
            site.orders.release()  # mostly before the next beat: the maker learns it only when it is done
            assert all(got.whole and got.right for got in clients.results())
        wait_until(lambda: not fleet.makers())
    assert faults.records(site) == []
    clean(site)


def test_a_server_that_is_told_to_stop_ends_its_answers_and_leaves_nothing(
    alone: Site, right: dict[str, bytes]
) -> None:
    site = alone
    site.orders.slow(0.05)
    site.orders.hold(SIZE // 4)
    with site.served() as fleet:
        urls, begun = fleet.urls(PLAIN), Semaphore(0)
        with Clients([partial(get, urls[0], right[PLAIN], begun=begun.release) for _ in range(4)]) as clients:
            for _ in range(4):  # who came later would find nobody there
                assert begun.acquire(timeout=180)
            site.orders.release()
            assert fleet.stop(0) == 0
            assert all(got.whole and got.right for got in clients.results())
        fleet.start(0)
        site.orders.slow(1)
        get(fleet.urls(PACKED.replace("zstd", "none"))[0], b"", leave_after=1)
        wait_until(fleet.makers)
        assert fleet.stop(0) == 0  # nobody reads of it: it is given up
    assert [record.state for record in faults.records(site)] == ["complete"]
    clean(site)


def test_of_a_thousand_faults_at_random_nobody_gets_a_wrong_byte_and_nothing_is_left(tmp_path: Path) -> None:
    """`FAULTS` in the environment is another number of them, `FAULTS_SEED` has others."""
    count, seed = int(os.environ.get("FAULTS", "1000")), int(os.environ.get("FAULTS_SEED", "1"))
    sizes = (300_000, 1 << 20, 3 << 20)
    images = {f"acme/app{at}:1.0": faults.noise(f"app{at}", size) for at, size in enumerate(sizes)}
    paths = [
        f"/c1/{verb}/acme/app{at}/1.0?compression={compression}"
        for at in range(3)
        for verb, compression in (("rootfs", "none"), ("squash", "zstd"))
    ]
    right = faults.right_bytes(tmp_path / "right", images, paths)
    with postgresql_server() as server, contextlib.closing(Site(tmp_path, server.uri, more=SHORT_LEASES)) as site:
        for name, image in images.items():
            site.push(name, image)
        site.orders.slow(0.02)
        with site.served() as fleet:
            storm = Storm(site, fleet, server, right, count=count, seed=seed)
            storm.rage(count * 2 + 60)
            assert storm.total() == count
            assert [got for got in storm.answers if not got.right] == []
            assert {got.status for got in storm.answers} <= {0, 200, 206, 503}  # 0: the connection broke before a word
            # When it is over all is as if nothing had been.
            for path in paths:
                for url in fleet.urls(path):
                    assert whole([fetch([url], right[path])])
            wait_until(lambda: {record.state for record in faults.records(site)} == {"complete"})
            assert len(faults.records(site)) == len(paths)
            for url in fleet.urls("/metrics"):
                wait_until(partial(nothing_runs, url))  # a making is counted out after its row is complete
        clean(site, gc=True)
