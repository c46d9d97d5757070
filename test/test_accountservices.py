"""Accounts as services have them by the settings: beside a Quay that is only read, and in a registry of our own."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

from data.accounts import CredentialsRefused, Role, TooManyLogins
from data.administered import NotOurRegistry
from data.database import Engine, create_tables, make_engine
from data.secretbox import UnusableSecret
from endpoints.access import everything
from endpoints.services import Services, make_services
from endpoints.settings import Settings
from test.databases import postgresql
from test.people import PASSWORD, ROBOT_TOKEN, SECRET, People, failed_before

APP_TOKEN = "N" * 60 + "S" * 60


def services(folder: Path, **more: Any) -> Services:
    return make_services(Settings.parse({"VERBS_DATA_DIR": str(folder / "var"), **more}), permission=everything)


@pytest.fixture(scope="module")
def quay() -> Iterator[str]:
    """Give the URI of a Quay's database in which nobody who connects by it can write."""
    with postgresql() as uri:
        engine = make_engine(uri)
        create_tables(engine)
        people = People(engine)
        people.user("alice")
        people.user("root")
        people.organization("acme", {"owners:admin": ("alice",)})
        people.robot("acme+ci")
        people.app_token("alice", APP_TOKEN)
        people.repository("acme/app", {"acme+ci": "write"})
        engine.dispose()
        yield uri.replace("&application_name", "%20-c%20default_transaction_read_only%3Don&application_name")


def tables(uri: str) -> set[str]:
    engine = make_engine(uri)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def tried(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text('UPDATE "user" SET enabled = false'))


def test_a_live_quay_s_accounts_work_by_pointing_at_its_database(quay: str, tmp_path: Path) -> None:
    made = services(tmp_path, DB_URI=quay, DATABASE_SECRET_KEY=SECRET, SUPER_USERS=["root"], REGISTRY_STATE="readonly")
    with pytest.raises(DBAPIError, match="read-only"):
        tried(made.engine)
    alice = made.accounts.authenticate("alice", PASSWORD)
    assert made.accounts.authenticate("$app", APP_TOKEN) == alice
    assert made.accounts.role(alice, "acme", "app") == Role.ADMIN
    robot = made.accounts.authenticate("acme+ci", ROBOT_TOKEN)
    assert made.accounts.role(robot, "acme", "app") == Role.WRITE
    root = made.accounts.authenticate("root", PASSWORD)
    assert root.superuser
    assert made.accounts.role(root, "acme", "app") is None  # as Quay has it, unless its setting says otherwise
    for _ in range(3):
        with pytest.raises(CredentialsRefused) as caught:
            made.accounts.authenticate("alice", "wrong-horse")
        assert not isinstance(caught.value, TooManyLogins)
    with pytest.raises(NotOurRegistry):
        made.administration.create_user("bob", PASSWORD)
    assert [each.name for each in made.administration.users()] == ["alice", "root"]
    assert not {name for name in tables(quay) if name.startswith("verbs_")}
    assert not os.path.exists(tmp_path / "var" / "database-secret-key")
    made.engine.dispose()


def test_beside_a_quay_logins_are_counted_in_our_own_database(quay: str, tmp_path: Path) -> None:
    more = {"DB_URI": quay, "VERBS_DB_URI": f"sqlite:///{tmp_path}/own.db", "FEATURE_SUPERUSERS_FULL_ACCESS": True}
    made = services(tmp_path, SUPER_USERS=["root"], **more)
    failed_before(made.own_engine, "alice")
    with pytest.raises(CredentialsRefused):
        made.accounts.authenticate("alice", "wrong-horse")
    with pytest.raises(TooManyLogins):
        made.accounts.authenticate("alice", PASSWORD)
    root = made.accounts.authenticate("root", PASSWORD)
    assert made.accounts.role(root, "acme", "app") == Role.ADMIN
    with pytest.raises(CredentialsRefused):  # its key is not known
        made.accounts.authenticate("acme+ci", ROBOT_TOKEN)
    made.engine.dispose()


def test_our_own_registry_keeps_a_key_for_robots_by_itself(tmp_path: Path) -> None:
    made = services(tmp_path)
    key = tmp_path / "var" / "database-secret-key"
    made.administration.create_organization("acme")
    with pytest.raises(CredentialsRefused):
        made.accounts.authenticate("acme+ci", ROBOT_TOKEN)
    assert not key.exists()  # it is made when a robot is
    before = services(tmp_path)
    token = made.administration.create_robot("acme+ci")
    assert key.stat().st_mode & 0o777 == 0o600
    for each in (made, before, services(tmp_path), services(tmp_path, REGISTRY_STATE="readonly")):
        assert each.accounts.authenticate("acme+ci", token).robot
    with pytest.raises(CredentialsRefused):
        services(tmp_path, DATABASE_SECRET_KEY="another").accounts.authenticate("acme+ci", token)


def test_a_key_that_is_set_goes_before_one_that_is_kept(tmp_path: Path) -> None:
    made = services(tmp_path, DATABASE_SECRET_KEY=SECRET)
    made.administration.create_organization("acme")
    token = made.administration.create_robot("acme+ci")
    assert not (tmp_path / "var" / "database-secret-key").exists()
    assert services(tmp_path, DATABASE_SECRET_KEY=SECRET).accounts.authenticate("acme+ci", token).robot


def test_a_key_that_will_not_do_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UnusableSecret, match="DATABASE_SECRET_KEY"):
        services(tmp_path, DATABASE_SECRET_KEY="ключ")


def test_in_our_own_registry_superusers_may_do_everything_unless_that_is_turned_off(tmp_path: Path) -> None:
    root = services(tmp_path).administration.create_user("root", PASSWORD, superuser=True)
    for more, role in (({}, Role.ADMIN), ({"FEATURE_SUPERUSERS_FULL_ACCESS": False}, None)):
        assert services(tmp_path, **more).accounts.role(root, "acme", "app") == role


def test_app_specific_tokens_are_turned_off_by_their_setting(tmp_path: Path) -> None:
    made = services(tmp_path, DATABASE_SECRET_KEY=SECRET)
    people = People(made.engine)
    people.user("alice")
    people.app_token("alice", APP_TOKEN)
    assert made.accounts.authenticate("$app", APP_TOKEN).name == "alice"
    off = services(tmp_path, DATABASE_SECRET_KEY=SECRET, FEATURE_APP_SPECIFIC_TOKENS=False)
    with pytest.raises(CredentialsRefused):
        off.accounts.authenticate("$app", APP_TOKEN)
