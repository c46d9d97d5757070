"""Lists over `/v2`: the distribution-spec's category Content Discovery, and Docker's list of repositories."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from endpoints.v2 import discovery
from test.door import SETTINGS, Door, codes, login
from test.images import CONFIG, MANIFEST
from test.manifests import EMPTY, artifact, described, digest_of, image, index
from test.place import Place
from util.oci import INDEX_OCI

MIXED = ["B", "_", "a", "a-b", "a.b", "aB", "ab", "b", "1", "10", "2", "Z"]


@pytest.fixture
def door(tmp_path: Path) -> Door:
    door = Door(Place(tmp_path, SETTINGS))
    door.blob(b"{}", b"one")
    return door


def tagged(door: Door, *tags: str) -> None:
    content = index([])
    assert door.push(content, f"{digest_of(content)}?" + "&".join(f"tag={tag}" for tag in tags)).status_code == 201


def following(answer: TestResponse) -> str | None:
    """Return the URL of the next page."""
    link = answer.headers.get("Link")
    if link is None:
        return None
    match = re.fullmatch(r'<(/v2/[^>]+)>; rel="next"', link)
    assert match is not None
    return match[1]


def pages(door: Door, path: str, who: str | None = "acme") -> list[Any]:
    """Return the documents of all pages, by their links."""
    found = [door.ask("GET", path, who=who)]
    while (url := following(found[-1])) is not None:
        assert len(found) < 100
        found.append(door.app.test_client().get(url, headers=login(who)))
    assert all(answer.status_code == 200 for answer in found)
    return [json.loads(answer.data) for answer in found]


# --- Tags -------------------------------------------------------------------------------------------------------------


def test_tags_are_listed_in_the_order_of_ascii(door: Door) -> None:
    tagged(door, *MIXED)
    answer = door.ask("GET", "tags/list")
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    assert answer.get_json() == {"name": "acme/app", "tags": sorted(MIXED)}
    assert "Link" not in answer.headers


def test_a_repository_without_tags_has_an_empty_list(door: Door) -> None:
    door.push(index([]), digest_of(index([])))
    assert door.ask("GET", "tags/list").get_json() == {"name": "acme/app", "tags": []}


def test_a_repository_that_does_not_exist_is_not_found(door: Door) -> None:
    for path in ("tags/list", f"referrers/{digest_of(b'')}"):
        answer = door.ask("GET", f"acme/other/{path}")
        assert (answer.status_code, codes(answer)) == (404, ["NAME_UNKNOWN"])


@pytest.mark.parametrize("size", [1, 3, 11, 12, 13, 20_000])
def test_as_many_tags_as_are_asked_for_and_a_link_to_the_others(door: Door, size: int) -> None:
    tagged(door, *MIXED)
    lists = [page["tags"] for page in pages(door, f"tags/list?n={size}")]
    assert [tag for page in lists for tag in page] == sorted(MIXED)
    assert all(len(page) == size for page in lists[:-1])
    assert 0 < len(lists[-1]) <= size


def test_none_are_none_and_no_link(door: Door) -> None:
    tagged(door, *MIXED)
    for query in ("n=0", "n=0&last=a"):
        answer = door.ask("GET", f"tags/list?{query}")
        assert (answer.get_json()["tags"], "Link" in answer.headers) == ([], False)


def test_a_list_begins_behind_the_last_one(door: Door) -> None:
    tagged(door, *MIXED)
    ordered = sorted(MIXED)
    assert door.ask("GET", "tags/list?last=a").get_json()["tags"] == ordered[ordered.index("a") + 1 :]
    assert door.ask("GET", "tags/list?last=a&n=2").get_json()["tags"] == ["a-b", "a.b"]
    assert door.ask("GET", "tags/list?last=aa&n=2").get_json()["tags"] == ["ab", "b"]
    assert door.ask("GET", "tags/list?last=zzz").get_json()["tags"] == []


def test_a_page_may_have_fewer_than_very_many(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_MOST_TAGS", 5)
    tagged(door, *MIXED)
    assert [len(page["tags"]) for page in pages(door, "tags/list?n=1000")] == [5, 5, 2]
    assert len(door.ask("GET", "tags/list").get_json()["tags"]) == 12


@pytest.mark.parametrize("query", ["n=-1", "n=a", "n=1.5", "n=", "n=²", "n=9999999999", "last=%00", "last=%0a"])
def test_a_query_that_makes_no_sense_is_refused(door: Door, query: str) -> None:
    for path in ("tags/list", f"referrers/{digest_of(b'')}"):
        answer = door.ask("GET", f"{path}?{query}")
        assert answer.status_code == 400, query
        assert codes(answer) == ["UNSUPPORTED"]


# --- Referrers --------------------------------------------------------------------------------------------------------


def test_referrers_are_described(door: Door) -> None:
    subject = image(b"one")
    door.push(subject, "1.0")
    to = described(subject, MANIFEST)
    signature = artifact("application/vnd.example.signature", b"one", subject=to, annotations={"a": "b", "c": ""})
    plain, listed = image(b"one", subject=to), index([subject], subject=to, annotations={"d": "ä"})
    for content in (signature, plain, listed):
        assert door.push(content, digest_of(content)).headers["OCI-Subject"] == digest_of(subject)
    answer = door.ask("GET", f"referrers/{digest_of(subject)}")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, INDEX_OCI)
    document = json.loads(answer.data)
    assert (document["schemaVersion"], document["mediaType"]) == (2, INDEX_OCI)
    expected = [
        {
            **described(signature, MANIFEST),
            "artifactType": "application/vnd.example.signature",
            "annotations": {"a": "b", "c": ""},
        },
        {**described(plain, MANIFEST), "artifactType": CONFIG},
        {**described(listed, INDEX_OCI), "annotations": {"d": "ä"}},
    ]
    assert document["manifests"] == sorted(expected, key=lambda each: str(each["digest"]))


def test_what_nobody_refers_to_has_an_empty_index(door: Door) -> None:
    answer = door.ask("GET", f"referrers/{digest_of(b'nothing')}")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, INDEX_OCI)
    assert json.loads(answer.data)["manifests"] == []


def test_referrers_come_before_their_subject(door: Door) -> None:
    subject = image(b"one")
    signature = artifact("application/vnd.example", subject=described(subject, MANIFEST))
    door.push(signature, "signature")
    (found,) = json.loads(door.ask("GET", f"referrers/{digest_of(subject)}").data)["manifests"]
    assert found["digest"] == digest_of(signature)
    door.push(subject, "1.0")
    (found,) = json.loads(door.ask("GET", f"referrers/{digest_of(subject)}").data)["manifests"]
    assert found["digest"] == digest_of(signature)


@pytest.mark.parametrize("digest", ["sha256:bad", "1.0", "md5:" + "0" * 32])
def test_a_digest_that_is_none_is_refused(door: Door, digest: str) -> None:
    answer = door.ask("GET", f"referrers/{digest}")
    assert (answer.status_code, codes(answer)) == (400, ["DIGEST_INVALID"])


def test_referrers_of_one_type(door: Door) -> None:
    to = described(b"gone", MANIFEST)
    kinds = ["application/vnd.example.a+json", "application/vnd.example.b;x=1"]
    for kind in kinds:
        door.push(artifact(kind, subject=to), digest_of(artifact(kind, subject=to)))
    door.push(artifact(None, subject=to), digest_of(artifact(None, subject=to)))
    for kind in (*kinds, EMPTY):
        answer = door.ask("GET", f"referrers/{digest_of(b'gone')}", query_string={"artifactType": kind})
        assert answer.headers["OCI-Filters-Applied"] == "artifactType"
        assert [each["artifactType"] for each in json.loads(answer.data)["manifests"]] == [kind]
    answer = door.ask("GET", f"referrers/{digest_of(b'gone')}?artifactType=other")
    assert (answer.status_code, json.loads(answer.data)["manifests"]) == (200, [])
    assert "OCI-Filters-Applied" not in door.ask("GET", f"referrers/{digest_of(b'gone')}").headers


def test_referrers_page_by_page(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_REFERRERS", 3)
    to = described(b"gone", MANIFEST)
    contents = [artifact("application/a+b", subject=to, annotations={"a": str(at)}) for at in range(7)]
    contents.append(artifact("application/other", subject=to))
    for content in contents:
        door.push(content, digest_of(content))
    for query, wanted in (("", contents), ("?artifactType=application/a%2Bb", contents[:7])):
        lists = [page["manifests"] for page in pages(door, f"referrers/{digest_of(b'gone')}{query}")]
        assert [len(page) for page in lists] == [3, 3, len(wanted) - 6]
        assert sorted(each["digest"] for page in lists for each in page) == sorted(map(digest_of, wanted))


def test_a_referrer_that_is_deleted_is_not_listed(door: Door) -> None:
    content = artifact("application/a", subject=described(b"gone", MANIFEST))
    door.push(content, digest_of(content))
    assert door.ask("DELETE", f"manifests/{digest_of(content)}").status_code == 202
    assert json.loads(door.ask("GET", f"referrers/{digest_of(b'gone')}").data)["manifests"] == []


# --- Repositories -----------------------------------------------------------------------------------------------------


@pytest.fixture
def several(tmp_path: Path) -> Door:
    public = {f"acme/{name}": "private" not in name for name in ("app", "private", "a/b", "zz")}
    public |= {"other/private": False, "other/public": True}
    return Door(Place(tmp_path, {**SETTINGS, "SUPER_USERS": ["root"]}), users=("acme", "other", "root"), public=public)


def listed(door: Door, who: str | None, query: str = "") -> list[str]:
    return [name for page in pages(door, f"_catalog{query}", who) for name in page["repositories"]]


def test_everybody_is_shown_what_they_may_read(several: Door) -> None:
    assert listed(several, None) == ["acme/a/b", "acme/app", "acme/zz", "other/public"]
    assert listed(several, "acme") == ["acme/a/b", "acme/app", "acme/private", "acme/zz", "other/public"]
    assert listed(several, "other") == ["acme/a/b", "acme/app", "acme/zz", "other/private", "other/public"]
    assert len(listed(several, "root")) == 6


@pytest.mark.parametrize("size", [1, 2, 5, 6])
@pytest.mark.parametrize("who", [None, "acme", "root"])
def test_repositories_page_by_page(several: Door, size: int, who: str | None) -> None:
    assert listed(several, who, f"?n={size}") == listed(several, who)
    for page in pages(several, f"_catalog?n={size}", who):
        assert 0 < len(page["repositories"]) <= size


def test_a_list_of_no_repositories(several: Door) -> None:
    answer = several.ask("GET", "_catalog?n=0")
    assert (answer.get_json(), "Link" in answer.headers) == ({"repositories": []}, False)
    assert several.ask("GET", "_catalog?last=zz").get_json() == {"repositories": []}
    assert several.ask("GET", "_catalog?last=acme/app&n=1").get_json() == {"repositories": ["acme/private"]}
    assert several.ask("GET", "_catalog?n=x").status_code == 400


def test_superusers_are_not_shown_everything_where_they_have_no_access(tmp_path: Path) -> None:
    settings = {**SETTINGS, "SUPER_USERS": ["root"], "FEATURE_SUPERUSERS_FULL_ACCESS": False}
    public = {"acme/app": True, "acme/private": False}
    door = Door(Place(tmp_path, settings), users=("acme", "root"), public=public)
    assert listed(door, "root") == ["acme/app"]


def test_nobody_is_shown_anything_where_nobody_may_come(tmp_path: Path) -> None:
    door = Door(Place(tmp_path, {**SETTINGS, "FEATURE_ANONYMOUS_ACCESS": False}))
    answer = door.ask("GET", "_catalog", who=None)
    assert (answer.status_code, codes(answer)) == (401, ["UNAUTHORIZED"])
    assert 'scope="registry:catalog:*"' in answer.headers["WWW-Authenticate"]
    assert listed(door, "acme") == ["acme/app"]


def test_a_token_for_the_list_shows_what_its_account_may_read(several: Door) -> None:
    client = several.app.test_client()

    def token(scope: str) -> dict[str, str]:
        answer = client.get("/v2/auth", query_string={"scope": scope}, headers=login("acme"))
        return {"Authorization": f"Bearer {answer.get_json()['token']}"}

    answer = client.get("/v2/_catalog", headers=token("registry:catalog:*"))
    assert "acme/private" in answer.get_json()["repositories"]
    answer = client.get("/v2/_catalog", headers=token("repository:acme/app:pull"))
    assert (answer.status_code, codes(answer)) == (401, ["UNAUTHORIZED"])


def test_a_host_s_own_check_is_asked_for_each(several: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    from flask import Flask

    from endpoints.extension import RegistryVerbs

    def permission(_: str, repository: str, /, *, public: bool) -> bool:
        return repository in ("private", "zz")

    monkeypatch.setattr(discovery, "_MOST_REPOSITORIES", 2)
    app = Flask("host")
    app.config.update(several.place.configuration)
    RegistryVerbs(app, permission=permission, v2_prefix="/v2")
    assert app.test_client().get("/v2/_catalog").get_json()["repositories"] == [
        "acme/private",
        "acme/zz",
        "other/private",
    ]
