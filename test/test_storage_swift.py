"""Blobs in Swift: the suite of all storages against a real Swift on loopback, and what only Swift does."""

import itertools
import json
import random
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, NoReturn

import pytest
from swiftclient.exceptions import ClientException

from data.storage import swift
from data.storage.base import BlobNotFound, BlobWriter, StorageUnavailable
from data.storage.swift import SwiftSettings, SwiftStorage
from data.storage.testing import PATH, StorageTests, content_of
from test.databases import free_port
from test.identity import PROJECT, REGION, identity
from test.relay import Relay, relay
from test.swiftserver import CONTAINER, PASSWORD, TEMP_URL_KEY, USER, swift_client, swift_server

_prefixes = (f"datastorage/{number}/" for number in itertools.count())


@pytest.fixture(scope="session")
def auth_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with swift_server(tmp_path_factory.mktemp("swift")) as url:
        yield url


class Container:
    """One folder of the container by a client of its own. `leftovers` are groups of segments that are no blob's."""

    def __init__(self, auth_url: str, prefix: str) -> None:
        self.prefix = prefix
        self.client = swift_client(auth_url)

    def put(self, path: str, content: bytes) -> None:
        self.client.put_object(CONTAINER, self.prefix + path, content)

    def get(self, path: str) -> bytes | None:
        try:
            content: bytes = self.client.get_object(CONTAINER, self.prefix + path)[1]
        except ClientException as error:
            if error.http_status == 404:
                return None
            raise
        return content

    def names(self, start: str = "") -> list[str]:
        _, items = self.client.get_container(CONTAINER, prefix=self.prefix + start, full_listing=True)
        return [item["name"].removeprefix(self.prefix) for item in items]

    def headers(self, path: str) -> dict[str, str]:
        headers: dict[str, str] = self.client.head_object(CONTAINER, self.prefix + path)
        return headers

    def leftovers(self) -> list[str]:
        names = self.names()
        blobs = [name for name in names if not name.startswith(".")]
        held = {self.headers(name).get("x-object-meta-verbs-segments") for name in blobs}
        return sorted({name.split("/")[1] for name in names if name.startswith(".segments/")} - held)

    def close(self) -> None:
        self.client.close()


@pytest.fixture
def back_door(auth_url: str) -> Iterator[Container]:
    with closing(Container(auth_url, next(_prefixes))) as container:
        yield container


@pytest.fixture
def settings(auth_url: str, back_door: Container) -> SwiftSettings:
    return SwiftSettings(
        container=CONTAINER,
        auth_url=auth_url,
        auth_version=1,
        user=USER,
        password=PASSWORD,
        prefix=back_door.prefix,
        temp_url_key=TEMP_URL_KEY,
        part_size=256 << 10,
    )


@pytest.fixture
def storage(settings: SwiftSettings) -> SwiftStorage:
    return SwiftStorage(settings)


class TestSwiftStorage(StorageTests):
    def settle(self, writer: BlobWriter) -> None:
        assert isinstance(writer, swift._SwiftWriter)
        writer._wait(0)


# --- Segments ---------------------------------------------------------------------------------------------------------

PIECE = 256 << 10
LARGE = random.Random(0).randbytes(3 * PIECE + 1000)
OTHER = random.Random(1).randbytes(2 * PIECE + 1000)


def write(storage: SwiftStorage, path: str, content: bytes) -> None:
    with storage.create(path) as writer:
        writer.write(content)
        writer.commit()


def test_a_blob_of_one_part_is_a_plain_object(storage: SwiftStorage, back_door: Container) -> None:
    write(storage, PATH, LARGE[:PIECE])
    assert back_door.names() == [PATH]
    assert "x-static-large-object" not in back_door.headers(PATH)


def test_a_large_blob_is_a_static_large_object(storage: SwiftStorage, back_door: Container) -> None:
    write(storage, PATH, LARGE)
    headers = back_door.headers(PATH)
    assert headers["x-static-large-object"] == "True"
    assert len(back_door.names(".segments/")) == 4
    assert storage.size(PATH) == len(LARGE)
    assert [(blob.path, blob.size) for blob in storage.list("sha256")] == [(PATH, len(LARGE))]
    assert content_of(storage.open(PATH, offset=PIECE - 10, length=20)) == LARGE[PIECE - 10 : PIECE + 10]


def test_what_is_deleted_takes_its_segments_along(storage: SwiftStorage, back_door: Container) -> None:
    write(storage, PATH, LARGE)
    storage.delete(PATH)
    assert back_door.names() == []


@pytest.mark.parametrize("content", [b"small", OTHER])
def test_what_is_replaced_takes_its_segments_along(storage: SwiftStorage, back_door: Container, content: bytes) -> None:
    write(storage, PATH, LARGE)
    write(storage, PATH, content)
    assert back_door.get(PATH) == content
    assert len(back_door.names(".segments/")) == (3 if content == OTHER else 0)


def test_a_copy_of_a_large_blob_has_segments_of_its_own(storage: SwiftStorage, back_door: Container) -> None:
    write(storage, PATH, LARGE)
    write(storage, "other", OTHER)
    storage.copy(PATH, "other")
    assert len(back_door.names(".segments/")) == 8
    storage.delete(PATH)
    assert back_door.get("other") == LARGE
    storage.copy("other", PATH)
    storage.delete("other")
    assert back_door.get(PATH) == LARGE
    assert len(back_door.names(".segments/")) == 4


def test_a_copy_that_fails_leaves_nothing(
    storage: SwiftStorage, back_door: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(storage, "one", LARGE)
    refused = ClientException("no", http_status=507, http_reason="Insufficient Storage")
    monkeypatch.setattr(swift._Connection, "copy_object", lambda *_, **__: _raise(refused))
    with pytest.raises(StorageUnavailable, match=r"Swift refuses one in the container registry: 507 Insufficient"):
        storage.copy("one", PATH)
    assert back_door.get(PATH) is None
    assert len(back_door.names(".segments/")) == 4


def test_a_dynamic_large_object_as_quay_writes_them_is_a_blob(storage: SwiftStorage, back_door: Container) -> None:
    def put(path: str, upload: str) -> None:
        for number in range(3):
            back_door.put(f"segments/{upload}/{number:09d}", OTHER[number * PIECE : (number + 1) * PIECE])
        headers = {"X-Object-Manifest": f"{CONTAINER}/{back_door.prefix}segments/{upload}"}
        back_door.client.put_object(CONTAINER, back_door.prefix + path, b"", headers=headers)

    put(PATH, "6d3c")
    assert content_of(storage.open(PATH)) == OTHER
    assert content_of(storage.open(PATH, offset=PIECE - 1, length=3)) == OTHER[PIECE - 1 : PIECE + 2]
    assert storage.size(PATH) == len(OTHER)
    assert [(blob.path, blob.size) for blob in storage.list("sha256")] == [(PATH, len(OTHER))]
    storage.copy(PATH, "other")
    storage.delete(PATH)
    assert back_door.names() == ["other"]
    assert back_door.get("other") == OTHER


def test_a_marker_whose_blob_is_there_is_swept_alone(storage: SwiftStorage, back_door: Container) -> None:
    write(storage, PATH, LARGE)
    assert len(back_door.names(".open/")) == 1
    assert storage.sweep(older_than=3600) == storage.sweep(older_than=-60, dry_run=True) == 0
    assert len(back_door.names(".open/")) == 1
    assert storage.sweep(older_than=-60) == 0
    assert back_door.names(".open/") == []
    assert back_door.get(PATH) == LARGE


def test_of_two_that_write_at_the_same_moment_one_is_the_blob_and_the_other_is_swept(
    storage: SwiftStorage, back_door: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(storage, PATH, LARGE)
    with monkeypatch.context() as patch:  # the second has looked before the first was there
        patch.setattr(storage, "_head", lambda path: _raise(BlobNotFound(path)))
        write(storage, PATH, OTHER)
    assert len(back_door.leftovers()) == 1
    assert storage.sweep(older_than=-60) == 1
    assert back_door.get(PATH) == OTHER
    assert back_door.names(".open/") == []


def test_segments_of_a_blob_whose_metadata_were_replaced_stay(storage: SwiftStorage, back_door: Container) -> None:
    write(storage, PATH, LARGE)
    back_door.client.post_object(CONTAINER, back_door.prefix + PATH, {"X-Object-Meta-Color": "red"})
    assert storage.sweep(older_than=-60) == 0
    assert back_door.get(PATH) == LARGE
    for name in back_door.names("."):
        back_door.client.delete_object(CONTAINER, back_door.prefix + name)


def test_a_blob_whose_manifest_arrived_and_whose_answer_was_lost_is_whole(
    storage: SwiftStorage, back_door: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = storage.put_manifest

    def lost(*arguments: Any) -> None:
        put(*arguments)
        raise StorageUnavailable("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put_manifest", lost)
        with pytest.raises(StorageUnavailable, match="the answer was lost"):
            write(storage, PATH, LARGE)
        with pytest.raises(StorageUnavailable, match="the answer was lost"):
            storage.copy(PATH, "verbs/copy")
    assert back_door.get(PATH) == back_door.get("verbs/copy") == LARGE
    assert storage.sweep(older_than=-60) == 0
    assert back_door.get(PATH) == back_door.get("verbs/copy") == LARGE


def test_segments_whose_blob_is_out_of_sight_stay(
    storage: SwiftStorage, back_door: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(storage, PATH, LARGE)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_head", lambda path: _raise(BlobNotFound(path)))
        assert storage.sweep(older_than=-60) == 0
    assert back_door.get(PATH) == LARGE
    assert len(back_door.names(".open/")) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"path": "../x", "prefix": ""}',
        b'{"path": 1, "prefix": ""}',
        b'{"path": "gone", "prefix": ""}',
        b'{"path": "gone", "prefix": "sha256/"}',
        b'{"path": "gone", "prefix": "datastorage/"}',
    ],
)
def test_what_is_no_marker_is_not_swept(storage: SwiftStorage, back_door: Container, content: bytes) -> None:
    back_door.put(".open/x", content)
    back_door.put(PATH, b"x")
    assert storage.sweep(older_than=-60) == 0
    assert back_door.names() == [".open/x", PATH]


def test_segments_grow_so_that_a_thousand_are_enough(
    storage: SwiftStorage, back_door: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swift, "_GROWTH", 2)
    write(storage, PATH, bytes(9 * PIECE))
    _, manifest = back_door.client.get_object(CONTAINER, back_door.prefix + PATH, query_string="multipart-manifest=get")
    assert [entry["bytes"] // PIECE for entry in json.loads(manifest)] == [1, 1, 2, 2, 3]


def test_a_swift_without_static_large_objects_is_told_of(
    storage: SwiftStorage, back_door: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swift._Connection, "capabilities", lambda *_: {"swift": {}})
    with pytest.raises(StorageUnavailable, match=f"no static large objects \\(slo\\), and {PATH} needs one"):
        write(storage, PATH, LARGE)
    assert back_door.names() == []


# --- Connections ------------------------------------------------------------------------------------------------------


def _raise(error: Exception) -> NoReturn:
    raise error


@pytest.fixture
def between(auth_url: str) -> Iterator[Relay]:
    with relay(auth_url) as running:
        yield running


@pytest.fixture
def relayed(settings: SwiftSettings, between: Relay) -> SwiftStorage:
    """Return a storage of which every request comes through the relay: tempauth tells the address it was asked by."""
    return SwiftStorage(replace(settings, auth_url=between.url, retries=0))


def test_a_read_goes_on_where_the_connection_broke(relayed: SwiftStorage, back_door: Container, between: Relay) -> None:
    back_door.put(PATH, LARGE)
    assert relayed.size(PATH) == len(LARGE)
    between.requests.clear()
    between.cut_after(100_000, 50_000)
    stream = relayed.open(PATH, offset=10)
    relayed._idle.clear()  # each answer on a connection of its own
    assert content_of(stream) == LARGE[10:]
    assert between.waiting() == 0
    first, *others = between.ranges()
    assert first == "bytes=10-"
    assert len(others) >= 2
    assert all(re.fullmatch(f"bytes=[0-9]{{4,}}-{len(LARGE) - 1}", other) for other in others)


def test_another_object_in_the_place_of_a_broken_one_is_not_spliced_in(
    relayed: SwiftStorage, back_door: Container, between: Relay
) -> None:
    large = LARGE * 12  # more than what lies in sockets
    back_door.put(PATH, large)
    stream = relayed.open(PATH)
    assert large.startswith(stream.read(1000))
    back_door.put(PATH, large[::-1])
    between.cut_all()
    with pytest.raises(StorageUnavailable, match=f"Swift refuses {PATH} .*: 412 Precondition Failed"):
        content_of(stream)


def test_a_blob_that_is_gone_when_a_read_goes_on_is_told(
    relayed: SwiftStorage, back_door: Container, between: Relay
) -> None:
    back_door.put(PATH, LARGE * 12)
    stream = relayed.open(PATH)
    stream.read(1000)
    relayed.delete(PATH)
    between.cut_all()
    with pytest.raises(BlobNotFound, match=PATH):
        content_of(stream)


def test_a_request_whose_connection_broke_is_made_again(
    settings: SwiftSettings, back_door: Container, between: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swiftclient.client.sleep", lambda _: None)
    storage = SwiftStorage(replace(settings, auth_url=between.url, retries=3))
    assert list(storage.list("a")) == []
    between.cut_after(0, 0)
    write(storage, PATH, LARGE)
    assert back_door.get(PATH) == LARGE
    assert between.waiting() == 0


def test_a_swift_that_is_not_there_is_unavailable(settings: SwiftSettings) -> None:
    storage = SwiftStorage(replace(settings, auth_url=f"http://127.0.0.1:{free_port()}/auth/v1.0", retries=0))
    for ask in (storage.open, storage.size, storage.delete, lambda path: write(storage, path, b"x")):
        with pytest.raises(StorageUnavailable, match=f"Swift does not answer for {PATH}"):
            ask(PATH)
    with pytest.raises(StorageUnavailable, match="Swift does not answer"):
        list(storage.list("a"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the identity client's own
@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_user_who_is_not_let_in_is_told_and_no_password(
    settings: SwiftSettings, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    wrong = SwiftStorage(replace(settings, password="hunter3", auth_version=version, retries=0))
    with pytest.raises(StorageUnavailable, match=f"Swift refuses {PATH}") as caught:
        wrong.open(PATH)
    assert "hunter3" not in str(caught.value) + caplog.text


def test_a_container_that_is_not_there_is_no_blob_and_takes_none(settings: SwiftSettings) -> None:
    storage = SwiftStorage(replace(settings, container="absent"))
    with pytest.raises(BlobNotFound):
        storage.open(PATH)
    with pytest.raises(StorageUnavailable, match=f"Swift refuses {PATH} in the container absent: 404 Not Found"):
        write(storage, PATH, b"x")
    with pytest.raises(StorageUnavailable, match="container absent: 404 Not Found"):
        list(storage.list("a"))


def test_a_token_that_has_run_out_is_renewed(storage: SwiftStorage, back_door: Container) -> None:
    back_door.put(PATH, b"x")
    assert storage.size(PATH) == 1
    (connection,) = storage._idle
    connection.token = "AUTH_tk_old"
    assert content_of(storage.open(PATH)) == b"x"


def test_a_connection_is_used_again_when_its_body_is_closed(storage: SwiftStorage, back_door: Container) -> None:
    back_door.put(PATH, LARGE)
    for _ in range(3):
        stream = storage.open(PATH)
        assert len(storage._idle) == 0
        stream.read(10)
        stream.close()
        stream.close()
        assert len(storage._idle) == 1


# The client of the identity service warns of what it does itself.
by_keystone = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@by_keystone
@pytest.mark.parametrize(
    "login",
    [
        {"auth_version": 2, "auth_url": "/v2.0", "os_options": {"tenant_name": PROJECT, "region_name": REGION}},
        {
            "auth_version": 3,
            "auth_url": "/v3",
            "os_options": {"project_name": PROJECT, "user_domain_name": "Default", "project_domain_name": "Default"},
        },
        {"auth_version": 3, "auth_url": "", "os_options": {"project_id": "2", "user_domain_id": "default"}},
    ],
)
def test_an_identity_service_says_where_swift_is(
    settings: SwiftSettings, auth_url: str, back_door: Container, login: dict[str, Any]
) -> None:
    with identity(auth_url) as service:
        name = USER.rpartition(":")[2]  # what stands before it is tempauth's alone
        elsewhere = replace(settings, **{**login, "auth_url": service.url + login["auth_url"]}, user=name, retries=0)
        storage = SwiftStorage(elsewhere)
        write(storage, PATH, LARGE)
        assert content_of(storage.open(PATH)) == LARGE
        url = storage.direct_download_url(PATH, seconds=60)
        assert back_door.get(PATH) == LARGE
        asked = json.dumps(service.bodies[0])
        assert all(value in asked for key, value in login["os_options"].items() if key != "region_name")
        assert url is not None
        with urllib.request.urlopen(url) as answer:
            assert answer.read() == LARGE
        wrong = SwiftStorage(replace(elsewhere, password="hunter3"))
        with pytest.raises(StorageUnavailable, match=f"Swift refuses {PATH} .*: Unauthorized") as caught:
            wrong.size(PATH)
        assert "hunter3" not in str(caught.value)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"[]", b'"x"', b'{"token": 3, "access": 3}', b'{"token": {}, "access": {}}']
)
def test_an_identity_service_that_talks_nonsense_is_told_of(
    settings: SwiftSettings, auth_url: str, version: int, garbage: bytes
) -> None:
    with identity(auth_url) as service:
        service.garbage = garbage
        url = f"{service.url}/v{'2.0' if version == 2 else 3}"
        storage = SwiftStorage(replace(settings, auth_url=url, auth_version=version, retries=0))
        with pytest.raises(StorageUnavailable, match=f"Swift (?:refuses|does not answer for) {PATH}"):
            storage.size(PATH)


@by_keystone
@pytest.mark.parametrize("version", [2, 3])
def test_an_identity_service_that_is_not_there_is_told_of(settings: SwiftSettings, version: int) -> None:
    url = f"http://127.0.0.1:{free_port()}/v{version}"
    storage = SwiftStorage(replace(settings, auth_url=url, auth_version=version, retries=0))
    with pytest.raises(StorageUnavailable, match=f"Swift (?:refuses|does not answer for) {PATH}") as caught:
        storage.size(PATH)
    assert PASSWORD not in str(caught.value)


# --- URLs -------------------------------------------------------------------------------------------------------------


def test_a_temporary_url_gives_the_blob_under_its_name(storage: SwiftStorage, back_door: Container) -> None:
    path = "a b/ü%3F/c?d"
    back_door.put(path, LARGE)
    url = storage.direct_download_url(path, seconds=60, file_name='é".tar', media_type="application/x-tar")
    assert url is not None
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == LARGE
        assert "filename*=UTF-8''%C3%A9%22.tar" in answer.headers["Content-Disposition"]
    for wrong in (url.replace("temp_url_sig=", "temp_url_sig=0"), url.replace("expires=", "expires=9")):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(wrong)
    old = storage.direct_download_url(path, seconds=0)
    assert old is not None
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(old)


def test_without_a_key_there_are_no_urls(settings: SwiftSettings) -> None:
    storage = SwiftStorage(replace(settings, temp_url_key=None, auth_url="http://127.0.0.1:1/"))
    assert storage.direct_download_url(PATH, seconds=60) is None
