"""Tags and manifests that are deleted over `/v2`: the distribution-spec's category Content Management."""

from pathlib import Path

import pytest
from sqlalchemy import update

from data.database import writing
from data.tables import Repository
from test.door import SETTINGS, Door, codes
from test.manifests import digest_of, image, index
from test.place import Place

ONE = image(b"one")


@pytest.fixture
def door(tmp_path: Path) -> Door:
    door = Door(Place(tmp_path, SETTINGS), users=("acme", "stranger"))
    door.blob(b"{}", b"one")
    return door


def test_a_tag_is_deleted(door: Door) -> None:
    for tag in ("1.0", "2.0"):
        door.push(ONE, tag)
    answer = door.ask("DELETE", "manifests/1.0")
    assert (answer.status_code, answer.data) == (202, b"")
    for method in ("GET", "HEAD"):
        assert door.ask(method, "manifests/1.0").status_code == 404
    assert door.there("2.0")
    assert door.there(digest_of(ONE))
    assert door.ask("GET", "tags/list").get_json()["tags"] == ["2.0"]


def test_the_last_tag_that_is_deleted_takes_the_manifest_along(door: Door) -> None:
    door.push(ONE, "1.0")
    assert door.ask("DELETE", "manifests/1.0").status_code == 202
    assert not door.there(digest_of(ONE))
    assert door.push(ONE, "1.0").status_code == 201
    assert door.there("1.0")


def test_a_manifest_is_deleted_with_all_its_tags(door: Door) -> None:
    for reference in ("1.0", "2.0", digest_of(ONE)):
        door.push(ONE, reference)
    answer = door.ask("DELETE", f"manifests/{digest_of(ONE)}")
    assert (answer.status_code, answer.data) == (202, b"")
    assert not any(door.there(reference) for reference in ("1.0", "2.0", digest_of(ONE)))
    assert door.ask("GET", "tags/list").get_json()["tags"] == []


@pytest.mark.parametrize("reference", ["1.0", digest_of(ONE), ".invalid", "a" * 200, "%00"])
def test_what_is_not_there_is_not_found(door: Door, reference: str) -> None:
    answer = door.ask("DELETE", f"manifests/{reference}")
    assert (answer.status_code, codes(answer)) == (404, ["MANIFEST_UNKNOWN"])


def test_what_was_deleted_is_not_found_again(door: Door) -> None:
    for reference in ("1.0", digest_of(ONE)):
        door.push(ONE, reference)
        assert door.ask("DELETE", f"manifests/{reference}").status_code == 202
        answer = door.ask("DELETE", f"manifests/{reference}")
        assert (answer.status_code, codes(answer)) == (404, ["MANIFEST_UNKNOWN"])


def test_a_repository_that_does_not_exist_is_not_found(door: Door) -> None:
    for reference in ("1.0", digest_of(ONE)):
        answer = door.ask("DELETE", f"acme/other/manifests/{reference}")
        assert (answer.status_code, codes(answer)) == (404, ["NAME_UNKNOWN"])
    assert door.ask("GET", "acme/other/tags/list").status_code == 404


def test_a_digest_that_is_none_is_refused(door: Door) -> None:
    answer = door.ask("DELETE", "manifests/sha256:bad")
    assert (answer.status_code, codes(answer)) == (400, ["DIGEST_INVALID"])


def test_a_manifest_in_an_index_is_the_index_s(door: Door) -> None:
    door.push(ONE, "child")
    holder = index([ONE])
    door.push(holder, "1.0")
    answer = door.ask("DELETE", f"manifests/{digest_of(ONE)}")
    assert (answer.status_code, codes(answer)) == (405, ["UNSUPPORTED"])
    assert digest_of(holder) in answer.get_json()["errors"][0]["message"]
    assert door.there("child")
    assert door.ask("DELETE", f"manifests/{digest_of(holder)}").status_code == 202
    assert door.ask("DELETE", f"manifests/{digest_of(ONE)}").status_code == 202
    assert not door.there(digest_of(ONE))


def test_who_may_not_delete_is_refused(door: Door) -> None:
    door.push(ONE, "1.0")
    for who, status, code in ((None, 401, "UNAUTHORIZED"), ("stranger", 403, "DENIED")):
        for reference in ("1.0", "none", digest_of(ONE), digest_of(b"none"), "sha256:bad"):
            answer = door.ask("DELETE", f"manifests/{reference}", who=who)
            assert (answer.status_code, codes(answer)) == (status, [code])
    assert door.there("1.0")


@pytest.mark.parametrize("state", [1, 2, 4])  # read-only, a mirror, a mirror of an organization
def test_a_repository_that_is_read_only_or_a_mirror_is_pulled_and_not_changed(door: Door, state: int) -> None:
    door.push(ONE, "1.0")
    begun = door.ask("POST", "blobs/uploads/").headers["Location"]
    with writing(door.services.engine) as connection:
        connection.execute(update(Repository).values(state=state))
    answers = [
        door.push(ONE, "2.0"),
        door.ask("DELETE", "manifests/1.0"),
        door.ask("DELETE", f"blobs/{digest_of(b'one')}"),
        door.ask("POST", "blobs/uploads/"),
        door.ask("PATCH", begun.removeprefix(f"/v2/{door.name}/"), data=b"x"),
    ]
    assert [(answer.status_code, codes(answer)) for answer in answers] == [(405, ["UNSUPPORTED"])] * 5
    assert door.there("1.0")
    assert not door.there("2.0")
