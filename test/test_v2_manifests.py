"""Manifests that are pulled over `/v2`: the distribution-spec's category Pull, as far as it is about manifests."""

import json
from pathlib import Path

import pytest

from test.door import SETTINGS, Door, codes
from test.images import INDEX, MANIFEST, Image, Layer
from test.layers import file
from test.manifests import artifact, described, digest_of, image, index
from test.place import Place
from util.digest import Digest
from util.oci import LIST_V2, MANIFEST_V2

CONTENT = b"\n " + image(b"one").replace(b": ", b":   ") + b"\n\n"


@pytest.fixture
def door(tmp_path: Path) -> Door:
    door = Door(Place(tmp_path, SETTINGS))
    door.blob(b"{}", b"one")
    return door


@pytest.mark.parametrize("by", ["tag", "digest"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_manifest_is_had_by_its_tag_and_by_its_digest(door: Door, by: str, method: str) -> None:
    door.push(CONTENT, "1.0")
    answer = door.ask(method, f"manifests/{'1.0' if by == 'tag' else digest_of(CONTENT)}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == MANIFEST
    assert answer.headers["Docker-Content-Digest"] == digest_of(CONTENT)
    assert answer.headers["Content-Length"] == str(len(CONTENT))
    assert answer.headers["ETag"] == f'"{digest_of(CONTENT)}"'
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    assert answer.data == (CONTENT if method == "GET" else b"")


def test_the_exact_bytes_are_there_whatever_they_are(door: Door) -> None:
    contents = [CONTENT, json.dumps(json.loads(CONTENT) | {"ä€\u2028": "😀"}, ensure_ascii=False).encode()]
    contents.append(CONTENT.replace(b'"schemaVersion"', b'"x":"\\u0041\\ud83d\\ude00", "schemaVersion"'))
    for content in contents:
        assert door.push(content, "1.0").status_code == 201
        assert door.ask("GET", "manifests/1.0").data == content


@pytest.mark.parametrize("media_type", [MANIFEST, MANIFEST_V2])
def test_the_type_is_the_one_that_was_pushed(door: Door, media_type: str) -> None:
    content = image(b"one", mediaType=media_type)
    assert door.push(content, "1.0", media_type=media_type).status_code == 201
    assert door.ask("GET", "manifests/1.0").content_type == media_type


@pytest.mark.parametrize("media_type", [INDEX, LIST_V2])
def test_an_index_is_never_answered_with_one_of_its_images(door: Door, media_type: str) -> None:
    content = index([], mediaType=media_type)
    door.push(content, "1.0", media_type=media_type)
    for accept in (MANIFEST, "application/vnd.docker.distribution.manifest.v1+prettyjws", "text/html", "*/*", ""):
        answer = door.ask("GET", "manifests/1.0", headers={"Accept": accept})
        assert (answer.status_code, answer.content_type, answer.data) == (200, media_type, content)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "blake3"])
def test_a_manifest_has_the_digest_by_which_it_was_pushed(door: Door, algorithm: str) -> None:
    digest = str(Digest.of(CONTENT, algorithm))
    answer = door.ask("PUT", f"manifests/{digest}?tag=1.0", data=CONTENT)
    assert (answer.status_code, answer.headers["Docker-Content-Digest"]) == (201, digest)
    for reference in (digest, "1.0"):
        answer = door.ask("GET", f"manifests/{reference}")
        assert (answer.data, answer.headers["Docker-Content-Digest"]) == (CONTENT, digest)


@pytest.mark.parametrize("reference", ["2.0", digest_of(b"other"), ".invalid", "a b", "x" * 200, "%00", "ä"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_is_not_there_is_not_found(door: Door, reference: str, method: str) -> None:
    door.push(CONTENT, "1.0")
    answer = door.ask(method, f"manifests/{reference}")
    assert answer.status_code == 404
    if method == "GET":
        assert codes(answer) == ["MANIFEST_UNKNOWN"]


@pytest.mark.parametrize("reference", ["sha256:baddigeststring", "sha256:", "md5:" + "0" * 32, ":"])
def test_a_digest_that_is_none_is_refused(door: Door, reference: str) -> None:
    answer = door.ask("GET", f"manifests/{reference}")
    assert (answer.status_code, codes(answer)) == (400, ["DIGEST_INVALID"])


def test_a_repository_that_does_not_exist_is_not_found(door: Door) -> None:
    answer = door.ask("GET", "acme/other/manifests/1.0")
    assert (answer.status_code, codes(answer)) == (404, ["NAME_UNKNOWN"])


def test_a_manifest_of_another_repository_is_not_found(door: Door) -> None:
    door.push(CONTENT, "1.0")
    door.ask("PUT", "acme/other/manifests/1.0", data=index([]))
    assert door.ask("GET", f"acme/other/manifests/{digest_of(CONTENT)}").status_code == 404


@pytest.mark.parametrize("name", ["acme/UPPER", "acme/a//b", "acme/-a", "acme/a_-b"])
def test_a_name_that_is_none_is_refused(door: Door, name: str) -> None:
    answer = door.ask("GET", f"{name}/manifests/1.0")
    assert (answer.status_code, codes(answer)) == (400, ["NAME_INVALID"])


def test_names_may_be_nested_and_look_like_routes(door: Door) -> None:
    for name in ("acme/a/b/c", "acme/manifests", "acme/manifests/manifests", "acme/blobs/uploads", "acme/tags/list"):
        assert door.ask("PUT", f"{name}/manifests/1.0", data=index([])).status_code == 201
        assert door.ask("GET", f"{name}/manifests/1.0").data == index([])
        assert door.ask("GET", f"{name}/tags/list").get_json() == {"name": name, "tags": ["1.0"]}


def test_one_who_has_it_is_told_that_it_is_the_same(door: Door) -> None:
    door.push(CONTENT, "1.0")
    etag = f'"{digest_of(CONTENT)}"'
    for reference in ("1.0", digest_of(CONTENT)):
        for method in ("GET", "HEAD"):
            answer = door.ask(method, f"manifests/{reference}", headers={"If-None-Match": f'"other", {etag}'})
            assert (answer.status_code, answer.data, answer.headers["ETag"]) == (304, b"", etag)
            assert answer.headers["Docker-Content-Digest"] == digest_of(CONTENT)
    door.push(index([]), "1.0")
    assert door.ask("GET", "manifests/1.0", headers={"If-None-Match": etag}).status_code == 200


def test_what_an_import_brought_is_pulled_too(door: Door) -> None:
    digest = door.place.push("acme/imported:1.0", Image([Layer([file(b"a")])]), Image([Layer()], "linux/arm64"))
    answer = door.ask("GET", "acme/imported/manifests/1.0")
    assert (answer.headers["Docker-Content-Digest"], digest_of(answer.data)) == (digest, digest)
    for child in answer.get_json(force=True)["manifests"]:
        assert door.ask("GET", f"acme/imported/manifests/{child['digest']}").status_code == 200


def test_a_public_repository_is_anybody_s_and_a_private_one_is_not(tmp_path: Path) -> None:
    door = Door(Place(tmp_path, SETTINGS), public={"acme/app": True, "acme/private": False})
    for name in ("acme/app", "acme/private"):
        assert door.ask("PUT", f"{name}/manifests/1.0", data=index([])).status_code == 201
    assert door.ask("GET", "acme/app/manifests/1.0", who=None).status_code == 200
    answer = door.ask("GET", "acme/private/manifests/1.0", who=None)
    assert (answer.status_code, codes(answer)) == (401, ["UNAUTHORIZED"])
    assert 'scope="repository:acme/private:pull"' in answer.headers["WWW-Authenticate"]


def test_a_disabled_namespace_is_not_served(door: Door) -> None:
    door.push(CONTENT, "1.0")
    door.place.sql("UPDATE user SET enabled = 0")
    answer = door.ask("GET", "manifests/1.0", who=None)
    assert (answer.status_code, codes(answer)) == (403, ["DENIED"])


def test_a_live_quay_is_pulled_from(tmp_path: Path) -> None:
    door = Door(Place(tmp_path, SETTINGS))
    digest = door.place.push("acme/app:1.0", Image([Layer([file(b"a")])]))
    door.place = Place(tmp_path, {**SETTINGS, "VERBS_REGISTRY": "quay"})
    assert door.ask("GET", "manifests/1.0").headers["Docker-Content-Digest"] == digest
    answer = door.push(CONTENT, "2.0")
    assert (answer.status_code, codes(answer)) == (405, ["UNSUPPORTED"])
    answer = door.ask("DELETE", "manifests/1.0")
    assert (answer.status_code, codes(answer)) == (405, ["UNSUPPORTED"])


def test_artifacts_are_pulled_like_images(door: Door) -> None:
    content = artifact("application/vnd.example", b"one", subject=described(b"gone", MANIFEST))
    door.push(content, "1.0")
    answer = door.ask("GET", "manifests/1.0")
    assert (answer.content_type, answer.data) == (MANIFEST, content)
