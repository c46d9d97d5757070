"""What goes of a registry that nobody can reach any more, and what stays: rules, lapses, and who writes meanwhile."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update

from data import garbage as module
from data import tables as db
from data.database import Engine, create_tables, make_engine, writing
from data.garbage import Garbage, Kind, Needed, QuaysRegistry, Waste
from data.registry import RegistryUnavailable, content_path
from data.storage.base import StorageUnavailable
from data.storage.distributed import DistributedStorage
from data.storage.local import LocalStorage
from data.tables import MARKED_FOR_DELETION, Base, now_ms
from test.databases import KINDS, database
from test.test_registry import Rows
from util.digest import Digest
from util.oci import INDEX_OCI

GRACE = 3600
WEEKS = 14 * 24 * 3600
"""How long a namespace keeps its tags' past, unless it says otherwise."""


class Watched(LocalStorage):
    """A folder of blobs that fails, and waits, where it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fails: set[str] = set()
        self.before_delete: Callable[[str], None] = lambda _: None

    def delete(self, path: str) -> None:
        self.before_delete(path)
        if path in self.fails:
            raise StorageUnavailable(f"{path} cannot be deleted")
        super().delete(path)


@dataclass
class World:
    """A registry and its storage, seen at a time that is `later` seconds from now."""

    engine: Engine
    root: Path
    later: float = 0
    needed: set[Needed] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = Rows(self.engine)
        self.driver = Watched(self.root)
        self.storage = DistributedStorage({"default": self.driver}, ["default"])
        self.repository = self.rows.repository("acme/app")

    def garbage(self, storage: DistributedStorage | None = None, *, grace: float = GRACE) -> Garbage:
        return Garbage(
            self.engine, storage or self.storage, grace_seconds=grace, clock=lambda: time.time() + self.later
        )

    def collect(self, *, dry_run: bool = False, garbage: Garbage | None = None) -> list[Waste]:
        """Collect all, as a collector does."""
        garbage = garbage or self.garbage()
        found = [*garbage.tags(dry_run=dry_run), *garbage.repositories(dry_run=dry_run)]
        found += garbage.manifests(lambda: self.needed, dry_run=dry_run)
        if not dry_run:
            garbage.links()
        return [*found, *garbage.blobs(self.failed, dry_run=dry_run)]

    def failed(self, what: str, error: Exception) -> None:
        self.failures.append(f"{what}: {error}")

    # --- What there is ---

    def blob(self, content: str, *, uploaded: float | None = None, repository: int | None = None, **more: Any) -> int:
        """Have a blob, in storage and, `uploaded` seconds long, linked by an upload; return its row."""
        digest = Digest.of(content.encode())
        values = {
            "content_checksum": str(digest),
            "image_size": len(content),
            "uuid": f"uuid of {content}",
            **more,
        }
        number = self.rows.add(db.ImageStorage, **values)
        self.place(number, "default")
        self.put(content_path(digest), content)
        if uploaded is not None:
            self.upload(number, uploaded, repository=repository)
        return number

    def place(self, blob: int, name: str) -> None:
        with writing(self.engine) as connection:
            query = select(db.ImageStorageLocation.id).where(db.ImageStorageLocation.name == name)
            location = connection.scalar(query)
            if location is None:
                made = connection.execute(insert(db.ImageStorageLocation).values(name=name)).inserted_primary_key
                assert made is not None
                location = made[0]
            values = {"storage_id": blob, "location_id": location}
            connection.execute(insert(db.ImageStoragePlacement).values(values))

    def put(self, path: str, content: str) -> None:
        with self.driver.create(path) as writer:
            writer.write(content.encode())
            writer.commit()

    def upload(self, blob: int, seconds: float, *, repository: int | None = None) -> int:
        """Link `blob` as an upload does, for so many seconds."""
        until = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=seconds)
        return self.rows.add(
            db.UploadedBlob, repository_id=repository or self.repository, blob_id=blob, expires_at=until
        )

    def manifest(self, content: str, *blobs: int, repository: int | None = None, **more: Any) -> int:
        number = repository or self.repository
        manifest = self.rows.manifest(number, content, **more)
        for blob in blobs:
            self.rows.add(db.ManifestBlob, repository_id=number, manifest_id=manifest, blob_id=blob)
        return manifest

    def index(self, content: str, *children: int) -> int:
        index = self.manifest(content, media_type=INDEX_OCI)
        for child in children:
            self.rows.add(db.ManifestChild, repository_id=self.repository, manifest_id=index, child_manifest_id=child)
        return index

    def tag(self, manifest: int | None, name: str = "1.0", *, ended: float | None = None, **more: Any) -> int:
        """Have a tag, which ended `ended` seconds ago if that is said."""
        end = None if ended is None else now_ms() - round(ended * 1000)
        number = more.pop("repository", self.repository)
        return self.rows.tag(number, name, manifest, lifetime_end_ms=end, **more)

    def ids(self, table: type[Base]) -> set[int]:
        with self.engine.connect() as connection:
            return set(connection.scalars(select(table.id)))

    def files(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*/*") if path.is_file()}

    def has(self, content: str) -> bool:
        return content_path(Digest.of(content.encode())) in self.files()

    def counts(self) -> dict[str, int]:
        found = {table.__tablename__: len(self.ids(table)) for table in _TABLES}
        return {name: count for name, count in found.items() if count}


_TABLES: tuple[type[Base], ...] = (
    db.Repository,
    db.RepositoryPermission,
    db.Tag,
    db.Manifest,
    db.ManifestBlob,
    db.ManifestChild,
    db.UploadedBlob,
    db.ImageStorage,
    db.ImageStoragePlacement,
)


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with database(request.param, tmp_path) as engine:
        create_tables(engine)
        world = World(engine, tmp_path / "blobs")
        yield world
        assert world.failures == []


def kinds(found: list[Waste]) -> list[Kind]:
    return [waste.kind for waste in found]


# --- Tags -------------------------------------------------------------------------------------------------------------


def test_what_a_tag_leads_to_stays(world: World) -> None:
    blobs = world.blob("config"), world.blob("layer")
    world.tag(world.manifest("image", *blobs))
    before, files = world.counts(), world.files()
    assert world.collect() == []
    assert (world.counts(), world.files()) == (before, files)


def test_a_tag_s_past_is_kept_as_long_as_its_namespace_says(world: World) -> None:
    short = world.rows.repository("short/app")
    with writing(world.engine) as connection:
        connection.execute(update(db.User).where(db.User.username == "short").values(removed_tag_expiration_s=3600))
    blob = world.blob("layer")
    stays = world.manifest("stays", blob)
    goes = world.manifest("goes", blob, repository=short)
    ended = [world.tag(stays, ended=WEEKS - 3600), world.tag(goes, ended=3000, repository=short)]
    assert world.collect() == []
    world.later = 900
    assert world.collect() == [
        Waste(Kind.ENDED, "short/app:1.0"),
        Waste(Kind.UNTAGGED, f"short/app@{Digest.of(b'goes')}", size=4),
    ]
    assert world.ids(db.Tag) == {ended[0]}
    assert world.ids(db.Manifest) == {stays}
    world.later = 3700
    assert kinds(world.collect()) == [Kind.ENDED, Kind.UNTAGGED]


def test_a_tag_that_will_end_is_there_until_then(world: World) -> None:
    tag = world.tag(world.manifest("image", world.blob("layer")), ended=-10)
    assert world.collect() == []
    assert world.ids(db.Tag) == {tag}


def test_hidden_tags_keep_their_manifests_and_go_without_a_word(world: World) -> None:
    world.tag(world.manifest("image"), "$temp-1", hidden=True)
    assert world.collect() == []
    world.tag(world.manifest("other"), "$temp-2", hidden=True, ended=WEEKS + 1)
    assert kinds(world.collect()) == [Kind.UNTAGGED]
    assert len(world.ids(db.Tag)) == 1


def test_a_tag_that_means_nothing_goes_too(world: World) -> None:
    world.tag(None, ended=WEEKS + 1)
    assert kinds(world.collect()) == [Kind.ENDED]


def test_a_tag_may_be_linked_to_by_another(world: World) -> None:
    manifest = world.manifest("image")
    old = world.tag(manifest, ended=WEEKS + 1)
    young = world.tag(manifest, linked_tag_id=old)
    assert kinds(world.collect()) == [Kind.ENDED]
    assert world.ids(db.Tag) == {young}


def test_there_may_be_many_pages_of_everything(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE", 3)
    monkeypatch.setattr(module, "_TOGETHER", 2)
    for number in range(10):
        blob = world.blob(f"layer {number}", uploaded=-1)
        world.tag(world.manifest(f"image {number}", blob), f"{number}", ended=WEEKS + 1 if number % 5 else None)
        world.blob(f"loose {number}", uploaded=-1)
    found = world.collect()
    assert Counter(kinds(found)) == {Kind.ENDED: 8, Kind.UNTAGGED: 8, Kind.UNREFERENCED: 10}
    world.later = GRACE + 1
    assert kinds(world.collect()) == [Kind.UNREFERENCED] * 8
    assert len(world.files()) == 2


def test_the_number_of_a_tag_is_never_given_again(world: World) -> None:
    """Whoever looks at tags by their numbers, the highest last, would miss it."""
    tag = world.tag(None, ended=WEEKS + 1)
    world.collect()
    assert world.ids(db.Tag) == set()
    assert world.tag(None) > tag
    marked = world.rows.repository("acme/gone", state=MARKED_FOR_DELETION)
    world.collect()
    assert world.rows.repository("acme/next") > marked


# --- Manifests --------------------------------------------------------------------------------------------------------


def test_a_manifest_without_a_tag_goes_and_its_blobs_are_kept_for_the_grace(world: World) -> None:
    blob, shared = world.blob("layer"), world.blob("shared")
    world.tag(world.manifest("stays", shared))
    world.manifest("goes", blob, shared)
    assert world.collect() == [Waste(Kind.UNTAGGED, f"acme/app@{Digest.of(b'goes')}", size=4)]
    with world.engine.connect() as connection:
        links = connection.execute(select(db.UploadedBlob.repository_id, db.UploadedBlob.blob_id)).all()
    assert [tuple(link) for link in links] == [(world.repository, blob)]
    world.later = GRACE * 3 / 4
    assert world.collect() == []
    assert world.has("layer")
    world.later = GRACE + 1
    assert world.collect() == [Waste(Kind.UNREFERENCED, f"blob {Digest.of(b'layer')}", path_of("layer"), 5)]
    assert not world.has("layer")
    assert world.has("shared")
    assert world.ids(db.ImageStorage) == {shared}
    assert world.ids(db.UploadedBlob) == set()


def path_of(content: str) -> str:
    return content_path(Digest.of(content.encode()))


def test_a_link_that_lasts_longer_is_not_made_again(world: World) -> None:
    blob = world.blob("layer", uploaded=2 * GRACE)
    world.manifest("goes", blob)
    world.collect()
    assert len(world.ids(db.UploadedBlob)) == 1
    world.later = GRACE + 1
    assert world.collect() == []


def test_a_link_that_ends_sooner_does_not_count(world: World) -> None:
    blob = world.blob("layer", uploaded=GRACE / 2)
    world.manifest("goes", blob)
    world.collect()
    world.later = GRACE * 3 / 4
    assert world.collect() == []
    assert world.has("layer")


def test_a_link_in_another_repository_does_not_count(world: World) -> None:
    other = world.rows.repository("acme/other")
    blob = world.blob("layer", uploaded=2 * GRACE, repository=other)
    world.manifest("goes", blob)
    world.collect()
    assert len(world.ids(db.UploadedBlob)) == 2


def test_a_manifest_in_an_index_stays_with_it_and_goes_with_it(world: World) -> None:
    blob = world.blob("layer")
    image = world.manifest("image", blob)
    inner = world.index("inner", image)
    outer = world.index("outer", inner)
    tag = world.tag(outer)
    assert world.collect() == []
    world.rows.change(db.Tag, tag, lifetime_end_ms=now_ms() - (WEEKS + 1) * 1000)
    found = world.collect()
    assert [waste.what.partition("@")[2] for waste in found[1:]] == [
        str(Digest.of(content)) for content in (b"outer", b"inner", b"image")
    ]
    assert world.ids(db.Manifest) == world.ids(db.ManifestChild) == set()
    assert world.has("layer")


def test_a_manifest_stays_with_any_index_that_has_it(world: World) -> None:
    image = world.manifest("image")
    nested = world.index("nested", image)
    world.tag(world.index("stays", nested))
    world.index("goes", image, nested)
    assert [waste.what for waste in world.collect()] == [f"acme/app@{Digest.of(b'goes')}"]
    assert world.ids(db.Manifest) >= {image, nested}


def test_a_manifest_stays_while_something_is_made_of_it(world: World) -> None:
    image = world.manifest("image", world.blob("layer"))
    world.index("index", image)
    world.needed = {Needed("acme", "app", str(Digest.of(b"image")))}
    assert [waste.what for waste in world.collect()] == [f"acme/app@{Digest.of(b'index')}"]
    assert world.ids(db.Manifest) == {image}
    world.needed = set()
    assert len(world.collect()) == 1


def test_a_manifest_that_is_needed_since_it_was_found_stays(world: World) -> None:
    world.manifest("image", world.blob("layer"))
    answers = iter([set(), {Needed("acme", "app", str(Digest.of(b"image")))}])
    assert list(world.garbage().manifests(lambda: next(answers))) == []
    assert len(world.ids(db.Manifest)) == 1


def test_who_needs_something_and_is_not_known_needs_all(world: World) -> None:
    world.manifest("image")

    def unknown() -> set[Needed]:
        raise RegistryUnavailable("nobody answers")

    with pytest.raises(RegistryUnavailable):
        list(world.garbage().manifests(unknown))
    assert len(world.ids(db.Manifest)) == 1


def test_what_refers_to_a_manifest_that_goes_loses_its_hidden_tag(world: World) -> None:
    world.manifest("image")
    subject = str(Digest.of(b"image"))
    signature, tagged, elsewhere = (world.manifest(name) for name in ("signature", "tagged", "elsewhere"))
    for manifest in (signature, tagged):
        world.rows.change(db.Manifest, manifest, subject=subject)
    world.rows.change(db.Manifest, elsewhere, subject=str(Digest.of(b"nobody has it")))
    hidden = world.tag(signature, "$temp-1", hidden=True)
    others = [world.tag(tagged, "visible"), world.tag(elsewhere, "$temp-2", hidden=True)]
    assert len(world.collect()) == 1
    with world.engine.connect() as connection:
        alive = select(db.Tag.id).where(db.Tag.lifetime_end_ms.is_(None))
        assert set(connection.scalars(alive)) == set(others)
    assert world.ids(db.Tag) == {hidden, *others}
    world.later = WEEKS + 1
    assert [waste.what for waste in world.collect()] == [f"acme/app@{Digest.of(b'signature')}"]


def test_what_refers_to_what_never_came_stays(world: World) -> None:
    signature = world.manifest("signature")
    world.rows.change(db.Manifest, signature, subject=str(Digest.of(b"nobody has it")))
    world.tag(signature, "$temp-1", hidden=True)
    world.later = 10 * WEEKS
    assert world.collect() == []


# --- Repositories -----------------------------------------------------------------------------------------------------


def test_a_deleted_repository_goes_when_its_blobs_are_not_kept_any_more(world: World) -> None:
    role, user = 1, world.rows.add(db.User, username="alice")
    gone = world.rows.repository("acme/gone", state=MARKED_FOR_DELETION)
    world.rows.add(db.RepositoryPermission, repository_id=gone, user_id=user, role_id=role)
    manifest = world.manifest("image", world.blob("layer"), repository=gone)
    world.tag(manifest, repository=gone)
    world.tag(manifest, "old", ended=5, repository=gone)
    found = world.collect()
    assert sorted(kinds(found)) == [Kind.ENDED, Kind.ENDED, Kind.UNTAGGED]
    assert gone in world.ids(db.Repository)
    world.later = GRACE + 1
    assert kinds(world.collect()) == [Kind.DELETED, Kind.UNREFERENCED]
    assert world.ids(db.Repository) == {world.repository}
    assert world.counts() == {"repository": 1}
    assert world.files() == set()


def test_a_deleted_repository_takes_nothing_with_it_that_others_have(world: World) -> None:
    gone = world.rows.repository("acme/gone", state=MARKED_FOR_DELETION)
    blob = world.blob("layer")
    world.tag(world.manifest("image", blob))
    world.tag(world.manifest("image", blob, repository=gone), repository=gone)
    world.collect()
    world.later = GRACE + 1
    assert kinds(world.collect()) == [Kind.DELETED]
    assert world.has("layer")
    assert world.counts()["manifest"] == 1


def test_a_deleted_repository_without_a_namespace_goes(world: World) -> None:
    gone = world.rows.repository("acme/gone", state=MARKED_FOR_DELETION)
    world.rows.change(db.Repository, gone, namespace_user_id=None)
    manifest = world.manifest("image", repository=gone)
    world.tag(manifest, repository=gone)
    assert kinds(world.collect()) == [Kind.ENDED, Kind.UNTAGGED]
    assert kinds(world.collect()) == [Kind.DELETED]


# --- Blobs ------------------------------------------------------------------------------------------------------------


def test_an_upload_s_blob_stays_until_its_time_is_over(world: World) -> None:
    blob = world.blob("layer", uploaded=600)
    assert world.collect() == []
    assert world.garbage().links() == 0
    world.later = 601
    assert world.garbage().links() == 1
    assert kinds(world.collect()) == [Kind.UNREFERENCED]
    assert blob not in world.ids(db.ImageStorage)
    assert world.files() == set()
    assert world.ids(db.ImageStoragePlacement) == set()


def test_a_blob_goes_from_wherever_it_lies(world: World) -> None:
    other = Watched(world.root.parent / "other")
    path = path_of("layer")
    with other.create(path) as writer:
        writer.write(b"layer")
        writer.commit()
    blob = world.blob("layer")
    for name in ("other", "somewhere"):
        world.place(blob, name)
    storage = DistributedStorage({"default": world.driver, "other": other}, ["default"])
    assert kinds(world.collect(garbage=world.garbage(storage))) == [Kind.UNREFERENCED]
    assert world.files() == set()
    assert not list(other.list("sha256"))


def test_an_old_blob_goes_by_its_own_path(world: World) -> None:
    world.blob("layer", cas_path=False)
    world.put("sharedimages/uuid of layer/layer", "layer")
    (waste,) = world.collect()
    assert waste.path == "sharedimages/uuid of layer/layer"
    assert world.files() == {path_of("layer")}


def test_a_blob_that_has_two_rows_keeps_its_object_for_the_other(world: World) -> None:
    first, second = world.blob("layer"), world.blob("layer", uuid="another", uploaded=600)
    assert kinds(world.collect()) == [Kind.UNREFERENCED]
    assert world.ids(db.ImageStorage) == {second} != {first}
    assert world.has("layer")
    world.later = 601
    assert kinds(world.collect()) == [Kind.UNREFERENCED]
    assert world.files() == set()


def test_a_blob_whose_object_cannot_be_deleted_keeps_its_row_and_the_rest_goes_on(world: World) -> None:
    stays = world.blob("stuck")
    world.blob("layer")
    world.driver.fails = {path_of("stuck")}
    assert [waste.path for waste in world.collect()] == [path_of("layer")]
    assert world.ids(db.ImageStorage) == {stays}
    assert world.failures == [f"blob {stays} stays: {path_of('stuck')} cannot be deleted"]
    world.driver.fails, world.failures = set(), []
    assert kinds(world.collect()) == [Kind.UNREFERENCED]


def test_a_blob_whose_digest_says_nothing_is_told_and_left(world: World) -> None:
    for checksum in ("md5:abc", None):
        world.rows.add(db.ImageStorage, content_checksum=checksum)
    assert world.collect() == []
    assert len(world.failures) == 2
    assert "'md5:abc' is not a digest" in world.failures[0]
    world.failures = []


def test_a_row_that_has_lost_its_object_goes(world: World) -> None:
    """Where a process died after the object was deleted and before the commit."""
    world.blob("layer")
    os.unlink(world.root / path_of("layer"))
    assert kinds(world.collect()) == [Kind.UNREFERENCED]
    assert world.counts() == {"repository": 1}


def test_who_collects_may_be_told_to_stop(world: World) -> None:
    for number in range(3):
        world.blob(f"layer {number}")
    world.driver.fails = world.files()

    def fed_up(what: str, error: Exception) -> None:
        raise StorageUnavailable(f"enough of {what}: {error}")

    with pytest.raises(StorageUnavailable, match="enough of blob"):
        list(world.garbage().blobs(fed_up))
    assert len(world.ids(db.ImageStorage)) == 3


# --- Dry run, and where nothing may be done ---------------------------------------------------------------------------


def _everything(world: World) -> None:
    world.tag(world.manifest("stays", world.blob("stays")))
    child = world.manifest("child", world.blob("layer"))
    world.tag(world.index("index", child), "gone", ended=WEEKS + 1)
    world.manifest("loose", world.blob("loose"))
    world.blob("old", uploaded=-10)
    marked = world.rows.repository("acme/marked", state=MARKED_FOR_DELETION)
    world.tag(world.manifest("marked", world.blob("of the marked"), repository=marked), repository=marked)
    world.rows.repository("acme/empty", state=MARKED_FOR_DELETION)


def test_a_dry_run_finds_the_same_and_changes_nothing(world: World) -> None:
    _everything(world)
    before, files = world.counts(), world.files()
    found = world.collect(dry_run=True)
    assert (world.counts(), world.files()) == (before, files)
    assert Counter(kinds(found)) == {
        Kind.ENDED: 2,
        Kind.DELETED: 1,
        Kind.UNTAGGED: 4,
        Kind.UNREFERENCED: 1,
    }
    assert world.collect() == found
    world.later = GRACE + 1
    found = world.collect(dry_run=True)
    assert kinds(found) == [Kind.DELETED, *[Kind.UNREFERENCED] * 3]
    assert world.collect() == found
    assert world.collect() == []


def test_of_a_quay_s_own_database_nothing_is_touched(world: World) -> None:
    world.garbage().check()
    with world.engine.begin() as connection:
        connection.execute(text("CREATE TABLE queueitem (id INTEGER)"))
    with pytest.raises(QuaysRegistry):
        world.garbage().check()


def test_nothing_goes_from_a_registry_that_is_only_read(world: World) -> None:
    world.blob("layer")
    storage = DistributedStorage({"default": world.driver}, ["default"], readonly=True)
    world.collect(garbage=world.garbage(storage))
    assert world.has("layer")
    assert len(world.ids(db.ImageStorage)) == 1
    assert len(world.failures) == 1
    world.failures = []


def test_a_database_that_does_not_answer_is_told(tmp_path: Path) -> None:
    engine = make_engine("postgresql://nobody@127.0.0.1:1/x")
    world = Garbage(engine, DistributedStorage({"default": LocalStorage(tmp_path)}, ["default"]), grace_seconds=1)
    for step in (
        world.check,
        lambda: list(world.tags()),
        lambda: list(world.repositories()),
        lambda: list(world.manifests(set)),
        world.links,
        lambda: list(world.blobs(lambda *_: None)),
    ):
        with pytest.raises(RegistryUnavailable):
            step()


# --- Who writes meanwhile ---------------------------------------------------------------------------------------------


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Do `work` on another thread; it has ended afterwards."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 raised below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield thread
    thread.join(60)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def between(world: World, monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Have `change` happen after a page was found and before it is looked at again under the lock."""
    looking = Garbage._looking
    done: list[bool] = []

    def look(garbage: Garbage, *, dry_run: bool) -> Any:
        if not done:
            done.append(True)
            change()
        return looking(garbage, dry_run=dry_run)

    monkeypatch.setattr(Garbage, "_looking", look)


def test_a_manifest_that_is_tagged_since_it_was_found_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = world.manifest("image", world.blob("layer"))
    between(world, monkeypatch, lambda: world.tag(manifest))
    assert list(world.garbage().manifests(set)) == []
    assert world.counts()["manifestblob"] == 1
    assert "uploadedblob" not in world.counts()


def test_a_manifest_that_is_in_an_index_since_it_was_found_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = world.manifest("image")
    between(world, monkeypatch, lambda: world.tag(world.index("index", manifest)))
    assert list(world.garbage().manifests(set)) == []


def test_what_is_in_an_index_that_stays_after_all_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOGETHER", 1)
    index = world.index("index", world.manifest("image"))
    between(world, monkeypatch, lambda: world.tag(index))
    assert list(world.garbage().manifests(set)) == []


def test_a_tag_that_is_younger_than_it_was_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tag = world.tag(world.manifest("image"), ended=WEEKS + 1)
    between(world, monkeypatch, lambda: world.rows.change(db.Tag, tag, lifetime_end_ms=None))
    assert list(world.garbage().tags()) == []
    assert world.ids(db.Tag) == {tag}


@pytest.mark.parametrize("how", ["manifest", "upload", "expired"])
def test_a_blob_that_is_linked_since_it_was_found_stays(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    blob = world.blob("layer")
    links: dict[str, Callable[[], object]] = {
        "manifest": lambda: world.tag(world.manifest("image", blob)),
        "upload": lambda: world.upload(blob, 10),
        "expired": lambda: world.upload(blob, -10),  # for a moment; the next collection takes it
    }
    between(world, monkeypatch, links[how])
    assert list(world.garbage().blobs(world.failed)) == []
    assert world.has("layer")
    assert world.ids(db.ImageStorage) == {blob}


def test_a_row_that_has_got_another_s_number_is_seen_as_what_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = world.blob("layer")

    def replace() -> None:
        with writing(world.engine) as connection:
            connection.execute(delete(db.ImageStoragePlacement))
            connection.execute(delete(db.ImageStorage))
        world.blob("other", id=blob)

    between(world, monkeypatch, replace)
    (waste,) = world.garbage().blobs(world.failed)
    assert waste.path == path_of("other")
    assert world.files() == {path_of("layer")}


def test_who_links_a_blob_while_it_goes_finds_neither_row_nor_object(world: World) -> None:
    """The object is deleted under the lock: whoever comes waits for it, and finds what is true then."""
    blob = world.blob("layer")
    deleting, go_on = threading.Event(), threading.Event()

    def pause(_: str) -> None:
        deleting.set()
        assert go_on.wait(30)

    world.driver.before_delete = pause
    seen: list[tuple[set[int], bool]] = []

    def link() -> None:
        with writing(world.engine) as connection:
            rows = set(connection.scalars(select(db.ImageStorage.id).where(db.ImageStorage.id == blob)))
            seen.append((rows, world.has("layer")))

    with meanwhile(lambda: list(world.garbage().blobs(world.failed))):
        assert deleting.wait(30)
        with meanwhile(link) as linking:
            linking.join(0.3)
            assert linking.is_alive(), "it did not wait for the lock"
            go_on.set()
    assert seen == [(set(), False)]


def test_who_has_the_lock_first_keeps_the_blob(world: World) -> None:
    blob = world.blob("layer")
    with writing(world.engine) as connection:
        values = {"repository_id": world.repository, "blob_id": blob, "expires_at": datetime(2100, 1, 1)}  # noqa: DTZ001
        connection.execute(insert(db.UploadedBlob).values(values))
        collecting = threading.Thread(target=lambda: list(world.garbage().blobs(world.failed)))
        collecting.start()
        collecting.join(0.3)
        assert collecting.is_alive()
        assert world.has("layer")
    collecting.join(60)
    assert world.has("layer")
    assert world.ids(db.ImageStorage) == {blob}


def test_any_number_may_collect_at_once(world: World) -> None:
    for number in range(5):
        world.later = 0
        _everything_of(world, number)
    found: list[Waste] = []

    def collect() -> None:
        for _ in range(3):
            found.extend(world.collect())

    with meanwhile(collect), meanwhile(collect), meanwhile(collect):
        pass
    world.later = GRACE + 1
    with meanwhile(collect), meanwhile(collect), meanwhile(collect):
        pass
    assert len(found) == len(set(found)), "something went twice"
    assert Counter(kinds(found)) == {Kind.ENDED: 5, Kind.UNTAGGED: 15, Kind.UNREFERENCED: 15}
    assert world.counts() == {"tag": 5, "manifest": 5, "manifestblob": 5, "imagestorage": 5} | {
        "imagestorageplacement": 5,
        "repository": 1,
    }
    assert world.files() == {path_of(f"stays {number}") for number in range(5)}


def _everything_of(world: World, number: int) -> None:
    world.tag(world.manifest(f"stays {number}", world.blob(f"stays {number}")), f"{number}")
    child = world.manifest(f"child {number}", world.blob(f"layer {number}"))
    world.tag(world.index(f"index {number}", child), f"gone-{number}", ended=WEEKS + 1)
    world.manifest(f"loose {number}", world.blob(f"loose {number}"))
    world.blob(f"old {number}", uploaded=-10)
