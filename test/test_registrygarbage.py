"""The registry's garbage in a collection: whose registry, in which order, what is spared, and what the command says."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, text, update

from data import tables as db
from data.database import writing
from data.derivedimages import Lease, NewDerived
from data.garbage import Garbage
from data.owntables import DatabaseUnavailable, MarkRow, UploadRow, changing, reading
from data.registry import RegistryUnavailable, content_path
from data.storage.base import StorageUnavailable
from data.storage.local import LocalStorage
from data.strays import SIGN
from data.tables import now_ms, now_utc
from endpoints.collector import Finding, Reason, Report, collector_of
from endpoints.services import Services
from test.images import Image, Layer
from test.layers import file
from test.place import Place
from test.waiting import eventually
from util.digest import Digest

HOUR = 3600
DAY = 24 * HOUR


@dataclass
class Registry:
    """A registry that holds images."""

    place: Place
    services: Services

    def push(self, name: str) -> str:
        """Import an image that is like no other, and return its manifest's digest."""
        return self.place.push(name, Image([Layer([file(b"name", name.encode())])]))

    def collect(self, *, dry_run: bool = False, search: bool = True) -> Report:
        return collector_of(self.services, search=search).collect(dry_run=dry_run)

    def end_tags(self, seconds: float = 15 * DAY) -> None:
        """Have all tags have ended so long ago."""
        with writing(self.services.engine) as connection:
            connection.execute(update(db.Tag).values(lifetime_end_ms=now_ms() - round(seconds * 1000)))

    def end_grace(self) -> None:
        """Have the time of all links be over."""
        with writing(self.services.engine) as connection:
            connection.execute(update(db.UploadedBlob).values(expires_at=now_utc() - timedelta(seconds=1)))

    def blobs(self) -> set[str]:
        return {blob.path for blob in self.services.storage.preferred.list("sha256")}

    def rows(self, table: type[db.Base]) -> int:
        with self.services.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(table)) or 0

    def stray(self, content: bytes = b"stray") -> str:
        path = content_path(Digest.of(content))
        with self.services.storage.create(path) as writer:
            writer.write(content)
            writer.commit()
        os.utime(self.place.storage / path, (time.time() - 2 * DAY,) * 2)
        return path


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    place = Place(tmp_path)
    services = place.services()
    yield Registry(place, services)
    services.engine.dispose()
    services.own_engine.dispose()


def reasons(report: Report) -> list[Reason]:
    assert report.failures == ()
    return [finding.reason for finding in report.dropped]


def test_an_image_goes_step_by_step_and_all_that_belongs_to_it(registry: Registry) -> None:
    digest = registry.push("acme/app:1.0")
    registry.push("acme/stays:1.0")
    kept = registry.blobs()
    assert reasons(registry.collect()) == []
    with writing(registry.services.engine) as connection:
        app = select(db.Repository.id).where(db.Repository.name == "app").scalar_subquery()
        ended = update(db.Tag).where(db.Tag.repository_id == app)
        connection.execute(ended.values(lifetime_end_ms=now_ms() - 15 * DAY * 1000))
    report = registry.collect()
    assert reasons(report) == [Reason.ENDED, Reason.UNTAGGED]
    assert [finding.what for finding in report.dropped] == ["acme/app:1.0", f"acme/app@{digest}"]
    assert registry.blobs() == kept
    assert reasons(registry.collect()) == []
    registry.end_grace()
    report = registry.collect()
    assert reasons(report) == [Reason.UNREFERENCED, Reason.UNREFERENCED]
    assert {finding.path for finding in report.dropped} == kept - registry.blobs()
    assert len(registry.blobs()) == 2
    assert registry.rows(db.ImageStorage) == 2


def test_the_index_of_a_layer_that_has_gone_goes_with_it(registry: Registry) -> None:
    registry.push("acme/app:1.0")
    registry.end_tags()
    registry.collect()
    registry.end_grace()
    indexes = [path for path in (registry.place.storage / "verbs" / "layerindex").rglob("*") if path.is_file()]
    for path in indexes:
        os.utime(path, (time.time() - 2 * HOUR,) * 2)
    assert reasons(registry.collect()).count(Reason.ORPHAN) == len(indexes) == 1


def test_a_deleted_repository_goes(registry: Registry) -> None:
    registry.push("acme/app:1.0")
    registry.services.administration.delete_repository("acme", "app")
    assert reasons(registry.collect()) == [Reason.ENDED, Reason.UNTAGGED]
    registry.end_grace()
    assert reasons(registry.collect()) == [Reason.DELETED, Reason.UNREFERENCED, Reason.UNREFERENCED]
    assert registry.rows(db.Repository) == registry.rows(db.ImageStorage) == 0
    assert registry.blobs() == set()
    registry.push("acme/app:1.0")
    assert reasons(registry.collect()) == []


def test_what_is_being_made_of_a_manifest_keeps_it(registry: Registry) -> None:
    digest = registry.push("acme/app:1.0")
    new = NewDerived(
        key="0" * 64,
        namespace="acme",
        repository="app",
        reference="1.0",
        manifest_digest=digest,
        verb="squash",
        platform="linux/amd64",
        compression="none",
        media_type="application/x-tar",
        file_name="app.tar",
    )
    lease = registry.services.derived.claim(new, host="here")
    assert isinstance(lease, Lease)
    registry.end_tags()
    assert reasons(registry.collect()) == [Reason.ENDED]
    assert registry.rows(db.Manifest) == 1
    assert registry.services.derived.release(lease)
    assert reasons(registry.collect()) == [Reason.UNTAGGED]


def test_an_upload_that_nobody_went_on_with_goes(registry: Registry) -> None:
    registry.push("acme/app:1.0")
    uploads = registry.services.uploads
    old, young = uploads.start(1), uploads.start(1)
    for upload in (old, young):
        with closing(open(os.devnull, "rb")) as nothing:
            uploads.append(1, upload.id, nothing)
    later = registry.services.settings.upload_seconds * 1000 + 1000
    query = update(UploadRow).where(UploadRow.id == old.id).values(touched_ms=UploadRow.touched_ms - later)
    changing(registry.services.own_engine, lambda connection: connection.execute(query))
    for dry_run in (True, False):
        report = registry.collect(dry_run=dry_run)
        assert [(found.reason, found.what) for found in report.dropped] == [(Reason.UPLOAD, f"upload {old.id}")]
    left = reading(registry.services.own_engine, lambda connection: list(connection.scalars(select(UploadRow.id))))
    assert left == [young.id]


def test_a_stray_goes_when_it_is_looked_for(registry: Registry) -> None:
    registry.collect()
    path = registry.stray()
    assert reasons(registry.collect(search=False)) == [], "the last search was just now"
    query = update(MarkRow).where(MarkRow.name == "registry-strays")
    query = query.values(position=MarkRow.position - DAY * 1000 - 1000)
    changing(registry.services.own_engine, lambda connection: connection.execute(query))
    assert reasons(registry.collect(search=False, dry_run=True)) == [Reason.STRAY]
    report = registry.collect(search=False)
    assert report.dropped == (Finding(Reason.STRAY, path, path, 5),)
    assert registry.blobs() == set()
    registry.stray()
    assert reasons(registry.collect(search=False)) == []
    assert reasons(registry.collect(search=True)) == [Reason.STRAY]


def test_a_dry_run_changes_nothing(registry: Registry) -> None:
    registry.push("acme/app:1.0")
    registry.collect()
    registry.end_tags()
    registry.stray()
    before, files = registry.rows(db.Manifest), registry.place.files()
    report = registry.collect(dry_run=True)
    assert reasons(report) == [Reason.ENDED, Reason.UNTAGGED, Reason.STRAY]
    assert (registry.rows(db.Manifest), registry.place.files()) == (before, files)
    assert registry.collect().dropped == report.dropped


# --- Whose it is ------------------------------------------------------------------------------------------------------


def _tempting(registry: Registry) -> set[str]:
    registry.push("acme/app:1.0")
    registry.collect()
    registry.end_tags()
    registry.stray()
    return registry.blobs()


@pytest.mark.parametrize("more", [{"VERBS_REGISTRY": "quay"}, {"REGISTRY_STATE": "readonly"}])
def test_a_registry_of_somebody_else_is_left_alone(registry: Registry, more: dict[str, str]) -> None:
    blobs = _tempting(registry)
    other = Place(registry.place.folder, more).services()
    report = collector_of(other, search=True).collect(dry_run="REGISTRY_STATE" in more)
    assert reasons(report) == []
    assert registry.rows(db.Tag) == registry.rows(db.Manifest) == 1
    assert registry.blobs() == blobs


def test_a_quay_s_database_is_left_alone_whatever_is_set(registry: Registry) -> None:
    blobs = _tempting(registry)
    with registry.services.engine.begin() as connection:
        connection.execute(text("CREATE TABLE queueitem (id INTEGER)"))
    report = registry.collect()
    assert report.dropped == ()
    assert "the database is a Quay's" in report.failures[0]
    assert registry.rows(db.Tag) == 1
    assert registry.blobs() == blobs


def test_the_blobs_of_a_storage_that_others_use_too_are_left_alone(registry: Registry) -> None:
    theirs = registry.stray(b"theirs")
    registry.push("acme/app:1.0")
    registry.end_tags()
    registry.collect()
    registry.end_grace()
    before = registry.blobs()
    report = registry.collect()
    assert report.dropped == ()
    assert len(report.failures) == 2
    assert all(theirs in failure for failure in report.failures)
    assert registry.blobs() == before
    assert not (registry.place.storage / SIGN).exists()


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_a_step_that_fails_leaves_the_others_to_go_on(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.collect()
    registry.stray()

    def fails(*_: object, **__: object) -> None:
        raise RegistryUnavailable("nobody answers")

    monkeypatch.setattr(Garbage, "tags", lambda *_, **__: iter(map(fails, [1])))
    report = registry.collect()
    assert [finding.reason for finding in report.dropped] == [Reason.STRAY]
    assert report.failures == ("not all tags are looked through: nobody answers",)


def test_a_storage_that_fails_again_and_again_is_left_in_peace(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.collect()
    location = _location(registry)
    with writing(registry.services.engine) as connection:
        for number in range(10):
            row = connection.execute(insert(db.ImageStorage).values(content_checksum=str(Digest.of(b"%d" % number))))
            assert row.inserted_primary_key is not None
            connection.execute(
                insert(db.ImageStoragePlacement).values(storage_id=row.inserted_primary_key[0], location_id=location)
            )
    asked = []

    def fails(_: LocalStorage, path: str) -> None:
        asked.append(path)
        raise StorageUnavailable("the wire is cut")

    monkeypatch.setattr(LocalStorage, "delete", fails)
    report = registry.collect()
    assert len(asked) == 3
    assert any("storage has failed 3 times in a row" in failure for failure in report.failures)
    assert registry.rows(db.ImageStorage) == 10


def _location(registry: Registry) -> int:
    with writing(registry.services.engine) as connection:
        row = connection.execute(insert(db.ImageStorageLocation).values(name="default")).inserted_primary_key
        assert row is not None
        return int(row[0])


def test_who_may_be_making_something_is_not_known(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.push("acme/app:1.0")
    registry.end_tags()

    def unknown(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("nobody answers")

    monkeypatch.setattr("data.derivedimages.DerivedImages.list", unknown)
    report = registry.collect()
    assert [finding.reason for finding in report.dropped] == [Reason.ENDED]
    assert report.failures == ("not all manifests are looked through: nobody answers",)
    assert registry.rows(db.Manifest) == 1


# --- The command, and the background ----------------------------------------------------------------------------------


def gc(place: Place, *arguments: str, **more: str) -> tuple[int, str, str]:
    environment = {**os.environ, "VERBS_DATA_DIR": place.configuration["VERBS_DATA_DIR"], **more}
    command = [sys.executable, "-c", "import app; app.main()", "gc", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_the_command_names_what_goes(registry: Registry) -> None:
    digest = registry.push("acme/app:1.0")
    registry.end_tags()
    assert gc(registry.place, "--dry-run")[:2] == gc(registry.place)[:2]
    registry.end_grace()
    status, out, said = gc(registry.place)
    assert status == 0
    assert len(out.splitlines()) == 2
    assert all(line.startswith("unreferenced  ") for line in out.splitlines())
    assert said.startswith("dropped: 2 (")
    assert digest not in out


def test_the_command_adopts_a_storage(registry: Registry) -> None:
    path = registry.stray()
    status, out, said = gc(registry.place)
    assert (status, out) == (1, "")
    assert "registry-verbs gc --adopt" in said
    assert gc(registry.place, "--adopt", "--dry-run")[0] == 2
    assert path in registry.blobs()
    assert gc(registry.place, "--adopt", VERBS_REGISTRY="quay")[0] == 1
    assert not (registry.place.storage / SIGN).exists()
    assert gc(registry.place, "--adopt")[:2] == (0, f"{'stray':12}  {5:>15}  {path}\n")
    assert registry.blobs() == set()
    assert gc(registry.place)[:2] == (0, "")


def test_a_server_collects_by_itself(registry: Registry) -> None:
    from test.server import served

    registry.push("acme/app:1.0")
    registry.end_tags()
    with served(registry.place, workers=2, more={"VERBS_GC_SECONDS": "1", "VERBS_GRACE_SECONDS": "1"}):
        # The last object goes just before the transaction that its row goes in has ended.
        eventually(lambda: not registry.rows(db.ImageStorage), seconds=120, what="the blobs are still there")
    assert registry.rows(db.Tag) == registry.rows(db.Manifest) == 0
    assert registry.blobs() == set()
