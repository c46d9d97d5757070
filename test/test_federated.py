"""Users who come from elsewhere: which row is theirs, and how one is made in a registry of our own."""

import itertools
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, select

from data.administration import Administration
from data.database import Engine, create_tables
from data.directories.directory import Identity
from data.federated import FederatedUsers, LinkedUser, NotLinked, usernames
from data.owntables import LoginRow, SuperuserRow, changing, reading, upgrade
from data.tables import FederatedLogin, LoginService, User
from test.databases import KINDS, database
from test.people import People

ALICE = Identity("alice", "alice@example.com")


@dataclass
class Registry:
    engine: Engine
    people: People

    def users(self, service: str = "ldap", **more: Any) -> FederatedUsers:
        return FederatedUsers(self.engine, self.engine, service, **{"ours": True, **more})

    def link(self, name: str, identifier: str, service: str = "ldap", **more: Any) -> int:
        """Make a user as quay/quay does, data/model/user.py (create_federated_user)."""
        number = self.people.user(name, None, verified=True, **more)
        service_id = self.people.find(LoginService, name=service)
        self.people.add(
            FederatedLogin, user_id=number, service_id=service_id, service_ident=identifier, metadata_json="{}"
        )
        return number

    def email(self, name: str) -> str:
        with self.engine.connect() as connection:
            return connection.execute(select(User.email).where(User.username == name)).scalar_one()


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    with database(request.param, tmp_path) as engine:
        create_tables(engine)
        upgrade(engine)
        yield Registry(engine, People(engine))


# --- Whose row it is --------------------------------------------------------------------------------------------------


def test_a_row_is_found_by_what_the_directory_calls_somebody(registry: Registry) -> None:
    number = registry.link("alice_2", "alice", email="alice@example.com")
    users = registry.users(ours=False)
    wanted = LinkedUser(number, "alice_2", enabled=True, identifier="alice")
    assert users.user(ALICE) == users.find("alice") == wanted
    assert users.identifier(number) == "alice"
    for name in ("alice", "alice_2", "alice@example.com"):
        assert users.named(name) == wanted
    for name in ("Alice", "nobody", "", "ali\0ce", "\ud800", "alice%"):
        assert users.find(name) is None
        assert users.named(name) is None


def test_what_the_directory_calls_somebody_goes_before_what_others_are_called_here(registry: Registry) -> None:
    registry.link("alice", "other")
    number = registry.link("zoe", "alice")
    found = registry.users().named("alice")
    assert found is not None
    assert found.id == number


def test_each_service_has_names_of_its_own(registry: Registry) -> None:
    registry.link("alice", "alice", service="jwtauthn")
    assert registry.users().find("alice") is None
    assert registry.users("jwtauthn").find("alice") is not None


def test_robots_and_organizations_come_from_nowhere(registry: Registry) -> None:
    service = registry.people.find(LoginService, name="ldap")
    organization = registry.people.organization("acme")
    robot = registry.people.robot("acme+ci")
    for number, identifier in ((organization, "acme"), (robot, "robot")):
        registry.people.add(FederatedLogin, user_id=number, service_id=service, service_ident=identifier)
        assert registry.users().find(identifier) is None


def test_a_quay_s_rows_are_only_read(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    registry.people.user("alice")
    users = registry.users(ours=False)
    with pytest.raises(NotLinked, match="log in to Quay once first"):
        users.user(ALICE)
    assert "'alice' of ldap is refused: there is no account in Quay yet; log in to Quay once first" in caplog.text
    registry.link("bob", "bob", email="old@example.com")
    written = []
    event.listen(registry.engine, "before_cursor_execute", lambda *given: written.append(given[2]))
    assert users.user(Identity("bob", "new@example.com")).name == "bob"
    assert {statement.split()[0] for statement in written} <= {"SELECT", "BEGIN"}
    assert registry.email("bob") == "old@example.com"


# --- How one is made --------------------------------------------------------------------------------------------------


def test_who_is_new_gets_a_row_without_a_password(registry: Registry) -> None:
    made = registry.users().user(ALICE)
    assert (made.name, made.enabled, made.identifier) == ("alice", True, "alice")
    assert registry.users().user(ALICE) == made
    with registry.engine.connect() as connection:
        row = connection.execute(select(User).where(User.id == made.id)).one()
        login = connection.execute(select(FederatedLogin)).one()
    assert (row.email, row.verified, row.password_hash) == ("alice@example.com", True, None)
    assert (login.user_id, login.service_ident, login.metadata_json) == (made.id, "alice", "{}")


def test_a_name_that_another_has_is_not_given_again(registry: Registry) -> None:
    registry.people.user("alice")
    registry.people.organization("acme")
    made = [registry.users().user(Identity(name)).name for name in ("alice", "ALICE", "acme")]
    assert made == ["alice0", "alice1", "acme0"]


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("Alice", "alice"),
        ("alice.b@example.com", "alice_b_example_com"),
        ("Ünï", "uni"),
        ("a", "a0"),
        ("中文", "00"),
        ("--a__b--", "a_b"),
        ("a+b", "a_b"),
        ("x" * 255, "x" * 255),
    ],
)
def test_a_name_is_made_of_what_the_directory_calls_somebody(registry: Registry, identifier: str, name: str) -> None:
    assert registry.users().user(Identity(identifier)).name == name


def test_every_name_that_is_tried_is_one_that_users_may_have() -> None:
    from util.names import check_username

    for identifier in ("", "a", "-", "中", "x" * 300, "_" * 300, "ab-" * 100, "a" * 254 + "-b"):
        for name in itertools.islice(usernames(identifier), 200):
            check_username(name)
    assert len(set(usernames("alice"))) == 1 + 36 + 36**2


@pytest.mark.parametrize("identifier", ["", "x" * 256, "ali\0ce", "\ud800", "a\nb"])
def test_what_no_row_could_hold_is_nobody(registry: Registry, identifier: str) -> None:
    with pytest.raises(NotLinked):
        registry.users().user(Identity(identifier))


def test_an_e_mail_address_belongs_to_one_user(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    registry.people.user("bob", email="Alice@example.com")
    with pytest.raises(NotLinked, match="another user has the e-mail address"):
        registry.users().user(ALICE)
    assert registry.users().find("alice") is None
    assert "another user has" in caplog.text


def test_an_e_mail_address_that_changes_there_changes_here(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    users = registry.users()
    users.user(ALICE)
    users.user(Identity("alice", "new@example.com"))
    assert registry.email("alice") == "new@example.com"
    registry.people.user("bob", email="bob@example.com")
    users.user(Identity("alice", "BOB@example.com"))
    assert registry.email("alice") == "new@example.com"
    assert "alice keeps their e-mail address" in caplog.text
    for none in (None, "no address", "x" * 255 + "@example.com", "a\n@example.com"):
        users.user(Identity("alice", none))
    assert registry.email("alice") == "new@example.com"


def test_new_users_may_be_ruled_out(registry: Registry) -> None:
    with pytest.raises(NotLinked, match="FEATURE_USER_CREATION"):
        registry.users(creates=False).user(ALICE)
    registry.users().user(ALICE)
    assert registry.users(creates=False).user(ALICE).name == "alice"
    refusing = registry.users(refused_domains=("example.org",))
    for email in ("a@example.org", "a@EXAMPLE.org", "a@mail.example.org"):
        with pytest.raises(NotLinked, match="BLACKLISTED_EMAIL_DOMAINS"):
            refusing.user(Identity("bob", email))
    assert refusing.user(Identity("bob", "a@myexample.org")).name == "bob"


def test_whoever_had_that_name_before_leaves_nothing(registry: Registry) -> None:
    superuser = insert(SuperuserRow).values(username="alice", created_ms=0)
    changing(registry.engine, lambda connection: connection.execute(superuser).rowcount)
    registry.users().user(ALICE)
    assert reading(registry.engine, lambda connection: connection.execute(select(SuperuserRow)).all()) == []
    assert reading(registry.engine, lambda connection: connection.execute(select(LoginRow)).all()) == []


def test_many_first_logins_at_once_make_one_user(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    users, found = registry.users(), []
    threads = [threading.Thread(target=lambda: found.append(users.user(ALICE).id)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert caplog.text.count("is now the user") == 1


def test_a_user_is_deleted_with_who_they_are_elsewhere(registry: Registry) -> None:
    registry.users().user(ALICE)
    Administration(registry.engine, registry.engine, lambda: None).delete_user("alice")
    assert registry.users().find("alice") is None
    assert registry.users().user(ALICE).name == "alice"
