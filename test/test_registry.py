"""Look-ups, on SQLite and PostgreSQL: what a name means, who is alive, where blobs lie, and how little is asked."""

import gc
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, select, update

from data import tables as db
from data.database import Engine, create_tables, make_engine, writing
from data.registry import (
    BlobLocation,
    ManifestNotFound,
    Referred,
    Registry,
    RegistryUnavailable,
    RepositoryInfo,
    RepositoryNotFound,
    SqlRegistry,
    TagEvent,
    TagManifest,
    TagNotFound,
)
from data.tables import Base, now_ms
from test.databases import KINDS, database
from util.digest import Digest
from util.oci import INDEX_OCI, MANIFEST_OCI
from util.printable import printable
from util.problem import Missing

HOUR = 3_600_000
BLOB, OTHER = Digest.of(b"blob"), Digest.of(b"other")


def path_of(digest: Digest) -> str:
    return f"sha256/{digest.hex[:2]}/{digest.hex}"


@dataclass(frozen=True)
class Rows:
    """Rows written as Quay writes them, without the importer."""

    engine: Engine

    def add(self, table: type[Base], **values: Any) -> int:
        with writing(self.engine) as connection:
            return _added(connection, table, values)

    def change(self, table: type[Base], number: int, **values: Any) -> None:
        with writing(self.engine) as connection:
            connection.execute(update(table).where(table.id == number).values(values))

    def repository(self, name: str, *, visibility: str = "public", kind: str = "image", **more: Any) -> int:
        namespace, name = name.split("/", 1)
        with writing(self.engine) as connection:
            user = connection.scalar(select(db.User.id).where(db.User.username == namespace))
            return _added(
                connection,
                db.Repository,
                {
                    "namespace_user_id": user or _added(connection, db.User, {"username": namespace}),
                    "name": name,
                    "visibility_id": connection.scalar(
                        select(db.Visibility.id).where(db.Visibility.name == visibility)
                    ),
                    "kind_id": connection.scalar(select(db.RepositoryKind.id).where(db.RepositoryKind.name == kind)),
                    **more,
                },
            )

    def manifest(self, repository: int, content: str, *, media_type: str = MANIFEST_OCI) -> int:
        with writing(self.engine) as connection:
            kind = connection.scalar(select(db.MediaType.id).where(db.MediaType.name == media_type))
            return _added(
                connection,
                db.Manifest,
                {
                    "repository_id": repository,
                    "digest": str(Digest.of(content.encode())),
                    "media_type_id": kind,
                    "manifest_bytes": content,
                },
            )

    def tag(self, repository: int, name: str, manifest: int | None, **more: Any) -> int:
        return self.add(db.Tag, name=name, repository_id=repository, manifest_id=manifest, tag_kind_id=1, **more)

    def blob(self, repository: int, manifest: int, digest: Digest, *locations: str, **more: Any) -> int:
        values = {"content_checksum": str(digest), "image_size": 10, **more}
        with writing(self.engine) as connection:
            blob = _added(connection, db.ImageStorage, values)
            linked = {"repository_id": repository, "manifest_id": manifest, "blob_id": blob}
            _added(connection, db.ManifestBlob, linked)
            for name in locations:
                query = select(db.ImageStorageLocation.id).where(db.ImageStorageLocation.name == name)
                location = connection.scalar(query) or _added(connection, db.ImageStorageLocation, {"name": name})
                _added(connection, db.ImageStoragePlacement, {"storage_id": blob, "location_id": location})
            return blob


def _added(connection: Connection, table: type[Base], values: Mapping[str, Any]) -> int:
    made = connection.execute(insert(table).values(values)).inserted_primary_key
    assert made is not None
    return int(made[0])


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with database(request.param, tmp_path) as engine:
        create_tables(engine)
        yield engine


@pytest.fixture
def rows(engine: Engine) -> Rows:
    return Rows(engine)


@pytest.fixture
def registry(engine: Engine) -> Registry:
    return SqlRegistry(engine)


# --- Repositories -----------------------------------------------------------------------------------------------------


def test_a_repository_is_told_with_all_that_decides_who_may_have_it(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    assert registry.repository("acme", "app") == RepositoryInfo(number, "image", public=True, namespace_enabled=True)


def test_a_private_repository_an_application_and_a_disabled_namespace_are_told_apart(
    rows: Rows, registry: Registry
) -> None:
    rows.repository("acme/private", visibility="private")
    rows.repository("acme/chart", kind="application")
    rows.repository("gone/app")
    with writing(rows.engine) as connection:
        connection.execute(update(db.User).where(db.User.username == "gone").values(enabled=False))
    assert not registry.repository("acme", "private").public
    assert registry.repository("acme", "chart").kind == "application"
    assert not registry.repository("gone", "app").namespace_enabled


def test_a_repository_may_have_slashes_in_its_name(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/deeply/nested/app")
    assert registry.repository("acme", "deeply/nested/app").id == number


@pytest.mark.parametrize(
    ("namespace", "name"),
    [("acme", "x"), ("x", "app"), ("acme", ""), ("ac\0me", "app"), ("acme", "app\udcff"), ("", "")],
)
def test_a_repository_that_is_not_there_is_not_found(rows: Rows, registry: Registry, namespace: str, name: str) -> None:
    rows.repository("acme/app")
    said = printable(f"there is no repository {namespace}/{name}")
    for ask in (
        lambda: registry.repository(namespace, name),
        lambda: registry.manifest(namespace, name, "latest"),
        lambda: registry.manifest(namespace, name, str(BLOB)),
        lambda: registry.tags(namespace, name),
    ):
        with pytest.raises(RepositoryNotFound, match=re.escape(said)):
            ask()
    assert registry.blobs(namespace, name, [BLOB]) == {}


def test_a_repository_that_is_being_deleted_is_not_found(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app", state=3)
    rows.tag(number, "1.0", rows.manifest(number, "{}"))
    with pytest.raises(RepositoryNotFound):
        registry.repository("acme", "app")
    with pytest.raises(RepositoryNotFound):
        registry.manifest("acme", "app", "1.0")


@pytest.mark.parametrize("state", [0, 1, 2, 4])
def test_a_repository_that_is_only_read_or_mirrored_is_there(rows: Rows, registry: Registry, state: int) -> None:
    rows.repository("acme/app", state=state)
    assert registry.repository("acme", "app").public


# --- Tags -------------------------------------------------------------------------------------------------------------


def test_a_tag_means_its_manifest(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    content = '{"é": "as it was pushed",\r\n "x":1}'
    rows.tag(number, "1.0", rows.manifest(number, content))
    rows.tag(number, "2.0", rows.manifest(number, "{}", media_type=INDEX_OCI))
    digest = Digest.of(content.encode())
    assert registry.manifest("acme", "app", "1.0") == TagManifest(digest, MANIFEST_OCI, content.encode(), number)
    assert registry.manifest("acme", "app", "2.0").media_type == INDEX_OCI


def test_tags_of_other_repositories_are_not_seen(rows: Rows, registry: Registry) -> None:
    for name in ("acme/app", "acme/other", "other/app"):
        number = rows.repository(name)
        rows.tag(number, "1.0", rows.manifest(number, f'"{name}"'))
    assert registry.manifest("acme", "other", "1.0").content == b'"acme/other"'
    assert registry.manifest("other", "app", "1.0").content == b'"other/app"'


@pytest.mark.parametrize(
    ("end", "hidden", "alive"),
    [(None, False, True), (HOUR, False, True), (-1, False, False), (None, True, False), (HOUR, True, False)],
)
def test_a_tag_is_alive_until_it_ends_and_unless_it_is_hidden(
    rows: Rows, registry: Registry, end: int | None, hidden: bool, alive: bool
) -> None:
    number = rows.repository("acme/app")
    manifest = rows.manifest(number, "{}")
    rows.tag(number, "1.0", manifest, lifetime_end_ms=None if end is None else now_ms() + end, hidden=hidden)
    assert registry.tags("acme", "app") == (("1.0",) if alive else ())
    if alive:
        assert registry.manifest("acme", "app", "1.0").content == b"{}"
    else:
        with pytest.raises(TagNotFound, match=r"acme/app has no tag '1\.0'; it has no tags"):
            registry.manifest("acme", "app", "1.0")


def test_a_tag_that_was_moved_means_the_last_manifest(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    now = now_ms()
    for at in range(3):
        end = None if at == 2 else now - HOUR * (2 - at)
        start = now - HOUR * (3 - at)
        rows.tag(number, "1.0", rows.manifest(number, f"{at}"), lifetime_start_ms=start, lifetime_end_ms=end)
    assert registry.manifest("acme", "app", "1.0").content == b"2"
    assert registry.tags("acme", "app") == ("1.0",)


def test_of_two_that_are_alive_the_younger_counts(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    now = now_ms()
    rows.tag(number, "1.0", rows.manifest(number, "1"), lifetime_start_ms=now - 1)
    rows.tag(number, "1.0", rows.manifest(number, "2"), lifetime_start_ms=now - HOUR, lifetime_end_ms=now + HOUR)
    assert registry.manifest("acme", "app", "1.0").content == b"1"
    assert registry.tags("acme", "app") == ("1.0",)


def test_a_tag_that_is_not_there_is_told_with_some_that_are(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    manifest, now = rows.manifest(number, "{}"), now_ms()
    for at in range(15):
        rows.tag(number, f"1.{at}", manifest, lifetime_start_ms=now + at)
    rows.tag(number, "hidden", manifest, hidden=True)
    with pytest.raises(TagNotFound, match=r"acme/app has no tag '9\.9'; there are: 1\.14, 1\.13, ") as caught:
        registry.manifest("acme", "app", "9.9")
    assert caught.value.existing == tuple(f"1.{at}" for at in range(14, 4, -1))
    assert caught.value.code == "TAG_UNKNOWN"


@pytest.mark.parametrize(
    "reference", ["", "LATEST", "latest\0", "lat%", "l_test", "latest\udcff", "latest ", "' OR 1=1 --"]
)
def test_a_reference_is_taken_literally(rows: Rows, registry: Registry, reference: str) -> None:
    number = rows.repository("acme/app")
    rows.tag(number, "latest", rows.manifest(number, "{}"))
    with pytest.raises(TagNotFound):
        registry.manifest("acme", "app", reference)


def test_tags_come_in_order(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    manifest = rows.manifest(number, "{}")
    for name in ("b", "a", "C", "1.0"):
        rows.tag(number, name, manifest)
    assert registry.tags("acme", "app") == ("1.0", "C", "a", "b")


# --- Digests ----------------------------------------------------------------------------------------------------------


def test_a_digest_means_the_manifest_that_has_it(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    rows.tag(number, "1.0", rows.manifest(number, "{}"))
    assert registry.manifest("acme", "app", str(Digest.of(b"{}"))).content == b"{}"


def test_an_image_inside_an_index_is_had_by_its_digest(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    outer, inner, image = (rows.manifest(number, f"{at}", media_type=INDEX_OCI) for at in range(3))
    for parent, child in ((outer, inner), (inner, image)):
        rows.add(db.ManifestChild, repository_id=number, manifest_id=parent, child_manifest_id=child)
    tag = rows.tag(number, "1.0", outer)
    assert registry.manifest("acme", "app", str(Digest.of(b"2"))).content == b"2"
    rows.change(db.Tag, tag, lifetime_end_ms=now_ms() - 1)
    with pytest.raises(ManifestNotFound):
        registry.manifest("acme", "app", str(Digest.of(b"2")))


@pytest.mark.parametrize(("end", "hidden", "there"), [(-1, False, False), (HOUR, True, True)])
def test_a_manifest_is_had_by_its_digest_while_a_tag_leads_to_it(
    rows: Rows, registry: Registry, end: int, hidden: bool, there: bool
) -> None:
    # Quay keeps what a push has not tagged yet under hidden tags that end by themselves.
    number = rows.repository("acme/app")
    rows.tag(number, "$temp", rows.manifest(number, "{}"), lifetime_end_ms=now_ms() + end, hidden=hidden)
    digest = str(Digest.of(b"{}"))
    if there:
        assert registry.manifest("acme", "app", digest).content == b"{}"
    else:
        with pytest.raises(ManifestNotFound):
            registry.manifest("acme", "app", digest)


def test_a_manifest_of_another_repository_is_not_had_by_its_digest(rows: Rows, registry: Registry) -> None:
    rows.repository("acme/app")
    other = rows.repository("acme/other")
    rows.tag(other, "1.0", rows.manifest(other, "{}"))
    with pytest.raises(ManifestNotFound, match=f"acme/app has no manifest {Digest.of(b'{}')}"):
        registry.manifest("acme", "app", str(Digest.of(b"{}")))


@pytest.mark.parametrize("reference", ["sha256:", "sha256:XYZ", "sha256:" + "0" * 64, "sha256:\0", "md5:0", ":"])
def test_a_digest_that_is_none_or_nowhere_is_not_found(rows: Rows, registry: Registry, reference: str) -> None:
    rows.repository("acme/app")
    with pytest.raises(ManifestNotFound):
        registry.manifest("acme", "app", reference)


# --- What still leads where it led ------------------------------------------------------------------------------------


def referred(reference: str, content: str, name: str = "acme/app") -> Referred:
    namespace, repository = name.split("/", 1)
    return Referred(namespace, repository, reference, str(Digest.of(content.encode())))


def test_a_repository_has_a_manifest_whether_or_not_a_tag_leads_to_it(rows: Rows, registry: Registry) -> None:
    rows.manifest(rows.repository("acme/app"), "1")
    digest = str(Digest.of(b"1"))
    assert registry.has_manifest("acme", "app", digest)
    rows.repository("acme/other")
    assert not registry.has_manifest("acme", "other", digest)
    assert not registry.has_manifest("acme", "app", str(Digest.of(b"2")))
    assert not registry.has_manifest("acme", "absent", digest)


def test_a_tag_leads_to_its_manifest_until_it_moves_or_goes(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    one, two = rows.manifest(number, "1"), rows.manifest(number, "2")
    now = now_ms()
    gone = rows.tag(number, "gone", one)
    rows.tag(number, "stays", one)
    rows.tag(number, "moves", one, lifetime_start_ms=now - HOUR)
    asked = [referred(tag, "1") for tag in ("gone", "stays", "moves", "never", "stays\0")]
    assert registry.still_leading([]) == set()
    assert registry.still_leading(asked) == set(asked[:3])
    rows.change(db.Tag, gone, lifetime_end_ms=now - 1)
    rows.tag(number, "moves", two)
    assert registry.still_leading(asked) == {referred("stays", "1")}
    assert registry.still_leading([referred("moves", "2"), referred("stays", "2")]) == {referred("moves", "2")}


def test_a_tag_leads_through_an_index_and_also_through_a_new_one(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    old, new, image, other = (rows.manifest(number, name) for name in ("old", "new", "image", "other"))
    for parent, child in ((old, image), (old, other), (new, image)):
        rows.add(db.ManifestChild, repository_id=number, manifest_id=parent, child_manifest_id=child)
    rows.tag(number, "1.0", old, lifetime_start_ms=now_ms() - HOUR)
    both = {referred("1.0", "image"), referred("1.0", "other")}
    assert registry.still_leading(both) == both
    rows.tag(number, "1.0", new)
    assert registry.still_leading(both) == {referred("1.0", "image")}


def test_a_digest_leads_while_a_tag_hidden_or_not_leads_to_it(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    index, image, alone = (rows.manifest(number, name) for name in ("index", "image", "alone"))
    rows.add(db.ManifestChild, repository_id=number, manifest_id=index, child_manifest_id=image)
    tag = rows.tag(number, "1.0", index)
    hidden = rows.tag(number, "$temp", alone, hidden=True, lifetime_end_ms=now_ms() + HOUR)
    asked = [
        referred(str(Digest.of(b"index")), "image"),
        referred(str(Digest.of(b"image")), "image"),
        referred(str(Digest.of(b"alone")), "alone"),
    ]
    assert registry.still_leading([*asked, referred("$temp", "alone")]) == set(asked)
    rows.change(db.Tag, hidden, lifetime_end_ms=now_ms() - 1)
    assert registry.still_leading(asked) == set(asked[:2])
    rows.change(db.Tag, tag, lifetime_end_ms=now_ms() - 1)
    assert registry.still_leading(asked) == set()


def test_what_leads_is_told_for_each_repository_by_itself(rows: Rows, registry: Registry) -> None:
    for name in ("acme/app", "acme/deleted", "other/app", "off/app"):
        number = rows.repository(name, state=3 if name == "acme/deleted" else 0)
        rows.tag(number, name.replace("/", "-"), rows.manifest(number, "{}"))
    with writing(rows.engine) as connection:
        connection.execute(update(db.User).where(db.User.username == "off").values(enabled=False))
    names = ("acme/app", "acme/deleted", "other/app", "off/app", "acme/none")
    asked = {referred(tag.replace("/", "-"), "{}", name) for name in names for tag in names}
    there = ("acme/app", "other/app", "off/app")
    assert registry.still_leading(asked) == {referred(name.replace("/", "-"), "{}", name) for name in there}


def test_many_are_asked_about_in_one_query(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    for at in range(5):
        rows.tag(number, f"{at}", rows.manifest(number, f"{at}"))
    asked = [referred(f"{at}", f"{at}") for at in range(200)]
    with queries(rows.engine) as sent:
        assert registry.still_leading(asked) == set(asked[:5])
    assert len(sent) == 1


# --- Blobs ------------------------------------------------------------------------------------------------------------


def test_a_blob_lies_under_its_digest_in_every_location_that_has_it(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    rows.blob(number, rows.manifest(number, "{}"), BLOB, "us", "eu")
    assert registry.blobs("acme", "app", [BLOB]) == {BLOB: BlobLocation(BLOB, path_of(BLOB), 10, ("eu", "us"))}


def test_an_old_blob_lies_under_its_uuid(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    rows.blob(number, rows.manifest(number, "{}"), BLOB, "us", cas_path=False, uuid="1234-5678", image_size=None)
    location = BlobLocation(BLOB, "sharedimages/1234-5678/layer", None, ("us",))
    assert registry.blobs("acme", "app", [BLOB]) == {BLOB: location}


def test_only_blobs_that_were_asked_for_and_that_the_repository_has_are_told(rows: Rows, registry: Registry) -> None:
    number, other = rows.repository("acme/app"), rows.repository("acme/other")
    manifest = rows.manifest(number, "{}")
    rows.blob(number, manifest, BLOB, "us")
    rows.blob(number, manifest, Digest.of(b"unasked"), "us")
    rows.blob(other, rows.manifest(other, "{}"), OTHER, "us")
    assert list(registry.blobs("acme", "app", [BLOB, OTHER])) == [BLOB]
    assert registry.blobs("acme", "app", []) == {}


def test_a_blob_that_lies_nowhere_is_told_without_a_location(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    rows.blob(number, rows.manifest(number, "{}"), BLOB)
    assert registry.blobs("acme", "app", [BLOB])[BLOB].locations == ()


@pytest.mark.parametrize("uploading", [True, False, None])
def test_whether_quay_s_row_says_uploading_means_nothing(
    rows: Rows, registry: Registry, uploading: bool | None
) -> None:
    number = rows.repository("acme/app")
    rows.blob(number, rows.manifest(number, "{}"), BLOB, "us", uploading=uploading)
    assert registry.blobs("acme", "app", [BLOB])[BLOB].locations == ("us",)


def test_of_two_rows_of_one_blob_the_one_that_lies_somewhere_counts(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    manifest = rows.manifest(number, "{}")
    rows.blob(number, manifest, BLOB, cas_path=False)
    rows.blob(number, manifest, BLOB, "us")
    rows.blob(number, manifest, BLOB, "eu", cas_path=False)
    assert registry.blobs("acme", "app", [BLOB])[BLOB] == BlobLocation(BLOB, path_of(BLOB), 10, ("us",))


def test_a_blob_of_several_manifests_is_told_once(rows: Rows, registry: Registry) -> None:
    number = rows.repository("acme/app")
    blob = rows.blob(number, rows.manifest(number, "1"), BLOB, "us", "eu")
    more = {"repository_id": number, "manifest_id": rows.manifest(number, "2"), "blob_id": blob}
    rows.add(db.ManifestBlob, **more)
    assert registry.blobs("acme", "app", [BLOB, BLOB])[BLOB].locations == ("eu", "us")


def test_what_is_not_found_is_missing() -> None:
    kinds = {kind.code for kind in (RepositoryNotFound, TagNotFound, ManifestNotFound) if issubclass(kind, Missing)}
    assert kinds == {"NAME_UNKNOWN", "TAG_UNKNOWN", "MANIFEST_UNKNOWN"}


# --- Listings ---------------------------------------------------------------------------------------------------------


def test_repositories_come_page_by_page(rows: Rows, registry: Registry) -> None:
    for name in ("acme/one", "acme/two", "other/three", "acme/deep/four"):
        rows.repository(name)
    first = registry.repositories(limit=3)
    second = registry.repositories(after=first[-1].id, limit=3)
    names = [f"{each.namespace}/{each.repository}" for each in (*first, *second)]
    assert names == ["acme/one", "acme/two", "other/three", "acme/deep/four"]
    assert [each.repository for each in registry.repositories(namespace="other")] == ["three"]
    assert registry.repositories(namespace="nobody") == registry.repositories(namespace="nul\0") == []


def test_only_repositories_with_images_to_be_had_are_listed(rows: Rows, registry: Registry) -> None:
    rows.repository("acme/app")
    rows.repository("acme/gone", state=db.MARKED_FOR_DELETION)
    rows.repository("acme/chart", kind="application")
    disabled = rows.repository("shut/app")
    rows.change(db.User, 2, enabled=False)
    rows.tag(disabled, "1.0", rows.manifest(disabled, "{}"))
    assert [each.repository for each in registry.repositories()] == ["app"]
    assert registry.tag_events(after=0) == []


def test_every_tag_that_is_alive_comes_with_its_manifest(rows: Rows, registry: Registry) -> None:
    repository, other = rows.repository("acme/app"), rows.repository("acme/other")
    first, second = (rows.manifest(repository, content) for content in ("{}", "[]"))
    rows.tag(other, "elsewhere", rows.manifest(other, "{}"))
    rows.tag(repository, "1.0", first, lifetime_start_ms=1000)
    rows.tag(repository, "2.0", second, lifetime_start_ms=2000)
    rows.tag(repository, "2.0", first, lifetime_start_ms=1000)
    rows.tag(repository, "over", first, lifetime_end_ms=2000)
    expected = {"1.0": str(Digest.of(b"{}")), "2.0": str(Digest.of(b"[]"))}
    assert registry.tag_digests("acme", "app") == expected
    assert registry.tag_digests("acme", "absent") == registry.tag_digests("nul\0", "app") == {}


def test_a_tag_that_appears_or_moves_is_an_event(rows: Rows, registry: Registry) -> None:
    assert registry.last_tag_event() == 0
    repository = rows.repository("acme/app")
    manifest = rows.manifest(repository, "{}")
    first = rows.tag(repository, "1.0", manifest, lifetime_start_ms=1000)
    assert registry.last_tag_event() == first
    (event,) = registry.tag_events(after=0)
    assert event == TagEvent(first, "acme", "app", "1.0", str(Digest.of(b"{}")), 1000)
    rows.change(db.Tag, first, lifetime_end_ms=2000)
    moved = rows.tag(repository, "1.0", manifest, lifetime_start_ms=2000)
    assert [event.id for event in registry.tag_events(after=0)] == [moved]
    rows.tag(repository, "temporary", manifest, hidden=True)
    later = [rows.tag(repository, f"2.{at}", manifest) for at in range(5)]
    assert [event.id for event in registry.tag_events(after=moved, limit=2)] == later[:2]
    assert [event.id for event in registry.tag_events(after=later[1])] == later[2:]


# --- What it costs ----------------------------------------------------------------------------------------------------


@contextmanager
def queries(engine: Engine) -> Iterator[list[str]]:
    """Give a list that gets every statement that is sent."""
    sent: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")):
            sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def fill(rows: Rows, count: int) -> list[Digest]:
    number = rows.repository("acme/app")
    manifest = rows.manifest(number, "{}")
    for at in range(count):
        rows.tag(number, f"1.{at}", manifest)
    digests = [Digest.of(b"%d" % at) for at in range(count)]
    for digest in digests:
        rows.blob(number, manifest, digest, "us", "eu")
    return digests


def asked(registry: Registry, digests: list[Digest]) -> list[tuple[Callable[[], object], int]]:
    def absent() -> None:
        with pytest.raises(TagNotFound):
            registry.manifest("acme", "app", "absent")

    return [
        (lambda: registry.repository("acme", "app"), 1),
        (lambda: registry.manifest("acme", "app", "1.0"), 1),
        (lambda: registry.manifest("acme", "app", str(Digest.of(b"{}"))), 1),
        (absent, 2),
        (lambda: registry.blobs("acme", "app", digests), 1),
        (lambda: registry.tags("acme", "app"), 2),
        (lambda: registry.tag_digests("acme", "app"), 1),
        (registry.repositories, 1),
        (lambda: registry.tag_events(after=0), 1),
        (registry.last_tag_event, 1),
    ]


@pytest.mark.parametrize("count", [1, 40])
def test_the_number_of_queries_does_not_depend_on_the_data(rows: Rows, registry: Registry, count: int) -> None:
    for ask, expected in asked(registry, fill(rows, count)):
        with queries(rows.engine) as sent:
            ask()
        assert len(sent) == expected


def test_only_reads_are_sent(rows: Rows, registry: Registry) -> None:
    digests = fill(rows, 2)
    with queries(rows.engine) as sent:
        for ask, _ in asked(registry, digests):
            ask()
    assert {statement.split()[0] for statement in sent} <= {"SELECT", "WITH"}


def test_no_connection_outlives_a_call(rows: Rows, registry: Registry) -> None:
    open_now: set[int] = set()
    event.listen(rows.engine, "checkout", lambda raw, *_: open_now.add(id(raw)))
    event.listen(rows.engine, "checkin", lambda raw, *_: open_now.discard(id(raw)))
    for ask, _ in asked(registry, fill(rows, 2)):
        ask()
        gc.collect()
        assert open_now == set()


def test_what_comes_out_is_bound_to_nothing(rows: Rows, registry: Registry) -> None:
    digests = fill(rows, 1)
    values: list[RepositoryInfo | TagManifest | BlobLocation] = [
        registry.repository("acme", "app"),
        registry.manifest("acme", "app", "1.0"),
        *registry.blobs("acme", "app", digests).values(),
    ]
    rows.engine.dispose()
    for value in values:
        assert {type(getattr(value, field.name)) for field in fields(value)} <= {
            type(None),
            int,
            str,
            bool,
            bytes,
            tuple,
            Digest,
        }


def test_a_database_that_does_not_answer_is_a_fact_of_its_own() -> None:
    registry = SqlRegistry(make_engine("postgresql://nobody@127.0.0.1:1/nothing"))
    with pytest.raises(RegistryUnavailable, match=r"the registry's database cannot be used: .*onnection"):
        registry.repository("acme", "app")


def test_a_database_without_tables_is_too(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(RegistryUnavailable, match=r"no such table: "):
        SqlRegistry(engine).tags("acme", "app")
    engine.dispose()
