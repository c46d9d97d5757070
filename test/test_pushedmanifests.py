"""Manifests that are pushed and deleted, on SQLite and PostgreSQL: what has to be there, and what tags lead to."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, update

from data import tables as db
from data.database import Engine, create_tables, make_engine, writing
from data.discovery import Discovery
from data.manifestdocuments import read_manifest
from data.pushedmanifests import HeldByIndex, NamedContentUnknown, NamedSizeWrong, PushedManifests
from data.registry import (
    ManifestNotFound,
    RegistryUnavailable,
    RepositoryName,
    RepositoryNotFound,
    SqlRegistry,
    TagNotFound,
    content_path,
)
from data.registryrows import RegistryRows
from test.databases import KINDS, database
from test.images import CONFIG, LAYER
from test.manifests import artifact, described, digest_of, image, index
from util.digest import Digest
from util.problem import Missing


@dataclass
class Pushed:
    """A registry with one repository, into which blobs and manifests are put."""

    engine: Engine

    def __post_init__(self) -> None:
        self.manifests = PushedManifests(self.engine)
        self.registry = SqlRegistry(self.engine)
        self.discovery = Discovery(self.engine)
        self.app = self.repository("acme", "app")

    def repository(self, namespace: str, name: str) -> RepositoryName:
        with writing(self.engine) as connection:
            rows = RegistryRows(connection)
            user = rows.row(db.User, {"username": namespace})
            kinds = {"visibility_id": rows.named(db.Visibility, "public")}
            kinds["kind_id"] = rows.named(db.RepositoryKind, "image")
            number = rows.row(db.Repository, {"namespace_user_id": user, "name": name}, **kinds)
        return RepositoryName(number, namespace, name)

    def blob(self, *contents: bytes, to: RepositoryName | None = None, algorithm: str = "sha256") -> None:
        """Put blobs into a repository as an upload leaves them."""
        with writing(self.engine) as connection:
            for content in contents:
                row = RegistryRows(connection).blob(Digest.of(content, algorithm), size=len(content), location="here")
                ends = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=1)
                values = {"repository_id": (to or self.app).id, "blob_id": row, "expires_at": ends}
                connection.execute(insert(db.UploadedBlob).values(**values))

    def push(self, content: bytes, *tags: str, to: RepositoryName | None = None, media_type: str | None = None) -> str:
        digest = Digest.of(content)
        self.manifests.push(to or self.app, read_manifest(content, digest, media_type), tags)
        return str(digest)

    def there(self, reference: str) -> bool:
        try:
            self.registry.manifest("acme", "app", reference)
        except Missing:
            return False
        return True

    def count(self, table: type[db.Base]) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count(table.id))) or 0

    def rows(self) -> list[tuple[Any, ...]]:
        """Return every row that a push makes."""
        tables = (db.Manifest, db.ManifestBlob, db.ManifestChild, db.Tag)
        with self.engine.connect() as connection:
            return [tuple(row) for table in tables for row in connection.execute(select(table.__table__))]


@pytest.fixture(params=KINDS)
def pushed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pushed]:
    with database(request.param, tmp_path) as engine:
        create_tables(engine)
        found = Pushed(engine)
        found.blob(b"{}", b"one", b"two")
        yield found


# --- What is taken ----------------------------------------------------------------------------------------------------


def test_an_image_is_there_by_its_tag_and_its_digest_to_the_byte(pushed: Pushed) -> None:
    content = b"  " + image(b"one", b"two").replace(b'": ', b'":  ') + b"\n"
    digest = pushed.push(content, "1.0")
    for reference in ("1.0", digest):
        found = pushed.registry.manifest("acme", "app", reference)
        assert (str(found.digest), found.content) == (digest, content)
    blobs = pushed.registry.blobs("acme", "app", map(Digest.of, (b"{}", b"one", b"two", b"three")))
    assert set(blobs) == {Digest.of(b"{}"), Digest.of(b"one"), Digest.of(b"two")}
    assert blobs[Digest.of(b"one")].path == content_path(Digest.of(b"one"))


def test_rows_say_what_the_import_s_say(pushed: Pushed) -> None:
    pushed.push(artifact("application/vnd.example", b"one", subject=described(b"gone", CONFIG)), "a")
    pushed.push(image(b"one", b"two"), "b")
    columns = (db.Manifest.config_media_type, db.Manifest.subject, db.Manifest.artifact_type)
    with pushed.engine.connect() as connection:
        rows = connection.execute(select(*columns, db.Manifest.layers_compressed_size).order_by(db.Manifest.id)).all()
    assert [tuple(row) for row in rows] == [
        ("application/vnd.oci.empty.v1+json", digest_of(b"gone"), "application/vnd.example", None),
        (CONFIG, None, None, 6),
    ]


def test_pushing_the_same_again_changes_nothing(pushed: Pushed) -> None:
    child = image(b"one")
    for _ in range(2):
        pushed.push(child)
        pushed.push(image(b"two"), "1.0")
    before = pushed.rows()
    pushed.push(child)
    pushed.push(image(b"two"), "1.0")
    assert pushed.rows() == before


def test_what_a_manifest_names_has_to_be_in_its_own_repository(pushed: Pushed) -> None:
    other = pushed.repository("acme", "other")
    pushed.blob(b"elsewhere", to=other)
    with pytest.raises(NamedContentUnknown, match=digest_of(b"elsewhere")) as refused:
        pushed.push(image(b"one", b"elsewhere", b"nowhere"), "1.0")
    assert refused.value.missing == (Digest.of(b"elsewhere"), Digest.of(b"nowhere"))
    assert pushed.count(db.Manifest) == pushed.count(db.Tag) == 0
    with pytest.raises(NamedContentUnknown):
        pushed.push(image(b"one"), "1.0", to=other)


def test_a_configuration_has_to_be_there_too(pushed: Pushed) -> None:
    with pytest.raises(NamedContentUnknown, match=digest_of(b"no configuration")):
        pushed.push(image(b"one", config=b"no configuration"), "1.0")


def test_what_a_manifest_of_the_repository_has_may_be_named_by_another(pushed: Pushed) -> None:
    pushed.push(image(b"one"), "1.0")
    with writing(pushed.engine) as connection:
        connection.execute(delete(db.UploadedBlob))
    pushed.push(image(b"one", annotations={"a": "b"}), "2.0")
    assert pushed.there("2.0")


def test_a_blob_that_lies_nowhere_is_not_there(pushed: Pushed) -> None:
    with writing(pushed.engine) as connection:
        one = select(db.ImageStorage.id).where(db.ImageStorage.content_checksum == digest_of(b"one")).scalar_subquery()
        connection.execute(delete(db.ImageStoragePlacement).where(db.ImageStoragePlacement.storage_id == one))
    with pytest.raises(NamedContentUnknown) as refused:
        pushed.push(image(b"one", b"two"), "1.0")
    assert refused.value.missing == (Digest.of(b"one"),)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ],
)
def test_layers_that_their_maker_hands_out_need_not_be_there(pushed: Pushed, media_type: str) -> None:
    layers = [described(b"windows", media_type, urls=["https://example.com"]), described(b"one", LAYER)]
    pushed.push(image(layers=layers), "1.0")
    assert pushed.there("1.0")
    assert set(pushed.registry.blobs("acme", "app", [Digest.of(b"one"), Digest.of(b"windows")])) == {Digest.of(b"one")}


def test_one_that_is_there_all_the_same_is_the_manifest_s(pushed: Pushed) -> None:
    media_type = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    pushed.push(image(layers=[described(b"one", media_type)]), "1.0")
    assert pushed.count(db.ManifestBlob) == 2


def test_sizes_have_to_be_the_blobs_own(pushed: Pushed) -> None:
    with pytest.raises(NamedSizeWrong, match=f"{digest_of(b'one')} has 4 bytes; there are 3"):
        pushed.push(image(layers=[{**described(b"one", LAYER), "size": 4}]), "1.0")
    assert not pushed.there("1.0")


def test_a_size_that_nobody_knows_is_believed(pushed: Pushed) -> None:
    with writing(pushed.engine) as connection:
        connection.execute(update(db.ImageStorage).values(image_size=None))
    pushed.push(image(layers=[{**described(b"one", LAYER), "size": 4}]), "1.0")
    assert pushed.there("1.0")


def test_an_index_needs_its_manifests(pushed: Pushed) -> None:
    child, absent = image(b"one"), image(b"two")
    pushed.push(child)
    with pytest.raises(NamedContentUnknown) as refused:
        pushed.push(index([child, absent]), "1.0")
    assert refused.value.missing == (Digest.of(absent),)
    pushed.push(absent)
    pushed.push(index([child, absent]), "1.0")
    assert pushed.count(db.ManifestChild) == 2


def test_an_index_s_sizes_are_of_bytes_and_not_of_characters(pushed: Pushed) -> None:
    child = json.dumps(json.loads(image(b"one", annotations={"a": "ä€"})), ensure_ascii=False).encode()
    pushed.push(child)
    characters = {**described(child, json.loads(child)["mediaType"]), "size": len(child.decode())}
    with pytest.raises(NamedSizeWrong, match=f"there are {len(child)}"):
        pushed.push(index([characters]), "1.0")
    pushed.push(index([child]), "1.0")


def test_an_index_may_hold_an_index_and_nothing(pushed: Pushed) -> None:
    child = image(b"one")
    pushed.push(child)
    inner = index([child])
    pushed.push(inner)
    pushed.push(index([inner]), "outer")
    pushed.push(index([]), "empty")
    assert all(map(pushed.there, ("outer", "empty", digest_of(inner), digest_of(child))))


def test_what_an_index_names_that_is_no_manifest_is_a_blob(pushed: Pushed) -> None:
    cache = index([described(b"one", LAYER), described(b"{}", "application/vnd.buildkit.cacheconfig.v0")])
    pushed.push(cache, "cache")
    assert pushed.count(db.ManifestBlob) == 2
    with pytest.raises(NamedContentUnknown):
        pushed.push(index([described(b"gone", LAYER)]), "cache")


def test_a_blob_is_not_taken_for_a_manifest(pushed: Pushed) -> None:
    child = image(b"one")
    pushed.blob(child)
    with pytest.raises(NamedContentUnknown):
        pushed.push(index([child]), "1.0")


def test_a_subject_need_not_be_there(pushed: Pushed) -> None:
    digest = pushed.push(artifact("application/vnd.example", subject=described(b"later", CONFIG)))
    assert pushed.there(digest)


def test_more_blobs_than_a_statement_has_values(pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.registryrows.MANY", 7)
    contents = [str(number).encode() for number in range(30)]
    with pytest.raises(NamedContentUnknown, match="and 20 more") as refused:
        pushed.push(image(*contents), "1.0")
    assert refused.value.missing == tuple(map(Digest.of, contents))
    pushed.blob(*contents)
    pushed.push(image(*contents), "1.0")
    assert pushed.count(db.ManifestBlob) == 31


def test_a_repository_that_went_meanwhile_is_not_found(pushed: Pushed) -> None:
    with writing(pushed.engine) as connection:
        connection.execute(update(db.Repository).values(state=db.MARKED_FOR_DELETION))
    with pytest.raises(RepositoryNotFound):
        pushed.push(image(b"one"), "1.0")
    with pytest.raises(RepositoryNotFound):
        pushed.manifests.delete_tag(pushed.app, "1.0")
    with pytest.raises(RepositoryNotFound):
        pushed.manifests.delete(pushed.app, Digest.of(b"one"))
    assert pushed.count(db.Manifest) == 0


# --- What tags lead to ------------------------------------------------------------------------------------------------


def test_a_tag_that_moves_keeps_its_past(pushed: Pushed) -> None:
    first, second = pushed.push(image(b"one"), "1.0"), pushed.push(image(b"two"), "1.0")
    assert str(pushed.registry.manifest("acme", "app", "1.0").digest) == second
    assert not pushed.there(first)
    with pushed.engine.connect() as connection:
        ends = list(connection.scalars(select(db.Tag.lifetime_end_ms).order_by(db.Tag.id)))
    assert ends[0] is not None
    assert ends[1:] == [None]


def test_several_tags_at_once(pushed: Pushed) -> None:
    pushed.push(image(b"one"), "1", "1.0", "latest")
    assert pushed.registry.tags("acme", "app") == ("1", "1.0", "latest")


def test_pushed_by_its_digest_a_manifest_stays_without_a_tag_that_can_be_seen(pushed: Pushed) -> None:
    digest = pushed.push(image(b"one"))
    assert pushed.there(digest)
    assert pushed.registry.tags("acme", "app") == ()
    pushed.push(image(b"one"), "1.0")
    pushed.manifests.delete_tag(pushed.app, "1.0")
    assert pushed.there(digest)


def test_an_index_takes_over_what_was_pushed_for_it(pushed: Pushed) -> None:
    child = image(b"one")
    pushed.push(child)
    holder = pushed.push(index([child]), "1.0")
    assert pushed.there(digest_of(child))
    pushed.manifests.delete_tag(pushed.app, "1.0")
    assert not pushed.there(holder)
    assert not pushed.there(digest_of(child))


def test_what_has_a_subject_stays_although_an_index_has_it(pushed: Pushed) -> None:
    signature = artifact("application/vnd.example", subject=described(b"gone", CONFIG))
    pushed.push(signature)
    pushed.push(index([signature]), "1.0")
    pushed.manifests.delete_tag(pushed.app, "1.0")
    assert pushed.there(digest_of(signature))


def test_an_index_of_an_index_takes_over_too(pushed: Pushed) -> None:
    child, inner = image(b"one"), index([image(b"one")])
    pushed.push(child)
    pushed.push(inner)
    pushed.push(index([inner]), "1.0")
    assert pushed.there(digest_of(child))
    pushed.manifests.delete_tag(pushed.app, "1.0")
    assert not any(map(pushed.there, (digest_of(inner), digest_of(child))))


# --- Deletion ---------------------------------------------------------------------------------------------------------


def test_a_tag_that_is_deleted_is_not_there_at_once_and_may_come_back(pushed: Pushed) -> None:
    for _ in range(3):
        pushed.push(image(b"one"), "1.0", "2.0")
        pushed.manifests.delete_tag(pushed.app, "1.0")
        assert not pushed.there("1.0")
        assert pushed.there("2.0")


def test_a_tag_is_deleted_faster_than_the_clock_goes(pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("data.registryrows", "data.registry", "data.pushedmanifests"):
        monkeypatch.setattr(f"{module}.now_ms", lambda: 1_700_000_000_000)
    for _ in range(3):
        pushed.push(image(b"one"), "1.0")
        pushed.push(image(b"two"), "1.0")
        assert pushed.there("1.0")
        pushed.manifests.delete_tag(pushed.app, "1.0")
        assert not pushed.there("1.0")


def test_what_is_not_there_cannot_be_deleted(pushed: Pushed) -> None:
    digest = pushed.push(image(b"one"), "1.0")
    with pytest.raises(TagNotFound, match=r"there are: 1\.0"):
        pushed.manifests.delete_tag(pushed.app, "2.0")
    with pytest.raises(ManifestNotFound):
        pushed.manifests.delete(pushed.app, Digest.of(b"other"))
    pushed.manifests.delete_tag(pushed.app, "1.0")
    with pytest.raises(TagNotFound):
        pushed.manifests.delete_tag(pushed.app, "1.0")
    with pytest.raises(ManifestNotFound):
        pushed.manifests.delete(pushed.app, Digest.parse(digest))


def test_a_hidden_tag_is_nobody_s_to_delete(pushed: Pushed) -> None:
    digest = pushed.push(image(b"one"))
    with pushed.engine.connect() as connection:
        hidden = connection.scalar(select(db.Tag.name)) or ""
    with pytest.raises(TagNotFound):
        pushed.manifests.delete_tag(pushed.app, hidden)
    assert pushed.there(digest)


def test_a_manifest_that_is_deleted_takes_its_tags_along(pushed: Pushed) -> None:
    digest = pushed.push(image(b"one"), "1.0", "latest")
    pushed.push(image(b"one"))
    pushed.push(image(b"two"), "2.0")
    pushed.manifests.delete(pushed.app, Digest.parse(digest))
    assert not pushed.there(digest)
    assert pushed.registry.tags("acme", "app") == ("2.0",)


def test_a_manifest_in_an_index_is_not_deleted(pushed: Pushed) -> None:
    child = image(b"one")
    pushed.push(child, "child")
    inner = index([child])
    pushed.push(inner)
    holder = pushed.push(index([inner]), "1.0")
    with pytest.raises(HeldByIndex, match=holder):
        pushed.manifests.delete(pushed.app, Digest.of(child))
    assert pushed.there("child")
    pushed.manifests.delete(pushed.app, Digest.parse(holder))
    assert pushed.there("child")
    pushed.manifests.delete(pushed.app, Digest.of(child))
    assert not pushed.there(digest_of(child))


def test_other_repositories_are_left_alone(pushed: Pushed) -> None:
    other = pushed.repository("acme", "other")
    pushed.blob(b"{}", b"one", to=other)
    for repository in (pushed.app, other):
        pushed.push(image(b"one"), "1.0", to=repository)
    pushed.manifests.delete(other, Digest.of(image(b"one")))
    assert pushed.there("1.0")
    assert pushed.registry.tags("acme", "other") == ()


# --- Side by side -----------------------------------------------------------------------------------------------------


def test_thirty_two_pushes_of_one_tag_end_well(pushed: Pushed) -> None:
    contents = [image(b"one", annotations={"at": str(at)}) for at in range(32)]
    begin = threading.Barrier(len(contents))

    def push(content: bytes) -> str:
        begin.wait()
        return pushed.push(content, "1.0", f"own-{digest_of(content)[7:20]}")

    with ThreadPoolExecutor(len(contents)) as pool:
        digests = list(pool.map(push, contents))
    assert str(pushed.registry.manifest("acme", "app", "1.0").digest) in digests
    assert all(map(pushed.there, digests))
    with pushed.engine.connect() as connection:
        unended = connection.scalars(select(db.Tag.name).where(db.Tag.lifetime_end_ms.is_(None)))
        assert sorted(unended).count("1.0") == 1


def test_pushes_and_deletions_of_one_image_leave_it_there_or_not(pushed: Pushed) -> None:
    child, holder = image(b"one"), index([image(b"one")])

    def push(_: int) -> None:
        pushed.push(child)
        pushed.push(holder, "1.0")

    def drop(_: int) -> None:
        for content in (holder, child):
            try:
                pushed.manifests.delete(pushed.app, Digest.of(content))
            except (ManifestNotFound, HeldByIndex):
                continue

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(work, at) for at in range(8) for work in (push, drop)]
        for each in done:
            each.result()
    push(0)
    assert all(map(pushed.there, ("1.0", digest_of(child))))


def test_a_database_that_does_not_come_is_unavailable(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/registry.db?timeout=0.1")
    create_tables(engine)
    found = Pushed(engine)
    found.blob(b"{}", b"one")
    with writing(engine), pytest.raises(RegistryUnavailable, match="locked"):
        found.push(image(b"one"), "1.0")
    found.push(image(b"one"), "1.0")
