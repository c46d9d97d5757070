"""What bounds the derived images that are kept: each rule, what it leaves alone, and what comes of a failure."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import text, update

from data import tables as db
from data.database import Engine, create_tables
from data.derivedimages import DerivedImages, DerivedRecord, Lease, NewDerived, State
from data.jobs import Jobs, NewJob
from data.layerindexes import INDEXES
from data.owntables import DatabaseUnavailable, PackedLayerRow, upgrade
from data.packedlayers import PackedLayers
from data.registry import Referred, SqlRegistry, content_path
from data.storage.base import Storage, StorageUnavailable
from data.storage.distributed import DistributedStorage, StorageReadOnly
from data.storage.local import LocalStorage
from data.storage.s3 import S3Storage
from data.tables import now_ms
from endpoints import collector as module
from endpoints.collector import Bounds, Collector, Finding, Reason, Report, Tally
from endpoints.spool import Spool
from test.databases import database
from test.s3server import Bucket
from test.test_registry import Rows
from test.test_storage_s3 import back_door, endpoint, settings, settle
from util.compression import Compression
from util.digest import Digest
from util.oci import INDEX_OCI
from util.packedlayer import PackedLayer
from util.storedindex import FORMAT_VERSION

__all__ = ["back_door", "endpoint", "settings"]

DAY = 24 * 3600
HOUR = 3600
THEIRS = {
    "sha256/ab/abcd": b"a layer",
    "sharedimages/some-uuid/layer": b"an old layer",
    "uploads/verbs/derived/x": b"an upload",
    "verbs/layerindex-not/v1/sha256/ab/abcd": b"something else of ours",
    "verbsx/derived/x": b"somebody's",
    "verbs/derived-not/x": b"somebody's",
}
"""What lies beside the derived images and is never touched."""


class Place(Protocol):
    """A storage as it is seen without the driver."""

    def put(self, path: str, content: bytes) -> None: ...
    def all(self) -> dict[str, bytes]: ...


@dataclass(frozen=True)
class Folder:
    root: Path

    def put(self, path: str, content: bytes) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content)

    def all(self) -> dict[str, bytes]:
        files = (path for path in self.root.rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files}


@dataclass(frozen=True)
class Objects:
    bucket: Bucket

    def put(self, path: str, content: bytes) -> None:
        self.bucket.put(path, content)

    def all(self) -> dict[str, bytes]:
        listing = self.bucket.client.list_objects_v2(Bucket=self.bucket.name).get("Contents", [])
        paths = [item["Key"].removeprefix("datastorage/registry/") for item in listing]
        return {path: self.bucket.get(path) or b"" for path in paths}


@dataclass
class World:
    """A registry, our own rows, maybe in another database, and a storage with objects."""

    registry_engine: Engine
    engine: Engine
    place: Place
    driver: Storage
    later: float = 0
    """Seconds by which the collector's clock is ahead: as if all objects were that much older."""
    keys: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.registry = SqlRegistry(self.registry_engine)
        self.images = DerivedImages(self.engine)
        self.jobs = Jobs(self.engine)
        self.storage = DistributedStorage({"default": self.driver}, ["default"])
        self.rows = Rows(self.registry_engine)
        self.repository = self.rows.repository("acme/app")
        for path, content in THEIRS.items():
            self.place.put(path, content)

    def tag(self, name: str, content: str | None = None) -> int:
        """Have the tag `name` mean a manifest that is new, and return its row."""
        content = content or f"{name} {len(self.keys)} {random.random()}"
        self.keys[name] = str(Digest.of(content.encode()))
        return self.rows.tag(self.repository, name, self.rows.manifest(self.repository, content))

    def end(self, tag: int) -> None:
        self.rows.change(db.Tag, tag, lifetime_end_ms=now_ms() - 1)

    def new(self, name: str, *, reference: str | None = None, digest: str | None = None) -> NewDerived:
        return NewDerived(
            key=Digest.of(f"key of {name}".encode()).hex,
            namespace="acme",
            repository="app",
            reference=reference or name,
            manifest_digest=digest or self.keys[name],
            verb="squash",
            platform="linux/amd64",
            compression="none",
            media_type="application/x-tar",
            file_name="app.tar",
        )

    def claim(self, name: str, **more: Any) -> Lease:
        lease = self.images.claim(self.new(name, **more), host="here")
        assert isinstance(lease, Lease)
        return lease

    def write(self, lease: Lease, size: int = 10) -> None:
        with self.driver.create(lease.path) as writer:
            writer.write(b"x" * size)
            writer.commit()

    def made(self, name: str, *, size: int = 10, age: float = 0, fetched: float | None = None, **more: Any) -> Lease:
        """Have a complete derived image of the tag `name`, made `age` seconds ago and fetched `fetched` ago."""
        if name not in self.keys and "digest" not in more:
            self.tag(name)
        lease = self.claim(name, **more)
        self.write(lease, size)
        assert self.images.complete(lease, size=size, sha256="0" * 64)
        self.age(lease.key, created=age, completed=age)
        if fetched is not None:
            self.images.fetched([lease.key])
            self.age(lease.key, fetched=fetched)
        return lease

    def age(self, key: str, **seconds: float) -> None:
        """Have what happened to `key` happen that much earlier."""
        for name, amount in seconds.items():
            self.sql(f"UPDATE verbs_derived SET {name}_ms = {name}_ms - {round(amount * 1000)} WHERE \"key\" = '{key}'")

    def sql(self, statement: str) -> None:
        if self.engine.dialect.name in {"mysql", "mariadb"}:
            statement = statement.replace('"', "`")
        with self.engine.begin() as connection:
            connection.execute(text(statement))

    def collector(self, bounds: Bounds | None = None, **more: Any) -> Collector:
        given = {"registry": self.registry, "images": self.images, "storage": self.storage, **more}
        return Collector(
            given.pop("registry"),
            given.pop("images"),
            given.pop("storage"),
            bounds or Bounds(),
            clock=lambda: time.time() + self.later,
            **given,
        )

    def collect(self, bounds: Bounds | None = None, *, dry_run: bool = False, **more: Any) -> Report:
        return self.collector(bounds, **more).collect(dry_run=dry_run)

    def state(self) -> tuple[list[DerivedRecord], dict[str, bytes]]:
        return list(self.images.all()), self.place.all()

    def is_there(self, lease: Lease) -> bool:
        """Tell whether row and object of `lease` are there; one alone is an error."""
        record = self.images.find(lease.key)
        row = record is not None and record.token == lease.token
        assert row == (lease.path in self.place.all())
        return row

    def theirs(self) -> dict[str, bytes]:
        ours = ("verbs/derived/", f"{INDEXES}/")
        return {path: content for path, content in self.place.all().items() if not path.startswith(ours)}


@pytest.fixture
def storage_kind() -> str:
    return "local"


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def world(storage_kind: str, database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    registry_kind = "sqlite" if database_kind == "mariadb" else database_kind
    with database(registry_kind, tmp_path) as registry, database(database_kind, tmp_path) as engine:
        create_tables(registry)
        upgrade(engine)
        if storage_kind == "local":
            world = World(registry, engine, Folder(tmp_path / "blobs"), LocalStorage(tmp_path / "blobs"))
        else:
            bucket = request.getfixturevalue("back_door")
            world = World(registry, engine, Objects(bucket), S3Storage(request.getfixturevalue("settings")))
        yield world
        assert world.theirs() == THEIRS


everywhere = pytest.mark.parametrize(
    ("storage_kind", "database_kind"),
    [("local", "sqlite"), ("local", "postgresql"), ("s3", "sqlite"), ("s3", "postgresql"), ("local", "mariadb")],
)
on_every_database = pytest.mark.parametrize("database_kind", ["sqlite", "postgresql", "mariadb"])
on_every_storage = pytest.mark.parametrize("storage_kind", ["local", "s3"])


def reasons(report: Report) -> dict[str, Reason]:
    assert report.failures == ()
    return {finding.path: finding.reason for finding in report.dropped}


# --- Rules ------------------------------------------------------------------------------------------------------------


@everywhere
def test_what_is_up_to_date_and_used_stays(world: World) -> None:
    made = [world.made("1.0", size=7), world.made("2.0", age=29 * DAY), world.made("3.0", age=DAY * 90, fetched=DAY)]
    before = world.state()
    report = world.collect(Bounds(30, 27))
    assert report == Report(dry_run=False, dropped=(), kept=Tally(3, 27), unfinished=0, spools=0, jobs=0, failures=())
    assert world.state() == before
    assert all(map(world.is_there, made))


@everywhere
def test_an_image_goes_when_its_tag_is_gone_or_moved(world: World) -> None:
    gone, moved, stays = world.tag("gone"), world.tag("moved"), world.tag("stays")
    leases = {name: world.made(name, size=5) for name in ("gone", "moved", "stays")}
    assert stays
    assert world.collect().dropped == ()
    world.end(gone)
    world.end(moved)
    world.tag("moved", "another manifest")
    report = world.collect()
    assert reasons(report) == {leases["gone"].path: Reason.GONE, leases["moved"].path: Reason.GONE}
    assert report.total == Tally(2, 10)
    assert report.kept == Tally(1, 5)
    assert {finding.what for finding in report.dropped} == {"squash of acme/app:gone", "squash of acme/app:moved"}
    assert {name: world.is_there(lease) for name, lease in leases.items()} == {
        "gone": False,
        "moved": False,
        "stays": True,
    }


@everywhere
def test_an_image_that_was_asked_for_by_digest_goes_with_the_manifest(world: World) -> None:
    tag = world.tag("1.0")
    digest = world.keys["1.0"]
    lease = world.made("by digest", reference=digest, digest=digest)
    world.tag("1.0", "it has moved, and the other one has not ended")
    assert world.collect().dropped == ()
    world.end(tag)
    (finding,) = world.collect().dropped
    assert finding == Finding(Reason.GONE, f"squash of acme/app@{digest}", lease.path, 10)
    assert not world.is_there(lease)


def test_an_image_out_of_an_index_goes_when_the_tag_means_an_index_without_it(world: World) -> None:
    image, other = (world.rows.manifest(world.repository, name) for name in ("image", "other"))
    indexes = [world.rows.manifest(world.repository, f"{at}", media_type=INDEX_OCI) for at in range(3)]
    for parent, child in ((0, image), (0, other), (1, image), (2, other)):
        ids = {"manifest_id": indexes[parent], "child_manifest_id": child}
        world.rows.add(db.ManifestChild, repository_id=world.repository, **ids)
    lease = world.made("1.0", digest=str(Digest.of(b"image")))
    for number, there in enumerate([True, True, False]):
        tag = world.rows.tag(world.repository, "1.0", indexes[number])
        world.collect()
        assert world.is_there(lease) == there
        world.end(tag)


def test_an_image_goes_with_its_repository(world: World) -> None:
    lease = world.made("1.0")
    world.rows.change(db.Repository, world.repository, state=3)
    assert reasons(world.collect()) == {lease.path: Reason.GONE}


@everywhere
def test_an_image_goes_when_it_has_not_been_fetched_for_so_many_days(world: World) -> None:
    leases = {
        "made lately": world.made("a", age=6 * DAY),
        "never fetched": world.made("b", age=8 * DAY),
        "fetched lately": world.made("c", age=20 * DAY, fetched=6 * DAY),
        "fetched long ago": world.made("d", age=20 * DAY, fetched=8 * DAY),
    }
    assert world.collect(Bounds(0)).dropped == ()
    assert reasons(world.collect(Bounds(7))) == {
        leases["never fetched"].path: Reason.UNUSED,
        leases["fetched long ago"].path: Reason.UNUSED,
    }
    assert [name for name, lease in leases.items() if world.is_there(lease)] == ["made lately", "fetched lately"]


@everywhere
def test_the_least_recently_fetched_go_first_until_the_rest_is_within_the_quota(world: World) -> None:
    leases = {
        name: world.made(name, size=size, age=age * HOUR, fetched=None if fetched is None else fetched * HOUR)
        for name, size, age, fetched in [
            ("fetched now", 100, 9, 0),
            ("fetched first", 100, 10, 8),
            ("never fetched", 100, 7, None),
            ("fetched later", 100, 20, 6),
            ("made last", 100, 1, None),
        ]
    }
    for quota, gone in (
        (None, []),
        (500, []),
        (499, ["fetched first"]),
        (201, ["never fetched", "fetched later"]),
        (100, ["made last"]),
        (1, ["fetched now"]),
    ):
        report = world.collect(Bounds(0, quota))
        assert [finding.what for finding in report.dropped] == [f"squash of acme/app:{name}" for name in gone]
        assert all(reason is Reason.QUOTA for reason in reasons(report).values())
        assert report.kept.size <= (quota or 500)
    assert not any(map(world.is_there, leases.values()))


@on_every_database
def test_failures_stay_for_as_long_as_images_do(world: World) -> None:
    for name, days in (("old", 8), ("new", 6)):
        world.tag(name)
        lease = world.claim(name)
        world.images.fail(lease, "no room")
        world.age(lease.key, created=20 * DAY, failed=days * DAY)
    gone = world.tag("gone")
    world.images.fail(world.claim("gone"), "no room")
    world.end(gone)
    report = world.collect(Bounds(7))
    assert sorted((finding.what, finding.reason) for finding in report.dropped) == [
        ("squash of acme/app:gone", Reason.GONE),
        ("squash of acme/app:old", Reason.FAILED),
    ]
    assert [record.reference for record in world.images.all()] == ["new"]
    assert report.kept == Tally()


@everywhere
def test_a_making_that_was_not_heard_of_for_long_goes_and_a_live_one_stays(world: World) -> None:
    world.later = 2 * HOUR
    leases = {}
    for name, over in (("live", 0), ("late", HOUR - 60), ("dead", HOUR + 60)):
        world.end(world.tag(name))  # what is gone anyway is not taken from who makes it either
        leases[name] = world.claim(name)
        world.write(leases[name])
        world.age(leases[name].key, lease_ends=over + 30 if over else 0)
    assert reasons(world.collect(Bounds(1, 1))) == {leases["dead"].path: Reason.ABANDONED}
    assert [name for name, lease in leases.items() if world.is_there(lease)] == ["live", "late"]
    assert world.images.complete(leases["live"], size=10, sha256="0" * 64)
    assert world.images.complete(leases["late"], size=10, sha256="0" * 64)
    assert not world.images.complete(leases["dead"], size=10, sha256="0" * 64)


@everywhere
def test_an_object_that_no_row_names_goes_when_it_is_an_hour_old(world: World) -> None:
    kept, taken = world.made("1.0"), world.made("2.0")
    world.images.delete(taken.key)
    again = world.claim("2.0")
    world.write(again, 20)
    strange = ["verbs/derived/x", f"verbs/derived/ab/{'ab' * 32}", f"verbs/derived/cd/{'cd' * 32}/{'0' * 32}/deeper"]
    for path in strange:
        world.place.put(path, b"1234")
    assert world.collect().dropped == ()
    world.later = HOUR - 60
    assert world.collect().dropped == ()
    world.later = HOUR + 60
    report = world.collect()
    assert reasons(report) == dict.fromkeys([taken.path, *strange], Reason.ORPHAN)
    assert report.total == Tally(4, 22)
    assert world.is_there(kept)
    assert world.is_there(again)


# --- What is swept besides --------------------------------------------------------------------------------------------


@on_every_storage
def test_what_dead_writers_left_in_storage_goes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.driver.create("verbs/derived/x") as writer:
        writer.write(bytes(9 << 20))
        if isinstance(world.driver, S3Storage):
            settle(writer)
        assert world.collect().unfinished == 0
        monkeypatch.setattr(module, "STALE_SECONDS", -60)
        assert world.collect(dry_run=True).unfinished == 1
        assert world.collect().unfinished == 1
        assert world.collect().unfinished == 0
        with pytest.raises(StorageUnavailable):
            writer.commit()


def test_spools_of_dead_makers_go_and_those_of_live_ones_stay(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    alive = Spool(str(folder), "a" * 32)
    for suffix in ("", ".data"):
        (folder / f"{'b' * 32}{suffix}").write_bytes(b"{}\n")
    assert world.collect(spools=str(folder)).spools == 0
    for left in folder.iterdir():
        os.utime(left, (time.time() - 2 * DAY,) * 2)
    assert world.collect(spools=str(folder), dry_run=True).spools == 1
    assert len(os.listdir(folder)) == 4
    assert world.collect(spools=str(folder)).spools == 1
    assert {name[:1] for name in os.listdir(folder)} == {"a"}
    alive.close()


@on_every_database
def test_what_images_were_as_one_layer_is_forgotten_some_day(world: World) -> None:
    rows = PackedLayers(world.engine)
    layer = PackedLayer(Compression.GZIP, Digest.of(b""), 1, Digest.of(b""))
    rows.add("a" * 64, layer)
    rows.add("b" * 64, layer)
    ago = PackedLayerRow.created_ms - (module.PACKED_SECONDS + HOUR) * 1000
    with world.engine.begin() as connection:
        connection.execute(update(PackedLayerRow).where(PackedLayerRow.key == "a" * 64).values(created_ms=ago))
    assert world.collect(packed_layers=rows, dry_run=True).packed == 1
    assert rows.find("a" * 64) == layer
    report = world.collect(packed_layers=rows)
    assert report.packed == 1
    assert "of packed layers: 1" in report.summary
    assert (rows.find("a" * 64), rows.find("b" * 64)) == (None, layer)


def test_jobs_that_ended_a_week_ago_go(world: World) -> None:
    jobs = [NewJob(verb="squash", namespace="acme", repository="app", reference=f"{at}") for at in range(3)]
    old, new, waiting = world.jobs.add(jobs)
    for job in (old, new):
        assert world.jobs.cancel(job.id)
    world.sql(f"UPDATE verbs_job SET finished_ms = finished_ms - {8 * DAY * 1000} WHERE id = '{old.id}'")
    assert world.collect(jobs=world.jobs, dry_run=True).jobs == 1
    assert world.jobs.find(old.id)
    assert world.collect(jobs=world.jobs).jobs == 1
    assert [world.jobs.find(job.id) is not None for job in (old, new, waiting)] == [False, True, True]


# --- What never happens -----------------------------------------------------------------------------------------------


def scenario(world: World, seed: int) -> None:
    """Have all sorts of images, in all states."""
    chance = random.Random(seed)
    for at in range(chance.randint(0, 25)):
        name = f"{at}"
        tag = world.tag(name)
        lease = world.claim(name)
        if chance.random() < 0.9:
            world.write(lease, chance.randint(0, 50))
        match chance.randrange(5):
            case 0:
                world.age(lease.key, lease_ends=chance.choice([0, 60, 2 * HOUR]))
            case 1:
                world.images.fail(lease, "no room")
            case 2:
                world.images.delete(lease.key)
            case _:
                world.images.complete(lease, size=chance.randint(0, 50), sha256="0" * 64)
        world.age(lease.key, created=chance.random() * 60 * DAY, completed=chance.random() * 60 * DAY)
        if chance.random() < 0.2:
            world.images.fetched([lease.key])
            world.age(lease.key, fetched=chance.random() * 60 * DAY)
        if chance.random() < 0.2:
            world.end(tag)
    world.later = chance.choice([0, 2 * HOUR])


@pytest.mark.parametrize(
    ("seed", "storage_kind", "database_kind"),
    [*((seed, "local", "sqlite") for seed in range(8)), (100, "s3", "sqlite"), (101, "s3", "postgresql")],
)
def test_a_dry_run_changes_nothing_and_finds_what_is_dropped_and_what_is_left_holds(world: World, seed: int) -> None:
    scenario(world, seed)
    bounds = Bounds(30, 120)
    before = world.state()
    told = world.collect(bounds, dry_run=True)
    assert [*map(unread, world.state()[0])] == [*map(unread, before[0])]
    assert world.state()[1] == before[1]
    done = world.collect(bounds)
    assert (done.dropped, done.kept, done.failures) == (told.dropped, told.kept, ())
    assert told.dry_run
    assert not done.dry_run
    records, objects = world.state()
    live = {record.path for record in before[0] if record.lease_live}
    dropped = {finding.path for finding in done.dropped}
    assert not live & dropped
    assert {path: content for path, content in before[1].items() if path not in dropped} == objects
    assert not dropped & {record.path for record in records}
    assert sum(record.size or 0 for record in records if record.state is State.COMPLETE) == done.kept.size <= 120
    # What was dropped now leaves nothing to be dropped again.
    assert world.collect(bounds).dropped == ()


def unread(record: DerivedRecord) -> tuple[Any, ...]:
    return (record.key, record.token, record.state, record.completed_ms, record.fetched_ms, record.lease_ends_ms)


@pytest.mark.parametrize(
    "path",
    [
        "sha256/ab/abcd",
        "verbs/layerindex/v1/sha256/ab/abcd",
        "verbs/derived/../../sha256/ab/abcd",
        "/etc/passwd",
        f"verbs/derived/ab/{'ab' * 32}/{'0' * 32}/x",
    ],
)
def test_a_row_that_names_something_else_is_told_and_deletes_nothing(world: World, path: str) -> None:
    lease = world.made("1.0")
    world.sql(f"UPDATE verbs_derived SET path = '{path}'")
    world.end(world.tag("1.0"))
    before = world.place.all()
    report = world.collect(Bounds(1, 1))
    assert report.failures == (f"the row {lease.key} names {path!r}, which is no place of a derived image",)
    assert (report.dropped, world.place.all()) == ((), before)
    assert len(list(world.images.all())) == 1


@on_every_storage
def test_a_layer_index_goes_with_its_layer_and_with_its_version(world: World) -> None:
    there, gone = Digest.of(b"a layer that is there"), Digest.of(b"a layer that is gone")
    world.rows.add(db.ImageStorage, content_checksum=str(there), image_size=1, cas_path=True)
    current = f"{INDEXES}/v{FORMAT_VERSION}"
    kept = f"{current}/{content_path(there)}"
    dropped = {f"{current}/{content_path(gone)}", f"{INDEXES}/v0/{content_path(there)}", f"{current}/sha256/xx/what"}
    for path in (kept, *dropped):
        world.place.put(path, b"an index")
    assert world.collect().dropped == ()  # what is new may be of a layer that is being pushed
    world.later = 2 * HOUR
    report = world.collect()
    assert ({finding.path for finding in report.dropped}, report.failures) == (dropped, ())
    assert {finding.reason for finding in report.dropped} == {Reason.ORPHAN}
    assert dropped.isdisjoint(world.place.all())
    assert kept in world.place.all()


@on_every_storage
def test_a_read_only_registry_is_only_looked_at(world: World) -> None:
    world.made("1.0", age=90 * DAY)
    before = world.state()
    storage = DistributedStorage({"default": world.driver}, ["default"], readonly=True)
    with pytest.raises(StorageReadOnly, match="read-only"):
        world.collect(storage=storage)
    assert len(world.collect(storage=storage, dry_run=True).dropped) == 1
    assert world.state() == before


# --- Races ------------------------------------------------------------------------------------------------------------


class Between(DerivedImages):
    """Does `step` between the judgement of a row and its deletion."""

    def __init__(self, engine: Engine, step: Callable[[DerivedRecord], object]) -> None:
        super().__init__(engine)
        self.step = step

    def drop(self, record: DerivedRecord) -> bool:
        self.step(record)
        return super().drop(record)


@on_every_database
def test_an_image_that_is_fetched_before_it_is_dropped_stays(world: World) -> None:
    lease = world.made("1.0", age=90 * DAY)
    images = Between(world.engine, lambda record: world.images.fetched([record.key]))
    assert world.collect(images=images).dropped == ()
    assert world.is_there(lease)


@on_every_database
def test_an_image_that_is_made_anew_before_it_is_dropped_stays(world: World) -> None:
    old = world.made("1.0", age=90 * DAY)
    again: list[Lease] = []

    def remake(record: DerivedRecord) -> None:
        world.images.delete(record.key)
        world.driver.delete(record.path)
        again.append(world.made("1.0"))

    assert world.collect(images=Between(world.engine, remake)).dropped == ()
    assert not world.is_there(old)
    assert world.is_there(again[0])


@on_every_database
def test_a_making_that_is_heard_of_before_it_is_dropped_stays(world: World) -> None:
    world.tag("1.0")
    lease = world.claim("1.0")
    world.write(lease)
    world.age(lease.key, lease_ends=2 * HOUR)
    images = Between(world.engine, lambda _: world.images.beat({lease.token: 5}))
    assert world.collect(images=images).dropped == ()
    assert world.images.complete(lease, size=10, sha256="0" * 64)
    assert world.is_there(lease)


def test_for_the_quota_another_goes_when_one_is_fetched_meanwhile(world: World) -> None:
    first, second, third = (world.made(name, age=age * HOUR) for name, age in (("a", 3), ("b", 2), ("c", 1)))
    steps = [lambda record: world.images.fetched([record.key])]
    images = Between(world.engine, lambda record: steps.pop()(record) if steps else None)
    assert reasons(world.collect(Bounds(0, 20), images=images)) == {second.path: Reason.QUOTA}
    assert world.is_there(first)
    assert world.is_there(third)


@pytest.mark.parametrize("change", ["delete", "fetch"])
def test_for_the_quota_what_changes_after_the_rows_were_read_is_looked_at_again(world: World, change: str) -> None:
    first, second = world.made("a", age=2 * HOUR), world.made("b", age=HOUR)

    steps = ["once"]

    class Changing(DerivedImages):
        def find(self, key: str) -> DerivedRecord | None:
            while steps:
                steps.pop()
                if change == "fetch":
                    self.fetched([first.key])
                else:
                    self.delete(first.key)
                    world.driver.delete(first.path)
            return super().find(key)

    report = world.collect(Bounds(0, 10), images=Changing(world.engine))
    assert reasons(report) == ({second.path: Reason.QUOTA} if change == "fetch" else {})
    assert report.kept == Tally(1, 10)
    assert world.is_there(first) == (change == "fetch")


@pytest.mark.parametrize(
    ("storage_kind", "database_kind"),
    [("local", "sqlite"), ("local", "postgresql"), ("s3", "postgresql"), ("local", "mariadb")],
)
def test_what_is_made_while_it_is_collected_is_never_touched(world: World) -> None:
    world.later = 2 * HOUR  # every object is old enough: only rows protect it
    names = [f"{at}" for at in range(16)]
    for name in names:
        world.tag(name)
        orphan = world.claim(name)
        world.write(orphan)
        world.images.delete(orphan.key)
    leases: list[Lease] = []
    errors: list[BaseException] = []

    def make(names: list[str]) -> None:
        try:
            for name in names:
                lease = world.claim(name)
                world.write(lease)
                time.sleep(0.01)
                assert world.images.complete(lease, size=10, sha256="0" * 64)
                leases.append(lease)
        except BaseException as error:  # noqa: BLE001 raised below
            errors.append(error)

    makers = [threading.Thread(target=make, args=(names[at::2],)) for at in range(2)]
    for maker in makers:
        maker.start()
    dropped: list[Finding] = []
    while any(maker.is_alive() for maker in makers):
        report = world.collect(Bounds(30, 160))
        assert report.failures == ()
        dropped += report.dropped
    assert errors == []
    dropped += world.collect().dropped
    assert {finding.reason for finding in dropped} == {Reason.ORPHAN}
    assert len(dropped) == len(names)
    assert all(map(world.is_there, leases))
    assert len(leases) == len(names)


@pytest.mark.parametrize(
    ("storage_kind", "database_kind"), [("local", "sqlite"), ("local", "postgresql"), ("s3", "postgresql")]
)
def test_two_collections_at_once_harm_nothing(world: World) -> None:
    old = [world.made(f"old {at}", age=90 * DAY) for at in range(10)]
    kept = [world.made(f"kept {at}", age=HOUR) for at in range(5)]
    reports: list[Report] = []
    both = [threading.Thread(target=lambda: reports.append(world.collect(Bounds(30, 50)))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert [report.failures for report in reports] == [(), ()]
    paths = [finding.path for report in reports for finding in report.dropped]
    assert sorted(paths) == sorted(lease.path for lease in old)
    assert all(map(world.is_there, kept))
    assert not any(map(world.is_there, old))


# --- Failures ---------------------------------------------------------------------------------------------------------


class Failing(LocalStorage):
    """Refuses to delete what `refuses` says, and to do what is named in `broken`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.refuses: Callable[[str], bool] = lambda _: False
        self.broken: set[str] = set()
        self.asked: list[str] = []

    def delete(self, path: str) -> None:
        self.asked.append(path)
        if self.refuses(path):
            raise StorageUnavailable(f"no answer for {path}")
        super().delete(path)

    def list(self, prefix: str) -> Iterator[Any]:
        for number, blob in enumerate(super().list(prefix)):
            if "list" in self.broken and number == 1:
                raise StorageUnavailable("the list breaks off")
            yield blob

    def sweep(self, *, older_than: float, dry_run: bool = False) -> int:
        if "sweep" in self.broken:
            raise OSError("the disk is on fire")
        return super().sweep(older_than=older_than, dry_run=dry_run)


@pytest.fixture
def failing(world: World, tmp_path: Path) -> Failing:
    driver = Failing(tmp_path / "blobs")
    world.driver = driver
    world.storage = DistributedStorage({"default": driver}, ["default"])
    return driver


def test_a_deletion_that_fails_is_told_and_the_rest_goes_on(world: World, failing: Failing) -> None:
    leases = sorted((world.made(f"{at}", age=90 * DAY) for at in range(5)), key=lambda lease: lease.key)
    failing.refuses = lambda path: path == leases[2].path
    report = world.collect()
    assert report.failures == (f"{leases[2].path} is not deleted: no answer for {leases[2].path}",)
    assert {finding.path for finding in report.dropped} == {lease.path for lease in leases} - {leases[2].path}
    # What stayed has no row, and is found by that.
    failing.refuses = lambda _: False
    world.later = 2 * HOUR
    assert reasons(world.collect()) == {leases[2].path: Reason.ORPHAN}


def test_a_storage_that_keeps_failing_is_left_alone_and_rows_stay(world: World, failing: Failing) -> None:
    for at in range(6):
        world.made(f"{at}", age=90 * DAY)
        world.place.put(f"verbs/derived/{at}", b"x")
    world.later = 2 * HOUR
    failing.refuses = lambda _: True
    report = world.collect()
    assert report.dropped == ()
    assert len(failing.asked) == 3
    assert report.failures[-2:] == (
        "not all rows are looked through: storage has failed 3 times in a row; what is left waits",
        "not all objects are looked through: storage has failed 3 times in a row; what is left waits",
    )
    assert len(report.failures) == 5
    assert len(list(world.images.all())) == 3
    failing.refuses = lambda _: False
    assert len(world.collect().dropped) == 12
    assert world.state()[0] == []


def test_a_list_that_breaks_off_is_told_and_the_rest_goes_on(
    world: World, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = world.made("old", age=90 * DAY)
    for at in range(3):
        world.place.put(f"verbs/derived/{at}", b"x")
    world.later = 2 * HOUR
    failing.broken = {"list"}
    monkeypatch.setattr(module, "STALE_SECONDS", -60)
    with failing.create("verbs/derived/x") as writer:
        writer.write(b"x")
        report = world.collect()
    assert report.failures == ("not all objects are looked through: the list breaks off",)
    assert len(report.dropped) == 2
    assert old.path in {finding.path for finding in report.dropped}
    assert report.unfinished == 1


def test_a_sweep_that_fails_is_told_and_the_rest_goes_on(
    world: World, failing: Failing, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing.broken = {"sweep"}
    (old,) = world.jobs.add([NewJob(verb="squash", namespace="acme", repository="app", reference="1.0")])
    world.jobs.cancel(old.id)
    world.sql(f"UPDATE verbs_job SET finished_ms = finished_ms - {8 * DAY * 1000}")
    report = world.collect(jobs=world.jobs, spools=str(tmp_path / "absent"))
    assert report.failures == ("not all unfinished uploads are looked through: the disk is on fire",)
    assert report.jobs == 1
    assert "Traceback" in caplog.text  # nobody expects that


def test_a_registry_that_does_not_answer_has_lost_no_tag(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE", 2)
    asked = 0

    class Silent(SqlRegistry):
        def still_leading(self, referred: Any) -> set[Referred]:
            nonlocal asked
            asked += 1
            raise ConnectionError("no route")

    for at in range(5):
        world.end(world.tag(f"{at}"))
        world.made(f"{at}")
    old = world.made("old", age=90 * DAY)
    report = world.collect(registry=Silent(world.registry_engine))
    assert report.failures == ("the registry does not say which images are out of date: no route",)
    assert [finding.path for finding in report.dropped] == [old.path]
    assert asked == 1
    assert len(world.collect().dropped) == 5


@pytest.mark.parametrize("broken", [("all",), ("find",), ("now_ms",), ("drop",), ("all", "find", "now_ms", "drop")])
def test_without_the_rows_nothing_is_dropped_that_one_may_name(world: World, broken: tuple[str, ...]) -> None:
    class Down(DerivedImages):
        pass

    def fail(*_: Any, **__: Any) -> Any:
        raise DatabaseUnavailable("the server has gone away")

    for name in broken:
        setattr(Down, name, fail)
    leases = [world.made("old", age=90 * DAY), world.made("new"), world.made("newer")]
    world.later = 2 * HOUR
    report = world.collect(Bounds(30, 10), images=Down(world.engine))
    assert any("the server has gone away" in failure for failure in report.failures)
    paths = {finding.path for finding in report.dropped}
    assert [world.is_there(lease) for lease in leases] == [lease.path not in paths for lease in leases]
    if "drop" in broken or "now_ms" in broken:
        assert paths == set()


def test_the_same_failure_is_told_once(world: World) -> None:
    report = module._Collection(world.collector(), dry_run=False)
    for _ in range(3):
        report._failed("it does not go", StorageUnavailable("no answer"))
    assert report.run().failures == ("it does not go: no answer (3 times)",)
