"""Accounts that live elsewhere, over HTTP: at every door, with a directory that works, hangs, or is down."""

import base64
import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import update
from werkzeug.test import TestResponse

from data.database import make_engine
from data.tables import FederatedLogin, LoginService, Team, TeamMember, TeamSync, User
from endpoints.settings import InvalidSetting
from endpoints.verbs import EXTENSION
from test.databases import KINDS
from test.images import Image, Layer
from test.jwtservice import jwt_service
from test.layers import file
from test.people import PASSWORD, ROBOT_TOKEN, SECRET, People, quick_hash
from test.place import Place
from test.quayside import quay
from test.server import curl, served
from test.slapd import ADMIN_PASSWORD, Person, Slapd, slapd
from test.waiting import eventually

IMAGE = Image([Layer([file(b"etc/hostname", b"here\n")])])
APP_TOKEN = "N" * 60 + "S" * 60
ALICE = Person("alice", "alice's own", "alice@example.com")
BOB = Person("bob", "bob's own", "bob@example.com", more={"title": "boss"})
CAROL = Person("carol", "carol's own", "carol@example.com", more={"title": "auditor"})
DOORS = ("/c1/rootfs/alice/app/1", "/v2/", "/v2/auth?scope=repository:alice/app:pull", "/api/v1/analysis/alice/app/1")


class Door:
    """An application beside a directory, asked by whom a test says."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.app: Flask = place.app()

    def ask(self, path: str, who: str | None = None, password: str = "", **more: Any) -> TestResponse:
        headers = dict(more.pop("headers", {}))
        if who is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{who}:{password}".encode()).decode()
        return self.app.test_client().open(path, method=more.pop("method", "GET"), headers=headers, **more)

    def status(self, path: str, who: str | None = None, password: str = "", **more: Any) -> int:
        with self.ask(path, who, password, **more) as answer:
            return answer.status_code

    def token(self, who: str, password: str, scope: str) -> str:
        answer = self.ask(f"/v2/auth?scope={scope}", who, password)
        assert answer.status_code == 200
        return str(answer.get_json()["token"])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    with slapd(tmp_path_factory.mktemp("slapd") / "directory", ALICE, BOB, CAROL) as running:
        yield running


def place_in(folder: Path, directory: Slapd, **more: Any) -> Place:
    """Return a registry of our own where alice has been before, with a private repository and tokens."""
    place = Place(folder, {**directory.configuration, "DATABASE_SECRET_KEY": SECRET, "SECRET_KEY": "s3cret", **more})
    assert place.services().accounts.authenticate("alice", "alice's own").name == "alice"
    people = People(place.engine)
    people.app_token("alice", APP_TOKEN)
    people.robot("alice+ci")
    people.repository("alice/app", {"alice+ci": "write"})
    place.push("alice/app:1", IMAGE)
    return place


@pytest.fixture
def door(tmp_path: Path, directory: Slapd) -> Door:
    return Door(place_in(tmp_path, directory))


# --- A directory that works -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOORS)
def test_at_every_door_the_directory_says_who_comes_in(door: Door, path: str) -> None:
    assert door.status(path, "alice", "alice's own") == 200
    assert door.status(path, "alice@example.com", "alice's own") == 200
    for name, password in (("alice", "bob's own"), ("alice", ""), ("*", "alice's own"), ("nobody", "x")):
        assert door.status(path, name, password) in (401, 429)


def test_a_password_in_the_registry_s_row_is_no_password(door: Door) -> None:
    with door.place.engine.begin() as connection:
        connection.execute(update(User).where(User.username == "alice").values(password_hash=quick_hash(PASSWORD)))
    assert door.status("/v2/", "alice", PASSWORD) == 401


def test_a_first_login_makes_an_account_that_can_push(door: Door) -> None:
    token = door.token("bob", "bob's own", "repository:bob/new:pull,push")
    with door.ask("/v2/bob/new/blobs/uploads/", method="POST", headers=bearer(token)) as answer:
        assert answer.status_code == 202
    door.place.engine.dispose()


def test_where_users_are_not_made_nobody_new_comes_in(tmp_path: Path, directory: Slapd) -> None:
    place_in(tmp_path, directory)
    door = Door(Place(tmp_path, {**directory.configuration, "FEATURE_USER_CREATION": False}))
    assert door.status("/v2/", "alice", "alice's own") == 200
    refused = door.ask("/v2/", "bob", "bob's own")
    assert refused.status_code == 401
    assert "FEATURE_USER_CREATION" in refused.get_json()["errors"][0]["message"]


def test_beside_a_quay_only_who_has_been_there_comes_in(
    tmp_path: Path, directory: Slapd, caplog: pytest.LogCaptureFixture
) -> None:
    """The rows are those that quay/quay writes at a first login: data/model/user.py (create_federated_user)."""
    place = Place(tmp_path, {**directory.configuration, "DATABASE_SECRET_KEY": SECRET})
    place.services()
    people = People(place.engine)
    number = people.user("alice_b", None, email="alice@example.com", verified=True)
    service = people.find(LoginService, name="ldap")
    people.add(FederatedLogin, user_id=number, service_id=service, service_ident="alice", metadata_json="{}")
    people.repository("alice_b/app")
    place.push("alice_b/app:1", IMAGE)
    door = Door(Place(tmp_path, {**place.more, "VERBS_REGISTRY": "quay"}))
    assert door.status("/c1/rootfs/alice_b/app/1", "alice", "alice's own") == 200
    refused = door.ask("/v2/", "bob", "bob's own")
    assert refused.status_code == 401
    assert "log in to Quay once first" in refused.get_json()["errors"][0]["message"]
    assert "'bob' of ldap is refused: there is no account in Quay yet; log in to Quay once first" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_users_of_a_real_quay_s_directory_come_in_and_nothing_of_quay_s_is_changed(tmp_path: Path, kind: str) -> None:
    """Its erin came from LDAP; a team is synced as quay/quay does that, data/model/team.py (set_team_syncing)."""
    erin = Person("erin", "erin's own", "erin@new.example.com", more={"title": "boss"})
    with slapd(tmp_path / "slapd", erin, BOB) as directory, quay(kind, tmp_path, **directory.configuration) as there:
        people = People(make_engine(there.uri))
        team = people.find(Team, name="devs")
        config = json.dumps(json.dumps({"group_dn": "cn=devs,ou=groups"}))
        service = people.find(LoginService, name="ldap")
        people.add(TeamSync, team_id=team, transaction_id="", service_id=service, config=config)
        people.add(TeamMember, team_id=team, user_id=people.find(User, username="erin"))
        people.engine.dispose()
        before = there.rows()
        door = Door(Place(there.folder, {**there.configuration, "LDAP_SUPERUSER_FILTER": "(title=boss)"}))
        assert door.status("/v2/", "erin", "erin's own") == 200
        assert door.status("/v2/", "erin@new.example.com", "erin's own") == 200
        assert door.status("/v2/acme/app/manifests/v1", "erin", "erin's own") == 200  # by the synced team
        assert door.status("/api/v1/jobs", "erin", "erin's own") == 200
        assert door.status("/v2/", "bob", "bob's own") == 401  # Quay's bob is not the directory's
        assert door.status("/v2/", "alice", there.password("alice")) == 401
        assert door.status("/v2/", "acme+deploy", there.password("acme+deploy")) == 200
        assert door.status("/v2/", "$app", there.facts["app_token_of_alice"]) == 200
        directory.stop()
        assert door.status("/v2/", "erin", "erin's own") == 503
        assert door.status("/v2/", "$app", there.facts["app_token_of_alice"]) == 200
        assert there.rows() == before
        door.app.extensions[EXTENSION].engine.dispose()


# --- A directory that does not ----------------------------------------------------------------------------------------


def test_a_directory_that_is_down_is_503_at_every_door_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with slapd(tmp_path / "slapd", ALICE) as directory:
        door = Door(place_in(tmp_path, directory))
        directory.stop()
        for path in DOORS:
            for password in ("alice's own", "wrong"):
                caplog.clear()
                answer = door.ask(path, "alice", password)
                assert answer.status_code == 503, path
                assert "WWW-Authenticate" not in answer.headers
                assert directory.uri.removeprefix("ldap://") not in answer.get_data(as_text=True)
                assert f"{directory.uri} cannot be reached" in caplog.text
        form = {"grant_type": "password", "username": "alice", "password": "alice's own"}
        assert door.status("/v2/auth", method="POST", data=form) == 503
        directory.start()
        again = Door(door.place)  # another process, which has seen no failure
        assert again.status("/v2/", "alice", "alice's own") == 200


def test_tokens_and_robots_work_while_it_is_down(tmp_path: Path) -> None:
    more = {"LDAP_SUPERUSER_FILTER": "(title=boss)", "FEATURE_LDAP_CACHING": False}
    with slapd(tmp_path / "slapd", ALICE) as directory:
        door = Door(place_in(tmp_path, directory, **more))
        token = door.token("alice", "alice's own", "repository:alice/app:pull")
        directory.stop()
        for path in DOORS:
            assert door.status(path, "$app", APP_TOKEN) == 200, path
            assert door.status(path, "alice+ci", ROBOT_TOKEN) == 200, path
        for path in ("/v2/", "/v2/alice/app/manifests/1", "/c1/rootfs/alice/app/1"):
            assert door.status(path, headers=bearer(token)) == 200, path
        assert door.status("/c1/rootfs/alice/app/1") == 401


def test_a_directory_that_hangs_is_503_in_the_time_that_is_said(tmp_path: Path, directory: Slapd) -> None:
    more = {"LDAP_SUPERUSER_FILTER": "(title=boss)", "LDAP_TIMEOUT": 0.3, "LDAP_NETWORK_TIMEOUT": 0.3}
    door = Door(place_in(tmp_path, directory, **more))
    with directory.asleep():
        for path in DOORS:
            assert door.status(path, "alice", "alice's own") == 503
        assert door.status("/v2/", "$app", APP_TOKEN) == 200


def test_a_wrong_password_of_the_administrator_s_is_503_and_nowhere_told(
    tmp_path: Path, directory: Slapd, caplog: pytest.LogCaptureFixture
) -> None:
    place_in(tmp_path, directory)
    caplog.set_level(logging.DEBUG)
    door = Door(Place(tmp_path, {**directory.configuration, "LDAP_ADMIN_PASSWD": "hunter2-and-more"}))
    answer = door.ask("/v2/", "alice", "alice's own")
    assert answer.status_code == 503
    assert "(LDAP_ADMIN_DN) log in" in caplog.text
    for secret in ("hunter2-and-more", "alice's own", ADMIN_PASSWORD):
        assert secret not in caplog.text + answer.get_data(as_text=True)


# --- Who may what -----------------------------------------------------------------------------------------------------


def test_a_superuser_by_the_directory_administers_everything(tmp_path: Path, directory: Slapd) -> None:
    door = Door(place_in(tmp_path, directory, LDAP_SUPERUSER_FILTER="(title=boss)"))
    assert door.status("/api/v1/jobs", "bob", "bob's own") == 200
    assert door.status("/c1/rootfs/alice/app/1", "bob", "bob's own") == 200
    assert door.status("/api/v1/jobs", "carol", "carol's own") == 403
    assert door.status("/c1/rootfs/alice/app/1", "carol", "carol's own") == 403


@pytest.mark.parametrize(
    "more", [{"LDAP_GLOBAL_READONLY_SUPERUSER_FILTER": "(title=auditor)"}, {"GLOBAL_READONLY_SUPER_USERS": ["carol"]}]
)
def test_a_reader_of_everything_reads_and_changes_nothing(
    tmp_path: Path, directory: Slapd, more: dict[str, Any]
) -> None:
    door = Door(place_in(tmp_path, directory, **more))
    carol = ("carol", "carol's own")
    for path in ("/c1/rootfs/alice/app/1", "/v2/alice/app/manifests/1", "/api/v1/analysis/alice/app/1"):
        assert door.status(path, *carol) == 200
        assert door.status(path, "bob", "bob's own") == 403
    assert door.ask("/v2/_catalog", *carol).get_json() == {"repositories": ["alice/app"]}
    assert door.ask("/v2/_catalog", "bob", "bob's own").get_json() == {"repositories": []}
    assert door.status("/v2/alice/app/manifests/1", *carol, method="DELETE") == 403
    assert door.status("/v2/alice/app/blobs/uploads/", *carol, method="POST") == 403
    assert door.status("/api/v1/jobs", *carol) == 403


def test_who_is_restricted_makes_no_repository_of_their_own(tmp_path: Path, directory: Slapd) -> None:
    more = {"FEATURE_RESTRICTED_USERS": True, "LDAP_RESTRICTED_USER_FILTER": "(title=auditor)"}
    door = Door(place_in(tmp_path, directory, **more))
    for who, status in (("bob", 202), ("carol", 403)):
        assert door.status(f"/v2/{who}/new/blobs/uploads/", who, f"{who}'s own", method="POST") == status
    assert door.status("/v2/alice/app/blobs/uploads/", "alice+ci", ROBOT_TOKEN, method="POST") == 202


def test_where_it_cannot_be_asked_who_is_restricted_a_new_repository_is_503(tmp_path: Path) -> None:
    more = {"FEATURE_RESTRICTED_USERS": True, "LDAP_RESTRICTED_USER_FILTER": "(title=x)", "FEATURE_LDAP_CACHING": False}
    with slapd(tmp_path / "slapd", ALICE) as directory:
        door = Door(place_in(tmp_path, directory, **more))
        directory.stop()
        for name, status in (("alice/app", 202), ("alice/new", 503)):
            token = door.token("$app", APP_TOKEN, f"repository:{name}:pull,push")
            path = f"/v2/{name}/blobs/uploads/"
            assert door.status(path, method="POST", headers=bearer(token)) == status


# --- Other kinds ------------------------------------------------------------------------------------------------------


def test_a_jwt_service_says_who_comes_in(tmp_path: Path) -> None:
    people = {"alice": ("alice's own", "alice@example.com")}
    with jwt_service(tmp_path / "conf", people) as service:
        place = Place(tmp_path, {**service.configuration, "DATABASE_SECRET_KEY": SECRET})
        door = Door(place)
        assert door.status("/v2/", "alice", "alice's own") == 200
        assert door.status("/v2/", "alice", "wrong") == 401
        service.lie = lambda handler: handler.answer_token(service.token("mallory"))
        assert door.status("/v2/", "alice", "alice's own") in (429, 503)
        service.lie = lambda handler: handler.answer(500, b"")
        assert door.status("/v2/", "bob", "x") == 503
    assert door.status("/v2/", "bob", "x") == 503
    People(place.engine).app_token("alice", APP_TOKEN)
    assert door.status("/v2/", "$app", APP_TOKEN) == 200


@pytest.mark.parametrize(("kind", "service"), [("OIDC", "oidc"), ("AppToken", None)])
def test_where_people_log_in_with_a_browser_their_tokens_work(tmp_path: Path, kind: str, service: str | None) -> None:
    place = Place(tmp_path, {"AUTHENTICATION_TYPE": kind, "DATABASE_SECRET_KEY": SECRET, "SUPER_USERS": ["alice"]})
    place.services()
    people = People(place.engine)
    number = people.user("alice")  # with a password in the row, which lets nobody in
    if service is not None:
        service_id = people.find(LoginService, name=service)
        people.add(FederatedLogin, user_id=number, service_id=service_id, service_ident="248289761001")
    people.app_token("alice", APP_TOKEN)
    people.robot("alice+ci")
    door = Door(place)
    assert door.status("/v2/", "alice", PASSWORD) == 401
    assert door.status("/api/v1/jobs", "$app", APP_TOKEN) == 200  # superusers by the settings stay
    assert door.status("/v2/", "alice+ci", ROBOT_TOKEN) == 200


def test_keystone_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="Keystone"):
        Place(tmp_path, {"AUTHENTICATION_TYPE": "Keystone"}).app()


@pytest.mark.parametrize("broken", ["a filter", "a key", "a library"])
def test_a_directory_that_cannot_be_asked_at_all_is_told_at_the_start_and_503(
    tmp_path: Path,
    directory: Slapd,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
) -> None:
    place_in(tmp_path, directory)
    jwt = {"AUTHENTICATION_TYPE": "JWT", "JWT_VERIFY_ENDPOINT": "http://127.0.0.1:1/", "JWT_AUTH_ISSUER": "x"}
    broken_ones: dict[str, tuple[dict[str, Any], str]] = {
        "a filter": ({**directory.configuration, "LDAP_USER_FILTER": "(("}, "LDAP_USER_FILTER"),
        "a key": ({**jwt, "VERBS_CONFIG_DIR": str(tmp_path)}, "jwt-authn.cert"),
        "a library": (directory.configuration, "pip install 'registry-verbs[ldap]'"),
    }
    keys, reason = broken_ones[broken]
    if broken == "a library":
        for module in [name for name in sys.modules if name.startswith(("ldap3", "data.directories.ldap"))]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, "ldap3", None)
    door = Door(Place(tmp_path, {**keys, "DATABASE_SECRET_KEY": SECRET}))
    assert "nobody can log in with a password" in caplog.text
    assert reason in caplog.text
    caplog.clear()
    assert door.status("/v2/", "alice", "alice's own") == 503
    assert reason in caplog.text
    assert door.status("/v2/", "$app", APP_TOKEN) == 200
    assert door.status("/v2/", "alice+ci", ROBOT_TOKEN) == 200


def test_the_files_beside_the_configuration_are_used(tmp_path: Path, directory: Slapd) -> None:
    from app import create_app, read_configuration

    keys = {**directory.configuration, "LDAP_URI": directory.tls_uri, "VERBS_DATA_DIR": str(tmp_path / "var")}
    (tmp_path / "config.yaml").write_text(json.dumps(keys))
    environ = {"VERBS_CONFIG": str(tmp_path / "config.yaml")}
    login = {"Authorization": "Basic " + base64.b64encode(b"alice:alice's own").decode()}
    assert create_app(read_configuration(environ)).test_client().get("/v2/", headers=login).status_code == 503
    (tmp_path / "ldap.crt").write_bytes(directory.authority.file.read_bytes())
    assert create_app(read_configuration(environ)).test_client().get("/v2/", headers=login).status_code == 200


def test_a_server_s_processes_ask_side_by_side_and_one_brings_teams_in_line(tmp_path: Path, directory: Slapd) -> None:
    more = {
        "LDAP_SUPERUSER_FILTER": "(title=boss)",
        "FEATURE_TEAM_SYNCING": True,
        "TEAM_SYNC_WORKER_FREQUENCY": 1,
        "TEAM_RESYNC_STALE_TIME": "1s",
    }
    directory.group("everybody", ALICE, BOB)
    place = place_in(tmp_path, directory, **more)
    services = place.services()
    services.administration.create_organization("acme")
    services.administration.create_team("acme", "devs")
    services.administration.sync_team("acme", "devs", "cn=everybody,ou=groups", "ldap")
    file_of_keys = tmp_path / "config.yaml"
    file_of_keys.write_text(json.dumps({**place.configuration, "VERBS_CONFIG_DIR": str(tmp_path)}))
    told: list[bytes] = []

    def ask(url: str, who: Person, password: str) -> None:
        for _ in range(5):
            done = curl("-o", "/dev/null", "-w", "%{http_code} ", "-u", f"{who.uid}:{password}", f"{url}/api/v1/jobs")
            told.append(done.stdout)

    with served(Place(tmp_path), workers=2, more={"VERBS_CONFIG": str(file_of_keys)}) as running:
        cases = [(ALICE, "alice's own"), (BOB, "bob's own"), (CAROL, "carol's own")] * 2
        threads = [threading.Thread(target=ask, args=(running.url, *case)) for case in cases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(set(told)) == [b"200 ", b"403 "]
        assert told.count(b"200 ") == 10

        def members() -> tuple[str, ...]:
            [devs] = [each for each in services.administration.teams("acme") if each.name == "devs"]
            return devs.members

        eventually(lambda: members() == ("alice", "bob"))
    log = running.log.read_text()
    assert ADMIN_PASSWORD not in log
    assert "'s own" not in log
