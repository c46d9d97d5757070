"""Look-ups in Quay's tables, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, select, update

from data.database import (
    MARKED_FOR_DELETION,
    Base,
    Engine,
    ImageStorage,
    ImageStorageLocation,
    ImageStoragePlacement,
    Manifest,
    ManifestBlob,
    ManifestChild,
    MediaType,
    Repository,
    RepositoryKind,
    Tag,
    User,
    Visibility,
    create_tables,
    now_ms,
    writing,
)
from data.registry import ManifestNotFound, RepositoryNotFound, SqlRegistry, TagNotFound
from test.databases import KINDS, database
from util.digest import Digest
from util.oci import INDEX_OCI, MANIFEST_OCI
from util.problem import Missing


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with database(request.param, tmp_path) as engine:
        create_tables(engine)
        yield engine


class Rows:
    """Rows as Quay would write them: a repository acme/app with what its methods add."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.user = self.add(User, username="acme", organization=True)
        self.repository = self.add(
            Repository,
            namespace_user_id=self.user,
            name="app",
            visibility_id=self.number(Visibility, "public"),
            kind_id=self.number(RepositoryKind, "image"),
        )

    def add(self, table: type[Base], **values: Any) -> int:
        with writing(self.engine) as connection:
            return connection.execute(insert(table).values(**values).returning(table.id)).scalar_one()

    def set(self, table: type[Base], number: int, **values: Any) -> None:
        with writing(self.engine) as connection:
            connection.execute(update(table).where(table.id == number).values(**values))

    def number(self, table: Any, name: str) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(select(table.id).where(table.name == name)).scalar_one())

    def manifest(self, content: str, media_type: str = MANIFEST_OCI) -> int:
        return self.add(
            Manifest,
            repository_id=self.repository,
            digest=str(Digest.of(content.encode())),
            media_type_id=self.number(MediaType, media_type),
            manifest_bytes=content,
        )

    def tag(self, name: str, manifest: int, **more: Any) -> int:
        values = {"name": name, "repository_id": self.repository, "manifest_id": manifest, "tag_kind_id": 1}
        return self.add(Tag, **values, **more)

    def blob(self, manifest: int, digest: Digest, *locations: str, **more: Any) -> int:
        values = {"content_checksum": str(digest), "uploading": False, "image_size": 3, **more}
        blob = self.add(ImageStorage, **values)
        self.add(ManifestBlob, repository_id=self.repository, manifest_id=manifest, blob_id=blob)
        for location in locations:
            number = self.add(ImageStorageLocation, name=location)
            self.add(ImageStoragePlacement, storage_id=blob, location_id=number)
        return blob


@pytest.fixture
def rows(engine: Engine) -> Rows:
    return Rows(engine)


@pytest.fixture
def registry(engine: Engine) -> SqlRegistry:
    return SqlRegistry(engine)


BLOB = Digest.of(b"blob")


def test_a_repository_says_its_kind_and_who_may_see_it(rows: Rows, registry: SqlRegistry) -> None:
    info = registry.repository("acme", "app")
    assert (info.id, info.kind, info.public, info.namespace_enabled) == (rows.repository, "image", True, True)
    rows.set(User, rows.user, enabled=False)
    rows.set(
        Repository,
        rows.repository,
        visibility_id=rows.number(Visibility, "private"),
        kind_id=rows.number(RepositoryKind, "application"),
    )
    info = registry.repository("acme", "app")
    assert (info.kind, info.public, info.namespace_enabled) == ("application", False, False)


def test_a_repository_that_is_being_deleted_is_gone(rows: Rows, registry: SqlRegistry) -> None:
    rows.tag("1.0", rows.manifest("{}"))
    rows.set(Repository, rows.repository, state=MARKED_FOR_DELETION)
    for call in (registry.repository, registry.tags):
        with pytest.raises(RepositoryNotFound, match="acme/app"):
            call("acme", "app")
    for reference in ("1.0", str(Digest.of(b"{}"))):
        with pytest.raises(RepositoryNotFound, match="acme/app"):
            registry.manifest("acme", "app", reference)
    assert registry.blobs("acme", "app", [BLOB]) == {}


@pytest.mark.parametrize("name", ["absent", "ap\0p", "app\udcff", "App", "", "%"])
def test_what_no_repository_is_called_is_not_found(rows: Rows, registry: SqlRegistry, name: str) -> None:
    with pytest.raises(RepositoryNotFound):
        registry.repository("acme", name)
    with pytest.raises(RepositoryNotFound):
        registry.manifest("acme", name, "1.0")
    with pytest.raises(RepositoryNotFound):
        registry.tags(name, "app")
    assert registry.blobs("acme", name, [BLOB]) == {}


def test_a_manifest_comes_as_it_was_pushed_by_tag_and_by_digest(rows: Rows, registry: SqlRegistry) -> None:
    content = '{ "a": "ü\\u0000" }\r\n'
    rows.tag("1.0", rows.manifest(content))
    by_tag = registry.manifest("acme", "app", "1.0")
    assert (by_tag.content, by_tag.media_type, by_tag.repository_id) == (
        content.encode(),
        MANIFEST_OCI,
        rows.repository,
    )
    assert by_tag.digest == Digest.of(content.encode())
    assert registry.manifest("acme", "app", str(by_tag.digest)) == by_tag


def test_only_tags_that_are_alive_are_seen(rows: Rows, registry: SqlRegistry) -> None:
    manifest = rows.manifest("{}")
    rows.tag("now", manifest)
    rows.tag("expiring", manifest, lifetime_end_ms=now_ms() + 60_000)
    rows.tag("ended", manifest, lifetime_end_ms=now_ms() - 1)
    rows.tag("hidden", manifest, hidden=True)
    assert registry.tags("acme", "app") == ("expiring", "now")
    assert registry.manifest("acme", "app", "expiring").content == b"{}"
    for gone in ("ended", "hidden", "absent", "n\0w", "now\udcff"):
        with pytest.raises(TagNotFound) as error:
            registry.manifest("acme", "app", gone)
        assert set(error.value.existing) == {"now", "expiring"}
        assert "acme/app" in str(error.value)


def test_a_tag_that_was_moved_means_what_it_means_now(rows: Rows, registry: SqlRegistry) -> None:
    rows.tag("1.0", rows.manifest('{"old": 1}'), lifetime_start_ms=5, lifetime_end_ms=now_ms() + 1000)
    rows.tag("1.0", rows.manifest('{"new": 1}'))
    assert registry.manifest("acme", "app", "1.0").content == b'{"new": 1}'
    assert registry.tags("acme", "app") == ("1.0",)


def test_a_missing_tag_is_told_with_the_ten_newest(rows: Rows, registry: SqlRegistry) -> None:
    with pytest.raises(TagNotFound, match="it has no tags"):
        registry.manifest("acme", "app", "9.9")
    manifest = rows.manifest("{}")
    for at in range(12):
        rows.tag(f"v{at}", manifest, lifetime_start_ms=at)
    with pytest.raises(TagNotFound, match=r"'9\.9'") as error:
        registry.manifest("acme", "app", "9.9")
    assert error.value.existing == tuple(f"v{at}" for at in range(11, 1, -1))


def test_a_manifest_is_had_by_digest_while_a_tag_leads_to_it(rows: Rows, registry: SqlRegistry) -> None:
    child, middle, top = (rows.manifest(f'{{"{name}": 1}}', INDEX_OCI) for name in ("child", "middle", "top"))
    for above, below in ((top, middle), (middle, child)):
        rows.add(ManifestChild, repository_id=rows.repository, manifest_id=above, child_manifest_id=below)
    digest = str(Digest.of(b'{"child": 1}'))
    with pytest.raises(ManifestNotFound, match=digest):
        registry.manifest("acme", "app", digest)
    tag = rows.tag("1.0", top, hidden=True)
    assert registry.manifest("acme", "app", digest).content == b'{"child": 1}'
    rows.set(Tag, tag, lifetime_end_ms=now_ms() - 1)
    with pytest.raises(ManifestNotFound):
        registry.manifest("acme", "app", digest)


@pytest.mark.parametrize("reference", [f"sha256:{'0' * 64}", "sha256:zzz", "sha256:\0", ":"])
def test_a_digest_of_nothing_is_not_found(rows: Rows, registry: SqlRegistry, reference: str) -> None:
    with pytest.raises(ManifestNotFound):
        registry.manifest("acme", "app", reference)


def test_a_manifest_of_another_repository_is_not_found(rows: Rows, registry: SqlRegistry) -> None:
    rows.tag("1.0", rows.manifest("{}"))
    rows.add(Repository, namespace_user_id=rows.user, name="other", visibility_id=1, kind_id=1)
    with pytest.raises(ManifestNotFound):
        registry.manifest("acme", "other", str(Digest.of(b"{}")))
    with pytest.raises(TagNotFound):
        registry.manifest("acme", "other", "1.0")


def test_blobs_lie_by_their_content_or_by_their_uuid(rows: Rows, registry: SqlRegistry) -> None:
    manifest, old, absent = rows.manifest("{}"), Digest.of(b"old"), Digest.of(b"absent")
    rows.blob(manifest, BLOB, "b", "a")
    rows.blob(manifest, old, cas_path=False, uuid="1234", image_size=None)
    found = registry.blobs("acme", "app", [BLOB, old, absent, BLOB])
    assert set(found) == {BLOB, old}
    assert found[BLOB].path == f"sha256/{BLOB.hex[:2]}/{BLOB.hex}"
    assert (found[BLOB].locations, found[BLOB].size) == (("a", "b"), 3)
    assert (found[old].path, found[old].locations, found[old].size) == ("sharedimages/1234/layer", (), None)


def test_a_blob_stored_twice_is_taken_from_where_it_lies(rows: Rows, registry: SqlRegistry) -> None:
    manifest = rows.manifest("{}")
    rows.blob(manifest, BLOB)
    rows.blob(manifest, BLOB, "here")
    assert registry.blobs("acme", "app", [BLOB])[BLOB].locations == ("here",)


def test_a_blob_that_is_being_uploaded_or_is_elsewhere_is_left_out(rows: Rows, registry: SqlRegistry) -> None:
    rows.blob(rows.manifest("{}"), BLOB, "here", uploading=True)
    rows.add(ImageStorage, content_checksum=str(Digest.of(b"x")), uploading=False)
    assert registry.blobs("acme", "app", [BLOB, Digest.of(b"x")]) == {}
    assert registry.blobs("acme", "app", []) == {}


def test_the_number_of_queries_does_not_depend_on_the_data(rows: Rows, registry: SqlRegistry) -> None:
    manifest = rows.manifest("{}")
    digests = [Digest.of(bytes([at])) for at in range(20)]
    for digest in digests:
        rows.blob(manifest, digest)
    rows.tag("1.0", manifest)
    asked: list[str] = []
    event.listen(rows.engine, "before_cursor_execute", lambda *event: asked.append(event[2]))
    assert len(registry.blobs("acme", "app", digests)) == 20
    registry.manifest("acme", "app", "1.0")
    registry.repository("acme", "app")
    assert len([query for query in asked if query.lstrip().upper().startswith(("SELECT", "WITH"))]) == 3


def test_what_is_not_found_is_missing() -> None:
    assert {kind.code for kind in (RepositoryNotFound, TagNotFound, ManifestNotFound) if issubclass(kind, Missing)} == {
        "NAME_UNKNOWN",
        "TAG_UNKNOWN",
        "MANIFEST_UNKNOWN",
    }
