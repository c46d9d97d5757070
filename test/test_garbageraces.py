"""Garbage and those who push, step by step: whoever comes first, what is linked is whole."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from data import tables as db
from data.database import create_tables, writing
from data.garbage import Kind
from data.manifestdocuments import read_manifest
from data.owntables import upgrade
from data.pushedblobs import PushedBlobs
from data.pushedmanifests import NamedContentUnknown, PushedManifests
from data.registry import RepositoryName, RepositoryNotFound, content_path
from data.storage.base import StorageUnavailable
from data.strays import Strays
from data.tables import MARKED_FOR_DELETION, now_utc
from test.databases import KINDS, database
from test.manifests import artifact, digest_of
from test.registrystorm import broken_blobs
from test.test_garbage import GRACE, World
from util.digest import Digest

CONTENT = "layer"
DIGEST = Digest.of(CONTENT.encode())


class Site(World):
    """A world to push into."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.blobs = PushedBlobs(self.engine, self.storage, grace_seconds=GRACE)
        self.manifests = PushedManifests(self.engine)
        self.strays = Strays(self.engine, self.engine, self.storage, clock=lambda: time.time() + self.later)
        self.name = RepositoryName(self.repository, "acme", "app")
        self.puts = 0
        self.after_put: Callable[[], object] = lambda: None

    def put_blob(self) -> None:
        self.puts += 1
        self.put(content_path(DIGEST), CONTENT)
        self.after_put()

    def keep(self) -> None:
        """End an upload."""
        self.blobs.keep(self.repository, DIGEST, len(CONTENT), self.put_blob)

    def push(self) -> None:
        content = artifact("application/x-test", CONTENT.encode())
        self.manifests.push(self.name, read_manifest(content, Digest.of(content), None), ["1.0"])

    def is_whole(self) -> bool:
        """Tell whether the blob is linked, and the object is there."""
        with self.engine.connect() as connection:
            linked = connection.scalar(
                select(db.UploadedBlob.id)
                .join(db.ImageStorage, db.ImageStorage.id == db.UploadedBlob.blob_id)
                .where(db.ImageStorage.content_checksum == str(DIGEST))
            )
        assert broken_blobs(self.engine, self.storage) == []
        return linked is not None and self.has(CONTENT)

    def expire(self) -> None:
        with writing(self.engine) as connection:
            connection.execute(update(db.UploadedBlob).values(expires_at=now_utc()))


@pytest.fixture(params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with database(request.param, tmp_path) as engine:
        create_tables(engine)
        upgrade(engine)
        site = Site(engine, tmp_path / "blobs")
        yield site
        assert site.failures == []


def once(work: Callable[[], object]) -> Callable[..., None]:
    """Return what does `work` when it is called first, and nothing afterwards."""
    left = [work]

    def do(*_: object) -> None:
        if left:
            left.pop()()

    return do


def test_a_blob_that_goes_after_an_upload_has_found_it_is_put_there_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry had the blob, so nothing was to be put; then garbage took it."""
    site.blob(CONTENT)
    size = type(site.driver).size
    collect = once(lambda: list(site.garbage().blobs(site.failed)))

    def found(driver: object, path: str) -> int:
        there = size(driver, path)  # type: ignore[arg-type] # the driver itself
        collect()
        return there

    monkeypatch.setattr(type(site.driver), "size", found)
    site.keep()
    assert site.puts == 1
    assert site.is_whole()


def test_an_object_that_goes_before_it_has_its_row_is_put_there_again(site: Site) -> None:
    """An upload put the object, and a search for strays was faster than the row."""
    site.strays.check()
    site.later = 2 * 24 * 3600
    site.after_put = once(lambda: list(site.strays.collect(site.failed)))
    site.keep()
    assert site.puts == 2
    assert site.is_whole()


def test_a_blob_that_goes_as_often_as_it_comes_is_an_error_and_nothing_is_linked(site: Site) -> None:
    site.strays.check()
    site.later = 2 * 24 * 3600
    site.after_put = lambda: list(site.strays.collect(site.failed))
    with pytest.raises(StorageUnavailable, match="taken away"):
        site.keep()
    assert not site.is_whole()
    assert site.ids(db.ImageStorage) == set()


def test_a_row_that_a_killed_process_left_without_its_object_is_made_whole(site: Site) -> None:
    site.blob(CONTENT)
    os.unlink(site.root / content_path(DIGEST))
    site.keep()
    assert site.puts == 1
    assert site.is_whole()
    assert site.collect() == []


def test_an_upload_that_ends_after_garbage_begins_anew(site: Site) -> None:
    site.blob(CONTENT)
    assert [waste.kind for waste in site.collect()] == [Kind.UNREFERENCED]
    site.keep()
    assert site.puts == 1
    assert site.is_whole()


def test_a_mount_keeps_what_its_source_keeps_and_nothing_else(site: Site) -> None:
    other = site.rows.repository("acme/other")
    site.blob(CONTENT, uploaded=60)
    assert site.blobs.mount(other, DIGEST, site.repository)
    with writing(site.engine) as connection:
        ended = update(db.UploadedBlob).where(db.UploadedBlob.repository_id == site.repository)
        connection.execute(ended.values(expires_at=now_utc()))
    assert site.collect() == []
    assert site.is_whole()
    assert not site.blobs.mount(site.repository, DIGEST, site.repository)
    site.expire()
    assert not site.blobs.mount(site.repository, DIGEST, other)
    assert [waste.kind for waste in site.collect()] == [Kind.UNREFERENCED]


def test_a_manifest_keeps_a_blob_whose_link_is_over_until_garbage_has_taken_it(site: Site) -> None:
    site.blob(CONTENT, uploaded=60)
    site.blob("{}", uploaded=60)
    site.expire()
    site.push()
    assert site.collect() == []
    assert site.has(CONTENT)


def test_a_manifest_is_not_taken_when_garbage_was_first(site: Site) -> None:
    site.blob(CONTENT, uploaded=60)
    site.blob("{}", uploaded=60)
    site.expire()
    site.collect()
    with pytest.raises(NamedContentUnknown) as raised:
        site.push()
    assert {str(digest) for digest in raised.value.missing} == {str(DIGEST), digest_of(b"{}")}


def test_a_manifest_that_is_pushed_again_after_its_tag_s_end_is_there_again(site: Site) -> None:
    site.blob(CONTENT, uploaded=60)
    site.blob("{}", uploaded=60)
    site.push()
    site.manifests.delete_tag(site.name, "1.0")
    site.later = 15 * 24 * 3600
    site.push()
    assert [waste.kind for waste in site.collect()] == [Kind.ENDED]
    site.manifests.delete_tag(site.name, "1.0")
    site.later *= 3
    assert [waste.kind for waste in site.collect()] == [Kind.ENDED, Kind.UNTAGGED]
    site.push()
    assert broken_blobs(site.engine, site.storage) == []


def test_nothing_is_pushed_to_a_repository_that_is_being_deleted(site: Site) -> None:
    site.blob(CONTENT, uploaded=60)
    site.rows.change(db.Repository, site.repository, state=MARKED_FOR_DELETION)
    for push in (site.keep, site.push):
        with pytest.raises(RepositoryNotFound):
            push()
