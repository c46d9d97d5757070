"""Making once: one generation, one object, the right bytes for everybody, whatever fails and whoever dies."""

import errno
import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from data.derivedimages import DerivedImages, DerivedRecord, Lease, NewDerived, State
from data.owntables import DatabaseUnavailable
from data.storage.base import BlobNotFound, BlobWriter, StorageUnavailable
from data.storage.local import LocalStorage, _LocalWriter
from endpoints import following, maker, origins
from endpoints.derive import DerivedImage, Deriver, Wish
from endpoints.image import BlobCutShort
from endpoints.maker import Maker, MakingGivenUp, NotKept, OtherLength
from endpoints.making import Busy, BytesDiffer, How, Live, Makings, Stored, close_all
from endpoints.services import Services
from endpoints.spool import Ending, Spool
from endpoints.streams import Stream
from test.images import Image, Layer
from test.layers import file
from test.makers import Gate, go_on, making
from test.place import Place
from test.waiting import eventually
from util.problem import Damaged

LARGE = Image([Layer([file(b"noise", os.urandom(6 << 20))]), Layer([file(b"etc/hostname", b"here\n")])])
SQUASH = Wish("squash", "acme", "app", "1.0")
ROOTFS = Wish("rootfs", "acme", "app", "1.0")
HALF = 3 << 20
LEASE_SECONDS = 300
PATIENCE = 60
"""Seconds in which everything comes about however busy the machine is, and by far less than a lease lasts."""


class Here:
    """A place with an image, and the makings of one process there."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.services: Services = place.services()
        self.rows: DerivedImages = self.services.derived
        self.makings = Makings(self.services)
        self.deriver = Deriver(self.services)

    def image(self, wish: Wish = ROOTFS) -> DerivedImage:
        return self.deriver.resolve(wish)

    def right(self, wish: Wish = ROOTFS) -> bytes:
        """Return what everybody should get, made by nobody."""
        return b"".join(self.deriver.generate(self.image(wish)).chunks)

    def live(self, wish: Wish = ROOTFS) -> Live:
        serving = self.makings.open(self.image(wish))
        assert isinstance(serving, Live)
        return serving

    def fetch(self, wish: Wish = ROOTFS) -> bytes:
        return b"".join(self.makings.stream(self.image(wish)).chunks)

    def record(self, wish: Wish = ROOTFS) -> DerivedRecord | None:
        return self.rows.find(self.image(wish).key)

    def state(self, wish: Wish = ROOTFS) -> State | None:
        record = self.record(wish)
        return None if record is None else record.state

    def left(self) -> list[str]:
        """Return what is there of makings: objects, parts, spools."""
        objects = [str(path.relative_to(self.place.storage)) for path in self.place.storage.glob("verbs/derived/*/*/*")]
        parts = [path.name for path in self.place.storage.glob(".parts/*")]
        folder = self.services.settings.spool_dir
        return objects + parts + (os.listdir(folder) if os.path.isdir(folder) else [])

    def settled(self, wish: Wish = ROOTFS) -> State | None:
        """Return the state when nothing is being made here any more, and all threads that made something have ended."""
        eventually(lambda: not self.makings._running and not makers(), seconds=PATIENCE)
        return self.state(wish)

    def let_the_lease_run_out(self) -> None:
        """Have every lease have ended, as if its time had passed."""
        with self.services.own_engine.begin() as connection:
            connection.execute(sqlalchemy.text("UPDATE verbs_derived SET lease_ends_ms = 1 WHERE state = 'generating'"))


def makers() -> list[threading.Thread]:
    """Return the threads that make something. One takes its spool away after it has let its followers go."""
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("making ") and thread.name != "making heart"
    ]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Place(tmp_path_factory.mktemp("filled"))
    place.push("acme/app:1.0", LARGE)
    return place.folder / "var"


@pytest.fixture
def place(filled: Path, tmp_path: Path) -> Place:
    shutil.copytree(filled, tmp_path / "var")
    return Place(tmp_path, {"VERBS_LEASE_SECONDS": LEASE_SECONDS})


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the end of a body, and of a process, wait for its makings as long as a busy machine may take."""
    monkeypatch.setattr(origins, "_SETTLE_SECONDS", PATIENCE)
    monkeypatch.setattr(Makings.close, "__kwdefaults__", {"seconds": PATIENCE})


Others = Callable[..., Here]


@pytest.fixture
def others(place: Place) -> Iterator[Others]:
    """Return what gives the same place as another process has it, with further settings."""
    given: list[Here] = []
    before = set(threading.enumerate())

    def other(**settings: Any) -> Here:
        given.append(Here(Place(place.folder, {**place.more, **settings})))
        return given[-1]

    yield other
    for here in given:
        here.makings.close()
        assert here.makings._busy == 0

    def left() -> list[threading.Thread]:
        return [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("making")]

    eventually(lambda: not left(), seconds=PATIENCE, what="a thread stays")


@pytest.fixture
def here(others: Others) -> Here:
    return others()


# --- Once -------------------------------------------------------------------------------------------------------------


def test_sixteen_who_ask_at_once_have_it_made_once(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    right = here.right(SQUASH)
    gate = Gate(monkeypatch, HALF)
    barrier, answered = threading.Barrier(16), threading.Semaphore(0)

    def ask(_: int) -> tuple[How, bytes]:
        barrier.wait()
        live = here.live(SQUASH)
        answered.release()
        return live.how, b"".join(live.chunks)

    with ThreadPoolExecutor(16) as pool:
        asking = pool.map(ask, range(16))
        for _ in range(16):  # who comes when it is made gets what is stored
            assert answered.acquire(timeout=PATIENCE)
        gate.opened.set()
        answers = list(asking)
    assert sorted(how for how, _ in answers) == [How.FOLLOWED] * 15 + [How.MADE]
    assert {content for _, content in answers} == {right}
    assert gate.generations == 1
    record = here.record(SQUASH)
    assert record is not None
    assert here.left() == [record.path]


def test_a_complete_one_is_stored_under_its_size_and_digest(here: Here) -> None:
    right = here.right()
    assert here.makings.stored(here.image()) is None
    assert here.fetch() == right
    serving = here.makings.open(here.image())
    assert isinstance(serving, Stored)
    record = serving.record
    assert record == here.makings.stored(here.image())
    assert (record.state, record.size) == (State.COMPLETE, len(right))
    assert record.sha256 == hashlib.sha256(right).hexdigest()
    assert (record.bytes_done, record.bytes_total) == (len(right), len(right))
    assert (record.namespace, record.repository, record.reference) == ("acme", "app", "1.0")
    assert (record.verb, record.platform, record.compression) == ("rootfs", "linux/amd64", "none")
    assert record.file_name == "acme_app_1.0-linux-amd64.tar"
    assert here.fetch() == right
    part = here.makings.read(record, offset=100, length=50)
    assert b"".join(part.chunks) == right[100:150]
    assert here.left() == [record.path]


def test_the_size_is_known_at_once_or_when_all_is_made(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    right, squashed = here.right(), here.right(SQUASH)
    gate = Gate(monkeypatch, HALF)
    with closing(here.live().chunks):
        assert here.live().size == len(right)
        gate.opened.set()
    assert here.settled() is State.COMPLETE
    gate.opened.clear()
    waiting = threading.Event()
    complete = DerivedImages.complete

    def slow(*arguments: Any, **more: Any) -> bool:
        assert waiting.wait(PATIENCE)
        return complete(*arguments, **more)

    monkeypatch.setattr(DerivedImages, "complete", slow)
    first = here.live(SQUASH)
    assert first.size is None
    gate.opened.set()
    eventually(lambda: here.makings._running and here.live(SQUASH).size == len(squashed), seconds=PATIENCE)
    waiting.set()
    assert b"".join(first.chunks) == squashed


def test_who_asked_for_it_is_noted(here: Here) -> None:
    here.makings.start(here.image(), asked_by="somebody")
    assert here.settled() is State.COMPLETE
    record = here.record()
    assert record is not None
    assert record.asked_by == "somebody"


def test_that_it_was_fetched_is_noted(here: Here) -> None:
    here.fetch()
    here.fetch()
    here.makings.close()
    record = here.record()
    assert record is not None
    assert record.fetched_ms is not None


def test_a_client_that_leaves_loses_nothing(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    right = here.right()
    gate = Gate(monkeypatch, HALF)
    live = here.live()
    next(live.chunks)
    live.chunks.close()
    gate.opened.set()
    assert here.settled() is State.COMPLETE
    assert here.fetch() == right
    assert gate.generations == 1


def test_a_client_that_was_never_begun_is_let_go(here: Here) -> None:
    here.live().chunks.close()
    assert here.settled() is State.COMPLETE


def test_a_client_that_stalls_holds_nobody_up(here: Here) -> None:
    right = here.right()
    live = here.live()
    first = next(live.chunks)
    assert here.settled() is State.COMPLETE
    assert first + b"".join(live.chunks) == right


def test_who_comes_late_gets_it_from_the_first_byte(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    right = here.right()
    gate = Gate(monkeypatch, HALF)
    here.makings.start(here.image())
    assert gate.reached.wait(PATIENCE)
    live = here.live()
    gate.opened.set()
    assert (live.how, b"".join(live.chunks)) == (How.FOLLOWED, right)


def test_a_lease_is_kept_up_as_long_as_it_takes(others: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    here = others(VERBS_LEASE_SECONDS=20)
    gate = Gate(monkeypatch, HALF)
    live = here.live()
    assert gate.reached.wait(PATIENCE)
    before = here.record()
    assert before is not None

    def beaten() -> DerivedRecord | None:
        record = here.record()
        assert record is not None
        assert record.lease_live
        return record if record.lease_ends_ms != before.lease_ends_ms and record.bytes_done == HALF else None

    record: DerivedRecord = eventually(beaten, seconds=PATIENCE, what="the lease is not beaten")
    assert 0 < (record.lease_ends_ms or 0) - (before.lease_ends_ms or 0) < 20_000
    assert record.bytes_total == live.size
    gate.opened.set()
    assert here.settled() is State.COMPLETE
    live.chunks.close()


# --- What is stored and is not there ----------------------------------------------------------------------------------


def test_an_object_that_vanished_is_made_anew(here: Here) -> None:
    right = here.fetch()
    (path,) = here.left()
    (here.place.storage / path).unlink()
    assert here.fetch() == right
    assert here.state() is State.COMPLETE
    assert len(here.left()) == 1


def test_an_object_that_was_cut_is_made_anew(here: Here) -> None:
    right = here.fetch()
    (path,) = here.left()
    os.truncate(here.place.storage / path, 100)
    assert here.fetch() == right
    assert here.left() != [path]


def test_a_read_only_registry_serves_what_is_stored_and_stores_nothing(
    here: Here, others: Others, place: Place
) -> None:
    right = here.fetch()
    reading = others(REGISTRY_STATE="readonly")
    assert isinstance(reading.makings.open(reading.image()), Stored)
    live = reading.live(SQUASH)
    assert (live.how, b"".join(live.chunks)) == (How.STREAMED, here.right(SQUASH))
    assert reading.makings.start(reading.image(SQUASH)) is None
    with pytest.raises(NotKept):
        reading.makings.make(reading.image(SQUASH))
    assert here.state(SQUASH) is None
    (path,) = here.left()
    (place.storage / path).unlink()
    assert reading.fetch() == right
    assert here.state() is State.COMPLETE  # it is not ours to change


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_what_is_found_before_the_first_byte_is_raised_for_everybody_before_it(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = here.place.blob(LARGE.layers[0])
    content = blob.read_bytes()
    blob.write_bytes(content[:-1])
    generate, waiting = Deriver.generate, threading.Event()

    def slow(deriver: Deriver, image: DerivedImage) -> Stream:
        assert waiting.wait(PATIENCE)
        return generate(deriver, image)

    monkeypatch.setattr(Deriver, "generate", slow)
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(here.live) for _ in range(4)]
        eventually(lambda: here.makings._running, seconds=PATIENCE)
        time.sleep(0.1)
        waiting.set()
        for each in asking:
            with pytest.raises(BlobCutShort):
                each.result()
    assert here.settled() is State.FAILED
    record = here.record()
    assert record is not None
    assert "bytes in storage and should have" in str(record.reason)
    assert here.left() == []
    blob.write_bytes(content)
    assert here.fetch() == here.right()
    record = here.record()
    assert record is not None
    assert (record.state, record.attempts, record.reason) == (State.COMPLETE, record.attempts, None)


def test_what_is_found_in_the_middle_cuts_everybody_and_nothing_is_stored(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = here.place.blob(LARGE.layers[0])
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    gate = Gate(monkeypatch, HALF)
    first, second = here.live(), here.live()
    gate.opened.set()
    for live in (first, second):
        with pytest.raises(Damaged, match="sha256:"):
            b"".join(live.chunks)
    assert here.settled() is State.FAILED
    assert here.left() == []


@pytest.mark.parametrize("more", [1, -1])
def test_an_image_of_another_length_than_planned_is_not_stored(
    here: Here, more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = Deriver.generate

    def other(deriver: Deriver, image: DerivedImage) -> Stream:
        stream = generate(deriver, image)
        return Stream(stream.chunks, (stream.size or 0) + more)

    monkeypatch.setattr(Deriver, "generate", other)
    live = here.live()
    with pytest.raises(OtherLength):
        b"".join(live.chunks)
    assert here.settled() is State.FAILED
    assert here.left() == []


# --- A storage that fails ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "elsewhere"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Have storage give its growing file, or not, as one that is not on this machine."""
    if request.param == "elsewhere":
        monkeypatch.setattr(_LocalWriter, "growing", None)
    return bool(request.param == "elsewhere")


def test_it_is_stored_and_served_whether_storage_is_here_or_elsewhere(here: Here, *, elsewhere: bool) -> None:
    right = here.right(SQUASH)
    assert [here.fetch(SQUASH) for _ in range(2)] == [right] * 2
    assert len(here.left()) == 1


@pytest.mark.parametrize("fault", ["create", "write", "commit"])
def test_a_storage_that_fails_fails_no_download(
    here: Here, fault: str, monkeypatch: pytest.MonkeyPatch, *, elsewhere: bool
) -> None:
    right = here.right()
    gate = Gate(monkeypatch, HALF)
    if fault == "create":
        break_storage(monkeypatch, fault)
    first, second = here.live(), here.live()
    break_storage(monkeypatch, fault)
    gate.opened.set()
    with ThreadPoolExecutor(2) as pool:
        for content in pool.map(lambda live: b"".join(live.chunks), (first, second)):
            assert content == right
    assert here.settled() is State.FAILED
    record = here.record()
    assert record is not None
    assert "the storage is full" in str(record.reason)
    assert here.left() == []


@pytest.mark.parametrize("fault", ["create", "write", "commit"])
def test_a_job_is_told_that_storage_failed(
    here: Here, fault: str, monkeypatch: pytest.MonkeyPatch, *, elsewhere: bool
) -> None:
    break_storage(monkeypatch, fault)
    with pytest.raises(NotKept, match="the storage is full"):
        here.makings.make(here.image())
    assert here.settled() is State.FAILED
    assert here.left() == []


def break_storage(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Have `fault` do its work and fail then."""

    def failing(method: Callable[..., Any]) -> Callable[..., Any]:
        def fail(*arguments: Any) -> None:
            done = method(*arguments)
            if isinstance(done, BlobWriter):
                done.abort()
            raise StorageUnavailable("the storage is full")

        return fail

    if fault == "create":
        monkeypatch.setattr(LocalStorage, "create", failing(LocalStorage.create))
        return
    monkeypatch.setattr(BlobWriter, fault, failing(getattr(BlobWriter, fault)))


def test_a_storage_that_cannot_tell_costs_the_storing_alone(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    right = here.fetch()

    def unable(*_: object) -> int:
        raise StorageUnavailable("it does not answer")

    blobs = LocalStorage.size
    monkeypatch.setattr(
        LocalStorage, "size", lambda storage, path: unable() if "derived" in path else blobs(storage, path)
    )
    live = here.live()
    assert (live.how, b"".join(live.chunks)) == (How.STREAMED, right)
    assert here.state() is State.COMPLETE


# --- A spool that fails -----------------------------------------------------------------------------------------------


def test_a_folder_that_can_have_no_spool_costs_the_storing_alone(others: Others, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    here = others(VERBS_SPOOL_DIR=str(tmp_path / "file" / "spool"))
    live = here.live()
    assert (live.how, b"".join(live.chunks)) == (How.STREAMED, here.right())
    assert here.settled() is State.FAILED
    assert here.left() == []
    with pytest.raises(NotKept, match=r"a spool in .* cannot be made"):
        here.makings.make(here.image())


def test_a_making_that_cannot_be_followed_is_waited_for_and_not_begun_again(
    others: Others, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain = Maker._explain

    def slowly(*arguments: Any) -> None:
        time.sleep(1)  # in which the row has a lease still, and nobody to follow
        explain(*arguments)

    monkeypatch.setattr(Maker, "_explain", slowly)
    (tmp_path / "file").write_bytes(b"")
    here = others(VERBS_SPOOL_DIR=str(tmp_path / "file" / "spool"))
    with pytest.raises(NotKept, match=r"a spool in .* cannot be made"):
        here.makings.make(here.image())
    record = here.record()
    assert record is not None
    assert (record.state, record.attempts) == (State.FAILED, 1)


def test_a_full_disk_under_the_spool_costs_its_readers_time_and_storage_nothing(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_LocalWriter, "growing", None)
    right = here.right()
    gate = Gate(monkeypatch, HALF)
    first, second = here.live(), here.live()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Spool, "write", full)
    gate.opened.set()
    assert b"".join(first.chunks) == right
    assert b"".join(second.chunks) == right
    assert here.settled() is State.COMPLETE
    assert here.fetch() == right


# --- A database that fails --------------------------------------------------------------------------------------------


def away(*_: object, **__: object) -> Any:
    raise DatabaseUnavailable("the database is away")


@pytest.mark.parametrize("method", ["find", "claim"])
def test_without_its_rows_an_image_is_streamed(here: Here, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DerivedImages, method, away)
    live = here.live()
    assert (live.how, b"".join(live.chunks)) == (How.STREAMED, here.right())
    assert here.makings.stored(here.image()) is None
    assert here.left() == []


def test_a_database_that_comes_back_is_told_that_it_is_complete(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    complete, failures = DerivedImages.complete, iter(range(3))

    def at_last(*arguments: Any, **more: Any) -> bool:
        if next(failures, None) is not None:
            away()
        return complete(*arguments, **more)

    monkeypatch.setattr(DerivedImages, "complete", at_last)
    monkeypatch.setattr(DerivedImages, "set_total", away)
    assert here.fetch() == here.right()
    assert here.settled() is State.COMPLETE


def test_what_cannot_be_noted_is_not_kept(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "COMPLETE_SECONDS", 0.3)
    for method in ("complete", "fail", "beat"):
        monkeypatch.setattr(DerivedImages, method, away)
    assert here.fetch() == here.right()
    assert here.settled() is State.GENERATING
    assert here.left() == []
    monkeypatch.undo()
    here.let_the_lease_run_out()
    assert here.fetch() == here.right()
    assert here.settled() is State.COMPLETE


# --- A lease that is lost ---------------------------------------------------------------------------------------------


def test_who_lost_the_lease_serves_those_who_follow_and_stores_nothing(
    others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = others(VERBS_LEASE_SECONDS=2)  # it beats, and hears of it, four times as often
    gate = Gate(monkeypatch, HALF)
    live = here.live()
    assert gate.reached.wait(PATIENCE)
    here.rows.delete(here.image().key)
    eventually(lambda: here.makings._running[here.image().key]._lost, seconds=PATIENCE)
    gate.opened.set()
    assert b"".join(live.chunks) == here.right()
    assert here.settled() is None
    assert here.left() == []


def test_who_lost_the_lease_makes_nothing_for_nobody(others: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    here = others(VERBS_LEASE_SECONDS=2)
    gate = Gate(monkeypatch, HALF)
    here.makings.start(here.image())
    here.rows.delete(here.image().key)
    eventually(lambda: here.makings._running[here.image().key]._lost, seconds=PATIENCE)
    gate.opened.set()
    assert here.settled() is None
    assert here.left() == []


def test_who_lost_the_lease_at_the_last_moment_takes_its_object_back(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DerivedImages, "complete", lambda *_, **__: False)
    assert here.fetch() == here.right()
    assert here.settled() is not State.COMPLETE
    assert here.left() == []


def test_what_another_host_makes_is_streamed(here: Here) -> None:
    lease = here.rows.claim(asked(here.image()), host="another host")
    assert isinstance(lease, Lease)
    live = here.live()
    assert (live.how, b"".join(live.chunks)) == (How.STREAMED, here.right())
    assert here.makings.start(here.image()) is None
    record = here.record()
    assert record is not None
    assert record.token == lease.token


def test_what_does_not_show_is_streamed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("endpoints.making._APPEAR_SECONDS", 0.2)
    here.rows.claim(asked(here.image()), host=here.makings._host)
    live = here.live()
    assert (live.how, b"".join(live.chunks)) == (How.STREAMED, here.right())


def test_a_job_waits_for_another_host(here: Here) -> None:
    lease = here.rows.claim(asked(here.image()), host="another host")
    assert isinstance(lease, Lease)
    seen: list[tuple[int, int | None]] = []

    def advance(done: int, total: int | None) -> None:
        seen.append((done, total))
        if len(seen) == 1:
            here.rows.beat({lease.token: 5})
        elif len(seen) == 2:
            here.rows.release(lease)

    assert here.makings.make(here.image(), progress=advance).state is State.COMPLETE
    assert seen[:2] == [(0, None), (5, None)]


def asked(image: DerivedImage) -> NewDerived:
    from endpoints.making import _asked

    return _asked(image)


# --- Jobs -------------------------------------------------------------------------------------------------------------


def test_a_job_is_told_how_far_it_is_and_what_came_of_it(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, HALF)
    seen: list[tuple[int, int | None]] = []

    def advance(done: int, total: int | None) -> None:
        seen.append((done, total))
        if done == HALF:
            gate.opened.set()

    record = here.makings.make(here.image(), asked_by="a job", progress=advance)
    assert (record.state, record.asked_by) == (State.COMPLETE, "a job")
    assert (HALF, record.size) in seen
    assert {total for _, total in seen} == {record.size}
    assert here.makings.make(here.image()) == record
    assert here.makings.start(here.image()) == record


class Cancelled(Exception):
    pass


def cancel(_: int, __: int | None) -> None:
    raise Cancelled


def test_a_job_that_is_cancelled_is_given_up(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, HALF)
    with pytest.raises(Cancelled):
        here.makings.make(here.image(), progress=cancel)
    gate.opened.set()
    assert here.settled() is None
    assert here.left() == []


def test_a_job_that_is_cancelled_goes_on_for_those_who_follow(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, HALF)
    live = here.live()
    with pytest.raises(Cancelled):
        here.makings.make(here.image(), progress=cancel)
    gate.opened.set()
    assert b"".join(live.chunks) == here.right()
    assert here.settled() is State.COMPLETE


def test_a_job_fails_of_what_the_making_fails_of(here: Here) -> None:
    here.place.blob(LARGE.layers[0]).unlink()
    with pytest.raises(BlobNotFound):
        here.makings.make(here.image())
    with pytest.raises(BlobNotFound):
        here.makings.start(here.image())
    assert here.settled() is State.FAILED


# --- Limits and ends --------------------------------------------------------------------------------------------------


def test_beyond_the_limit_it_is_busy_before_any_work_and_following_is_free(
    others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = others(VERBS_MAX_MAKINGS=1)
    gate = Gate(monkeypatch, HALF)
    first, second = here.live(), here.live()
    for ask in (here.live, lambda wish: here.makings.make(here.image(wish))):
        with pytest.raises(Busy, match="VERBS_MAX_MAKINGS") as busy:
            ask(SQUASH)
        assert busy.value.retry_after > 0
    assert gate.generations == 1
    assert here.state(SQUASH) is None
    gate.opened.set()
    assert b"".join(first.chunks) == b"".join(second.chunks)
    here.settled()
    assert here.fetch(SQUASH)


def test_what_is_streamed_for_one_client_counts_until_it_leaves(others: Others) -> None:
    here = others(REGISTRY_STATE="readonly", VERBS_MAX_MAKINGS=1)
    live = here.live()
    next(live.chunks)
    with pytest.raises(Busy):
        here.live(SQUASH)
    live.chunks.close()
    assert here.fetch(SQUASH)
    here.place.blob(LARGE.layers[0]).unlink()
    for _ in range(2):
        with pytest.raises(BlobNotFound):
            here.live()


def test_what_is_not_made_when_its_process_ends_is_given_up(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, HALF)
    live = here.live()
    next(live.chunks)
    assert gate.reached.wait(PATIENCE)
    making = here.makings._running[here.image().key]
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(making._stopping.wait, PATIENCE)
        stopping.add_done_callback(lambda _: gate.opened.set())
        close_all()
        assert stopping.result()
    assert here.state() is None
    assert here.left() == []
    with pytest.raises(Busy):
        b"".join(live.chunks)
    with pytest.raises(Busy):
        here.live()
    here.makings.close()


def test_what_is_whole_when_its_process_ends_is_stored(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, committing, going_on = BlobWriter.commit, threading.Event(), threading.Event()

    def slow(writer: BlobWriter) -> None:
        committing.set()
        assert going_on.wait(PATIENCE)
        commit(writer)

    monkeypatch.setattr(BlobWriter, "commit", slow)
    here.makings.start(here.image())
    assert committing.wait(PATIENCE)
    threading.Timer(0.1, going_on.set).start()
    here.makings.close()
    assert here.state() is State.COMPLETE


def test_makings_may_be_made_before_a_fork(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, HALF)
    here.makings.start(here.image())
    assert gate.reached.wait(PATIENCE)
    here.services.engine.dispose()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("warnings.warn", lambda *_, **__: None)
        child = os.fork()
    if child == 0:
        running = len(here.makings._running) + here.makings._busy + here.makings._lock.locked()
        here.makings.close()
        os._exit(running)
    assert os.waitpid(child, 0)[1] == 0
    gate.opened.set()
    assert here.settled() is State.COMPLETE


# --- Other processes --------------------------------------------------------------------------------------------------


def test_what_another_process_makes_is_followed(here: Here) -> None:
    right = here.right(SQUASH)
    with making(here.place, "squash", HALF) as process:
        live = here.live(SQUASH)
        said = go_on(process)
        assert (live.how, b"".join(live.chunks)) == (How.FOLLOWED, right)
        assert said == f"made {hashlib.sha256(right).hexdigest()}"
        assert process.wait(PATIENCE) == 0
    record = here.record(SQUASH)
    assert record is not None
    assert (record.state, record.asked_by) == (State.COMPLETE, "another process")
    assert here.left() == [record.path]


def test_a_job_waits_for_another_process(here: Here) -> None:
    with making(here.place, "squash", HALF) as process:
        seen: list[int] = []

        def advance(done: int, _: int | None) -> None:
            seen.append(done)
            if len(seen) == 1:
                go_on(process)

        record = here.makings.make(here.image(SQUASH), progress=advance)
    assert seen[0] == HALF
    assert (record.state, record.asked_by) == (State.COMPLETE, "another process")


@pytest.mark.parametrize("wish", [SQUASH, ROOTFS])
def test_who_follows_one_that_is_killed_goes_on_at_the_same_byte(
    here: Here, wish: Wish, caplog: pytest.LogCaptureFixture
) -> None:
    right = here.right(wish)
    with making(here.place, wish.verb, HALF) as process:
        live = here.live(wish)
        got = bytearray()
        while len(got) < HALF:
            got += next(live.chunks)
        began = time.monotonic()
        process.kill()
        with ThreadPoolExecutor(4) as pool:
            others = [pool.submit(here.fetch, wish) for _ in range(4)]
            got += b"".join(live.chunks)
            assert bytes(got) == right
            assert {other.result() for other in others} == {right}
    assert time.monotonic() - began < PATIENCE  # nobody waits for the lease
    assert f"goes on at byte {HALF} without its maker" in caplog.text
    assert here.settled(wish) is State.COMPLETE
    record = here.record(wish)
    assert record is not None
    assert record.attempts == 2
    assert here.left() == [record.path]


def test_who_comes_after_one_that_was_killed_does_not_wait_for_its_lease(here: Here) -> None:
    with making(here.place, "squash", HALF) as process:
        process.kill()
        process.wait()
    began = time.monotonic()
    assert here.fetch(SQUASH) == here.right(SQUASH)
    assert time.monotonic() - began < PATIENCE
    assert here.settled(SQUASH) is State.COMPLETE
    assert len(here.left()) == 1


def test_one_that_was_killed_between_the_object_and_the_row_is_served_and_made_anew(here: Here) -> None:
    right = here.right()
    lease = here.rows.claim(asked(here.image()), host=here.makings._host)
    assert isinstance(lease, Lease)
    storage = here.services.storage.preferred
    writer = storage.create(lease.path)
    spool = Spool(here.services.settings.spool_dir, lease.token, growing=writer.growing)
    spool.begin(len(right))
    writer.write(right)
    spool.grown(len(right))
    spool.end(Ending.WHOLE)
    writer.commit()
    spool.forget()  # as the kernel does
    live = here.live()
    assert (live.how, b"".join(live.chunks)) == (How.FOLLOWED, right)
    here.let_the_lease_run_out()
    assert here.fetch() == right
    assert here.settled() is State.COMPLETE
    record = here.record()
    assert record is not None
    assert record.token != lease.token
    assert here.left() == [record.path]


def test_who_follows_one_that_is_told_to_end_goes_on(here: Here) -> None:
    with making(here.place, "squash", HALF) as process:
        live = here.live(SQUASH)
        got = next(live.chunks)
        process.send_signal(signal.SIGTERM)
        go_on(process)
        assert got + b"".join(live.chunks) == here.right(SQUASH)
    assert here.settled(SQUASH) is State.COMPLETE
    assert len(here.left()) == 1


def test_one_that_stands_still_loses_its_lease_and_takes_back_what_it_has(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_PATIENCE", 0.2)
    right = here.right(SQUASH)
    with making(here.place, "squash", HALF) as process:
        live = here.live(SQUASH)
        next(live.chunks)
        process.send_signal(signal.SIGSTOP)
        here.let_the_lease_run_out()
        rest = b"".join(live.chunks)
        assert right.endswith(rest)
        assert len(rest) >= len(right) - HALF
        assert here.settled(SQUASH) is State.COMPLETE
        record = here.record(SQUASH)
        process.send_signal(signal.SIGCONT)
        assert go_on(process) == f"made {hashlib.sha256(right).hexdigest()}"  # its own client
        assert process.wait(PATIENCE) == 0
    assert here.record(SQUASH) == record
    assert record is not None
    assert here.left() == [record.path]
    assert here.fetch(SQUASH) == right


def test_who_would_go_on_with_other_bytes_is_cut(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    with making(here.place, "squash", HALF) as process:
        live = here.live(SQUASH)
        got = bytearray()
        while len(got) < HALF:
            got += next(live.chunks)
        generate = Deriver.generate

        def other(deriver: Deriver, image: DerivedImage) -> Stream:
            stream = generate(deriver, image)
            return Stream((chunk[:-1] + bytes([chunk[-1] ^ 1]) for chunk in stream.chunks), stream.size)

        monkeypatch.setattr(Deriver, "generate", other)
        process.kill()
        with pytest.raises(BytesDiffer):
            b"".join(live.chunks)
    here.settled(SQUASH)


def test_what_fails_in_another_process_in_the_middle_cuts_its_followers(here: Here) -> None:
    blob = here.place.blob(LARGE.layers[0])
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with making(here.place, "rootfs", HALF) as process:
        live = here.live()
        go_on(process)
        with pytest.raises(Exception, match="sha256:"):
            b"".join(live.chunks)
        process.wait(PATIENCE)
    assert here.settled() is State.FAILED
    assert here.left() == []


def test_giving_up_is_no_failure() -> None:
    assert MakingGivenUp.code == "MAKING_GIVEN_UP"
