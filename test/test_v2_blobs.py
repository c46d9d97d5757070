"""Blobs over `/v2`: the distribution-spec's Pull, Push and Content Management, as far as they are about blobs."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from werkzeug.test import TestResponse

from data.accounts import Account, Role, SqlAccounts
from data.owntables import UploadRow
from data.registry import content_path
from data.storage.base import Recipient, StorageUnavailable
from data.storage.local import LocalStorage
from test.door import SETTINGS, Door, codes
from test.images import Image, Layer
from test.layers import file
from test.manifests import image
from test.place import Place
from test.s3server import s3_client, s3_server
from util.digest import Digest

CONTENT = b"0123456789abcdef" * 5000
DIGEST = Digest.of(CONTENT)
UUID = re.compile(r"/v2/acme/app/blobs/uploads/([0-9a-f]{32})")


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(
        Place(tmp_path, SETTINGS),
        users=("acme", "other"),
        public={"acme/app": True, "acme/private": False, "other/public": True, "other/private": False},
    )


def begin(door: Door, query: str = "", **more: Any) -> str:
    """Return the path of a new upload, as `ask` takes it."""
    answer = door.ask("POST", f"blobs/uploads/{query}", **more)
    assert answer.status_code == 202
    return where(answer)


def where(answer: TestResponse) -> str:
    return str(answer.headers["Location"]).removeprefix("/v2/")


def had(door: Door, digest: Digest = DIGEST, **more: Any) -> bytes | None:
    answer = door.ask("GET", f"blobs/{digest}", **more)
    assert answer.status_code in (200, 404)
    return answer.data if answer.status_code == 200 else None


def left(door: Door) -> list[str]:
    """Return what uploads have left."""
    return [str(file) for file in door.place.files() if "uploads" in str(file)]


# --- Pushing a blob monolithically ------------------------------------------------------------------------------------


def test_post_gives_a_place_with_a_unique_id(door: Door) -> None:
    answers = [door.ask("POST", f"blobs/uploads{end}", headers={"Content-Length": "0"}) for end in ("/", "/", "")]
    assert [answer.status_code for answer in answers] == [202] * 3
    found = [UUID.fullmatch(answer.headers["Location"]) for answer in answers]
    numbers = [match[1] for match in found if match]
    assert len(set(numbers)) == 3
    assert [answer.headers["Docker-Upload-UUID"] for answer in answers] == numbers
    assert [answer.headers["Range"] for answer in answers] == ["0-0"] * 3


@pytest.mark.parametrize("content", [CONTENT, b"", b"x"])
def test_post_then_put_creates_the_blob(door: Door, content: bytes) -> None:
    digest = Digest.of(content)
    answer = door.ask("PUT", f"{begin(door)}?digest={digest}", data=content)
    assert (answer.status_code, where(answer)) == (201, f"acme/app/blobs/{digest}")
    assert answer.headers["Docker-Content-Digest"] == str(digest)
    assert door.ask("GET", where(answer)).data == content
    assert left(door) == []


@pytest.mark.parametrize("content", [CONTENT, b""])
def test_a_single_post_creates_the_blob(door: Door, content: bytes) -> None:
    digest = Digest.of(content)
    answer = door.ask("POST", f"blobs/uploads/?digest={digest}", data=content)
    assert (answer.status_code, where(answer)) == (201, f"acme/app/blobs/{digest}")
    assert had(door, digest) == content
    assert left(door) == []


def test_a_single_post_without_its_bytes_begins_an_upload(door: Door) -> None:
    path = begin(door, f"?digest={DIGEST}")
    assert door.ask("PUT", f"{path}?digest={DIGEST}", data=CONTENT).status_code == 201


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "sha384", "blake3"])
def test_a_blob_is_known_by_the_algorithm_of_its_client(door: Door, algorithm: str) -> None:
    digest = Digest.of(CONTENT, algorithm)
    path = begin(door, f"?digest-algorithm={algorithm}")
    path = where(door.ask("PATCH", path, data=CONTENT))
    assert door.ask("PUT", f"{path}?digest={digest}").status_code == 201
    assert had(door, digest) == CONTENT
    assert had(door) == (CONTENT if algorithm == "sha256" else None)
    assert door.ask("HEAD", f"blobs/{digest}").headers["Docker-Content-Digest"] == str(digest)


@pytest.mark.parametrize("digest", ["", "sha256:bad", "md5:d41d8cd98f00b204e9800998ecf8427e", "x"])
def test_a_digest_that_is_none_is_refused(door: Door, digest: str) -> None:
    path = begin(door)
    answers = [
        door.ask("PUT", f"{path}?digest={digest}", data=CONTENT),
        door.ask("POST", f"blobs/uploads/?digest={digest}", data=CONTENT),
        door.ask("POST", f"blobs/uploads/?mount={digest}"),
    ]
    for answer in answers:
        assert (answer.status_code, codes(answer)) == (400, ["DIGEST_INVALID"])


def test_a_put_without_a_digest_is_refused_and_the_upload_stays(door: Door) -> None:
    path = begin(door)
    answer = door.ask("PUT", path, data=CONTENT)
    assert (answer.status_code, codes(answer)) == (400, ["DIGEST_INVALID"])
    assert door.ask("PUT", f"{path}?digest={DIGEST}", data=CONTENT).status_code == 201


def test_an_algorithm_that_is_none_is_refused(door: Door) -> None:
    answer = door.ask("POST", "blobs/uploads/?digest-algorithm=md5")
    assert (answer.status_code, codes(answer)) == (400, ["DIGEST_INVALID"])


@pytest.mark.parametrize("how", ["post", "put", "patch"])
def test_a_digest_of_other_bytes_ends_the_upload_and_nothing_is_to_be_seen(door: Door, how: str) -> None:
    if how == "post":
        answer = door.ask("POST", f"blobs/uploads/?digest={DIGEST}", data=b"other bytes")
    else:
        path = begin(door)
        if how == "patch":
            door.ask("PATCH", path, data=b"other")
        answer = door.ask("PUT", f"{path}?digest={DIGEST}", data=b" bytes")
        assert door.ask("GET", path).status_code == 404
    assert (answer.status_code, codes(answer)) == (400, ["DIGEST_INVALID"])
    assert had(door) is None
    assert door.place.files() == []


# --- Pushing a blob in chunks -----------------------------------------------------------------------------------------


def chunk(door: Door, path: str, first: int, last: int, method: str = "PATCH") -> TestResponse:
    """Send the bytes from `first` up to `last`."""
    headers = {"Content-Range": f"{first}-{last - 1}", "Content-Type": "application/octet-stream"}
    return door.ask(method, path, data=CONTENT[first:last], headers=headers)


@pytest.mark.parametrize("last_by", ["PATCH", "PUT"])
def test_chunks_become_a_blob(door: Door, last_by: str) -> None:
    path = begin(door)
    ends = [0, 10, 5000, 5001, len(CONTENT)]
    for first, last in pairwise(ends[:-1]):
        answer = chunk(door, path, first, last)
        assert (answer.status_code, answer.headers["Range"]) == (202, f"0-{last - 1}")
        path = where(answer)
        status = door.ask("GET", path)
        assert (status.status_code, status.headers["Range"]) == (204, f"0-{last - 1}")
        assert where(status) == path
    if last_by == "PATCH":
        path = where(chunk(door, path, ends[-2], ends[-1]))
        answer = door.ask("PUT", f"{path}?digest={DIGEST}")
    else:
        answer = chunk(door, f"{path}?digest={DIGEST}", ends[-2], ends[-1], "PUT")
    assert (answer.status_code, where(answer)) == (201, f"acme/app/blobs/{DIGEST}")
    assert had(door) == CONTENT
    assert left(door) == []


@pytest.mark.parametrize("first", [0, 99, 101, 5000])
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_a_chunk_out_of_order_is_refused_with_where_to_go_on(door: Door, method: str, first: int) -> None:
    path = where(chunk(door, begin(door), 0, 100))
    answer = chunk(door, f"{path}?digest={DIGEST}", first, first + 100, method)
    assert (answer.status_code, codes(answer)) == (416, ["BLOB_UPLOAD_INVALID"])
    assert (answer.headers["Range"], where(answer)) == ("0-99", path)
    assert door.ask("GET", path).headers["Range"] == "0-99"
    assert chunk(door, f"{path}?digest={DIGEST}", 100, len(CONTENT), "PUT").status_code == 201
    assert had(door) == CONTENT


def test_the_first_chunk_begins_with_0(door: Door) -> None:
    assert chunk(door, begin(door), 1, 10).status_code == 416


def test_a_range_may_be_written_as_http_does(door: Door) -> None:
    path = begin(door)
    for first, text in enumerate(("0-0", "bytes 1-1/*", "bytes=2-2", "3-3")):
        answer = door.ask("PATCH", path, data=b"x", headers={"Content-Range": text})
        assert (answer.status_code, answer.headers["Range"]) == (202, f"0-{first}")


@pytest.mark.parametrize("text", ["", "0", "a-b", "5-1", "-1", "0-", f"0-{'9' * 40}", "0 - 4"])
def test_a_range_that_is_none_is_refused(door: Door, text: str) -> None:
    path = begin(door)
    answer = door.ask("PATCH", path, data=b"01234", headers={"Content-Range": text})
    assert (answer.status_code, codes(answer)) == (400, ["BLOB_UPLOAD_INVALID"])
    assert door.ask("GET", path).headers["Range"] == "0-0"


def test_a_range_of_another_length_than_the_chunk_is_refused(door: Door) -> None:
    path = begin(door)
    answer = door.ask("PATCH", path, data=b"01234", headers={"Content-Range": "0-10"})
    assert (answer.status_code, codes(answer)) == (400, ["SIZE_INVALID"])
    assert door.services.uploads.find(number(door), path.rsplit("/", 1)[1]).size == 0


def number(door: Door, name: str = "acme/app") -> int:
    return door.services.registry.repository(*name.split("/", 1)).id


def test_an_upload_is_of_one_repository(door: Door) -> None:
    other = begin(door).replace("acme/app", "acme/private")
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        answer = door.ask(method, f"{other}?digest={DIGEST}")
        assert (answer.status_code, codes(answer)) == (404, ["BLOB_UPLOAD_UNKNOWN"])


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
@pytest.mark.parametrize("name", ["0" * 32, "x", "..", "%00", "ä"])
def test_an_upload_that_is_not_there_is_unknown(door: Door, method: str, name: str) -> None:
    answer = door.ask(method, f"acme/app/blobs/uploads/{name}?digest={DIGEST}")
    assert answer.status_code == 404


def test_an_upload_is_cancelled(door: Door) -> None:
    path = where(chunk(door, begin(door), 0, 100))
    answer = door.ask("DELETE", path)
    assert (answer.status_code, answer.data) == (204, b"")
    assert left(door) == []
    for method in ("GET", "DELETE"):
        answer = door.ask(method, path)
        assert (answer.status_code, codes(answer)) == (404, ["BLOB_UPLOAD_UNKNOWN"])


def test_a_blob_that_is_too_large_is_refused(tmp_path: Path) -> None:
    door = Door(Place(tmp_path, {**SETTINGS, "MAXIMUM_LAYER_SIZE": "10K"}))
    for method, path in (
        ("POST", f"blobs/uploads/?digest={DIGEST}"),
        ("PATCH", begin(door)),
        ("PUT", f"{begin(door)}?digest={DIGEST}"),
    ):
        answer = door.ask(method, path, data=CONTENT)
        assert (answer.status_code, codes(answer)) == (413, ["SIZE_INVALID"])
    assert door.place.files() == []


def test_a_blob_that_is_sent_again_is_not_kept_twice(door: Door) -> None:
    for _ in range(2):
        assert door.ask("POST", f"blobs/uploads/?digest={DIGEST}", data=CONTENT).status_code == 201
        assert door.ask("POST", f"acme/private/blobs/uploads/?digest={DIGEST}", data=CONTENT).status_code == 201
    assert [str(each.relative_to(door.place.storage)) for each in door.place.files()] == [content_path(DIGEST)]


def test_a_storage_that_fails_is_told_and_the_upload_goes_on(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    path = where(chunk(door, begin(door), 0, 100))

    def fail(*_: object) -> None:
        raise StorageUnavailable("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(LocalStorage, "create", fail)
        answer = chunk(door, path, 100, 200)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
    assert chunk(door, path, 100, len(CONTENT)).status_code == 202
    assert door.ask("PUT", f"{path}?digest={DIGEST}").status_code == 201


# --- Who may push -----------------------------------------------------------------------------------------------------


def test_the_first_push_makes_the_repository(door: Door) -> None:
    assert door.ask("POST", f"acme/new/app/blobs/uploads/?digest={DIGEST}", data=CONTENT).status_code == 201
    assert door.ask("GET", f"acme/new/app/blobs/{DIGEST}").data == CONTENT
    assert door.ask("GET", f"acme/new/app/blobs/{DIGEST}", who=None).status_code == 401
    assert door.ask("GET", f"acme/new/app/blobs/{DIGEST}", who="other").status_code in (403, 404)


@pytest.mark.parametrize(("who", "status"), [(None, 401), ("other", 403)])
def test_who_may_not_write_does_not_push(door: Door, who: str | None, status: int) -> None:
    upload = begin(door)
    for method, path in (
        ("POST", "blobs/uploads/"),
        ("GET", upload),
        ("PATCH", upload),
        ("PUT", f"{upload}?digest={DIGEST}"),
        ("DELETE", upload),
        ("DELETE", f"blobs/{DIGEST}"),
        ("POST", "acme/absent/blobs/uploads/"),
    ):
        assert door.ask(method, path, who=who, data=CONTENT).status_code == status
    assert door.ask("GET", upload).status_code == 204


@pytest.mark.parametrize("setting", [{"REGISTRY_STATE": "readonly"}, {"VERBS_REGISTRY": "quay"}])
def test_a_registry_that_is_only_read_takes_nothing(door: Door, setting: dict[str, str]) -> None:
    door.blob(CONTENT)
    upload = begin(door)
    door.place = Place(door.place.folder, {**SETTINGS, **setting})
    del door.app
    for method, path in (
        ("POST", "blobs/uploads/"),
        ("POST", f"blobs/uploads/?digest={DIGEST}"),
        ("POST", f"blobs/uploads/?mount={DIGEST}"),
        ("PATCH", upload),
        ("PUT", f"{upload}?digest={DIGEST}"),
        ("DELETE", upload),
        ("DELETE", f"blobs/{DIGEST}"),
    ):
        answer = door.ask(method, path, data=CONTENT)
        assert (answer.status_code, codes(answer)) == (405, ["UNSUPPORTED"])
    assert had(door) == CONTENT


# --- Mounting a blob from another repository --------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["acme/private", "other/public"])
def test_a_blob_is_mounted_from_where_it_may_be_read(door: Door, source: str) -> None:
    door.blob(CONTENT, name=source)
    assert had(door) is None
    answer = door.ask("POST", f"blobs/uploads/?mount={DIGEST}&from={source}")
    assert (answer.status_code, where(answer)) == (201, f"acme/app/blobs/{DIGEST}")
    assert answer.headers["Docker-Content-Digest"] == str(DIGEST)
    assert had(door) == CONTENT
    assert len(door.place.files()) == 1


@pytest.mark.parametrize("source", ["acme/private", "other/public"])
def test_a_blob_is_mounted_from_wherever_it_may_be_read(door: Door, source: str) -> None:
    door.blob(CONTENT, name="other/private")
    door.blob(CONTENT, name=source)
    assert door.ask("POST", f"blobs/uploads/?mount={DIGEST}").status_code == 201
    assert had(door) == CONTENT


@pytest.mark.parametrize(
    "query",
    [
        "&from=other/private",  # holds it, and is not ours to read
        "",
        "&from=other/public",  # does not hold it
        "&from=other/absent",
        "&from=acme/app",
        "&from=No%20Name",
        "&from=",
    ],
)
def test_a_blob_that_may_not_be_read_is_not_mounted_and_an_upload_begins(door: Door, query: str) -> None:
    door.blob(CONTENT, name="other/private")
    path = begin(door, f"?mount={DIGEST}{query}")
    assert had(door) is None
    assert door.ask("PUT", f"{path}?digest={DIGEST}", data=CONTENT).status_code == 201


@pytest.mark.parametrize("query", ["&from=other/private", ""])
def test_a_mount_costs_the_same_whether_or_not_another_has_the_blob(
    door: Door, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    asked: list[str] = []
    role = SqlAccounts.role

    def noted(self: SqlAccounts, account: Account, *names: str) -> Role | None:
        asked.append("/".join(names))
        return role(self, account, *names)

    monkeypatch.setattr(SqlAccounts, "role", noted)
    for _ in range(2):
        begin(door, f"?mount={DIGEST}{query}")
        door.blob(CONTENT, name="other/private")
    assert set(asked) == {"acme/app"}


def test_a_mount_of_what_nobody_has_begins_an_upload(door: Door) -> None:
    for query in ("", "&from=acme/private"):
        assert UUID.fullmatch("/v2/" + begin(door, f"?mount={DIGEST}{query}"))


def test_a_mount_into_a_repository_that_is_not_ones_own_is_refused(door: Door) -> None:
    door.blob(CONTENT, name="other/public")
    assert door.ask("POST", f"blobs/uploads/?mount={DIGEST}&from=other/public", who="other").status_code == 403


# --- Pulling blobs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [CONTENT, b""])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_blob_is_had(door: Door, method: str, content: bytes) -> None:
    digest = Digest.of(content)
    door.blob(content)
    answer = door.ask(method, f"blobs/{digest}")
    assert answer.status_code == 200
    assert answer.data == (content if method == "GET" else b"")
    assert answer.headers["Docker-Content-Digest"] == str(digest)
    assert answer.headers["Content-Length"] == str(len(content))
    assert answer.headers["ETag"] == f'"{digest}"'
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert "immutable" in answer.headers["Cache-Control"]
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"


@pytest.mark.parametrize(
    ("range_", "first", "last"),
    [("bytes=0-9", 0, 9), ("bytes=79990-", 79990, 79999), ("bytes=-5", 79995, 79999), ("bytes=5-100000000", 5, 79999)],
)
def test_a_part_of_a_blob_is_had(door: Door, range_: str, first: int, last: int) -> None:
    door.blob(CONTENT)
    answer = door.ask("GET", f"blobs/{DIGEST}", headers={"Range": range_})
    assert (answer.status_code, answer.data) == (206, CONTENT[first : last + 1])
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"
    assert answer.headers["Docker-Content-Digest"] == str(DIGEST)


@pytest.mark.parametrize("range_", ["bytes=80000-", "bytes=500-0"])
def test_a_part_that_is_not_there_is_not_satisfiable(door: Door, range_: str) -> None:
    door.blob(CONTENT)
    answer = door.ask("GET", f"blobs/{DIGEST}", headers={"Range": range_})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == "bytes */80000"
    assert door.ask("HEAD", f"blobs/{DIGEST}", headers={"Range": "bytes=0-9"}).status_code == 200


def test_who_has_a_blob_is_not_sent_it(door: Door) -> None:
    door.blob(CONTENT)
    answer = door.ask("GET", f"blobs/{DIGEST}", headers={"If-None-Match": f'"{DIGEST}"'})
    assert (answer.status_code, answer.data, answer.headers["ETag"]) == (304, b"", f'"{DIGEST}"')
    assert door.ask("GET", f"blobs/{DIGEST}", headers={"If-Match": '"other"'}).status_code == 412
    assert had(door, headers={"If-None-Match": '"other"'}) == CONTENT


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_a_blob_that_the_repository_has_not_is_not_found(door: Door, method: str) -> None:
    door.blob(CONTENT, name="acme/private")
    answer = door.ask(method, f"blobs/{DIGEST}")
    assert answer.status_code == 404
    if method != "HEAD":
        assert codes(answer) == ["BLOB_UNKNOWN"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_blob_by_a_digest_that_is_none_is_refused(door: Door, method: str) -> None:
    for digest in ("sha256:xyz", "latest"):
        answer = door.ask(method, f"blobs/{digest}")
        assert (answer.status_code, codes(answer)) == (400, ["DIGEST_INVALID"])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_blob_of_a_repository_that_is_not_there_is_not_found(door: Door, method: str) -> None:
    assert door.ask(method, f"acme/absent/blobs/{DIGEST}").status_code == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_object_that_was_lost_is_not_found_so_that_it_is_sent_again(door: Door, method: str) -> None:
    door.blob(CONTENT)
    (door.place.storage / content_path(DIGEST)).unlink()
    assert door.ask(method, f"blobs/{DIGEST}").status_code == 404
    assert door.ask("POST", f"blobs/uploads/?digest={DIGEST}", data=CONTENT).status_code == 201
    assert had(door) == CONTENT


def test_a_blob_of_a_public_repository_is_everybodys(door: Door) -> None:
    door.blob(CONTENT)
    door.blob(CONTENT, name="acme/private")
    assert had(door, who=None) == CONTENT
    assert door.ask("GET", f"acme/private/blobs/{DIGEST}", who=None).status_code == 401
    assert door.ask("GET", f"acme/private/blobs/{DIGEST}", who="other").status_code == 403


def test_what_an_import_brought_is_had(door: Door) -> None:
    layer = Layer([file(b"a")])
    door.place.push("acme/imported:1.0", Image([layer]))
    assert door.ask("GET", f"acme/imported/blobs/{Digest.of(layer.blob)}").data == layer.blob


def test_names_may_look_like_routes(door: Door) -> None:
    for name in ("acme/blobs", "acme/blobs/uploads", "acme/uploads/blobs", "acme/a/blobs/b"):
        answer = door.ask("POST", f"{name}/blobs/uploads/")
        assert answer.status_code == 202
        answer = door.ask("PUT", f"{where(answer)}?digest={DIGEST}", data=CONTENT)
        assert (answer.status_code, where(answer)) == (201, f"{name}/blobs/{DIGEST}")
        assert door.ask("GET", where(answer)).data == CONTENT


# --- Deleting blobs ---------------------------------------------------------------------------------------------------


def test_a_blob_that_was_only_uploaded_is_deleted(door: Door) -> None:
    door.blob(CONTENT)
    door.blob(CONTENT, name="acme/private")
    answer = door.ask("DELETE", f"blobs/{DIGEST}")
    assert (answer.status_code, answer.data) == (202, b"")
    assert had(door) is None
    assert door.ask("GET", f"acme/private/blobs/{DIGEST}").data == CONTENT


def test_a_blob_that_a_manifest_has_is_not_deleted_and_the_manifest_is_named(door: Door) -> None:
    door.blob(b"{}", CONTENT)
    manifest = image(CONTENT)
    assert door.push(manifest, "1.0").status_code == 201
    answer = door.ask("DELETE", f"blobs/{DIGEST}")
    assert (answer.status_code, codes(answer)) == (405, ["UNSUPPORTED"])
    assert str(Digest.of(manifest)) in answer.get_json()["errors"][0]["message"]
    assert had(door) == CONTENT


@pytest.mark.parametrize("deleted", ["1.0", "digest"])
def test_a_blob_that_only_a_deleted_manifest_has_is_still_kept_with_it_and_it_is_said(door: Door, deleted: str) -> None:
    door.blob(b"{}", CONTENT)
    manifest = image(CONTENT)
    assert door.push(manifest, "1.0").status_code == 201
    assert door.ask("DELETE", f"manifests/{deleted.replace('digest', str(Digest.of(manifest)))}").status_code == 202
    answer = door.ask("DELETE", f"blobs/{DIGEST}")
    assert (answer.status_code, codes(answer)) == (405, ["UNSUPPORTED"])
    assert f"{Digest.of(manifest)}, which has been deleted" in answer.get_json()["errors"][0]["message"]


# --- Where storage gives out URLs, and more than one place ------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as url:
        client = s3_client(url)
        client.create_bucket(Bucket="blobs")
        yield url
        client.close()


def in_bucket(folder: Path, url: str, **more: Any) -> Door:
    parameters = {
        "hostname": "127.0.0.1",
        "port": urlsplit(url).port,
        "is_secure": False,
        "access_key": "key",
        "secret_key": "secret",
        "bucket_name": "blobs",
        "storage_path": f"/{folder.name}",
    }
    config = {"DISTRIBUTED_STORAGE_CONFIG": {"s3": ["RadosGWStorage", parameters]}}
    return Door(Place(folder, {**SETTINGS, **config, **more}))


def test_who_pulls_from_a_bucket_is_sent_there(tmp_path: Path, bucket: str) -> None:
    door = in_bucket(tmp_path, bucket)
    path = begin(door)
    for first in range(0, len(CONTENT), 30_000):
        assert chunk(door, path, first, min(first + 30_000, len(CONTENT))).status_code == 202
    assert door.ask("PUT", f"{path}?digest={DIGEST}").status_code == 201
    answer = door.ask("GET", f"blobs/{DIGEST}")
    assert answer.status_code == 307
    assert answer.headers["Docker-Content-Digest"] == str(DIGEST)
    assert "Content-Length" not in answer.headers or answer.headers["Content-Length"] == "0"
    there = requests.get(answer.headers["Location"], timeout=300)
    assert (there.content, there.headers["Content-Type"]) == (CONTENT, "application/octet-stream")
    assert re.search(r"(Expires=|X-Amz-Expires=60)", answer.headers["Location"])
    head = door.ask("HEAD", f"blobs/{DIGEST}")
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(CONTENT)))


def test_who_would_bring_credentials_to_the_same_host_is_not_sent_there(tmp_path: Path, bucket: str) -> None:
    door = in_bucket(tmp_path, bucket)
    door.blob(CONTENT)
    answer = door.ask("GET", f"blobs/{DIGEST}", base_url="http://127.0.0.1:5000")
    assert (answer.status_code, answer.data) == (200, CONTENT)
    answer = door.ask("GET", f"blobs/{DIGEST}", base_url="http://127.0.0.1:5000", who=None)
    assert answer.status_code == 307


@pytest.mark.parametrize(
    ("here", "there", "sent"),
    [
        ("example.com", "s3.example.com", False),
        ("Registry.Example.com:5000", "bucket.s3.registry.example.com", False),
        ("registry.example.com", "s3.example.com", True),
        ("example.com", "s3.anotherexample.com", True),
    ],
)
def test_who_would_bring_credentials_to_a_host_below_ours_is_not_sent_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, here: str, there: str, sent: bool
) -> None:
    door = Door(Place(tmp_path, SETTINGS))
    door.blob(CONTENT)
    monkeypatch.setattr(LocalStorage, "direct_download_url", lambda *_, **__: f"https://{there}/{DIGEST}")
    assert door.ask("GET", f"blobs/{DIGEST}", base_url=f"https://{here}").status_code == (307 if sent else 200)
    assert door.ask("GET", f"blobs/{DIGEST}", base_url=f"https://{here}", who=None).status_code == 307


def test_a_storage_is_told_who_is_sent_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(Place(tmp_path, SETTINGS))
    door.blob(CONTENT)
    told: list[Recipient] = []

    def url(*_: object, recipient: Recipient, **__: object) -> str:
        told.append(recipient)
        return "https://cdn.example.com/x"

    monkeypatch.setattr(LocalStorage, "direct_download_url", url)
    door.ask(
        "GET", f"blobs/{DIGEST}", base_url="https://eu.example.com:5000", environ_base={"REMOTE_ADDR": "192.0.2.7"}
    )
    assert told == [Recipient("192.0.2.7", "eu.example.com:5000", "acme")]


def test_nobody_is_sent_elsewhere_where_storage_is_not_to_be_reached(tmp_path: Path, bucket: str) -> None:
    door = in_bucket(tmp_path, bucket, FEATURE_PROXY_STORAGE=True)
    door.blob(CONTENT)
    assert had(door) == CONTENT
    answer = door.ask("GET", f"blobs/{DIGEST}", headers={"Range": "bytes=7-11"})
    assert (answer.status_code, answer.data) == (206, CONTENT[7:12])


def test_nginx_sends_a_blob_from_its_disk(tmp_path: Path) -> None:
    door = Door(Place(tmp_path, {**SETTINGS, "VERBS_ACCEL_REDIRECT": "/internal/"}))
    door.blob(CONTENT)
    answer = door.ask("GET", f"blobs/{DIGEST}")
    assert answer.headers["X-Accel-Redirect"] == f"/internal/{content_path(DIGEST)}"
    assert answer.headers["Docker-Content-Digest"] == str(DIGEST)


def test_a_blob_that_lies_elsewhere_than_is_preferred_is_had(tmp_path: Path) -> None:
    far = {"far": ["LocalStorage", {"storage_path": str(tmp_path / "far")}]}
    door = Door(Place(tmp_path, {**SETTINGS, "DISTRIBUTED_STORAGE_CONFIG": far}))
    door.blob(CONTENT)
    both = {"near": ["LocalStorage", {"storage_path": str(tmp_path / "near")}], **far}
    preference = {"DISTRIBUTED_STORAGE_CONFIG": both, "DISTRIBUTED_STORAGE_PREFERENCE": ["near"]}
    door.place = Place(tmp_path, {**SETTINGS, **preference})
    del door.app
    assert had(door) == CONTENT
    assert door.ask("HEAD", f"blobs/{DIGEST}").status_code == 200
    answer = door.ask("GET", f"blobs/{DIGEST}", headers={"Range": "bytes=7-11"})
    assert (answer.status_code, answer.data) == (206, CONTENT[7:12])


def test_rows_are_gone_when_all_is_done(door: Door) -> None:
    door.ask("POST", f"blobs/uploads/?digest={DIGEST}", data=CONTENT)
    with door.services.own_engine.connect() as connection:
        assert list(connection.execute(UploadRow.__table__.select())) == []
