"""What becomes of problems over `/v2`: statuses, and the codes that the distribution-spec has."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

import data
import endpoints
import formats
import util
from data.registry import RegistryUnavailable
from data.storage.base import StorageUnavailable
from endpoints.extension import RegistryVerbs
from endpoints.v2 import answers
from endpoints.v2.answers import CODES, code_of, status_of
from test.place import Place
from util.digest import DigestMismatch
from util.problem import Damaged, Malformed, Missing, Problem, TooLarge


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return Place(tmp_path).app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def error(answer: TestResponse) -> tuple[int, str]:
    assert answer.content_type == "application/json"
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    assert answer.headers["Cache-Control"] == "no-store"
    (one,) = json.loads(answer.data)["errors"]
    assert set(one) == {"code", "message", "detail"}
    assert one["code"] in CODES
    return answer.status_code, one["code"]


# --- Codes ------------------------------------------------------------------------------------------------------------


def problems(kind: type[Problem] = Problem) -> Iterator[type[Problem]]:
    """Return every kind of problem of ours that is imported, and that is all that the service may raise."""
    for each in kind.__subclasses__():
        if each.__module__.partition(".")[0] in {module.__name__ for module in (data, endpoints, formats, util)}:
            yield each
        yield from problems(each)


def test_every_problem_has_a_code_that_the_specification_knows(app: Flask) -> None:
    """And a status that is an error; one of the server's own only where it is the server's fault."""
    for kind in set(problems()):
        problem = kind.__new__(kind)
        for method in ("GET", "PUT"):
            with app.test_request_context("/v2/", method=method):
                assert code_of(problem) in CODES, kind
                assert 400 <= status_of(problem) < 600, kind


@pytest.mark.parametrize(
    ("kind", "method", "expected"),
    [
        (DigestMismatch, "PUT", (400, "DIGEST_INVALID")),
        (DigestMismatch, "GET", (502, "DIGEST_INVALID")),
        (Damaged, "GET", (502, "BLOB_UNKNOWN")),
        (Malformed, "PUT", (400, "MANIFEST_INVALID")),
        (Missing, "GET", (404, "MANIFEST_UNKNOWN")),
        (TooLarge, "PUT", (413, "SIZE_INVALID")),
        (StorageUnavailable, "GET", (503, "TOOMANYREQUESTS")),
        (RegistryUnavailable, "GET", (503, "TOOMANYREQUESTS")),
        (Problem, "GET", (500, "UNSUPPORTED")),
    ],
)
def test_a_problem_s_kind_decides(app: Flask, kind: type[Problem], method: str, expected: tuple[int, str]) -> None:
    with app.test_request_context("/v2/", method=method):
        answer = answers.of_problem(kind("it is so"))
    (one,) = json.loads(answer.data)["errors"]
    assert (answer.status_code, one["code"], one["message"]) == (*expected, "it is so")
    assert ("Retry-After" in answer.headers) == (answer.status_code == 503)


# --- What is no route -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_what_is_no_url_is_told_in_the_specification_s_form(client: FlaskClient, method: str) -> None:
    for path in ("/v2/acme", "/v2/acme/app/nothing/x", "/v2/acme/app/manifests/", "/v2/\N{SNOWMAN}"):
        assert error(client.open(path, method=method)) == (404, "NAME_UNKNOWN")


def test_a_url_with_another_method_says_which_it_takes(client: FlaskClient) -> None:
    answer = client.post("/v2/acme/app/manifests/1.0")
    assert error(answer) == (405, "UNSUPPORTED")
    assert {method.strip() for method in answer.headers["Allow"].split(",")} == {"GET", "PUT", "DELETE"}
    assert error(client.put("/v2/auth")) == (405, "UNSUPPORTED")
    assert error(client.delete("/v2/acme/app/tags/list")) == (405, "UNSUPPORTED")


def test_v2_without_a_slash_is_the_same(client: FlaskClient) -> None:
    with_slash, without = client.get("/v2/"), client.get("/v2")
    assert (without.status_code, without.data) == (with_slash.status_code, with_slash.data)
    assert without.headers["Docker-Distribution-API-Version"] == "registry/2.0"


def test_what_nobody_foresaw_tells_nothing(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(type(app.extensions["registry_verbs"].registry), "repository", fail)
    answer = app.test_client().get("/v2/acme/app/manifests/1.0")
    assert error(answer) == (500, "UNSUPPORTED")
    assert b"secret" not in answer.data


def test_a_registry_that_is_away_is_a_503_that_says_when_to_come_back(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RegistryUnavailable("it is away")

    monkeypatch.setattr(type(app.extensions["registry_verbs"].registry), "repository", fail)
    for path in ("/v2/acme/app/manifests/1.0", "/v2/auth?scope=repository:acme/app:pull"):
        answer = app.test_client().get(path)
        assert error(answer) == (503, "TOOMANYREQUESTS")
        assert int(answer.headers["Retry-After"]) > 0


# --- In a host --------------------------------------------------------------------------------------------------------


def test_a_host_chooses_the_prefix_and_the_challenge_knows_it(tmp_path: Path) -> None:
    host = Flask("host")
    host.config.update(Place(tmp_path).configuration)
    RegistryVerbs(host, v2_prefix="/registry/v2")
    client = host.test_client()
    answer = client.get("/registry/v2/")
    assert error(answer) == (401, "UNAUTHORIZED")
    assert 'realm="http://localhost/registry/v2/auth"' in answer.headers["WWW-Authenticate"]
    assert client.get("/registry/v2/auth").status_code == 200
    assert error(client.get("/registry/v2/nothing")) == (404, "NAME_UNKNOWN")
    assert client.get("/v2/").mimetype == "text/html"


def test_a_host_has_no_registry_unless_it_asks_for_one(tmp_path: Path) -> None:
    host = Flask("host")
    host.config.update(Place(tmp_path).configuration)
    RegistryVerbs(host)
    assert host.test_client().get("/v2/").status_code == 404


def test_who_sends_a_request_is_not_remembered_for_the_next(tmp_path: Path) -> None:
    """An application context that is there already is shared by all requests within it."""
    from test.people import People
    from test.test_v2_auth import basic

    place = Place(tmp_path)
    place.services()
    People(place.engine).user("alice")
    app = place.app()
    with app.app_context():
        client = app.test_client()
        assert client.get("/v2/", headers=basic("alice")).status_code == 200
        assert client.get("/v2/").status_code == 401
