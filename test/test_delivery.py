"""How images come over HTTP: stored ones, parts of those that are not made yet, checksums, and from elsewhere."""

import base64
import hashlib
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask.testing import FlaskClient
from werkzeug.http import http_date, parse_date
from werkzeug.test import TestResponse

from data.storage.base import Recipient
from data.storage.s3 import S3Storage
from endpoints.derive import DerivedImage, Deriver
from endpoints.making import Busy, Live, Makings, Serving, Stored
from endpoints.settings import InvalidSetting, Settings
from endpoints.streams import Chunks, Stream
from endpoints.wire import ConnectionCut
from test.images import Image, Layer
from test.layers import file
from test.people import People
from test.place import Place
from test.s3server import s3_client, s3_server
from test.waiting import eventually, storing_is_waited_for

BOTTOM = Layer([file(b"bottom", os.urandom(300_000))], wrapping="none")  # no compression tells of wrong bytes
TOP = Layer([file(b"top", os.urandom(300_000))])
IMAGE = Image([BOTTOM, TOP])
OTHER = Image([TOP])
ROOTFS = "/c1/rootfs/acme/app/1.0"
SQUASH = "/c1/squash/acme/app/1.0?compression=none"
GZIP = "/c1/squash/acme/app/1.0"


@pytest.fixture(autouse=True)
def _stored(monkeypatch: pytest.MonkeyPatch) -> None:
    storing_is_waited_for(monkeypatch)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.push("acme/app:1.0", IMAGE)
    return place


@pytest.fixture
def client(place: Place) -> FlaskClient:
    return place.app().test_client()


def content(place: Place, url: str) -> bytes:
    """Return what `url` gives, from a place where nothing is kept."""
    answer = Place(place.folder, {"REGISTRY_STATE": "readonly"}).app().test_client().get(url)
    assert answer.status_code == 200
    data: bytes = answer.data
    return data


def broken(place: Place, layer: Layer) -> None:
    """Have storage hold other bytes than those of `layer`, as many as there were."""
    blob = place.blob(layer)
    blob.write_bytes(bytes(blob.stat().st_size))


# --- What is stored ---------------------------------------------------------------------------------------------------


def test_a_stored_image_has_its_date_its_digest_and_its_length(client: FlaskClient) -> None:
    whole = client.get(GZIP).data
    before = int(time.time())
    answer = client.get(GZIP)
    assert answer.data == whole
    assert answer.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(hashlib.sha256(whole).digest()).decode()}:"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.content_length == len(whole)
    modified = parse_date(answer.headers["Last-Modified"])
    assert modified is not None
    assert before - 60 < modified.timestamp() <= int(time.time())


def test_a_part_has_the_digest_of_the_whole(client: FlaskClient) -> None:
    whole = client.get(ROOTFS)
    digest = hashlib.sha256(whole.data).digest()
    part = client.get(ROOTFS, headers={"Range": "bytes=5-9"})
    assert part.status_code == 206
    assert base64.b64encode(digest).decode() in part.headers["Repr-Digest"]
    assert part.headers["ETag"] == whole.headers["ETag"]


def test_dates_say_that_nothing_has_changed(client: FlaskClient) -> None:
    assert client.get(ROOTFS, headers={"If-Modified-Since": http_date(time.time())}).data  # not stored: no date
    date = client.get(ROOTFS).headers["Last-Modified"]
    for method in (client.get, client.head):
        answer = method(ROOTFS, headers={"If-Modified-Since": date})
        assert (answer.status_code, answer.data) == (304, b"")
        assert "ETag" in answer.headers
        assert "Content-Type" not in answer.headers
    assert client.get(ROOTFS, headers={"If-Modified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"}).status_code == 200


def test_a_tag_that_goes_back_to_an_older_image_has_a_new_date(place: Place, client: FlaskClient) -> None:
    assert client.get(ROOTFS).data
    place.push("acme/app:1.0", OTHER)
    assert client.get(ROOTFS).data
    in_between = client.get(ROOTFS).headers["Last-Modified"]
    time.sleep(1.1)
    place.push("acme/app:1.0", IMAGE)
    answer = client.get(ROOTFS, headers={"If-Modified-Since": in_between})
    assert (answer.status_code, answer.headers["Repr-Digest"] != "") == (200, True)  # it is the stored one


def test_no_date_is_in_the_future(place: Place, client: FlaskClient) -> None:
    assert client.get(ROOTFS).data
    place.sql(f"UPDATE tag SET lifetime_start_ms = {int((time.time() + 3600) * 1000)}")
    modified = parse_date(client.get(ROOTFS).headers["Last-Modified"])
    assert modified is not None
    assert modified.timestamp() <= time.time()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "condition",
    [
        {"If-Match": '"other"'},
        {"If-Match": 'W/"{}"'},
        {"If-Unmodified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"},
    ],
)
def test_a_condition_that_fails_is_told(client: FlaskClient, method: str, condition: dict[str, str]) -> None:
    first = client.get(ROOTFS)
    etag = first.headers["ETag"].strip('"')
    assert first.data
    headers = {name: value.format(etag) for name, value in condition.items()}
    answer = client.open(ROOTFS, method=method, headers=headers)
    assert answer.status_code == 412
    assert method == "HEAD" or answer.get_json()["errors"][0]["code"] == "PRECONDITION_FAILED"


def test_a_condition_that_holds_is_no_hindrance(client: FlaskClient) -> None:
    etag = client.get(ROOTFS).headers["ETag"]
    for value in ("*", etag, f'"other", {etag}'):
        assert client.get(ROOTFS, headers={"If-Match": value}).status_code == 200


def test_if_range_takes_the_date_only_if_it_is_exactly_ours(client: FlaskClient) -> None:
    whole = client.get(ROOTFS).data
    date = client.get(ROOTFS).headers["Last-Modified"]
    later = http_date(time.time() + 60)
    same = client.get(ROOTFS, headers={"Range": "bytes=10-", "If-Range": date})
    other = client.get(ROOTFS, headers={"Range": "bytes=10-", "If-Range": later})
    assert (same.status_code, same.data) == (206, whole[10:])
    assert (other.status_code, other.data) == (200, whole)


def test_several_ranges_are_answered_with_the_whole(client: FlaskClient) -> None:
    whole = client.get(ROOTFS).data
    answer = client.get(ROOTFS, headers={"Range": "bytes=0-9,20-29"})
    assert (answer.status_code, answer.data) == (200, whole)


def test_a_head_is_of_the_whole(client: FlaskClient) -> None:
    size = len(client.get(ROOTFS).data)
    answer = client.head(ROOTFS, headers={"Range": "bytes=0-9"})
    assert (answer.status_code, answer.content_length) == (200, size)


def test_a_stored_image_that_is_gone_is_made_again(place: Place, client: FlaskClient) -> None:
    whole = client.get(ROOTFS).data
    for path in place.storage.glob("verbs/derived/*/*/*"):
        path.unlink()
    part = client.get(ROOTFS, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.data) == (206, whole[100:200])
    assert client.get(ROOTFS).data == whole


def test_a_stored_image_that_is_dropped_while_it_is_asked_for_is_made_again(
    place: Place, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = client.get(ROOTFS).data
    opened, looked_for = [], Makings.open

    def dropping(self: Makings, image: DerivedImage, *, asked_by: str | None = None) -> Serving:
        opened.append(looked_for(self, image, asked_by=asked_by))
        if len(opened) == 1:
            for path in place.storage.glob("verbs/derived/*/*/*"):
                path.unlink()
        return opened[-1]

    monkeypatch.setattr(Makings, "open", dropping)
    answer = client.get(ROOTFS)
    assert (answer.status_code, answer.data) == (200, whole)
    assert [type(each) for each in opened] == [Stored, Live]


# --- What is not made yet ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "part"),
    [
        ("bytes=0-0", slice(1)),
        ("bytes=100-199", slice(100, 200)),
        ("bytes=1000-", slice(1000, None)),
        ("bytes=-1", slice(-1, None)),
        ("bytes=-2000", slice(-2000, None)),
        ("bytes=400000-400009", slice(400_000, 400_010)),
        ("bytes=0-99999999", slice(None)),
    ],
)
@pytest.mark.parametrize("url", [ROOTFS, SQUASH])
def test_a_part_of_what_is_not_made_is_a_part_of_what_will_be(
    place: Place, client: FlaskClient, url: str, field: str, part: slice
) -> None:
    whole = content(place, url)
    answer = client.get(url, headers={"Range": field})
    assert (answer.status_code, answer.data) == (206, whole[part])
    begin, end, _ = part.indices(len(whole))
    assert answer.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{len(whole)}"
    assert "Last-Modified" not in answer.headers


def test_a_part_is_planned_and_nothing_is_kept_of_it(place: Place, client: FlaskClient) -> None:
    before = place.files()
    assert client.get(ROOTFS, headers={"Range": "bytes=100-199"}).status_code == 206
    assert place.files() == before


def test_a_part_reads_only_the_layers_it_lies_in(place: Place, client: FlaskClient) -> None:
    whole = content(place, ROOTFS)
    broken(place, BOTTOM)
    answer = client.get(ROOTFS, headers={"Range": f"bytes={len(whole) - 2000}-"})
    assert (answer.status_code, answer.data) == (206, whole[-2000:])
    refused_or_cut(client.get(ROOTFS))


def refused_or_cut(answer: TestResponse) -> None:
    """Check that nobody can take `answer` for what was asked for: it is an error from the start, or has no end."""
    if answer.status_code in {200, 206}:
        with pytest.raises(ConnectionCut):
            assert answer.data
    else:
        assert (answer.status_code, answer.content_type) == (502, "application/json")


@pytest.mark.parametrize("field", ["bytes=1000-2000", "bytes=0-400000", "bytes=5000-305000", "bytes=-590000"])
@pytest.mark.parametrize("place_in_layer", [700, -700])
def test_a_part_of_a_layer_that_is_not_what_it_should_be_is_cut(
    place: Place, client: FlaskClient, field: str, place_in_layer: int
) -> None:
    """Wherever the layer is wrong: also where the part has none of it."""
    blob = place.blob(BOTTOM)
    wrong = bytearray(blob.read_bytes())
    wrong[place_in_layer] ^= 1
    blob.write_bytes(wrong)
    refused_or_cut(client.get(ROOTFS, headers={"Range": field}))


def test_a_part_that_takes_all_is_kept(place: Place, client: FlaskClient) -> None:
    for number, (url, field) in enumerate([(ROOTFS, "bytes=0-"), (SQUASH, "bytes=-100")], start=1):
        assert client.get(url, headers={"Range": field}).data
        assert finally_stored(client, url)
        assert len(place.derived()) == number


def finally_stored(client: FlaskClient, url: str) -> bool:
    """Wait until `url` is stored."""
    return bool(eventually(lambda: "Repr-Digest" in client.head(url).headers))


def test_a_range_beyond_the_end_of_what_is_not_made_is_refused(place: Place, client: FlaskClient) -> None:
    for url in (ROOTFS, SQUASH):
        size = len(content(place, url))
        answer = client.get(url, headers={"Range": f"bytes={size}-"})
        assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{size}")
    assert place.derived() == []


def test_what_is_compressed_and_not_made_has_no_parts(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    answered, generate = threading.Event(), Deriver.generate

    def held(deriver: Deriver, image: DerivedImage) -> Stream:
        stream = generate(deriver, image)

        def chunks() -> Chunks:
            for chunk in stream.chunks:
                yield chunk
                assert answered.wait(60)

        return Stream(chunks(), stream.size)

    monkeypatch.setattr(Deriver, "generate", held)
    answer = client.get(GZIP, headers={"Range": "bytes=10-19"})
    assert (answer.status_code, "Accept-Ranges" in answer.headers) == (200, False)
    answered.set()
    whole = answer.data
    assert client.get(GZIP, headers={"Range": "bytes=10-19"}).data == whole[10:20]


def test_if_range_holds_for_what_is_not_made(place: Place, client: FlaskClient) -> None:
    whole = content(place, ROOTFS)
    etag = client.head(ROOTFS).headers["ETag"]
    same = client.get(ROOTFS, headers={"Range": "bytes=10-19", "If-Range": etag})
    assert (same.status_code, same.data) == (206, whole[10:20])
    other = client.get(ROOTFS, headers={"Range": "bytes=10-19", "If-Range": '"other"'})
    assert (other.status_code, other.data) == (200, whole)


def test_parts_count_among_what_is_being_made(place: Place) -> None:
    client = Place(place.folder, {"VERBS_MAX_MAKINGS": 1}).app().test_client()
    held = client.get(ROOTFS, headers={"Range": "bytes=0-500000"})
    assert held.status_code == 206
    busy = client.get(ROOTFS, headers={"Range": "bytes=0-9"})
    assert (busy.status_code, busy.get_json()["errors"][0]["code"]) == (503, "BUSY")
    assert int(busy.headers["Retry-After"]) > 0
    held.close()
    assert client.get(ROOTFS, headers={"Range": "bytes=0-9"}).status_code == 206


def test_parts_that_need_no_making_give_their_place_back(place: Place) -> None:
    client = Place(place.folder, {"VERBS_MAX_MAKINGS": 1}).app().test_client()
    for _ in range(3):
        assert client.get(ROOTFS, headers={"Range": "bytes=99999999-"}).status_code == 416
    assert client.get(SQUASH, headers={"Range": "bytes=-10"}).status_code == 206


@pytest.mark.parametrize(("reached", "busy"), [(1 << 40, False), (0, True)])
def test_a_part_of_what_is_being_made_is_taken_from_its_making(
    place: Place, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, reached: int, busy: bool
) -> None:
    whole = content(place, ROOTFS)
    monkeypatch.setattr(Makings, "reached", lambda *_: reached)
    if busy:
        monkeypatch.setattr(Makings, "apart", _raises(Busy("there is no place")))
    answer = client.get(ROOTFS, headers={"Range": "bytes=1000-1999"})
    assert (answer.status_code, answer.data) == (206, whole[1000:2000])
    assert finally_stored(client, ROOTFS)


def _raises(error: Exception) -> Any:
    def raising(*_: object, **__: object) -> None:
        raise error

    return raising


def test_a_read_only_registry_gives_parts_too(place: Place) -> None:
    client = Place(place.folder, {"REGISTRY_STATE": "readonly"}).app().test_client()
    whole = client.get(ROOTFS).data
    answer = client.get(ROOTFS, headers={"Range": "bytes=-10"})
    assert (answer.status_code, answer.data) == (206, whole[-10:])
    assert place.derived() == []


# --- Checksums --------------------------------------------------------------------------------------------------------


def test_the_checksum_is_read_by_sha256sum(client: FlaskClient, tmp_path: Path) -> None:
    image = client.get(GZIP)
    name = "acme_app_1.0-linux-amd64.tar.gz"
    (tmp_path / name).write_bytes(image.data)
    answer = client.get(f"{GZIP}.sha256")
    assert answer.content_type == "text/plain; charset=utf-8"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{name}.sha256"'
    assert "Last-Modified" in answer.headers
    assert answer.headers["ETag"] != image.headers["ETag"]
    assert answer.data == f"{hashlib.sha256(image.data).hexdigest()}  {name}\n".encode()
    done = subprocess.run(["sha256sum", "--check", "--strict"], input=answer.data, cwd=tmp_path, check=False)
    assert done.returncode == 0


def test_the_checksum_of_what_is_not_made_is_promised_and_the_making_begins(place: Place, client: FlaskClient) -> None:
    for method, derived in (("HEAD", 0), ("GET", 1)):
        answer = client.open(f"{ROOTFS}.sha256", method=method)
        assert answer.status_code == 202
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.headers["Cache-Control"] == "no-store"
        if method == "GET":
            status = answer.get_json()
            assert set(status) == {"state", "bytes_done", "bytes_total", "attempts", "reason"}
            assert status["state"] in {"generating", "complete"}
            assert finally_stored(client, ROOTFS)
        assert len(place.derived()) == derived
    assert client.get(f"{ROOTFS}.sha256").status_code == 200


def test_the_checksum_of_what_cannot_be_made_is_an_error(place: Place, client: FlaskClient) -> None:
    place.blob(TOP).unlink()
    assert client.get(f"{ROOTFS}.sha256").status_code == 502


def test_a_read_only_registry_knows_only_what_is_stored(place: Place, client: FlaskClient) -> None:
    readonly = Place(place.folder, {"REGISTRY_STATE": "readonly"}).app().test_client()
    answer = readonly.get(f"{ROOTFS}.sha256")
    assert (answer.status_code, answer.get_json()["errors"][0]["code"]) == (404, "CHECKSUM_UNKNOWN")
    assert client.get(ROOTFS).data
    assert readonly.get(f"{ROOTFS}.sha256").status_code == 200


def test_a_checksum_has_conditions_of_its_own(client: FlaskClient) -> None:
    assert client.get(ROOTFS).data
    etag = client.get(f"{ROOTFS}.sha256").headers["ETag"]
    assert client.get(f"{ROOTFS}.sha256", headers={"If-None-Match": etag}).status_code == 304
    assert client.get(ROOTFS, headers={"If-None-Match": etag}).status_code == 200


def test_queries_stand_after_the_checksum_s_path(client: FlaskClient) -> None:
    assert client.get(SQUASH).data
    answer = client.get("/c1/squash/acme/app/1.0.sha256?compression=none&platform=linux/amd64")
    assert answer.status_code == 200
    assert answer.data.endswith(b"  acme_app_1.0-linux-amd64.tar\n")


@pytest.mark.parametrize("ending", [".sha256", "/.sha256"])
def test_discovery_s_url_has_a_checksum_too(client: FlaskClient, ending: str) -> None:
    url = "/c1/aci/registry.example.com/acme/app/1.0/aci/linux/amd64"
    whole = client.get(f"{url}/").data
    answer = client.get(url + ending)
    assert answer.data.decode().split() == [hashlib.sha256(whole).hexdigest(), "acme_app_1.0-linux-amd64.aci"]


def test_a_digest_has_a_checksum_too(place: Place, client: FlaskClient) -> None:
    url = f"/c1/rootfs/acme/app/{place.push('acme/app:1.0', IMAGE)}"
    whole = client.get(url).data
    assert client.get(f"{url}.sha256").data.decode().split()[0] == hashlib.sha256(whole).hexdigest()


def test_a_tag_that_ends_like_a_checksum_goes_before_it(place: Place, client: FlaskClient) -> None:
    assert client.get(ROOTFS).data
    assert client.get(f"{ROOTFS}.sha256").content_type.startswith("text/plain")
    place.push("acme/app:1.0.sha256", OTHER)
    whole = client.get(f"{ROOTFS}.sha256")
    assert whole.content_type == "application/x-tar"
    digest = hashlib.sha256(whole.data).hexdigest()
    assert client.get(f"{ROOTFS}.sha256.sha256").data.decode().split()[0] == digest


@pytest.mark.parametrize("tag", ["9.9.sha256", ".sha256", "9.9.sha256.sha256"])
def test_the_checksum_of_a_tag_that_is_not_there_is_not_there(client: FlaskClient, tag: str) -> None:
    answer = client.get(f"/c1/rootfs/acme/app/{tag}")
    (error,) = answer.get_json()["errors"]
    assert (answer.status_code, error["code"]) == (404, "TAG_UNKNOWN")
    assert error["detail"] == {"existing": ["1.0"]}


# --- From elsewhere ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


LOGIN = {"Authorization": "Basic bWU6cGFzc3dvcmQ="}


@pytest.fixture
def bucket(place: Place, s3: str) -> Iterator[Place]:
    """Return the place with an S3 for what is derived; its layers stay on the disk."""
    address = urlsplit(s3)
    with closing(s3_client(s3)) as client:
        client.create_bucket(Bucket="derived")
        parameters = {
            "hostname": address.hostname,
            "port": address.port,
            "is_secure": False,
            "storage_path": "/registry",
            "bucket_name": "derived",
            "access_key": "key",
            "secret_key": "secret",
        }
        storages = {
            "s3": ["RadosGWStorage", parameters],
            "default": ["LocalStorage", {"storage_path": str(place.storage)}],
        }
        yield Place(place.folder, {"DISTRIBUTED_STORAGE_CONFIG": storages, "DISTRIBUTED_STORAGE_PREFERENCE": ["s3"]})
        for item in client.list_objects_v2(Bucket="derived").get("Contents", []):
            client.delete_object(Bucket="derived", Key=item["Key"])
        client.delete_bucket(Bucket="derived")


def test_a_storage_is_told_who_is_sent_to_it(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    client = bucket.app().test_client()
    assert client.get(GZIP).data
    told: list[Recipient] = []

    def url(*_: object, recipient: Recipient, **__: object) -> str:
        told.append(recipient)
        return "https://cdn.example.com/x"

    monkeypatch.setattr(S3Storage, "direct_download_url", url)
    at = {"base_url": "http://eu.example.com:8080", "environ_base": {"REMOTE_ADDR": "192.0.2.7"}}
    assert client.get(GZIP, **at).location == "https://cdn.example.com/x"
    assert told == [Recipient("192.0.2.7", "eu.example.com:8080", "acme")]


def test_a_stored_image_is_fetched_from_s3_by_a_url_that_is_good_for_a_while(bucket: Place) -> None:
    client = bucket.app().test_client()
    whole = client.get(GZIP).data
    answer = client.get(GZIP)
    assert (answer.status_code, answer.data) == (302, b"")
    assert "X-Amz-Expires" in parse_qs(urlsplit(answer.location).query)
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["ETag"] == client.head(GZIP).headers["ETag"]
    assert base64.b64encode(hashlib.sha256(whole).digest()).decode() in answer.headers["Repr-Digest"]
    with urllib.request.urlopen(answer.location) as there:
        assert there.read() == whole
        assert "acme_app_1.0-linux-amd64.tar.gz" in there.headers["Content-Disposition"]
        assert there.headers["Content-Type"] == "application/gzip"
    ranged = client.get(GZIP, headers={"Range": "bytes=10-19"})
    request = urllib.request.Request(ranged.location, headers={"Range": "bytes=10-19"})
    with urllib.request.urlopen(request) as there:
        assert (there.status, there.read()) == (206, whole[10:20])


def test_a_head_of_what_lies_in_s3_tells_what_comes(bucket: Place) -> None:
    client = bucket.app().test_client()
    whole = client.get(GZIP).data
    answer = client.head(GZIP)
    assert (answer.status_code, answer.content_length) == (200, len(whole))
    assert "Repr-Digest" in answer.headers


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("", {}, 302),
        ("?redirect=false", {}, 200),
        ("", LOGIN, 200),
        ("?redirect=true", LOGIN, 302),
        ("", {"If-Match": "*"}, 200),
        ("", {"If-None-Match": '"other"'}, 302),
        ("", {"Range": "bytes=0-9"}, 302),
        ("?redirect=false", {"Range": "bytes=0-9"}, 206),
        ("", {"Range": "bytes=0-9", "If-Range": '"other"'}, 200),
        ("", {"Range": "bytes=999999999-"}, 416),
    ],
)
def test_nobody_is_sent_away_with_what_is_meant_for_us(
    bucket: Place, query: str, headers: dict[str, str], status: int
) -> None:
    if headers == LOGIN:
        People(bucket.engine).user("me", "password")
    client = bucket.app().test_client()
    whole = client.get(GZIP).data
    answer = client.get(GZIP + query, headers=headers)
    assert answer.status_code == status
    if status in {200, 206}:
        assert answer.data == (whole if status == 200 else whole[:10])


def test_a_part_of_ours_is_gone_on_with_by_us(bucket: Place) -> None:
    client = bucket.app().test_client()
    first = client.get(GZIP)
    whole = first.data
    answer = client.get(GZIP, headers={"Range": "bytes=1000-", "If-Range": first.headers["ETag"]})
    assert (answer.status_code, answer.data) == (206, whole[1000:])


def test_with_a_proxied_storage_nobody_is_sent_away(bucket: Place) -> None:
    client = Place(bucket.folder, {**bucket.more, "FEATURE_PROXY_STORAGE": True}).app().test_client()
    whole = client.get(GZIP).data
    for query in ("", "?redirect=true"):
        answer = client.get(GZIP + query)
        assert (answer.status_code, answer.data) == (200, whole)
    assert client.get(GZIP, headers={"Range": "bytes=-10"}).data == whole[-10:]


def test_redirect_is_true_or_false(client: FlaskClient) -> None:
    answer = client.get(f"{ROOTFS}?redirect=maybe")
    assert (answer.status_code, answer.get_json()["errors"][0]["code"]) == (400, "QUERY_INVALID")
    assert "true, false" in answer.get_json()["errors"][0]["message"]


def test_nginx_is_told_where_the_file_is(place: Place) -> None:
    client = Place(place.folder, {"VERBS_ACCEL_REDIRECT": "/internal/"}).app().test_client()
    whole = client.get(ROOTFS)
    assert "X-Accel-Redirect" not in whole.headers
    content = whole.data
    answer = client.get(ROOTFS, headers={"Range": "bytes=5-"})
    assert (answer.status_code, answer.data) == (200, b"")
    path = answer.headers["X-Accel-Redirect"].removeprefix("/internal/")
    assert (place.storage / path).read_bytes() == content
    assert "Repr-Digest" in answer.headers
    for headers in ({"If-Match": "*"}, {"Range": "bytes=0-", "If-Range": '"other"'}):
        assert client.get(ROOTFS, headers=headers).data == content
    assert client.head(ROOTFS).content_length == len(content)


@pytest.mark.parametrize("value", ["internal", "/internal", "internal/", "/", "/a b/", "https://example.com/", 5])
def test_where_nginx_finds_files_is_an_internal_location(value: object) -> None:
    with pytest.raises(InvalidSetting, match="VERBS_ACCEL_REDIRECT"):
        Settings.parse({"VERBS_ACCEL_REDIRECT": value})
