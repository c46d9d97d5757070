"""What Quay's settings change for who comes: robots, superusers, the catalog, pushes, garbage."""

from pathlib import Path
from typing import Any

import pytest

from data.accounts import CredentialsRefused, Role, SqlAccounts
from data.database import create_tables
from data.logins import Logins
from data.owntables import SuperuserRow, changing, insert_unless_there, upgrade
from data.rights import UserRights
from data.secretbox import SecretBox
from endpoints.collector import collector_of
from endpoints.registrygarbage import NothingAdopted, adopt_storage
from test.databases import database
from test.door import SETTINGS, Door, codes
from test.people import PASSWORD, ROBOT_TOKEN, SECRET, People
from test.place import Place


class Scene:
    """A registry with the user alice, her robot, her private repository, and the auditor."""

    def __init__(self, engine: Any) -> None:
        create_tables(engine)
        upgrade(engine)
        people = People(engine)
        people.user("alice")
        people.user("auditor")
        people.robot("alice+ci")
        people.robot("alice+mirror")
        people.repository("alice/app", public=False)
        self.engine = engine

    def accounts(self, **more: Any) -> SqlAccounts:
        box = SecretBox(SECRET)
        return SqlAccounts(self.engine, self.engine, Logins(self.engine), secrets=lambda: box, **more)


@pytest.fixture
def scene(tmp_path: Path) -> Any:
    with database("sqlite", tmp_path) as engine:
        yield Scene(engine)


def test_robots_are_out_where_they_are_disallowed(scene: Scene) -> None:
    accounts = scene.accounts(robots_allowed=frozenset())
    with pytest.raises(CredentialsRefused, match="robots are not let in"):
        accounts.authenticate("alice+ci", ROBOT_TOKEN)
    assert accounts.find("alice+ci") is None  # a token of /v2/auth that it had ends, too
    assert accounts.authenticate("alice", PASSWORD).name == "alice"


def test_a_robot_that_is_listed_comes_in_all_the_same(scene: Scene) -> None:
    accounts = scene.accounts(robots_allowed=frozenset({"alice+mirror"}))
    assert accounts.authenticate("alice+mirror", ROBOT_TOKEN).robot
    assert accounts.find("alice+mirror") is not None
    with pytest.raises(CredentialsRefused):
        accounts.authenticate("alice+ci", ROBOT_TOKEN)


def test_a_readonly_superuser_reads_everything_and_writes_nothing(scene: Scene) -> None:
    rights = UserRights(readonly_superusers=frozenset({"auditor"}))
    accounts = scene.accounts(rights=rights, superusers=frozenset({"auditor"}))
    auditor = accounts.authenticate("auditor", PASSWORD)
    assert not auditor.superuser  # though in both lists
    assert accounts.role(auditor, "alice", "app") == Role.READ
    assert accounts.role(auditor, "auditor", "own") == Role.ADMIN
    assert not accounts.may_create(auditor, "alice")
    alice = accounts.authenticate("alice", PASSWORD)
    assert accounts.role(alice, "auditor", "own") is None


def test_nobody_is_a_superuser_where_there_are_none(scene: Scene) -> None:
    row = {"username": "auditor", "created_ms": 0}
    changing(scene.engine, lambda connection: insert_unless_there(connection, SuperuserRow, row))
    assert scene.accounts().authenticate("auditor", PASSWORD).superuser
    accounts = scene.accounts(superusers=frozenset({"alice"}), superusers_enabled=False)
    assert not accounts.authenticate("alice", PASSWORD).superuser
    assert not accounts.authenticate("auditor", PASSWORD).superuser


# --- /v2/ -------------------------------------------------------------------------------------------------------------


def door(folder: Path, **settings: Any) -> Door:
    public = {"acme/app": True, "acme/private": False, "other/public": True, "other/private": False}
    return Door(Place(folder, {**SETTINGS, **settings}), users=("acme", "other", "auditor"), public=public)


def listed(site: Door, who: str | None) -> list[str]:
    answer = site.ask("GET", "_catalog", who=who)
    assert answer.status_code == 200
    names: list[str] = answer.get_json()["repositories"]
    return names


def test_public_repositories_are_in_the_catalog_as_the_settings_say(tmp_path: Path) -> None:
    site = door(tmp_path, FEATURE_PUBLIC_CATALOG=False)
    assert listed(site, None) == []
    assert listed(site, "acme") == ["acme/app", "acme/private"]
    assert site.ask("GET", "acme/app/tags/list", who=None).status_code == 200  # they can be read all the same
    site = Door(Place(tmp_path, {**SETTINGS, "FEATURE_PUBLIC_CATALOG": True}), users=(), public={})
    assert listed(site, None) == ["acme/app", "other/public"]


def test_of_a_quay_s_registry_the_catalog_is_as_quay_has_it_by_itself(tmp_path: Path) -> None:
    site = door(tmp_path)
    assert listed(site, None) == ["acme/app", "other/public"]
    uri = f"sqlite:///{tmp_path}/var/registry.db"
    site = Door(Place(tmp_path, {**SETTINGS, "DB_URI": uri}), users=(), public={})
    assert listed(site, None) == []


def test_a_readonly_superuser_finds_everything_in_the_catalog(tmp_path: Path) -> None:
    site = door(tmp_path, GLOBAL_READONLY_SUPER_USERS=["auditor"])
    assert len(listed(site, "auditor")) == 4
    assert site.ask("GET", "acme/private/tags/list", who="auditor").status_code == 200
    assert site.ask("POST", "acme/private/blobs/uploads/", who="auditor").status_code == 403


def test_pushes_may_be_turned_off(tmp_path: Path) -> None:
    site = door(tmp_path, DISABLE_PUSHES=True)
    answer = site.ask("POST", "acme/app/blobs/uploads/")
    assert (answer.status_code, codes(answer)) == (405, ["UNSUPPORTED"])
    assert "DISABLE_PUSHES" in answer.get_json()["errors"][0]["message"]
    assert site.ask("GET", "acme/app/tags/list").status_code == 200


@pytest.mark.parametrize("more", [{"FEATURE_GARBAGE_COLLECTION": False}, {"DISABLE_PUSHES": True}])
def test_a_registry_that_keeps_its_garbage_collects_none(tmp_path: Path, more: dict[str, Any]) -> None:
    services = Place(tmp_path, more).services()
    assert collector_of(services).garbage is None
    with pytest.raises(NothingAdopted):
        adopt_storage(services)
    assert collector_of(Place(tmp_path).services()).garbage is not None
