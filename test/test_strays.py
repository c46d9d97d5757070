"""Objects that no row knows: which go, which stay, and in whose storage."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data import strays as module
from data import tables as db
from data.database import Engine, create_tables, writing
from data.garbage import Kind, Waste
from data.owntables import upgrade
from data.registry import RegistryUnavailable, content_path
from data.storage.base import BlobWriter, StorageUnavailable
from data.storage.distributed import DistributedStorage, StorageReadOnly
from data.storage.local import LocalStorage
from data.strays import SIGN, StorageNotOurs, Strays
from test.databases import KINDS, database
from test.test_registry import Rows
from util.digest import Digest

DAY = 24 * 3600


class Watched(LocalStorage):
    """A folder of blobs that fails, and waits, where it is told to."""

    fails = False
    before_delete: Callable[[str], None] = staticmethod(lambda _: None)

    def delete(self, path: str) -> None:
        self.before_delete(path)
        if self.fails:
            raise StorageUnavailable(f"{path} cannot be deleted")
        super().delete(path)


@dataclass
class World:
    """A registry of which nothing but rows of blobs is known, and a storage."""

    engine: Engine
    root: Path
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = Rows(self.engine)
        self.driver = Watched(self.root)
        self.storage = DistributedStorage({"default": self.driver}, ["default"])
        self.strays = Strays(self.engine, self.engine, self.storage)

    def put(self, content: str, *, age: float = DAY + 1, algorithm: str = "sha256", path: str | None = None) -> str:
        """Have an object that was written `age` seconds ago, and return its path."""
        path = path or content_path(Digest.of(content.encode(), algorithm))
        with self.driver.create(path) as writer:
            writer.write(content.encode())
            writer.commit()
        self.age(path, age)
        return path

    def age(self, path: str, age: float) -> None:
        os.utime(self.root / path, (time.time() - age,) * 2)

    def row(self, content: str, algorithm: str = "sha256", **more: Any) -> int:
        return self.rows.add(db.ImageStorage, content_checksum=str(Digest.of(content.encode(), algorithm)), **more)

    def collect(self, *, dry_run: bool = False) -> list[Waste]:
        return list(self.strays.collect(self.failed, dry_run=dry_run))

    def failed(self, what: str, error: Exception) -> None:
        self.failures.append(f"{what}: {error}")

    def files(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*/*") if path.is_file()}


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with database(request.param, tmp_path) as engine:
        create_tables(engine)
        upgrade(engine)
        yield World(engine, tmp_path / "blobs")


@pytest.fixture
def ours(world: World) -> World:
    """A registry whose storage has its sign."""
    world.strays.check()
    assert world.files() == {SIGN}
    return world


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512", "blake3"])
def test_an_old_object_without_a_row_goes(ours: World, algorithm: str) -> None:
    path = ours.put("layer", algorithm=algorithm)
    young = ours.put("young", algorithm=algorithm, age=DAY - 60)
    ours.put("known", algorithm=algorithm)
    ours.row("known", algorithm)
    assert ours.collect() == [Waste(Kind.STRAY, path, path, 5)]
    assert ours.files() == {SIGN, young, content_path(Digest.of(b"known", algorithm))}
    assert ours.collect() == []


@pytest.mark.parametrize(
    "path",
    [
        "sha256/ab/abcd",
        "sha256/xx/" + "0" * 64,
        "sha256/" + "0" * 64,
        "sha256/00/00/" + "0" * 64,
        "sha256/00/" + "0" * 63 + "A",
        "sha1/00/" + "0" * 40,
        "sharedimages/some-uuid/layer",
        "uploads/sha256/00/" + "0" * 64,
        "verbs/derived/00/" + "0" * 64,
    ],
)
def test_what_lies_in_no_place_of_a_blob_stays(ours: World, path: str) -> None:
    ours.put("x", path=path)
    assert ours.collect() == []
    assert path in ours.files()


def test_there_may_be_many_pages(ours: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE", 3)
    for number in range(10):
        ours.put(f"{number}")
        if number % 2:
            ours.row(f"{number}")
    assert len(ours.collect()) == 5
    assert len(ours.files()) == 6


def test_a_dry_run_finds_the_same_and_changes_nothing(world: World) -> None:
    assert world.collect(dry_run=True) == []
    assert world.files() == set()
    assert world.strays._sign(make=False) is None
    world.strays.check()
    world.put("layer")
    before = world.files()
    found = world.collect(dry_run=True)
    assert world.files() == before
    assert len(found) == 1
    assert world.collect() == found


def test_an_object_that_cannot_be_deleted_is_told(ours: World) -> None:
    path = ours.put("layer")
    ours.driver.fails = True
    assert ours.collect() == []
    assert ours.failures == [f"{path} is not deleted: {path} cannot be deleted"]


def test_nothing_goes_where_nothing_may_be_written(ours: World) -> None:
    path = ours.put("layer")
    storage = DistributedStorage({"default": ours.driver}, ["default"], readonly=True)
    assert list(Strays(ours.engine, ours.engine, storage).collect(ours.failed)) == []
    assert "read-only" in ours.failures[0]
    assert path in ours.files()


# --- Whose storage it is ----------------------------------------------------------------------------------------------


def test_a_storage_with_something_strange_is_left_alone(world: World) -> None:
    """A registry that is tried out on the bucket of another one takes nothing from that."""
    theirs = {world.put("theirs"), world.put("theirs too")}
    for dry_run in (False, True):
        with pytest.raises(StorageNotOurs, match="knows nothing of"):
            world.collect(dry_run=dry_run)
    assert world.files() == theirs
    world.strays.adopt()
    assert {waste.path for waste in world.collect()} == theirs
    assert world.files() == {SIGN}


def test_a_storage_with_what_is_known_and_what_is_young_is_ours(world: World) -> None:
    world.put("known")
    world.row("known")
    world.put("young", age=60)
    world.strays.check()
    assert SIGN in world.files()


def test_a_storage_with_another_s_sign_is_left_alone(world: World, tmp_path: Path) -> None:
    with database("sqlite", tmp_path / "other") as other:
        create_tables(other)
        upgrade(other)
        Strays(other, other, world.storage).check()
    path = world.put("theirs")
    for dry_run in (False, True):
        with pytest.raises(StorageNotOurs, match="is not its sign"):
            world.collect(dry_run=dry_run)
    assert world.files() == {SIGN, path}
    world.strays.adopt()
    world.strays.check()


def test_the_sign_is_one_whoever_is_the_first(world: World) -> None:
    signs: list[str] = []
    threads = [threading.Thread(target=lambda: signs.append(str(world.strays._sign(make=True)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(signs) == 8
    assert len(set(signs)) == 1


def test_a_storage_that_does_not_answer_is_nobody_s(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object, path: str, **__: object) -> BlobWriter:
        raise StorageUnavailable("the wire is cut")

    monkeypatch.setattr(Watched, "open", fails)
    with pytest.raises(StorageUnavailable):
        world.collect()


def test_a_sign_needs_a_storage_that_may_be_written(world: World) -> None:
    storage = DistributedStorage({"default": world.driver}, ["default"], readonly=True)
    with pytest.raises(StorageReadOnly):
        Strays(world.engine, world.engine, storage).check()


# --- Who writes meanwhile ---------------------------------------------------------------------------------------------


def test_an_object_that_has_got_its_row_since_it_was_found_stays(ours: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ours.put("layer")
    delete = Strays._delete

    def late(strays: Strays, *found: Any) -> bool:
        ours.row("layer")
        return delete(strays, *found)

    monkeypatch.setattr(Strays, "_delete", late)
    assert ours.collect() == []
    assert path in ours.files()


def test_who_makes_the_row_while_the_object_goes_finds_it_gone(ours: World) -> None:
    path = ours.put("layer")
    deleting, go_on = threading.Event(), threading.Event()

    def pause(_: str) -> None:
        deleting.set()
        assert go_on.wait(30)

    ours.driver.before_delete = pause
    collecting = threading.Thread(target=ours.collect)
    collecting.start()
    assert deleting.wait(30)
    seen: list[bool] = []

    def finish() -> None:
        with writing(ours.engine):
            seen.append(path in ours.files())

    finishing = threading.Thread(target=finish)
    finishing.start()
    finishing.join(0.3)
    assert finishing.is_alive(), "it did not wait for the lock"
    go_on.set()
    for thread in (finishing, collecting):
        thread.join(30)
    assert seen == [False]


def test_a_database_that_goes_away_ends_it(ours: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.put("layer")

    def gone(*_: object) -> bool:
        raise RegistryUnavailable("nobody answers")

    monkeypatch.setattr(Strays, "_delete", gone)
    with pytest.raises(RegistryUnavailable):
        ours.collect()
    assert ours.failures == []
