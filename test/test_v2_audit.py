"""What `/v2` leaves behind: a line for every pull, push and deletion with the name of who did it, and counters."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from endpoints.audit import AUDIT, registry_verb
from test.images import Image, Layer
from test.layers import file
from test.people import PASSWORD, People
from test.place import Place

IMAGE = Image([Layer([file(b"etc/hostname", b"here\n")])])
ALICE = {"Authorization": "Basic " + base64.b64encode(f"alice:{PASSWORD}".encode()).decode()}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[FlaskClient]:
    place = Place(tmp_path, {"VERBS_AUDIT_LOG": str(tmp_path / "audit.jsonl")})
    place.services()
    people = People(place.engine)
    people.user("alice")
    people.repository("alice/app")
    place.push("alice/app:1.0", IMAGE)
    app = place.app()
    yield app.test_client()
    log = app.extensions[AUDIT]._file
    if log is not None:
        log.close()


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]


def test_a_pull_is_written_down_with_who_it_was(client: FlaskClient, tmp_path: Path) -> None:
    with client.get("/v2/alice/app/manifests/1.0", headers={**ALICE, "X-Request-ID": "here"}) as answer:
        assert answer.status_code == 200
    (line,) = lines(tmp_path)
    assert (line["who"], line["method"], line["verb"]) == ("alice", "GET", "pull")
    assert (line["namespace"], line["repository"], line["tag"]) == ("alice", "app", "1.0")
    assert (line["status"], line["bytes"], line["complete"]) == (200, len(answer.data), True)
    assert line["request_id"] == "here"


def test_a_token_s_pull_is_its_account_s(client: FlaskClient, tmp_path: Path) -> None:
    token = client.get("/v2/auth?scope=repository:alice/app:pull", headers=ALICE).get_json()["token"]
    client.get("/v2/alice/app/manifests/1.0", headers={"Authorization": f"Bearer {token}"}).close()
    (line,) = lines(tmp_path)
    assert line["who"] == "alice"


def test_what_is_refused_is_written_down(client: FlaskClient, tmp_path: Path) -> None:
    client.put("/v2/alice/app/manifests/2.0", data=b"{}").close()
    client.delete("/v2/alice/app/manifests/1.0", headers={"Authorization": "Basic YTpi"}).close()
    client.get("/v2/UPPER/app/manifests/1.0").close()
    found = [(line["verb"], line["who"], line["status"], line["code"]) for line in lines(tmp_path)]
    assert found == [
        ("push", None, 401, "UNAUTHORIZED"),
        ("delete", None, 401, "UNAUTHORIZED"),
        ("pull", None, 400, "NAME_INVALID"),
    ]
    assert [line["repository"] for line in lines(tmp_path)] == ["app", "app", "UPPER/app"]


def test_to_look_leaves_no_line(client: FlaskClient, tmp_path: Path) -> None:
    client.head("/v2/alice/app/manifests/1.0", headers=ALICE)
    for path in ("/v2/", "/v2/auth", "/v2/alice/app/tags/list", "/v2/_catalog", "/v2/nothing/here"):
        client.get(path, headers=ALICE).close()
    assert lines(tmp_path) == []


def test_requests_are_counted_by_route(client: FlaskClient) -> None:
    def counted() -> dict[str, float]:
        text = client.get("/metrics").text
        samples = (line.rpartition(" ") for line in text.splitlines() if line.startswith("registry_verbs_registry_"))
        return {name: float(value) for name, _, value in samples}

    name = 'registry_verbs_registry_requests_total{route="get_manifest",status="200"}'
    before = counted().get(name, 0)
    client.get("/v2/alice/app/manifests/1.0", headers=ALICE).close()
    client.get("/v2/alice/app/manifests/1.0").close()
    after = counted()
    assert after[name] - before == 1
    assert after['registry_verbs_registry_requests_total{route="get_manifest",status="401"}'] >= 1
    assert after['registry_verbs_registry_sent_bytes_total{route="get_manifest"}'] > 0


@pytest.mark.parametrize(
    ("method", "wanted", "status", "verb"),
    [
        ("GET", {"name", "reference"}, 200, "pull"),
        ("GET", {"name", "digest"}, 404, "pull"),
        ("HEAD", {"name", "digest"}, 200, None),
        ("GET", {"name", "upload_id"}, 204, None),
        ("GET", {"name"}, 200, None),
        ("GET", set(), 200, None),
        ("POST", {"name"}, 202, None),
        ("POST", {"name"}, 201, "push"),
        ("POST", {"name"}, 403, "push"),
        ("PATCH", {"name", "upload_id"}, 202, None),
        ("PATCH", {"name", "upload_id"}, 416, "push"),
        ("PUT", {"name", "upload_id"}, 201, "push"),
        ("PUT", {"name", "reference"}, 400, "push"),
        ("DELETE", {"name", "upload_id"}, 204, None),
        ("DELETE", {"name", "reference"}, 202, "delete"),
        ("OPTIONS", {"name", "reference"}, 200, None),
        ("POST", set(), 200, None),
    ],
)
def test_what_a_request_was(method: str, wanted: set[str], status: int, verb: str | None) -> None:
    assert registry_verb(method, wanted, status) == verb
