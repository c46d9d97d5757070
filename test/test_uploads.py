"""Uploads: what comes in pieces, is interrupted, is ended by two at once, lies, and is given up."""

import io
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, insert, select, update

from data import incoming, uploads
from data.administration import Administration
from data.database import Engine, create_tables, writing
from data.discovery import Reader
from data.owntables import UploadRow, upgrade
from data.pushedblobs import BlobUnknown, Holder, PushedBlobs
from data.registry import RepositoryNotFound, SqlRegistry, content_path
from data.storage.base import BlobNotFound, BlobWriter, StorageUnavailable
from data.storage.distributed import DistributedStorage, StorageReadOnly
from data.storage.local import LocalStorage
from data.storage.testing import content_of
from data.tables import MARKED_FOR_DELETION, ImageStorage, ImageStoragePlacement, Repository, UploadedBlob, now_utc
from data.uploads import (
    BlobTooLarge,
    Upload,
    UploadCut,
    UploadOutOfOrder,
    Uploads,
    UploadTaken,
    UploadUnknown,
)
from test.databases import KINDS, database
from util.digest import Digest, DigestMismatch, InvalidDigest

CONTENT = b"0123456789abcdef" * 1000


class Scene:
    """A registry with the repositories acme/one and acme/two, on one database and one folder."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder / "storage"
        create_tables(engine)
        upgrade(engine)
        self.local = LocalStorage(self.folder)
        self.storage = DistributedStorage({"default": self.local}, ["default"])
        self.registry = SqlRegistry(engine)
        self.blobs = PushedBlobs(engine, self.storage, grace_seconds=3600)
        self.uploads = Uploads(engine, self.storage, self.blobs)
        administration = Administration(engine, engine, lambda: None, ours=True, readonly=False)
        administration.create_organization("acme")
        self.one, self.two = (
            administration.create_repository("acme", name, public=False, creator=None).id for name in ("one", "two")
        )

    def limited(self, size: int) -> Uploads:
        return Uploads(self.engine, self.storage, self.blobs, max_size=size)

    def push(self, content: bytes, repository: int | None = None) -> Digest:
        repository = self.one if repository is None else repository
        upload = self.uploads.start(repository)
        self.uploads.append(repository, upload.id, io.BytesIO(content))
        digest = Digest.of(content)
        self.uploads.finish(repository, upload.id, digest)
        return digest

    def held(self, digest: Digest, repository: str = "one") -> bytes | None:
        """Return the blob as the repository holds it."""
        found = self.registry.blobs("acme", repository, [digest]).get(digest)
        if found is None:
            return None
        content = content_of(self.storage.open(found.locations, found.path))
        assert found.size == len(content)
        return content

    def segments(self) -> list[str]:
        return sorted(blob.path for blob in self.local.list(uploads.UPLOADS))

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    def count(self, table: Any) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(table)) or 0

    def execute(self, statement: Any) -> None:
        with writing(self.engine) as connection:
            connection.execute(statement)


@pytest.fixture(params=KINDS)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with database(request.param, tmp_path) as engine:
        yield Scene(engine, tmp_path)


class Cut:
    """A body whose client goes away after `content`."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        self._content, self._error = io.BytesIO(content), error

    def read(self, size: int = -1, /) -> bytes:
        piece = self._content.read(size)
        if not piece and self._error is not None:
            raise self._error
        return piece

    def close(self) -> None:
        pass


class Meeting:
    """A body that calls `meanwhile` after its first piece."""

    def __init__(self, content: bytes, meanwhile: Callable[[], object]) -> None:
        self._pieces = [content[:10], content[10:]]
        self._meanwhile = meanwhile

    def read(self, _: int = -1, /) -> bytes:
        if len(self._pieces) == 1:
            self._meanwhile()
        return self._pieces.pop(0) if self._pieces else b""

    def close(self) -> None:
        pass


# --- What comes -------------------------------------------------------------------------------------------------------


def test_what_comes_in_one_piece_becomes_a_blob_and_nothing_is_left(scene: Scene) -> None:
    digest = scene.push(CONTENT)
    assert scene.held(digest) == CONTENT
    assert scene.held(digest, "two") is None
    assert scene.files() == [content_path(digest)]
    assert scene.count(UploadRow) == 0


@pytest.mark.parametrize("sizes", [(1,), (1, 2), (7, 7, 2), (3, 0, 9), ()])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "blake3"])
def test_what_comes_in_pieces_becomes_a_blob(scene: Scene, sizes: tuple[int, ...], algorithm: str) -> None:
    upload = scene.uploads.start(scene.one, algorithm)
    content = b""
    for number, size in enumerate(sizes):
        piece = bytes([number]) * size * 1000
        before = len(content)
        content += piece
        grown = scene.uploads.append(scene.one, upload.id, io.BytesIO(piece), offset=before, length=len(piece))
        assert grown.size == scene.uploads.find(scene.one, upload.id).size == len(content)
    digest = Digest.of(content, algorithm)
    assert scene.uploads.finish(scene.one, upload.id, digest) == len(content)
    assert scene.held(digest) == content
    assert scene.files() == [content_path(digest)]
    with pytest.raises(UploadUnknown):
        scene.uploads.find(scene.one, upload.id)


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_blob_may_end_with_another_algorithm_than_it_began_with(scene: Scene, pieces: int) -> None:
    upload = scene.uploads.start(scene.one, "sha256")
    for _ in range(pieces):
        scene.uploads.append(scene.one, upload.id, io.BytesIO(CONTENT))
    digest = Digest.of(CONTENT * pieces, "sha512")
    scene.uploads.finish(scene.one, upload.id, digest)
    assert scene.held(digest) == CONTENT * pieces


def test_bytes_that_came_whole_are_not_read_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = scene.uploads.start(scene.one)
    scene.uploads.append(scene.one, upload.id, io.BytesIO(CONTENT), algorithm="blake3")
    monkeypatch.setattr(LocalStorage, "open", lambda *_, **__: pytest.fail("the bytes are read again"))
    scene.uploads.finish(scene.one, upload.id, Digest.of(CONTENT, "blake3"))


def test_an_algorithm_that_is_none_begins_nothing(scene: Scene) -> None:
    with pytest.raises(InvalidDigest):
        scene.uploads.start(scene.one, "md5")
    assert scene.count(UploadRow) == 0


def test_thousands_of_small_pieces_become_a_blob_in_the_right_order(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_TOGETHER", 4)
    upload = scene.uploads.start(scene.one)
    content = b""
    longest = 0
    for number in range(75):
        piece = f"{number},".encode()
        content += piece
        grown = scene.uploads.append(scene.one, upload.id, io.BytesIO(piece), offset=len(content) - len(piece))
        longest = max(longest, len(grown.segments))
    assert longest <= 3 * 4
    assert [segment.level for segment in grown.segments] == sorted(
        (segment.level for segment in grown.segments), reverse=True
    )
    digest = Digest.of(content)
    scene.uploads.finish(scene.one, upload.id, digest)
    assert scene.held(digest) == content
    assert scene.files() == [content_path(digest)]


def test_a_row_stays_short(scene: Scene) -> None:
    segments = tuple(uploads.Segment(f"0-{uuid.uuid4().hex[:16]}", 5 << 20) for _ in range(3 * uploads._TOGETHER))
    assert len(json.dumps([[each.name, each.size] for each in segments])) < 60_000  # MySQL's TEXT ends at 65,535


# --- What does not belong there ---------------------------------------------------------------------------------------


def test_another_repositorys_upload_is_unknown(scene: Scene) -> None:
    upload = scene.uploads.start(scene.one)
    for attempt in (
        lambda: scene.uploads.find(scene.two, upload.id),
        lambda: scene.uploads.append(scene.two, upload.id, io.BytesIO(b"x")),
        lambda: scene.uploads.finish(scene.two, upload.id, Digest.of(b"")),
        lambda: scene.uploads.cancel(scene.two, upload.id),
        lambda: scene.uploads.find(scene.one, "absent"),
    ):
        with pytest.raises(UploadUnknown):
            attempt()
    assert scene.uploads.find(scene.one, upload.id).size == 0


@pytest.mark.parametrize("offset", [0, 4, 6, 100])
def test_bytes_that_do_not_follow_are_refused_and_change_nothing(scene: Scene, offset: int) -> None:
    upload = scene.uploads.start(scene.one)
    scene.uploads.append(scene.one, upload.id, io.BytesIO(b"01234"))
    with pytest.raises(UploadOutOfOrder, match=rf"has 5 bytes, and what was sent begins at {offset}") as raised:
        scene.uploads.append(scene.one, upload.id, io.BytesIO(b"x"), offset=offset)
    assert raised.value.upload.size == 5
    scene.uploads.append(scene.one, upload.id, io.BytesIO(b"56789"), offset=5)
    digest = Digest.of(b"0123456789")
    scene.uploads.finish(scene.one, upload.id, digest)
    assert scene.held(digest) == b"0123456789"


@pytest.mark.parametrize("pieces", [0, 1, 2])
def test_a_wrong_digest_ends_the_upload_and_nothing_is_to_be_seen(scene: Scene, pieces: int) -> None:
    upload = scene.uploads.start(scene.one)
    for _ in range(pieces):
        scene.uploads.append(scene.one, upload.id, io.BytesIO(CONTENT))
    digest = Digest.of(b"other bytes")
    with pytest.raises(DigestMismatch, match=str(digest)):
        scene.uploads.finish(scene.one, upload.id, digest)
    assert scene.files() == []
    assert scene.count(ImageStorage) == scene.count(UploadedBlob) == scene.count(UploadRow) == 0


@pytest.mark.parametrize("pieces", [0, 1, 2])
def test_who_only_knows_the_digest_of_anothers_blob_does_not_get_it(scene: Scene, pieces: int) -> None:
    digest = scene.push(b"secret", scene.two)
    upload = scene.uploads.start(scene.one)
    for _ in range(pieces):
        scene.uploads.append(scene.one, upload.id, io.BytesIO(b"guess"))
    with pytest.raises(DigestMismatch):
        scene.uploads.finish(scene.one, upload.id, digest)
    assert scene.held(digest) is None
    assert scene.held(digest, "two") == b"secret"


@pytest.mark.parametrize("told", [True, False])
def test_a_blob_that_is_too_large_ends_the_upload(scene: Scene, told: bool) -> None:
    limited = scene.limited(10)
    upload = limited.start(scene.one)
    limited.append(scene.one, upload.id, io.BytesIO(b"01234"))
    with pytest.raises(BlobTooLarge, match=r"10 bytes \(MAXIMUM_LAYER_SIZE\)"):
        limited.append(scene.one, upload.id, io.BytesIO(b"567890"), length=6 if told else None)
    assert scene.files() == []
    assert scene.count(UploadRow) == 0


def test_a_blob_may_be_as_large_as_the_limit(scene: Scene) -> None:
    limited = scene.limited(10)
    upload = limited.start(scene.one)
    limited.append(scene.one, upload.id, io.BytesIO(b"0123456789"), length=10)
    limited.finish(scene.one, upload.id, Digest.of(b"0123456789"))


# --- What is interrupted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, OSError("reset"), ValueError("bad chunk")])
def test_what_came_before_the_client_left_is_kept_and_it_may_go_on(scene: Scene, error: Exception | None) -> None:
    upload = scene.uploads.start(scene.one)
    with pytest.raises(UploadCut, match="of 16000 bytes 700 came"):
        scene.uploads.append(scene.one, upload.id, Cut(CONTENT[:700], error), length=len(CONTENT))
    assert scene.uploads.find(scene.one, upload.id).size == 700
    scene.uploads.append(scene.one, upload.id, io.BytesIO(CONTENT[700:]), offset=700)
    digest = Digest.of(CONTENT)
    scene.uploads.finish(scene.one, upload.id, digest)
    assert scene.held(digest) == CONTENT


def test_a_client_that_left_before_its_first_byte_has_sent_nothing(scene: Scene) -> None:
    upload = scene.uploads.start(scene.one)
    with pytest.raises(UploadCut):
        scene.uploads.append(scene.one, upload.id, Cut(b"", OSError("reset")))
    assert scene.uploads.find(scene.one, upload.id).size == 0
    assert scene.files() == []


def test_a_request_that_comes_late_has_written_for_nothing(scene: Scene) -> None:
    """The client has gone on elsewhere while its first request was still being read."""
    upload = scene.uploads.start(scene.one)
    late = Meeting(b"late" * 100, lambda: scene.uploads.append(scene.one, upload.id, io.BytesIO(CONTENT)))
    with pytest.raises(UploadTaken):
        scene.uploads.append(scene.one, upload.id, late)
    assert len(scene.segments()) == 1
    digest = Digest.of(CONTENT)
    scene.uploads.finish(scene.one, upload.id, digest)
    assert scene.held(digest) == CONTENT
    assert scene.files() == [content_path(digest)]


def test_a_request_is_told_that_it_comes_for_nothing_as_soon_as_it_is_known(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "TOUCH_SECONDS", -1)
    upload = scene.uploads.start(scene.one)
    read: list[bytes] = []

    class Endless(Meeting):
        def read(self, _: int = -1, /) -> bytes:
            if len(read) == 3:
                scene.uploads.append(scene.one, upload.id, io.BytesIO(b"x"))
            read.append(b"y" * 100)
            return read[-1]

    with pytest.raises(UploadTaken):
        scene.uploads.append(scene.one, upload.id, Endless(b"", lambda: None))
    assert len(read) == 4
    assert scene.uploads.find(scene.one, upload.id).size == 1


@pytest.mark.parametrize("how", ["finish", "cancel"])
def test_an_upload_that_ends_under_a_request_is_not_begun_anew(scene: Scene, how: str) -> None:
    upload = scene.uploads.start(scene.one)

    def end() -> None:
        if how == "cancel":
            scene.uploads.cancel(scene.one, upload.id)
        else:
            scene.uploads.finish(scene.one, upload.id, Digest.of(b""))

    with pytest.raises(UploadTaken):
        scene.uploads.append(scene.one, upload.id, Meeting(CONTENT, end))
    assert scene.segments() == []


def test_a_storage_that_fails_leaves_the_upload_as_it_was(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = scene.uploads.start(scene.one)
    scene.uploads.append(scene.one, upload.id, io.BytesIO(b"01234"))

    def fail(*_: object) -> None:
        raise StorageUnavailable("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(BlobWriter, "write", fail)
        with pytest.raises(StorageUnavailable):
            scene.uploads.append(scene.one, upload.id, io.BytesIO(b"56789"))
    with monkeypatch.context() as patched:
        patched.setattr(LocalStorage, "copy", fail)
        with pytest.raises(StorageUnavailable):
            scene.uploads.finish(scene.one, upload.id, Digest.of(b"01234"))
    assert scene.uploads.find(scene.one, upload.id).size == 5
    assert scene.count(UploadedBlob) == 0
    scene.uploads.append(scene.one, upload.id, io.BytesIO(b"56789"), offset=5)
    digest = Digest.of(b"0123456789")
    scene.uploads.finish(scene.one, upload.id, digest)
    assert scene.held(digest) == b"0123456789"


class Killed(BaseException):
    """Ends a process at a point, as far as the code can tell."""


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize(
    ("where", "call"),
    [(Uploads, "_verified"), (LocalStorage, "copy"), (PushedBlobs, "keep"), (Uploads, "_drop"), (Uploads, "_delete")],
)
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_of_its_end_an_upload_can_be_ended_again_or_has_ended(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, *, where: Any, call: str, after: bool, pieces: int
) -> None:
    upload = scene.uploads.start(scene.one)
    for _ in range(pieces):
        scene.uploads.append(scene.one, upload.id, io.BytesIO(CONTENT))
    digest = Digest.of(CONTENT * pieces)
    real = getattr(where, call)

    def killed(*arguments: Any, **more: Any) -> None:
        if after:
            real(*arguments, **more)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(where, call, killed)
        with pytest.raises(Killed):
            scene.uploads.finish(scene.one, upload.id, digest)
    assert scene.held(digest) in (None, CONTENT * pieces)
    try:
        scene.uploads.finish(scene.one, upload.id, digest)
    except UploadUnknown:
        assert scene.held(digest) == CONTENT * pieces
    assert scene.held(digest) == CONTENT * pieces
    monkeypatch.setattr(uploads, "STRAY_SECONDS", -60)
    list(scene.uploads.sweep(older_than=3600))
    assert scene.files() == [content_path(digest)]
    assert scene.count(UploadRow) == 0


def test_two_who_end_an_upload_at_once_make_one_blob(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "STRAY_SECONDS", -60)
    for _ in range(5):
        content = uuid.uuid4().bytes * 1000
        upload = scene.uploads.start(scene.one)
        for start in (0, 9000):
            scene.uploads.append(scene.one, upload.id, io.BytesIO(content[start : start + 9000]))
        digest = Digest.of(content)
        came = set(scene.segments())
        outcomes: list[Any] = []

        def finish(upload: Upload, digest: Digest, outcomes: list[Any]) -> None:
            try:
                outcomes.append(scene.uploads.finish(scene.one, upload.id, digest))
            except (UploadUnknown, UploadTaken) as error:
                outcomes.append(error)

        threads = [threading.Thread(target=finish, args=(upload, digest, outcomes)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 16000 in outcomes
        assert len(outcomes) == 3
        assert scene.held(digest) == content
        # Who put all in one piece when the upload had just gone has left that for the sweep.
        assert not came & set(scene.segments())
        list(scene.uploads.sweep(older_than=3600))
        assert scene.segments() == []


# --- Blobs that are shared --------------------------------------------------------------------------------------------


def test_a_blob_that_the_registry_has_is_only_linked(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = scene.push(CONTENT, scene.two)
    monkeypatch.setattr(LocalStorage, "copy", lambda *_: pytest.fail("a second copy is made"))
    scene.push(CONTENT)
    assert scene.held(digest) == scene.held(digest, "two") == CONTENT
    assert scene.count(ImageStorage) == scene.count(ImageStoragePlacement) == 1
    assert scene.count(UploadedBlob) == 2
    scene.push(CONTENT)
    assert scene.count(UploadedBlob) == 2


def test_a_link_is_prolonged_and_never_shortened(scene: Scene) -> None:
    digest = scene.push(CONTENT)
    later = now_utc() + timedelta(days=10)
    for before, after in ((now_utc() + timedelta(seconds=1), None), (later, later)):
        scene.execute(update(UploadedBlob).values(expires_at=before))
        scene.push(CONTENT)
        with scene.engine.connect() as connection:
            ends = connection.scalars(select(UploadedBlob.expires_at)).one()
        expected = after or now_utc() + timedelta(seconds=3600)
        assert abs(ends - expected) < timedelta(seconds=60)
    assert scene.held(digest) == CONTENT


def test_a_link_that_has_ended_holds_nothing(scene: Scene) -> None:
    digest = scene.push(CONTENT)
    scene.execute(update(UploadedBlob).values(expires_at=now_utc() - timedelta(seconds=1)))
    assert scene.held(digest) is None
    assert not scene.blobs.mount(scene.two, digest, scene.one)
    assert scene.blobs.holders(digest, Reader(everything=True)) == []


def test_an_object_that_was_lost_is_put_there_again_by_who_has_it(scene: Scene) -> None:
    digest = scene.push(CONTENT)
    scene.local.delete(content_path(digest))
    with pytest.raises(BlobNotFound):
        scene.held(digest)
    assert not scene.blobs.mount(scene.two, digest, scene.one)
    scene.push(CONTENT, scene.two)
    assert scene.held(digest) == scene.held(digest, "two") == CONTENT
    assert scene.count(ImageStorage) == 1


def test_an_object_of_another_length_is_replaced(scene: Scene) -> None:
    digest = scene.push(CONTENT)
    (scene.folder / content_path(digest)).write_bytes(b"cut")
    scene.push(CONTENT, scene.two)
    assert scene.held(digest, "two") == CONTENT


def test_an_object_without_a_row_gets_one(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody was killed between the object and its row."""
    digest = Digest.of(CONTENT)
    with scene.local.create(content_path(digest)) as writer:
        writer.write(CONTENT)
        writer.commit()
    monkeypatch.setattr(LocalStorage, "copy", lambda *_: pytest.fail("a second copy is made"))
    scene.push(CONTENT)
    assert scene.held(digest) == CONTENT


def test_a_blob_that_lies_elsewhere_is_only_linked(scene: Scene, tmp_path: Path) -> None:
    digest = scene.push(CONTENT, scene.two)
    near = LocalStorage(tmp_path / "near")
    storage = DistributedStorage({"near": near, "default": scene.local}, ["near", "default"])
    blobs = PushedBlobs(scene.engine, storage, grace_seconds=3600)
    blobs.keep(scene.one, digest, len(CONTENT), lambda: pytest.fail("a second copy is made"))
    assert list(near.list("sha256")) == []
    assert scene.held(digest) == CONTENT


def test_a_location_that_does_not_answer_is_done_without(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = scene.push(CONTENT, scene.two)
    far, near = LocalStorage(tmp_path / "far"), LocalStorage(tmp_path / "near")

    def fail(_: str) -> int:
        raise StorageUnavailable("far away")

    monkeypatch.setattr(far, "size", fail)
    storage = DistributedStorage({"near": near, "default": far}, ["near", "default"])
    uploads = Uploads(scene.engine, storage, PushedBlobs(scene.engine, storage, grace_seconds=3600))
    upload = uploads.start(scene.one)
    uploads.append(scene.one, upload.id, io.BytesIO(CONTENT))
    uploads.finish(scene.one, upload.id, digest)
    assert content_of(near.open(content_path(digest))) == CONTENT
    assert set(scene.registry.blobs("acme", "one", [digest])[digest].locations) == {"near", "default"}


def test_what_garbage_takes_between_object_and_row_is_put_there_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = LocalStorage.copy
    taken: list[str] = []

    def taken_away(storage: LocalStorage, source: str, target: str) -> None:
        copy(storage, source, target)
        if len(taken) < 3:
            taken.append(target)
            storage.delete(target)

    monkeypatch.setattr(LocalStorage, "copy", taken_away)
    digest = scene.push(CONTENT)
    assert len(taken) == 3
    assert scene.held(digest) == CONTENT


def test_what_is_always_taken_away_is_an_error_and_no_row(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "copy", lambda *_: None)
    with pytest.raises(StorageUnavailable, match="taken away 5 times"):
        scene.push(CONTENT)
    assert scene.count(ImageStorage) == scene.count(UploadedBlob) == 0
    assert scene.count(UploadRow) == 1


def test_a_repository_that_is_deleted_under_an_upload_gets_no_blob(scene: Scene) -> None:
    upload = scene.uploads.start(scene.one)
    scene.execute(update(Repository).where(Repository.id == scene.one).values(state=MARKED_FOR_DELETION))
    with pytest.raises(RepositoryNotFound):
        scene.uploads.finish(scene.one, upload.id, Digest.of(b""))
    assert scene.count(UploadedBlob) == 0


# --- Mounting and unlinking -------------------------------------------------------------------------------------------


def test_a_blob_is_mounted_from_who_holds_it(scene: Scene) -> None:
    digest = scene.push(CONTENT, scene.two)
    assert scene.blobs.mount(scene.one, digest, scene.two)
    assert scene.held(digest) == CONTENT
    assert not scene.blobs.mount(scene.one, Digest.of(b"absent"), scene.two)


def test_a_blob_is_not_mounted_from_who_does_not_hold_it(scene: Scene) -> None:
    digest = scene.push(CONTENT, scene.two)
    assert not scene.blobs.mount(scene.two, digest, scene.one)
    assert not scene.blobs.mount(scene.one, digest, scene.one)
    assert scene.held(digest) is None


def test_who_holds_a_blob_is_told(scene: Scene) -> None:
    digest, everybody = scene.push(CONTENT), Reader(everything=True)
    assert scene.blobs.holders(digest, everybody) == [Holder(scene.one, "acme", "one", public=False)]
    assert scene.blobs.holders(digest, Reader()) == []
    scene.blobs.mount(scene.two, digest, scene.one)
    assert {each.id for each in scene.blobs.holders(digest, everybody)} == {scene.one, scene.two}
    scene.execute(update(Repository).where(Repository.id == scene.one).values(state=MARKED_FOR_DELETION))
    assert {each.id for each in scene.blobs.holders(digest, everybody)} == {scene.two}


def test_a_link_is_taken_back(scene: Scene) -> None:
    digest = scene.push(CONTENT)
    scene.push(CONTENT, scene.two)
    scene.blobs.unlink(scene.one, digest)
    assert scene.held(digest) is None
    assert scene.held(digest, "two") == CONTENT
    with pytest.raises(BlobUnknown):
        scene.blobs.unlink(scene.one, digest)


# --- Giving up --------------------------------------------------------------------------------------------------------


def test_what_is_cancelled_is_gone(scene: Scene) -> None:
    upload = scene.uploads.start(scene.one)
    scene.uploads.append(scene.one, upload.id, io.BytesIO(CONTENT))
    scene.uploads.cancel(scene.one, upload.id)
    assert scene.files() == []
    with pytest.raises(UploadUnknown):
        scene.uploads.cancel(scene.one, upload.id)


def test_what_nothing_comes_to_any_more_is_swept(scene: Scene) -> None:
    old, young = scene.uploads.start(scene.one), scene.uploads.start(scene.two)
    for repository, upload in ((scene.one, old), (scene.two, young)):
        scene.uploads.append(repository, upload.id, io.BytesIO(CONTENT))
    past = UploadRow.touched_ms - 7200_000
    scene.execute(update(UploadRow).where(UploadRow.id == old.id).values(touched_ms=past))
    assert [(each.what, each.size) for each in scene.uploads.sweep(older_than=3600, dry_run=True)] == [
        (f"upload {old.id}", len(CONTENT))
    ]
    assert len(scene.segments()) == 2
    assert len(list(scene.uploads.sweep(older_than=3600))) == 1
    assert len(scene.segments()) == 1
    assert scene.uploads.find(scene.two, young.id).size == len(CONTENT)
    assert list(scene.uploads.sweep(older_than=3600)) == []


def test_many_old_uploads_are_swept_page_by_page(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_PAGE", 3)
    for _ in range(10):
        scene.uploads.start(scene.one)
    assert len(list(scene.uploads.sweep(older_than=-60))) == 10
    assert scene.count(UploadRow) == 0


def test_an_upload_that_goes_on_while_it_is_swept_stays(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = scene.uploads.start(scene.one)
    scene.execute(update(UploadRow).values(touched_ms=UploadRow.touched_ms - 7200_000))
    drop = Uploads._drop

    def dropped(self: Uploads, *arguments: Any) -> bool:
        scene.uploads.append(scene.one, upload.id, io.BytesIO(b"x"))
        return drop(self, *arguments)

    monkeypatch.setattr(Uploads, "_drop", dropped)
    assert list(scene.uploads.sweep(older_than=3600)) == []
    assert scene.uploads.find(scene.one, upload.id).size == 1


def test_a_segment_of_no_upload_is_swept_once_it_is_old(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = scene.uploads.start(scene.one)
    scene.uploads.append(scene.one, upload.id, io.BytesIO(CONTENT))
    for path in (f"{uploads.UPLOADS}/{'0' * 32}/0-1", f"{uploads.UPLOADS}/{upload.id}/0-lost"):
        with scene.local.create(path) as writer:
            writer.write(b"lost")
            writer.commit()
    assert list(scene.uploads.sweep(older_than=3600)) == []
    monkeypatch.setattr(uploads, "STRAY_SECONDS", -60)
    (swept,) = scene.uploads.sweep(older_than=3600, dry_run=True)
    assert (swept.path, swept.size) == (f"{uploads.UPLOADS}/{'0' * 32}/0-1", 4)
    assert len(scene.segments()) == 3
    assert len(list(scene.uploads.sweep(older_than=3600))) == 1
    assert len(scene.segments()) == 2


def test_nothing_is_swept_in_a_registry_that_is_read_only(scene: Scene) -> None:
    storage = DistributedStorage({"default": scene.local}, ["default"], readonly=True)
    readonly = Uploads(scene.engine, storage, scene.blobs)
    with pytest.raises(StorageReadOnly):
        list(readonly.sweep(older_than=0))
    assert list(readonly.sweep(older_than=0, dry_run=True)) == []


def test_segments_that_cannot_be_deleted_are_left_to_be_swept(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StorageUnavailable("not now")

    with monkeypatch.context() as patched:
        patched.setattr(LocalStorage, "delete", fail)
        digest = scene.push(CONTENT)
    assert scene.held(digest) == CONTENT
    assert len(scene.segments()) == 1
    monkeypatch.setattr(uploads, "STRAY_SECONDS", -60)
    assert len(list(scene.uploads.sweep(older_than=3600))) == 1
    assert scene.files() == [content_path(digest)]


# --- On each database of ours -----------------------------------------------------------------------------------------


def test_the_row_grows_on_every_database(engine: Engine, tmp_path: Path) -> None:
    storage = DistributedStorage({"default": LocalStorage(tmp_path / "storage")}, ["default"])
    ours = Uploads(engine, storage, PushedBlobs(engine, storage, grace_seconds=1))
    upload = ours.start(7)
    for number in range(3):
        grown = ours.append(7, upload.id, io.BytesIO(b"%d" % number), offset=number)
    assert grown == ours.find(7, upload.id)
    assert b"".join(content_of(storage.preferred.open(grown.path(each))) for each in grown.segments) == b"012"
    with pytest.raises(UploadOutOfOrder):
        ours.append(7, upload.id, io.BytesIO(b""), offset=1)
    with engine.begin() as connection:
        connection.execute(
            insert(UploadRow).values(
                id="old", repository_id=7, algorithm="sha256", size=0, segments="[]", created_ms=0, touched_ms=0
            )
        )
    assert [each.what for each in ours.sweep(older_than=3600)] == ["upload old"]
    ours.cancel(7, upload.id)
    assert list(storage.preferred.list(uploads.UPLOADS)) == []
