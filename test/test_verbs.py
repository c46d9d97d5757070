"""The verbs over HTTP: URLs, statuses and headers, as a client sees them."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from test.images import Image, Layer
from test.layers import directory, file, whiteout
from test.place import Place
from test.waiting import eventually, storing_is_waited_for

BASE = Layer([directory(b"etc"), file(b"etc/hostname", b"base\n"), file(b"etc/gone", b"gone\n")])
TOP = Layer([whiteout(b"etc/gone"), file(b"etc/motd", b"hello\n")], wrapping="zstd")
RUN = {"Entrypoint": ["/bin/app"], "Env": ["PATH=/bin"], "Labels": {"made": "by hand"}}
AMD64 = Image([BASE, TOP], run=RUN)
ARM64 = Image([BASE, Layer([file(b"etc/arm")])], platform="linux/arm64")


@pytest.fixture(autouse=True)
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every image be stored before the end of its bytes."""
    storing_is_waited_for(monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Return a place with images for one platform and for two, nested, private, empty, and with a chart."""
    place = Place(tmp_path_factory.mktemp("place"))
    place.push("acme/app:1.0", AMD64)
    place.push("acme/app:2.0", AMD64, ARM64)
    place.push("acme/deeply/nested:1.0", AMD64)
    place.push("acme/secret:1.0", AMD64, private=True)
    place.push("acme/empty:1.0", Image())
    place.push_artifact("acme/chart:1.0")
    return place


@pytest.fixture
def client(place: Place) -> FlaskClient:
    return place.app().test_client()


def names(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getnames()


def error(answer: TestResponse) -> tuple[int, str, str]:
    """Return an answer's status, and the code and message of the one error in it."""
    assert answer.content_type == "application/json"
    (one,) = json.loads(answer.data)["errors"]
    assert set(one) == {"code", "message", "detail"}
    return answer.status_code, one["code"], one["message"]


# --- What is answered -------------------------------------------------------------------------------------------------


def test_the_ping_answers_true(client: FlaskClient) -> None:
    answer = client.get("/c1/_internal_ping")
    assert (answer.status_code, answer.data) == (200, b"true")


def test_the_verbs_are_listed(client: FlaskClient) -> None:
    listed = client.get("/c1/").get_json()
    assert {"aci", "rootfs", "squash"} <= {each["verb"] for each in listed["verbs"]}
    assert listed["compression"] == ["none", "gzip", "zstd"]


def test_each_verb_is_listed_with_a_line_to_copy(client: FlaskClient) -> None:
    listed = {each["verb"]: each for each in client.get("/c1/").get_json()["verbs"]}
    assert (
        listed["squash"]["usage"] == "curl -fL http://localhost/c1/squash/{namespace}/{repository}/{tag} | docker load"
    )
    assert {each["unavailable"] for each in listed.values()} == {None}
    assert [*listed["ext4"]["options"]] == ["spare"]
    assert listed["squash"]["options"] == {}
    for each in listed.values():
        assert each["url"] in each["usage"]
        assert each["summary"]
        assert each["media_type"]


def test_a_verb_whose_program_is_missing_is_listed_with_the_reason_and_answers_501(
    client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    listed = {each["verb"]: each for each in client.get("/c1/").get_json()["verbs"]}
    reason = listed["squashfs"]["unavailable"]
    assert reason.startswith("tar2sqfs is not installed (Debian package squashfs-tools-ng); mksquashfs ")
    assert listed["ext4"]["unavailable"] is None
    for url in ("/c1/squashfs/acme/app/1.0", "/c1/squashfs/acme/app/1.0.sha256"):
        told = (501, "VERB_UNAVAILABLE", f"squashfs cannot be made here: {reason}")
        assert error(client.get(url)) == told
        assert client.head(url).status_code == 501
    assert client.get("/c1/squashfs/acme/absent/1.0").status_code == 401
    assert client.get("/c1/squashfs/acme/app/9.9").status_code == 404


def test_a_program_that_fails_is_an_error_before_the_first_byte_and_leaves_nothing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.push("acme/failing:1.0", AMD64)
    program = tmp_path / "tar2sqfs"
    version = "[ $1 = --version ] && echo tar2sqfs 9.9 && exit"
    program.write_text(f"#!/bin/sh\n{version}\ncat >/dev/null; echo full >&2; exit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    answer = place.app().test_client().get("/c1/squashfs/acme/failing/1.0")
    assert error(answer) == (500, "PROGRAM_FAILED", "tar2sqfs ended with status 3: full")
    eventually(lambda: not os.listdir(place.services().settings.spool_dir))
    monkeypatch.undo()
    assert place.app().test_client().get("/c1/squashfs/acme/failing/1.0").data.startswith(b"hsqs")


@pytest.mark.parametrize(
    ("verb", "media_type", "begin"),
    [
        ("squashfs", "application/vnd.squashfs", b"hsqs"),
        ("ext4", "application/x-raw-disk-image", bytes(1024)),
    ],
)
def test_a_file_system_is_served_like_every_image(
    client: FlaskClient, verb: str, media_type: str, begin: bytes
) -> None:
    url = f"/c1/{verb}/acme/app/1.0"
    answer = client.get(url)
    assert (answer.status_code, answer.content_type) == (200, media_type)
    assert answer.data.startswith(begin)
    assert answer.headers["Content-Disposition"] == f'attachment; filename="acme_app_1.0-linux-amd64.{verb}"'
    head, part = client.head(url), client.get(url, headers={"Range": "bytes=1020-1099"})
    assert (head.content_length, head.headers["ETag"]) == (len(answer.data), answer.headers["ETag"])
    assert (part.status_code, part.data) == (206, answer.data[1020:1100])
    assert client.get(url, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304
    checksum = client.get(f"{url}.sha256").data.decode()
    assert checksum == f"{hashlib.sha256(answer.data).hexdigest()}  acme_app_1.0-linux-amd64.{verb}\n"
    wrapped = client.get(f"{url}?compression=gzip")
    assert (wrapped.content_type, gzip.decompress(wrapped.data)) == ("application/gzip", answer.data)


def test_an_option_of_the_format_is_asked_for_as_a_parameter(client: FlaskClient) -> None:
    url, query = "/c1/ext4/acme/app/1.0", "?spare=1M"
    head = client.head(f"{url}{query}")
    part = client.get(f"{url}{query}", headers={"Range": "bytes=1020-1099"})
    default, answer = client.get(url), client.get(f"{url}{query}")
    assert head.content_length == len(answer.data) < len(default.data) - (50 << 20)
    assert (part.status_code, part.data) == (206, answer.data[1020:1100])
    assert head.headers["ETag"] == answer.headers["ETag"] != default.headers["ETag"]
    assert client.get(f"{url}?spare=1024K").headers["ETag"] == answer.headers["ETag"]
    assert client.get(f"{url}?spare=64M").headers["ETag"] == default.headers["ETag"]
    stored = client.get(f"{url}{query}", headers={"Range": "bytes=1020-1099"})
    assert (stored.status_code, stored.data) == (206, answer.data[1020:1100])
    checksum = client.get(f"{url}.sha256{query}").data.decode()
    assert checksum == f"{hashlib.sha256(answer.data).hexdigest()}  acme_app_1.0-linux-amd64.ext4\n"
    listed = client.get(f"/c1/ext4/acme/app/SHA256SUMS{query}").data.decode()
    assert listed.split() == [checksum.split()[0], "1.0"]
    wrapped = client.get(f"{url}{query}&compression=gzip")
    assert gzip.decompress(wrapped.data) == answer.data


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("spare=lots", "spare is 'lots'; allowed: 0, or 1M, 2M, 4M and so on up to 16G"),
        ("spare=", "spare is ''; allowed: 0, or 1M, 2M, 4M and so on up to 16G"),
        ("spare=3M", "spare is '3M'; allowed: 0, or 1M, 2M, 4M and so on up to 16G"),
        ("spare=32G", "spare is '32G'; allowed: 0, or 1M, 2M, 4M and so on up to 16G"),
    ],
)
def test_an_option_with_a_value_that_is_not_allowed_is_answered_with_what_is(
    client: FlaskClient, query: str, told: str
) -> None:
    for url in ("/c1/ext4/acme/app/1.0", "/c1/ext4/acme/app/1.0.sha256", "/c1/ext4/acme/app/9.9"):
        assert error(client.get(f"{url}?{query}")) == (400, "OPTION_INVALID", told)


def test_an_option_that_is_given_twice_is_refused(client: FlaskClient) -> None:
    answer = client.get("/c1/ext4/acme/app/1.0?spare=1M&spare=1M")
    assert error(answer) == (400, "QUERY_INVALID", "spare is given 2 times; allowed: once")


def test_a_parameter_that_is_none_of_the_format_s_options_is_passed_over(client: FlaskClient) -> None:
    for verb, query in (("rootfs", "spare=lots"), ("ext4", "spore=1G")):
        url = f"/c1/{verb}/acme/app/1.0"
        assert client.head(f"{url}?{query}").headers["ETag"] == client.head(url).headers["ETag"]


def test_a_part_of_a_file_system_that_is_not_made_is_a_part_of_what_will_be(place: Place) -> None:
    place.push("acme/parts:1.0", AMD64)
    client = place.app().test_client()
    for verb, planned in (("ext4", True), ("squashfs", False)):
        url = f"/c1/{verb}/acme/parts/1.0"
        assert ("Content-Length" in client.head(url).headers) == planned
        part = client.get(url, headers={"Range": "bytes=1000-1999"})
        whole = client.get(url).data
        assert part.data == (whole[1000:2000] if part.status_code == 206 else whole)
        assert part.status_code == 206 or not planned


def test_the_root_leads_to_the_list(client: FlaskClient) -> None:
    assert 'href="http://registry.example.com/c1/"' in client.get("/").text


def test_a_rootfs_is_plain_and_has_its_exact_length(client: FlaskClient) -> None:
    answer = client.get("/c1/rootfs/acme/app/1.0")
    assert answer.status_code == 200
    assert answer.content_length == len(answer.data)
    assert {name.rstrip("/") for name in names(answer.data)} >= {"etc", "etc/hostname", "etc/motd"}
    assert "etc/gone" not in names(answer.data)
    assert answer.headers["Content-Disposition"] == 'attachment; filename="acme_app_1.0-linux-amd64.tar"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_squashed_image_is_gzip_unless_another_compression_is_asked_for(client: FlaskClient) -> None:
    default = client.get("/c1/squash/acme/app/1.0")
    plain = client.get("/c1/squash/acme/app/1.0?compression=none")
    zstd = client.get("/c1/squash/acme/app/1.0?compression=zstd")
    assert default.mimetype == "application/gzip"
    assert zstd.mimetype == "application/zstd"
    assert gzip.decompress(default.data) == plain.data
    assert zstandard.ZstdDecompressor().decompressobj().decompress(zstd.data) == plain.data
    assert plain.content_length == len(plain.data)
    assert "manifest.json" in names(plain.data)
    assert len({answer.headers["ETag"] for answer in (default, plain, zstd)}) == 3
    assert [answer.headers["Content-Disposition"].rpartition("amd64")[2] for answer in (default, plain, zstd)] == [
        '.tar.gz"',
        '.tar"',
        '.tar.zst"',
    ]


def test_an_aci_is_called_aci_whatever_it_is_wrapped_in(client: FlaskClient) -> None:
    for compression in ("none", "gzip"):
        answer = client.get(f"/c1/aci/acme/app/1.0?compression={compression}")
        assert 'filename="acme_app_1.0-linux-amd64.aci"' in answer.headers["Content-Disposition"]


def test_discovery_s_url_gives_the_same_aci(client: FlaskClient) -> None:
    found = client.get("/c1/aci/registry.example.com/acme/app/1.0/aci/linux/amd64/")
    asked = client.get("/c1/aci/acme/app/1.0?platform=linux/amd64")
    assert found.status_code == 200
    assert found.data == asked.data


def test_discovery_s_url_takes_the_architecture_in_appc_s_own_name(client: FlaskClient) -> None:
    answer = client.get("/c1/aci/registry.example.com/acme/app/2.0/aci/linux/aarch64/")
    assert answer.status_code == 200
    assert "linux-arm64" in answer.headers["Content-Disposition"]


def test_discovery_s_url_reaches_nested_repositories(client: FlaskClient) -> None:
    answer = client.get("/c1/aci/registry.example.com/acme/deeply/nested/1.0/aci/linux/amd64/")
    assert answer.status_code == 200


def test_a_nested_repository_is_named_as_it_is(client: FlaskClient) -> None:
    answer = client.get("/c1/rootfs/acme/deeply/nested/1.0")
    assert answer.status_code == 200
    assert "acme_deeply_nested_1.0-linux-amd64.tar" in answer.headers["Content-Disposition"]


def test_a_platform_is_chosen_from_an_image_index(client: FlaskClient) -> None:
    default, arm64 = (client.get(f"/c1/rootfs/acme/app/2.0{query}") for query in ("", "?platform=linux/arm64/v8"))
    assert "etc/motd" in names(default.data)
    assert "etc/arm" in names(arm64.data)
    assert default.headers["ETag"] != arm64.headers["ETag"]


def test_a_manifest_s_digest_stands_for_a_tag(client: FlaskClient, place: Place) -> None:
    digest = place.push("acme/app:1.0", AMD64)
    answer = client.get(f"/c1/rootfs/acme/app/{digest}")
    assert answer.status_code == 200
    assert f"acme_app_{digest.replace(':', '-')[:19]}-linux-amd64.tar" in answer.headers["Content-Disposition"]


def test_an_image_without_layers_is_an_image(client: FlaskClient) -> None:
    for verb in ("squash", "aci", "rootfs"):
        answer = client.get(f"/c1/{verb}/acme/empty/1.0?compression=none")
        assert answer.status_code == 200, answer.data
        assert answer.content_length == len(answer.data)


# --- Again, and in part -----------------------------------------------------------------------------------------------


def test_the_second_answer_comes_from_storage_and_is_the_same(place: Place, client: FlaskClient) -> None:
    first = client.get("/c1/squash/acme/app/1.0")
    kept = place.derived()
    second = client.get("/c1/squash/acme/app/1.0")
    assert first.data == second.data
    assert first.headers["ETag"] == second.headers["ETag"]
    assert first.headers["ETag"].strip('"') in kept
    assert second.content_length == len(second.data)
    assert second.headers["Accept-Ranges"] == "bytes"


def test_who_has_it_is_told_so(client: FlaskClient) -> None:
    etag = client.get("/c1/squash/acme/app/1.0").headers["ETag"]
    assert etag.startswith('"')
    for method in (client.get, client.head):
        answer = method("/c1/squash/acme/app/1.0", headers={"If-None-Match": f'"other", {etag}'})
        assert (answer.status_code, answer.data) == (304, b"")
        assert answer.headers["ETag"] == etag


def test_who_has_another_gets_it(client: FlaskClient) -> None:
    assert client.get("/c1/rootfs/acme/app/1.0", headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_range_of_a_kept_image_is_answered(client: FlaskClient) -> None:
    whole = client.get("/c1/rootfs/acme/app/1.0")
    part = client.get("/c1/rootfs/acme/app/1.0", headers={"Range": "bytes=100-199"})
    rest = client.get("/c1/rootfs/acme/app/1.0", headers={"Range": "bytes=200-"})
    last = client.get("/c1/rootfs/acme/app/1.0", headers={"Range": "bytes=-10"})
    assert (part.status_code, part.data) == (206, whole.data[100:200])
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(whole.data)}"
    assert part.content_length == 100
    assert rest.data == whole.data[200:]
    assert last.data == whole.data[-10:]


def test_a_range_beyond_the_end_is_refused_with_the_length(client: FlaskClient) -> None:
    size = len(client.get("/c1/rootfs/acme/app/1.0").data)
    answer = client.get("/c1/rootfs/acme/app/1.0", headers={"Range": f"bytes={size}-"})
    assert error(answer)[:2] == (416, "REQUESTED_RANGE_NOT_SATISFIABLE")
    assert answer.headers["Content-Range"] == f"bytes */{size}"


def test_a_range_of_what_has_changed_is_answered_with_the_whole(client: FlaskClient) -> None:
    whole = client.get("/c1/rootfs/acme/app/1.0")
    headers = {"Range": "bytes=100-199"}
    same = client.get("/c1/rootfs/acme/app/1.0", headers={**headers, "If-Range": whole.headers["ETag"]})
    other = client.get("/c1/rootfs/acme/app/1.0", headers={**headers, "If-Range": '"other"'})
    dated = client.get("/c1/rootfs/acme/app/1.0", headers={**headers, "If-Range": "Sat, 01 Jan 2000 00:00:00 GMT"})
    assert [answer.status_code for answer in (same, other, dated)] == [206, 200, 200]
    assert other.data == dated.data == whole.data


# --- HEAD -------------------------------------------------------------------------------------------------------------


def test_head_has_the_headers_of_get_and_makes_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.push("acme/app:1.0", AMD64)
    client = place.app().test_client()
    urls = ("/c1/rootfs/acme/app/1.0", "/c1/aci/acme/app/1.0?compression=none")
    same = {"X-Request-ID": "same"}
    heads = [client.head(url, headers=same) for url in urls]
    assert {(head.status_code, head.data) for head in heads} == {(200, b"")}
    assert place.derived() == []
    for url, head in zip(urls, heads, strict=True):
        made = client.get(url, headers=same)
        content = made.data  # to its end, and the next one is stored
        stored = client.get(url, headers=same)
        assert dict(head.headers) == dict(made.headers)
        assert dict(client.head(url, headers=same).headers) == dict(stored.headers)
        assert stored.data == content


def test_head_promises_no_length_that_only_making_it_would_tell(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.push("acme/app:1.0", AMD64)
    client = place.app().test_client()
    assert client.head("/c1/squash/acme/app/1.0").content_length is None
    size = len(client.get("/c1/squash/acme/app/1.0").data)
    assert client.head("/c1/squash/acme/app/1.0").content_length == size


def test_head_reads_no_layer(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.push("acme/app:1.0", AMD64)
    place.forget_indexes()
    for blob in map(place.blob, AMD64.layers):
        blob.write_bytes(bytes(blob.stat().st_size))  # what reads it would fail
    head = place.app().test_client().head("/c1/rootfs/acme/app/1.0")
    assert head.status_code == 200
    assert "Content-Length" not in head.headers


def test_head_of_what_is_not_there_is_an_error_without_a_body(client: FlaskClient) -> None:
    answer = client.head("/c1/rootfs/acme/app/9.9")
    assert (answer.status_code, answer.data) == (404, b"")


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_a_missing_tag_is_answered_with_those_there_are(client: FlaskClient) -> None:
    answer = client.get("/c1/squash/acme/app/9.9")
    status, code, message = error(answer)
    assert (status, code) == (404, "TAG_UNKNOWN")
    assert "9.9" in message
    assert set(answer.get_json()["errors"][0]["detail"]["existing"]) == {"1.0", "2.0"}


def test_a_missing_manifest_is_not_found(client: FlaskClient) -> None:
    assert error(client.get(f"/c1/squash/acme/app/sha256:{'0' * 64}"))[0] == 404


def test_a_digest_that_is_none_is_not_found(client: FlaskClient) -> None:
    assert error(client.get("/c1/squash/acme/app/sha256:zzz"))[0] in {404, 422}


@pytest.mark.parametrize(
    ("path", "code", "named"),
    [
        ("bundle/acme/empty/1.0", "RUNTIME_CONFIG_INEXPRESSIBLE", "config.Entrypoint and config.Cmd"),
        ("bundle/acme/odd/eve", "USER_UNKNOWN", "'eve'"),
        ("incus/acme/odd/wasm", "INCUS_ARCHITECTURE_INEXPRESSIBLE", "linux/wasm"),
        ("aci/acme/odd/wasm", "APPC_PLATFORM_INEXPRESSIBLE", "linux/wasm"),
        ("wsl/acme/odd/wasm", "WSL_INEXPRESSIBLE", "linux/wasm"),
        ("wsl/acme/app/1.0", "WSL_INEXPRESSIBLE", "etc/passwd"),
    ],
)
def test_what_a_format_has_no_word_for_is_refused_and_named(
    place: Place, client: FlaskClient, path: str, code: str, named: str
) -> None:
    place.push("acme/odd:eve", Image([BASE], run={**RUN, "User": "eve"}))
    place.push("acme/odd:wasm", Image([BASE], platform="linux/wasm", run=RUN))
    status, told, message = error(client.get(f"/c1/{path}"))
    assert (status, told) == (422, code)
    assert named in message


def test_a_missing_platform_is_answered_with_those_there_are(client: FlaskClient) -> None:
    answer = client.get("/c1/rootfs/acme/app/2.0?platform=linux/s390x")
    status, code, message = error(answer)
    assert (status, code) == (404, "PLATFORM_UNKNOWN")
    assert "linux/amd64, linux/arm64" in message
    assert answer.get_json()["errors"][0]["detail"] == {"existing": ["linux/amd64", "linux/arm64"]}


def test_an_image_for_one_platform_is_no_image_for_another(client: FlaskClient) -> None:
    assert error(client.get("/c1/rootfs/acme/app/1.0?platform=linux/arm64"))[:2] == (404, "PLATFORM_UNKNOWN")


def test_an_architecture_that_appc_does_not_know_is_not_found(client: FlaskClient) -> None:
    status, _, message = error(client.get("/c1/aci/registry.example.com/acme/app/1.0/aci/linux/vax/"))
    assert status == 404
    assert "vax" in message


def test_an_unknown_verb_is_answered_with_those_there_are(client: FlaskClient) -> None:
    status, code, message = error(client.get("/c1/floppy/acme/app/1.0"))
    assert (status, code) == (404, "VERB_UNKNOWN")
    assert "squash" in message


@pytest.mark.parametrize("url", ["/c1/squash/acme/app", "/c1/squash", "/c1/squash/acme/app/", "/c1/aci/h/a/b/c/aci/x/"])
def test_what_is_no_url_of_ours_is_answered_with_how_they_look(client: FlaskClient, url: str) -> None:
    status, code, message = error(client.get(url))
    assert (status, code) == (404, "NOT_FOUND")
    assert "/c1/VERB/NAMESPACE/REPOSITORY/TAG" in message


def test_another_method_is_refused_in_json(client: FlaskClient) -> None:
    answer = client.delete("/c1/squash/acme/app/1.0")
    assert error(answer)[:2] == (405, "METHOD_NOT_ALLOWED")
    assert "GET" in answer.headers["Allow"]


@pytest.mark.parametrize(
    ("query", "allowed"),
    [
        ("compression=xz", "none, gzip, zstd"),
        ("compression=", "none, gzip, zstd"),
        ("platform=amd64", "linux/amd64"),
        ("platform=", "linux/amd64"),
        ("platform=linux/amd64&platform=linux/arm64", "once"),
    ],
)
def test_a_query_value_that_is_not_allowed_is_answered_with_what_is(
    client: FlaskClient, query: str, allowed: str
) -> None:
    status, code, message = error(client.get(f"/c1/squash/acme/app/1.0?{query}"))
    assert (status, code) == (400, "QUERY_INVALID")
    assert allowed in message


def test_an_artifact_is_no_image(client: FlaskClient) -> None:
    status, code, message = error(client.get("/c1/squash/acme/chart/1.0"))
    assert (status, code) == (415, "NOT_AN_IMAGE")
    assert "helm" in message


def test_a_private_repository_and_one_that_is_not_there_are_told_apart_by_nothing(client: FlaskClient) -> None:
    for url in ("/c1/squash/acme/{}/1.0", "/c1/squash/acme/{}/9.9", "/c1/squash/acme/{}/1.0?platform=linux/vax"):
        private, absent = (client.get(url.format(name)) for name in ("secret", "absent"))
        assert error(private)[:2] == (401, "UNAUTHORIZED")
        assert private.data.replace(b"secret", b"absent") == absent.data
        assert list(private.headers.keys()) == list(absent.headers.keys())


def test_without_anonymous_access_nobody_reads_anything(place: Place) -> None:
    client = Place(place.folder, {"FEATURE_ANONYMOUS_ACCESS": False}).app().test_client()
    assert error(client.get("/c1/squash/acme/app/1.0"))[:2] == (401, "UNAUTHORIZED")


def test_a_disabled_namespace_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.push("acme/app:1.0", AMD64)
    place.sql('UPDATE "user" SET enabled = 0')
    assert error(place.app().test_client().get("/c1/squash/acme/app/1.0"))[:2] == (400, "NAMESPACE_DISABLED")


def test_a_repository_of_another_kind_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.push("acme/app:1.0", AMD64)
    place.sql("UPDATE repository SET kind_id = (SELECT id FROM repositorykind WHERE name = 'application')")
    answer = place.app().test_client().get("/c1/squash/acme/app/1.0")
    assert error(answer)[:2] == (405, "REPOSITORY_KIND_UNSUPPORTED")


def test_what_nobody_foresaw_is_an_error_that_tells_the_client_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = place.app()
    monkeypatch.setattr("endpoints.derive.Deriver.resolve", _raises(RuntimeError("the password is hunter2")))
    answer = app.test_client().get("/c1/squash/acme/app/1.0")
    assert error(answer)[:2] == (500, "UNKNOWN")
    assert b"hunter2" not in answer.data
    assert "the password is hunter2" in caplog.text


def _raises(exception: Exception) -> Any:
    def raising(*_: object) -> None:
        raise exception

    return raising
