"""Manifests that are pushed over `/v2`: the distribution-spec's category Push, as far as it is about manifests."""

import gzip
import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, select

from data import tables as db
from endpoints import indexing
from endpoints.indexing import INDEXING
from test.door import SETTINGS, Door, codes, login
from test.images import CONFIG, INDEX, LAYER, MANIFEST, Image, Layer, Layout
from test.layers import file
from test.manifests import EMPTY, artifact, described, digest_of, image, index, written
from test.place import Place
from test.server import served
from test.waiting import eventually
from util.digest import Digest
from util.oci import CONFIG_V2, LAYER_V2_GZIP, LIST_V2, MANIFEST_V1_SIGNED, MANIFEST_V2, MAX_DOCUMENT_SIZE

ONE = image(b"one", b"two")


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(Place(tmp_path, SETTINGS))
    door.blob(b"{}", b"one", b"two")
    yield door
    door.app.extensions[INDEXING].stop()


# --- What is taken ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["tag", "digest"])
def test_a_manifest_is_pushed_by_its_tag_and_by_its_digest(door: Door, by: str) -> None:
    answer = door.push(ONE, "1.0" if by == "tag" else digest_of(ONE), media_type=MANIFEST)
    assert (answer.status_code, answer.data) == (201, b"")
    assert answer.headers["Location"] == f"/v2/acme/app/manifests/{digest_of(ONE)}"
    assert answer.headers["Docker-Content-Digest"] == digest_of(ONE)
    assert "OCI-Subject" not in answer.headers
    assert "OCI-Tag" not in answer.headers
    assert door.app.test_client().get(answer.headers["Location"], headers=login("acme")).data == ONE
    assert door.there("1.0") is (by == "tag")


@pytest.mark.parametrize(
    "content",
    [
        ONE,
        image(),
        image(layers=None),
        image(b"one", mediaType=None),
        image(b"one", mediaType=MANIFEST_V2, config=described(b"{}", CONFIG_V2)),
        image(mediaType=MANIFEST_V2, config=described(b"{}", CONFIG_V2), layers=[described(b"one", LAYER_V2_GZIP)]),
        index([]),
        index([], mediaType=None),
        index([], mediaType=LIST_V2),
        artifact("application/vnd.example", b"one"),
        artifact("application/vnd.example", config=described(b"{}", EMPTY, data="e30=")),
        artifact(None, b"one", config=described(b"{}", "application/vnd.cncf.helm.config.v1+json")),
        artifact("application/vnd.example", layers=[described(b"one", LAYER), described(b"two", "text/plain")]),
        index([], artifactType="application/vnd.example"),
        image(b"one", unknown={"a": [None, 1.5, True]}),
    ],
)
def test_every_kind_is_taken_whether_its_type_is_said_or_not(door: Door, content: bytes) -> None:
    kinds = json.loads(content)
    own = kinds.get("mediaType") or (INDEX if "manifests" in kinds else MANIFEST)
    for said in (own, f"{own}; charset=utf-8", None, "application/json"):
        answer = door.push(content, "1.0", media_type=said)
        assert answer.status_code == 201, answer.data
        found = door.ask("GET", "manifests/1.0")
        assert (found.content_type, found.data) == (own, content)
        door.ask("DELETE", "manifests/1.0")


def test_four_megabytes_are_taken_and_more_are_not(door: Door) -> None:
    filled = image(b"one", annotations={"a": ""})
    most = filled.replace(b'"a": ""', b'"a": "' + b"x" * (MAX_DOCUMENT_SIZE - len(filled)) + b'"')
    assert len(most) == MAX_DOCUMENT_SIZE
    assert door.push(most, "1.0").status_code == 201
    assert door.ask("GET", "manifests/1.0").data == most
    answer = door.push(most + b" ", "2.0")
    assert (answer.status_code, codes(answer)) == (413, ["SIZE_INVALID"])
    assert not door.there("2.0")


def test_a_digest_in_the_path_has_to_be_the_content_s(door: Door) -> None:
    answer = door.push(ONE, digest_of(ONE + b" "))
    assert (answer.status_code, codes(answer)) == (400, ["DIGEST_INVALID"])
    assert not door.there(digest_of(ONE + b" "))


@pytest.mark.parametrize("digest", ["sha256:baddigeststring", "md5:" + "0" * 32])
def test_a_digest_that_is_none_is_refused(door: Door, digest: str) -> None:
    answer = door.push(ONE, digest)
    assert (answer.status_code, codes(answer)) == (400, ["DIGEST_INVALID"])


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "blake3"])
def test_what_is_named_by_another_algorithm(door: Door, algorithm: str) -> None:
    door.blob(b"{}", b"one", algorithm=algorithm)
    content = image(b"one", algorithm=algorithm)
    digest = str(Digest.of(content, algorithm))
    assert door.push(content, digest).status_code == 201
    listed = index([described(content, MANIFEST, algorithm=algorithm)])
    answer = door.push(listed, f"{Digest.of(listed, algorithm)}?tag=list")
    assert answer.status_code == 201, answer.data
    assert door.ask("GET", f"manifests/{digest}").data == content


@pytest.mark.parametrize("tag", [".a", "-a", "a" * 129, "a b", "ä", "a%00"])
def test_a_tag_that_is_none_is_refused(door: Door, tag: str) -> None:
    for reference in (tag, f"{digest_of(ONE)}?tag={tag}"):
        answer = door.push(ONE, reference)
        assert (answer.status_code, codes(answer)) == (400, ["NAME_INVALID"])
    assert not door.there(digest_of(ONE))


def test_tags_may_be_given_with_a_digest(door: Door) -> None:
    tags = [f"1.{at}" for at in range(12)]
    answer = door.push(ONE, digest_of(ONE) + "?" + "&".join(f"tag={tag}" for tag in (*tags, tags[0])))
    assert answer.status_code == 201
    told = [tag.strip() for field in answer.headers.getlist("OCI-Tag") for tag in field.split(",")]
    assert told == tags
    assert all(door.there(tag) for tag in tags)
    answer = door.push(ONE, digest_of(ONE) + "?" + "&".join(f"tag={at}" for at in range(101)))
    assert answer.status_code == 414


def test_the_subject_that_was_seen_is_told(door: Door) -> None:
    for reference in ("1.0", None):
        content = artifact("application/vnd.example", b"one", subject=described(b"gone", MANIFEST))
        answer = door.push(content, reference or digest_of(content))
        assert (answer.status_code, answer.headers["OCI-Subject"]) == (201, digest_of(b"gone"))
    content = index([], subject=described(b"gone", MANIFEST))
    assert door.push(content, "2.0").headers["OCI-Subject"] == digest_of(b"gone")


def test_a_repository_is_made_by_the_first_push_and_private(door: Door) -> None:
    assert door.ask("PUT", "acme/new/manifests/1.0", data=index([])).status_code == 201
    assert door.ask("GET", "acme/new/manifests/1.0").status_code == 200
    assert door.ask("GET", "acme/new/manifests/1.0", who=None).status_code == 401


# --- What is refused --------------------------------------------------------------------------------------------------


def test_everything_that_is_missing_is_named(door: Door) -> None:
    content = image(b"one", b"no layer", config=b"no configuration")
    answer = door.push(content, "1.0")
    assert answer.status_code == 400
    assert codes(answer) == ["MANIFEST_BLOB_UNKNOWN"] * 2
    details = [each["detail"]["digest"] for each in answer.get_json()["errors"]]
    assert details == [digest_of(b"no configuration"), digest_of(b"no layer")]
    assert not door.there("1.0")


def test_an_index_needs_its_manifests(door: Door) -> None:
    answer = door.push(index([ONE]), "1.0")
    assert (answer.status_code, codes(answer)) == (400, ["MANIFEST_BLOB_UNKNOWN"])
    assert answer.get_json()["errors"][0]["detail"] == {"digest": digest_of(ONE)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", None),
        (b"\xff\xfe", None),
        (b"[]", None),
        (b'"text"', None),
        (b'{"schemaVersion": 2', None),
        (b'{"schemaVersion": 2, "layers": [], "config": NaN}', None),
        (gzip.compress(ONE), None),
        (ONE.replace(b"{", b'{"a":"\xff",', 1), None),
        (image(annotations={"a": "b"}).replace(b'"b"', b'"\0"'), None),
        (image(b"one", config=None), None),
        (image(b"one", layers={}), None),
        (image(b"one", schemaVersion=3), None),
        (image(b"one", annotations={"a": 1}), None),
        (artifact("application/vnd.example", annotations=["a"]), None),
        (image(b"one", subject={"mediaType": MANIFEST, "size": 1}), None),
        (image(b"one", subject="sha256:"), None),
        (image(layers=[{"mediaType": LAYER, "digest": digest_of(b"one")}]), None),
        (image(layers=[{"mediaType": LAYER, "size": 3}]), None),
        (image(layers=[{**described(b"one", LAYER), "size": -1}]), None),
        (image(layers=[{**described(b"one", LAYER), "size": 4}]), None),
        (image(layers=[{**described(b"one", LAYER), "digest": "md5:" + "0" * 32}]), None),
        (index([], layers=[]), None),
        (index([], config=described(b"{}", CONFIG)), None),
        (index([{"mediaType": MANIFEST, "size": 2}]), None),
        (ONE, INDEX),
        (ONE, MANIFEST_V2),
        (index([]), MANIFEST),
        (index([], mediaType=None), MANIFEST),
        (image(mediaType=None), INDEX),
        (image(b"one", mediaType="application/vnd.oci.artifact.manifest.v1+json"), None),
        (image(mediaType=None), "application/vnd.oci.artifact.manifest.v1+json"),
        (written({"schemaVersion": 1, "fsLayers": [], "history": []}), MANIFEST_V1_SIGNED),
    ],
)
def test_what_is_no_manifest_is_refused(door: Door, content: bytes, said: str | None) -> None:
    answer = door.push(content, "1.0", media_type=said)
    assert answer.status_code in (400, 415), answer.data
    assert codes(answer) == ["MANIFEST_INVALID"]
    assert not door.there("1.0")


def test_a_manifest_of_schema_1_is_refused_with_a_word(door: Door) -> None:
    v1 = {"v1Compatibility": json.dumps({"id": "a" * 64})}
    blobs = [{"blobSum": digest_of(b"one")}]
    content = written({"schemaVersion": 1, "name": "acme/app", "tag": "1.0", "fsLayers": blobs, "history": [v1]})
    answer = door.push(content, "1.0", media_type=MANIFEST_V1_SIGNED)
    assert (answer.status_code, codes(answer)) == (415, ["MANIFEST_INVALID"])
    assert "schema 1" in answer.get_json()["errors"][0]["message"]


def test_a_refused_push_leaves_the_tag_what_it_was(door: Door) -> None:
    door.push(ONE, "1.0")
    for content in (b"{}", image(b"gone"), b""):
        assert door.push(content, "1.0").status_code == 400
    assert door.ask("GET", "manifests/1.0").data == ONE


def test_who_may_not_push_is_refused_before_the_body_is_looked_at(tmp_path: Path) -> None:
    door = Door(Place(tmp_path, SETTINGS), users=("acme", "stranger"))
    for who, status, code in ((None, 401, "UNAUTHORIZED"), ("stranger", 403, "DENIED")):
        answer = door.push(b"x" * (MAX_DOCUMENT_SIZE + 1), "1.0", who=who)
        assert (answer.status_code, codes(answer)) == (status, [code])


def test_a_read_only_registry_takes_nothing(tmp_path: Path) -> None:
    door = Door(Place(tmp_path, SETTINGS))
    door.blob(b"{}", b"one", b"two")
    door.push(ONE, "1.0")
    readonly = Door(Place(tmp_path, {**SETTINGS, "REGISTRY_STATE": "readonly"}), users=(), public={})
    answer = readonly.push(ONE, "2.0")
    assert (answer.status_code, codes(answer)) == (405, ["UNSUPPORTED"])
    assert readonly.ask("DELETE", "manifests/1.0").status_code == 405
    assert readonly.there("1.0")


# --- Over a wire ------------------------------------------------------------------------------------------------------


def test_a_body_in_chunks_is_a_body(tmp_path: Path) -> None:
    door = Door(Place(tmp_path, SETTINGS))
    door.blob(b"{}", b"one", b"two")
    with served(door.place) as server:
        address = urlsplit(server.url)
        for size, status in ((len(ONE), 201), (MAX_DOCUMENT_SIZE + 1, 413)):
            content = ONE.ljust(size)
            pieces = (content[at : at + 65_536] for at in range(0, size, 65_536))
            connection = http.client.HTTPConnection(address.hostname or "", address.port)
            connection.request("PUT", "/v2/acme/app/manifests/1.0", pieces, login("acme"), encode_chunked=True)
            with connection.getresponse() as answer:
                assert answer.status == status
            connection.close()
    assert door.ask("GET", "manifests/1.0").data == ONE


def test_thirty_two_pushes_to_one_tag_through_two_workers(tmp_path: Path) -> None:
    # However long others write: nobody is refused for that.
    patient = {"DB_URI": f"sqlite:///{tmp_path}/var/registry.db?timeout=300", "VERBS_REGISTRY": "own"}
    door = Door(Place(tmp_path, {**SETTINGS, **patient}))
    door.blob(b"{}", b"one", b"two")
    contents = [image(b"one", annotations={"at": str(at)}) for at in range(32)]

    with served(door.place, workers=2) as server:
        address = urlsplit(server.url)

        def push(content: bytes) -> int:
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=300)
            connection.request("PUT", f"/v2/acme/app/manifests/{digest_of(content)}?tag=1.0", content, login("acme"))
            with connection.getresponse() as answer:
                status = answer.status
            connection.close()
            return status

        with ThreadPoolExecutor(32) as pool:
            assert set(pool.map(push, contents)) == {201}
    assert door.ask("GET", "manifests/1.0").data in contents
    with door.place.engine.connect() as connection:
        alive = select(func.count(db.Tag.id)).where(db.Tag.name == "1.0", db.Tag.lifetime_end_ms.is_(None))
        assert connection.scalar(alive) == 1


# --- Behind the answers -----------------------------------------------------------------------------------------------


def laid_out(door: Door, one: Image) -> bytes:
    """Put the blobs of an image into the repository, and return its manifest."""
    layout = Layout(door.place.folder / f"layout-{time.monotonic_ns()}")
    name: str = layout.image(one)["digest"].removeprefix("sha256:")
    manifest = (layout.folder / "blobs/sha256" / name).read_bytes()
    for path in (layout.folder / "blobs/sha256").iterdir():
        if path.read_bytes() != manifest:
            door.blob(path.read_bytes())
    return manifest


def indexes(door: Door) -> list[Path]:
    return [path for path in door.place.storage.glob("verbs/layerindex/**/*") if path.is_file()]


def test_the_first_derivation_finds_the_indexes(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = laid_out(door, Image([Layer([file(b"a", b"1")]), Layer([file(b"b", b"2")], "zstd")]))
    door.push(manifest, "1.0")
    eventually(lambda: len(indexes(door)) == 2)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a layer was read although its index is there")

    monkeypatch.setattr("data.layerindexes.LayerIndexes.read", fail)
    answer = door.app.test_client().get("/c1/rootfs/acme/app/1.0?compression=none", headers=login("acme"))
    assert answer.status_code == 200
    answer.close()


def test_a_layer_that_cannot_be_read_is_told_once_and_the_others_are_indexed(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = Layer(tar=b"no archive" * 100), Layer([file(b"a", b"1")])
    for at, platform in enumerate(("linux/amd64", "linux/arm64")):
        assert door.push(laid_out(door, Image([broken, sound], platform)), str(at)).status_code == 201
    door.push(laid_out(door, Image([sound, Layer([file(b"z")])])), "last")
    eventually(lambda: len(indexes(door)) == 2)
    told = [record.getMessage() for record in caplog.records if "cannot be indexed" in record.getMessage()]
    assert len(told) == 1
    assert digest_of(broken.blob) in told[0]


def test_what_is_no_image_is_not_looked_at(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    foreign = described(b"gone", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
    for at, content in enumerate((artifact("application/a", b"one"), index([]), image(layers=[foreign]))):
        assert door.push(content, str(at)).status_code == 201
    assert door.app.extensions[INDEXING]._thread is None
    door.push(ONE, "broken")  # its configuration says nothing of its layers
    eventually(lambda: "are not indexed" in caplog.text)


def test_what_does_not_fit_into_the_queue_is_dropped(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "_WAITING", 2)
    full = indexing.Indexing(door.services)
    monkeypatch.setattr(full, "_work", lambda: None)
    for at in range(5):
        full.add("acme", "app", Digest.of(str(at).encode()))
    assert len(full._waiting) == 2
    full.stop()
    full.stop()
    full._waiting.clear()
    full.add("acme", "app", Digest.of(b"late"))
    assert not full._waiting


def test_no_thread_is_left_when_nothing_waits(door: Door) -> None:
    ours = door.app.extensions[INDEXING]
    for at in range(3):
        door.push(laid_out(door, Image([Layer([file(b"a", str(at).encode())])])), "1.0")
        eventually(lambda: ours._thread is None)
        assert len(indexes(door)) == at + 1
    eventually(lambda: ours not in indexing._running)


def test_a_layer_that_is_read_when_the_process_ends_is_the_last(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = laid_out(door, Image([Layer([file(b"a", b"1")]), Layer([file(b"b", b"2")])]))
    ours = door.app.extensions[INDEXING]
    read: list[object] = []

    def get(place: object, **_: object) -> None:
        read.append(place)
        ours._stopping.set()

    monkeypatch.setattr(type(door.services.indexes), "get", lambda _, place, **more: get(place, **more))
    door.push(manifest, "1.0")
    eventually(lambda: ours._thread is None)
    assert len(read) == 1
