"""`GET /v2/` and `/v2/auth`: the challenge, the tokens that are given for it, and what they are good for."""

import base64
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import jwt
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from endpoints.tokens import Tokens
from endpoints.v2.answers import CODES
from test.images import Image, Layer
from test.layers import file
from test.people import PASSWORD, ROBOT_TOKEN, SECRET, People, failed_before
from test.place import Place
from util.digest import Digest

IMAGE = Image([Layer([file(b"etc/hostname", b"here\n")])])
DIGEST = Digest.of(b"anything")
_NUMBERS = count()
CONFIGURATION = {"DATABASE_SECRET_KEY": SECRET, "SECRET_KEY": "s3cret", "SUPER_USERS": ["root"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("place"), CONFIGURATION)
    place.services()
    people = People(place.engine)
    for who in ("alice", "bob", "root", "reader", "writer", "creator"):
        people.user(who)
    people.user("gone", enabled=False)
    people.organization("acme", {"creators:creator": ("creator",)})
    people.organization("library")
    people.robot("alice+ci")
    people.repository("alice/app", {"reader": "read", "writer": "write", "alice+ci": "write"})
    people.repository("alice/open", public=True)
    people.repository("library/tool", public=True)
    for name in ("alice/app:1.0", "alice/open:1.0", "library/tool:1.0"):
        place.push(name, IMAGE)
    return place


@pytest.fixture(scope="module")
def app(place: Place) -> Flask:
    return place.app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def basic(who: str, password: str = PASSWORD) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{who}:{password}".encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def token(client: FlaskClient, who: str | None, *scopes: str) -> str:
    answer = client.get("/v2/auth", query_string={"scope": list(scopes)}, headers=basic(who) if who else {})
    assert answer.status_code == 200, answer.data
    text: str = answer.get_json()["token"]
    return text


def granted(client: FlaskClient, who: str | None, *scopes: str) -> dict[str, list[str]]:
    claims = jwt.decode(token(client, who, *scopes), options={"verify_signature": False})
    return {f"{each['type']}:{each['name']}": each["actions"] for each in claims["access"]}


def error(answer: TestResponse) -> tuple[int, str]:
    (one,) = answer.get_json()["errors"]
    assert one["code"] in CODES
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    return answer.status_code, one["code"]


# --- GET /v2/ ---------------------------------------------------------------------------------------------------------


def test_nobody_is_told_where_a_token_is_had(client: FlaskClient) -> None:
    answer = client.get("/v2/", headers={"Host": "mirror.example.com:5000"})
    assert error(answer) == (401, "UNAUTHORIZED")
    assert answer.headers["WWW-Authenticate"] == (
        'Bearer realm="http://mirror.example.com:5000/v2/auth",service="registry.example.com"'
    )


def test_the_scheme_is_the_setting_s(place: Place) -> None:
    client = Place(place.folder, {**CONFIGURATION, "PREFERRED_URL_SCHEME": "https"}).app().test_client()
    assert client.get("/v2/").headers["WWW-Authenticate"].startswith('Bearer realm="https://localhost/v2/auth"')


def test_a_host_with_a_quote_stays_within_its_quotes(client: FlaskClient) -> None:
    said = client.get("/v2/", headers={"Host": 'a"b'}).headers.get("WWW-Authenticate", "")
    assert '"http://a"b' not in said


@pytest.mark.parametrize("who", ["alice", "alice+ci"])
def test_who_has_an_account_may_come_by_basic_and_by_a_token(client: FlaskClient, who: str) -> None:
    credentials = basic(who, ROBOT_TOKEN if "+" in who else PASSWORD)
    for headers in (credentials, bearer(client.get("/v2/auth", headers=credentials).get_json()["token"])):
        answer = client.get("/v2/", headers=headers)
        assert (answer.status_code, answer.get_json()) == (200, {})
        assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"


def test_nobody_s_token_is_no_login(client: FlaskClient) -> None:
    assert client.get("/v2/", headers=bearer(token(client, None))).status_code == 401


@pytest.mark.parametrize("credentials", [basic("gone"), basic("acme"), bearer("x.y.z"), bearer("x")])
def test_wrong_credentials_are_refused(client: FlaskClient, credentials: dict[str, str]) -> None:
    for path in ("/v2/", "/v2/alice/open/manifests/1.0", "/v2/auth"):
        answer = client.get(path, headers=credentials)
        assert error(answer) == (401, "UNAUTHORIZED"), path
        assert "WWW-Authenticate" in answer.headers


@pytest.mark.parametrize("path", ["/v2/", "/v2/alice/open/manifests/1.0", "/v2/auth"])
@pytest.mark.parametrize("kind", ["wrong", "nobody", "organization"])
def test_a_wrong_password_is_refused(client: FlaskClient, place: Place, kind: str, path: str) -> None:
    who = f"{kind}{next(_NUMBERS)}"  # one wrong login each: the next would have to wait
    if kind == "wrong":
        People(place.engine).user(who)
    if kind == "organization":
        People(place.engine).organization(who)
    answer = client.get(path, headers=basic(who, "wrong"))
    assert error(answer) == (401, "UNAUTHORIZED")
    assert "WWW-Authenticate" in answer.headers


# --- What is given ----------------------------------------------------------------------------------------------------


def test_the_answer_is_docker_s(client: FlaskClient) -> None:
    query = "service=registry.example.com&account=alice&client_id=docker&offline_token=true"
    answer = client.get(f"/v2/auth?{query}&scope=repository:alice/app:pull", headers=basic("alice"))
    document = answer.get_json()
    assert document["token"] == document["access_token"]
    assert document["expires_in"] == 300
    issued = time.mktime(time.strptime(document["issued_at"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert abs(issued - time.time()) < 60
    assert "refresh_token" not in document
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("who", "scope", "expected"),
    [
        ("alice", "repository:alice/app:pull,push", {"repository:alice/app": ["pull", "push"]}),
        ("alice", "repository:alice/app:push,pull", {"repository:alice/app": ["pull", "push"]}),
        ("alice", "repository:alice/app:*", {"repository:alice/app": ["pull", "push", "delete", "*"]}),
        ("reader", "repository:alice/app:pull,push", {"repository:alice/app": ["pull"]}),
        ("reader", "repository:alice/app:push", {}),
        ("writer", "repository:alice/app:*", {"repository:alice/app": ["pull", "push", "delete"]}),
        ("writer", "repository:alice/app:delete", {"repository:alice/app": ["delete"]}),
        ("bob", "repository:alice/app:pull,push", {}),
        ("bob", "repository:alice/open:pull,push", {"repository:alice/open": ["pull"]}),
        (None, "repository:alice/open:pull,push", {"repository:alice/open": ["pull"]}),
        (None, "repository:alice/app:pull", {}),
        (None, "repository:alice/absent:pull", {}),
        ("root", "repository:alice/app:pull,push", {"repository:alice/app": ["pull", "push"]}),
        # What is not there may be pushed by who may make it.
        ("alice", "repository:alice/new:pull,push", {"repository:alice/new": ["pull", "push"]}),
        ("creator", "repository:acme/new:pull,push", {"repository:acme/new": ["pull", "push"]}),
        ("bob", "repository:alice/new:pull,push", {}),
        ("alice", "repository:nowhere/new:pull,push", {}),
        # A name with one part is the library's.
        (None, "repository:tool:pull", {"repository:library/tool": ["pull"]}),
        ("bob", "registry:catalog:*", {"registry:catalog": ["*"]}),
        (None, "registry:catalog:*", {"registry:catalog": ["*"]}),
        # What means nothing here is nothing.
        ("alice", "registry:catalog:pull", {}),
        ("alice", "registry:other:*", {}),
        ("alice", "repository:alice/app", {}),
        ("alice", "repository::pull", {}),
        ("alice", "repository:alice/app:", {}),
        ("alice", "repository:alice/app:fly", {}),
        ("alice", "repository:UPPER/app:pull", {}),
        ("alice", "repository(plugin):alice/app:pull", {}),
        ("alice", "repository:host:5000/alice/app:pull", {}),
        ("alice", "repository:alice/\N{SNOWMAN}:pull", {}),
        ("alice", "", {}),
    ],
)
def test_a_scope_is_narrowed_to_what_is_allowed(
    client: FlaskClient, who: str | None, scope: str, expected: Mapping[str, list[str]]
) -> None:
    assert granted(client, who, scope) == expected


def test_several_scopes_in_one_and_in_several(client: FlaskClient) -> None:
    expected = {"repository:alice/app": ["pull", "push"], "repository:alice/open": ["pull"]}
    scopes = ("repository:alice/app:pull,push", "repository:alice/open:pull")
    assert granted(client, "alice", *scopes) == granted(client, "alice", " ".join(scopes)) == expected


def test_no_more_scopes_are_looked_up_than_fit_into_a_header(client: FlaskClient) -> None:
    assert len(granted(client, "alice", *(f"repository:alice/app{number}:pull" for number in range(80)))) == 50


def test_a_token_is_not_given_for_a_token(client: FlaskClient) -> None:
    assert error(client.get("/v2/auth", headers=bearer(token(client, "alice")))) == (401, "UNAUTHORIZED")


def test_where_nobody_may_come_without_an_account_nobody_gets_a_token(place: Place) -> None:
    client = Place(place.folder, {**CONFIGURATION, "FEATURE_ANONYMOUS_ACCESS": False}).app().test_client()
    answer = client.get("/v2/auth?scope=repository:alice/open:pull")
    assert error(answer) == (401, "UNAUTHORIZED")
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="localhost"'
    assert client.get("/v2/alice/open/manifests/1.0").status_code == 401
    assert client.get("/v2/_catalog").status_code == 401
    assert client.get("/v2/alice/open/manifests/1.0", headers=basic("bob")).status_code == 200


# --- By POST ----------------------------------------------------------------------------------------------------------


def form(**fields: Any) -> dict[str, Any]:
    given = {"grant_type": "password", "service": "registry.example.com", "client_id": "containerd"}
    return {**given, "username": "alice", "password": PASSWORD, **fields}


def test_a_form_is_as_good_as_a_header(client: FlaskClient) -> None:
    answer = client.post("/v2/auth", data=form(scope="repository:alice/app:pull,push", access_type="offline"))
    assert answer.status_code == 200
    claims = jwt.decode(answer.get_json()["access_token"], options={"verify_signature": False})
    assert (claims["sub"], claims["access"][0]["actions"]) == ("alice", ["pull", "push"])


def test_a_form_with_a_wrong_password_is_refused(client: FlaskClient) -> None:
    for who, headers in (("nobody-1", {}), ("nobody-2", basic("alice"))):
        answer = client.post("/v2/auth", data=form(username=who, password="wrong"), headers=headers)
        assert error(answer) == (401, "UNAUTHORIZED")


@pytest.mark.parametrize(
    "given",
    [{}, {"grant_type": "refresh_token", "refresh_token": "x"}, form(username=""), {"grant_type": "password"}],
)
def test_a_form_that_asks_otherwise_is_told_so(client: FlaskClient, given: dict[str, str]) -> None:
    assert error(client.post("/v2/auth", data=given)) == (400, "UNSUPPORTED")


def test_a_form_has_an_end(client: FlaskClient) -> None:
    assert error(client.post("/v2/auth", data=form(scope="x" * 100_000))) == (413, "SIZE_INVALID")


# --- What it is good for ----------------------------------------------------------------------------------------------


def status(client: FlaskClient, given: str, path: str = "/v2/alice/app/manifests/1.0", method: str = "GET") -> int:
    with client.open(path, method=method, headers=bearer(given), data=b"{}" if method == "PUT" else None) as answer:
        return answer.status_code


def test_a_token_is_good_for_its_scope(client: FlaskClient) -> None:
    pull = token(client, "alice", "repository:alice/app:pull")
    assert status(client, pull) == 200
    assert status(client, pull, "/c1/rootfs/alice/app/1.0") == 200
    assert status(client, pull, "/v2/alice/app/manifests/new", "PUT") == 401
    push = token(client, "alice", "repository:alice/app:pull,push")
    assert status(client, push, "/v2/alice/app/manifests/new", "PUT") == 400
    assert status(client, push, "/v2/alice/app/manifests/absent", "DELETE") == 404


def test_a_token_for_one_repository_opens_no_other_and_says_what_would(client: FlaskClient) -> None:
    given = token(client, "alice", "repository:alice/open:pull")
    answer = client.get("/v2/alice/app/manifests/1.0", headers=bearer(given))
    assert error(answer) == (401, "UNAUTHORIZED")
    assert answer.headers["WWW-Authenticate"] == (
        'Bearer realm="http://localhost/v2/auth",service="registry.example.com",'
        'scope="repository:alice/app:pull",error="insufficient_scope"'
    )


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/v2/alice/app/manifests/1.0", "repository:alice/app:pull"),
        ("GET", "/v2/tool/tags/list", None),
        ("GET", "/v2/other/tags/list", "repository:other:pull"),
        ("PUT", "/v2/alice/app/manifests/1.0", "repository:alice/app:pull,push"),
        ("PUT", "/v2/alice/absent/manifests/1.0", "repository:alice/absent:pull,push"),
        ("DELETE", "/v2/alice/app/manifests/1.0", "repository:alice/app:delete"),
        (
            "POST",
            f"/v2/alice/app/blobs/uploads/?mount={DIGEST}&from=alice/other",
            "repository:alice/app:pull,push repository:alice/other:pull",
        ),
        (
            "POST",
            f"/v2/alice/app/blobs/uploads/?mount={DIGEST}&from=tool",
            "repository:alice/app:pull,push repository:tool:pull",
        ),
        ("POST", f"/v2/alice/app/blobs/uploads/?mount={DIGEST}", "repository:alice/app:pull,push"),
        ("POST", "/v2/alice/app/blobs/uploads/?from=alice/other", "repository:alice/app:pull,push"),
        ("POST", f"/v2/alice/app/blobs/uploads/?mount={DIGEST}&from=%22,a=%22b/c", "repository:alice/app:pull,push"),
    ],
)
def test_the_challenge_names_the_scope(client: FlaskClient, method: str, path: str, scope: str | None) -> None:
    with client.open(path, method=method) as answer:
        if scope is None:
            assert answer.status_code == 200
        else:
            assert f'scope="{scope}"' in answer.headers["WWW-Authenticate"]
            assert "error=" not in answer.headers["WWW-Authenticate"]


def test_the_scope_of_every_challenge_is_one_that_does(client: FlaskClient) -> None:
    """A client that asks for what the challenge names comes in, whatever it wants."""
    requests = [
        ("GET", "/v2/alice/app/manifests/1.0"),
        ("PUT", "/v2/alice/app/manifests/x"),
        ("DELETE", "/v2/alice/app/manifests/absent"),
        ("PUT", "/v2/alice/brandnew/manifests/x"),
        ("GET", "/v2/_catalog"),
        ("GET", "/v2/alice/neverseen/manifests/x"),
    ]
    for method, path in requests:
        first = client.open(path, method=method, headers=bearer(token(client, "alice")))
        assert first.status_code == 401, path
        scope = first.headers["WWW-Authenticate"].partition('scope="')[2].partition('"')[0]
        assert status(client, token(client, "alice", scope), path, method) not in (401, 403), path


def test_a_token_for_what_the_challenge_of_a_mount_names_mounts(client: FlaskClient) -> None:
    digest = Digest.of(b"to be mounted")
    pushing = bearer(token(client, "alice", "repository:alice/app:pull,push"))
    answer = client.post(f"/v2/alice/app/blobs/uploads/?digest={digest}", data=b"to be mounted", headers=pushing)
    assert answer.status_code == 201
    path = f"/v2/alice/mounted/blobs/uploads/?mount={digest}&from=alice/app"
    scope = client.post(path).headers["WWW-Authenticate"].partition('scope="')[2].partition('"')[0]
    # A token for one of the two begins an upload; nothing is said of what it is not for.
    halves = (scope.split()[0], 202), (scope, 201)
    for asked, status_code in halves:
        assert client.post(path, headers=bearer(token(client, "alice", asked))).status_code == status_code
    # Who may not read it gets no such token, and begins an upload.
    theirs = path.replace("alice/mounted", "bob/mounted")
    scope = scope.replace("alice/mounted", "bob/mounted")
    assert client.post(theirs, headers=bearer(token(client, "bob", scope))).status_code == 202


def test_a_token_gives_no_more_than_its_account_has_by_then(tmp_path: Path) -> None:
    place = Place(tmp_path, CONFIGURATION)
    place.services()
    people = People(place.engine)
    people.user("alice")
    people.user("reader")
    people.repository("alice/app", {"reader": "read"})
    place.push("alice/app:1.0", IMAGE)
    client = place.app().test_client()
    given = token(client, "reader", "repository:alice/app:pull")
    assert status(client, given) == 200
    place.sql("DELETE FROM repositorypermission")
    assert status(client, given) == 403
    place.sql("UPDATE user SET enabled = 0 WHERE username = 'reader'")
    answer = client.get("/v2/alice/app/manifests/1.0", headers=bearer(given))
    assert error(answer) == (401, "UNAUTHORIZED")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


def test_a_token_is_not_another_s_who_came_to_have_the_name(tmp_path: Path) -> None:
    place = Place(tmp_path, CONFIGURATION)
    place.services()
    people = People(place.engine)
    people.user("alice")
    client = place.app().test_client()
    given = token(client, "alice")
    assert status(client, given, "/v2/") == 200
    place.sql("UPDATE user SET username = 'alice2' WHERE username = 'alice'")
    people.user("alice")
    assert status(client, given, "/v2/") == 401


def test_a_token_is_not_a_later_user_s_of_that_name(tmp_path: Path) -> None:
    place = Place(tmp_path, CONFIGURATION)
    administration = place.services().administration
    administration.create_user("alice", PASSWORD)
    client = place.app().test_client()
    given = token(client, "alice")
    administration.delete_user("alice")
    administration.create_user("alice", "another-horse")
    assert status(client, given, "/v2/") == 401


def test_a_token_whose_time_is_over_is_refused(place: Place, client: FlaskClient) -> None:
    services = place.services()
    alice = services.accounts.find("alice")
    old = Tokens(services.settings, clock=lambda: time.time() - 400).sign(alice, []).text
    answer = client.get("/v2/", headers=bearer(old))
    assert error(answer) == (401, "UNAUTHORIZED")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


def test_the_catalog_wants_its_own_scope_of_a_token(client: FlaskClient) -> None:
    assert client.get("/v2/_catalog", headers=bearer(token(client, "alice"))).status_code == 401
    names = client.get("/v2/_catalog", headers=bearer(token(client, "alice", "registry:catalog:*"))).get_json()
    assert set(names["repositories"]) >= {"alice/app", "alice/open", "library/tool"}
    stranger = client.get("/v2/_catalog", headers=bearer(token(client, "bob", "registry:catalog:*"))).get_json()
    assert "alice/app" not in stranger["repositories"]


def test_a_superuser_s_token_is_no_admin_token(client: FlaskClient) -> None:
    assert client.get("/api/v1/jobs", headers=basic("root")).status_code == 200
    assert client.get("/api/v1/jobs", headers=bearer(token(client, "root"))).status_code == 403


def test_too_many_failed_logins_are_told_to_come_back_later(tmp_path: Path) -> None:
    place = Place(tmp_path, CONFIGURATION)
    place.services()
    People(place.engine).user("alice")
    client = place.app().test_client()
    failed_before(place.engine, "alice")
    statuses = [client.get("/v2/auth", headers=basic("alice", "wrong")).status_code for _ in range(12)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    for path in ("/v2/auth", "/v2/", "/c1/rootfs/alice/app/1.0", "/api/v1/jobs"):
        answer = client.get(path, headers=basic("alice"))
        assert answer.status_code == 429, path
        assert answer.get_json()["errors"][0]["code"] == "TOOMANYREQUESTS"
        assert int(answer.headers["Retry-After"]) >= 1
