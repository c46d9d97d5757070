"""Passwords that a directory checks: what is counted, what is refused, and what is neither."""

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import select, update

from data.accounts import AccountDisabled, CredentialsRefused, SqlAccounts, TooManyLogins
from data.database import Engine, create_tables
from data.directories.directory import DirectoryUnavailable, GroupNotFound, Identity, Refusal
from data.directorylogins import DirectoryLogins
from data.federated import FederatedUsers, NotLinked
from data.logins import Logins
from data.owntables import LoginRow, changing, reading, upgrade
from data.rights import UserRights
from data.secretbox import SecretBox
from data.tables import User
from test.databases import database
from test.people import PASSWORD, ROBOT_TOKEN, SECRET, People, quick_hash

APP_TOKEN = "N" * 60 + "S" * 60


@dataclass
class Known:
    """A directory that knows `people` by name, and may be down. `asked` are the questions it was asked."""

    service: str | None = "ldap"
    people: dict[str, str] = field(default_factory=lambda: {"alice": "theirs", "bob": "bob's"})
    superusers: set[str] = field(default_factory=set)
    readers: set[str] = field(default_factory=set)
    restricted: set[str] = field(default_factory=set)
    down: bool = False
    asked: list[str] = field(default_factory=list)

    def _ask(self, question: str) -> None:
        self.asked.append(question)
        if self.down:
            raise DirectoryUnavailable("ldap.example.com is on fire")

    def verify(self, username: str, password: str) -> Identity | Refusal:
        self._ask(f"verify {username}")
        name = username.lower()
        if name not in self.people:
            return Refusal("nobody")
        return Identity(name) if self.people[name] == password else Refusal("wrong", name)

    def is_superuser(self, identifier: str) -> bool:
        self._ask(f"superuser {identifier}")
        return identifier in self.superusers

    def is_readonly_superuser(self, identifier: str) -> bool:
        self._ask(f"reader {identifier}")
        return identifier in self.readers

    def is_restricted(self, identifier: str) -> bool:
        self._ask(f"restricted {identifier}")
        return identifier in self.restricted

    def members(self, group: str) -> Collection[Identity]:
        raise GroupNotFound(group)


@dataclass
class Registry:
    engine: Engine
    people: People
    directory: Known = field(default_factory=Known)
    now: float = 0.0

    def users(self, *, ours: bool = True) -> FederatedUsers | None:
        service = self.directory.service
        return None if service is None else FederatedUsers(self.engine, self.engine, service, ours=ours)

    def rights(self, **more: object) -> UserRights:
        return UserRights(directory=self.directory, users=self.users(), clock=lambda: self.now, **more)  # type: ignore[arg-type]

    def accounts(self, *, ours: bool = True, rights: UserRights | None = None) -> SqlAccounts:
        logins = Logins(self.engine)
        return SqlAccounts(
            self.engine,
            self.engine,
            logins,
            secrets=lambda: SecretBox(SECRET),
            elsewhere=DirectoryLogins(self.directory, self.users(ours=ours), logins),
            rights=self.rights() if rights is None else rights,
        )

    def counted(self) -> dict[str, int]:
        query = select(LoginRow.username, LoginRow.failures)
        return dict(reading(self.engine, lambda connection: connection.execute(query).all()))

    def passed(self, milliseconds: int) -> None:
        earlier = update(LoginRow).values(last_ms=LoginRow.last_ms - milliseconds)
        changing(self.engine, lambda connection: connection.execute(earlier).rowcount)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with database("sqlite", tmp_path) as engine:
        create_tables(engine)
        upgrade(engine)
        yield Registry(engine, People(engine))


# --- Who comes in -----------------------------------------------------------------------------------------------------


def test_who_the_directory_knows_comes_in_and_has_a_row_from_then_on(registry: Registry) -> None:
    account = registry.accounts().authenticate("alice", "theirs")
    assert (account.name, account.superuser) == ("alice", False)
    assert registry.accounts(ours=False).authenticate("ALICE", "theirs") == account
    assert registry.accounts().find("alice") == account


def test_a_password_in_the_registry_s_own_rows_lets_nobody_in(registry: Registry) -> None:
    registry.accounts().authenticate("alice", "theirs")
    with registry.engine.begin() as connection:
        connection.execute(update(User).values(password_hash=quick_hash(PASSWORD)))
    registry.people.user("carol")
    for name in ("alice", "carol"):
        with pytest.raises(CredentialsRefused):
            registry.accounts().authenticate(name, PASSWORD)


def test_who_has_left_the_directory_does_not_come_in(registry: Registry) -> None:
    registry.accounts().authenticate("alice", "theirs")
    del registry.directory.people["alice"]
    with pytest.raises(CredentialsRefused):
        registry.accounts().authenticate("alice", "theirs")


def test_who_is_disabled_here_does_not_come_in(registry: Registry) -> None:
    registry.accounts().authenticate("alice", "theirs")
    with registry.engine.begin() as connection:
        connection.execute(update(User).values(enabled=False))
    with pytest.raises(AccountDisabled):
        registry.accounts().authenticate("alice", "theirs")


def test_beside_a_quay_who_has_no_row_is_told_where_to_go(registry: Registry) -> None:
    with pytest.raises(NotLinked, match="log in to Quay once first"):
        registry.accounts(ours=False).authenticate("alice", "theirs")
    with pytest.raises(CredentialsRefused) as caught:  # only who has the right password is told
        registry.accounts(ours=False).authenticate("alice", "wrong")
    assert str(caught.value) == "the user name or the password is wrong"


def test_all_refusals_are_in_the_same_words(registry: Registry) -> None:
    registry.accounts().authenticate("alice", "theirs")
    for name, password in (("alice", "wrong"), ("nobody", "theirs"), ("alice", ""), ("\0", "x")):
        registry.passed(10**9)
        with pytest.raises(CredentialsRefused) as caught:
            registry.accounts().authenticate(name, password)
        assert str(caught.value) == "the user name or the password is wrong"


@pytest.mark.parametrize("service", ["oidc", None])
def test_where_there_are_tokens_only_they_work_and_passwords_do_not(registry: Registry, service: str | None) -> None:
    registry.directory.service, registry.directory.people = service, {}
    registry.people.user("alice", None)
    registry.people.app_token("alice", APP_TOKEN)
    registry.people.robot("alice+ci")
    accounts = registry.accounts()
    assert accounts.authenticate("$app", APP_TOKEN).name == "alice"
    assert accounts.authenticate("alice+ci", ROBOT_TOKEN).robot
    with pytest.raises(CredentialsRefused):
        accounts.authenticate("alice", "theirs")


@pytest.mark.parametrize("name", ["$app", "$oauthtoken", "$token", "$x"])
def test_no_token_is_sent_to_the_directory(registry: Registry, name: str) -> None:
    registry.directory.people = {name: "token"}
    with pytest.raises(CredentialsRefused):
        registry.accounts().authenticate(name, "token")
    assert registry.directory.asked == []


# --- A directory that is down -----------------------------------------------------------------------------------------


def test_a_directory_that_is_down_neither_lets_in_nor_counts(registry: Registry) -> None:
    registry.accounts().authenticate("alice", "theirs")
    registry.directory.down = True
    for _ in range(10):
        for password in ("theirs", "wrong"):
            with pytest.raises(DirectoryUnavailable):
                registry.accounts().authenticate("alice", password)
    assert registry.counted() == {}
    registry.directory.down = False
    assert registry.accounts().authenticate("alice", "theirs").name == "alice"


def test_tokens_work_while_it_is_down(registry: Registry) -> None:
    registry.directory.superusers = {"alice"}
    registry.accounts().authenticate("alice", "theirs")
    registry.people.app_token("alice", APP_TOKEN)
    registry.people.robot("alice+ci")
    registry.directory.down = True
    accounts = registry.accounts()
    alice = accounts.authenticate("$app", APP_TOKEN)
    assert (alice.name, alice.superuser) == ("alice", False)  # it is not known that they are one
    assert accounts.find("alice") == alice
    assert accounts.authenticate("alice+ci", ROBOT_TOKEN).robot


# --- Wrong passwords --------------------------------------------------------------------------------------------------


def test_wrong_passwords_are_counted_and_waited_for(registry: Registry) -> None:
    accounts = registry.accounts()
    accounts.authenticate("alice", "theirs")
    for _ in range(8):
        registry.passed(10**9)
        with pytest.raises(CredentialsRefused):
            accounts.authenticate("alice", "wrong")
    assert registry.counted() == {"ldap:alice": 8}
    asked = len(registry.directory.asked)
    with pytest.raises(TooManyLogins):
        accounts.authenticate("alice", "theirs")
    assert len(registry.directory.asked) == asked  # the directory is spared
    with pytest.raises(TooManyLogins):  # another way to write the name is no way around
        accounts.authenticate("ALICE", "theirs")
    registry.passed(10**9)
    assert accounts.authenticate("alice", "theirs").name == "alice"
    assert registry.counted() == {}


def test_who_has_no_row_yet_waits_as_well(registry: Registry) -> None:
    accounts = registry.accounts()
    for _ in range(8):
        registry.passed(10**9)
        with pytest.raises(CredentialsRefused):
            accounts.authenticate("alice", "wrong")
    with pytest.raises(TooManyLogins):
        accounts.authenticate("alice", "theirs")


def test_names_that_nobody_has_are_not_counted(registry: Registry) -> None:
    for number in range(20):
        with pytest.raises(CredentialsRefused):
            registry.accounts().authenticate(f"nobody{number}", "wrong")
    assert registry.counted() == {}


def test_of_many_guesses_at_once_only_the_first_is_looked_at(registry: Registry) -> None:
    accounts, told = registry.accounts(), []
    accounts.authenticate("alice", "theirs")
    with pytest.raises(CredentialsRefused):
        accounts.authenticate("alice", "wrong")
    registry.passed(10**9)
    there = threading.Barrier(12)

    def guess(name: str, password: str) -> None:
        there.wait()
        try:
            told.append(accounts.authenticate(name, password).name)
        except CredentialsRefused as problem:
            told.append(type(problem).__name__)

    guesses = [("alice", "wrong")] * 6 + [("ALICE", "wrong")] * 6
    threads = [threading.Thread(target=guess, args=each) for each in guesses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["CredentialsRefused"] + ["TooManyLogins"] * 11


# --- What they may do -------------------------------------------------------------------------------------------------


def test_superusers_and_readers_by_the_directory(registry: Registry) -> None:
    registry.directory.superusers, registry.directory.readers = {"alice"}, {"bob"}
    accounts = registry.accounts()
    alice, bob = accounts.authenticate("alice", "theirs"), accounts.authenticate("bob", "bob's")
    assert (alice.superuser, alice.reads_everything) == (True, False)
    assert (bob.superuser, bob.reads_everything) == (False, True)
    registry.people.organization("acme")
    registry.people.repository("acme/app")
    assert accounts.role(alice, "acme", "app") is not None
    role = accounts.role(bob, "acme", "app")
    assert role is not None
    assert role.word == "read"
    assert not accounts.may_create(bob, "acme")


def test_readers_by_the_settings(registry: Registry) -> None:
    number = registry.people.user("auditor")
    rights = UserRights(readonly_superusers={"auditor"})
    assert rights.reads_everything(number, "auditor")
    assert not rights.reads_everything(number, "alice")
    assert not rights.is_superuser(number, "auditor")


def test_a_user_who_is_not_from_the_directory_is_nothing_there(registry: Registry) -> None:
    registry.directory.superusers = registry.directory.readers = {"alice"}
    number = registry.people.user("alice")
    rights = registry.rights(restricts=True)
    assert not rights.is_superuser(number, "alice")
    assert not rights.reads_everything(number, "alice")
    assert rights.is_restricted(number, "alice")
    assert registry.directory.asked == []


def test_what_the_directory_said_is_remembered_for_a_while_and_no_longer(registry: Registry) -> None:
    registry.accounts().authenticate("alice", "theirs")
    number = registry.people.find(User, username="alice")
    rights = registry.rights(seconds=5.0)
    registry.directory.superusers = {"alice"}
    assert rights.is_superuser(number, "alice")
    registry.directory.superusers.clear()
    registry.now = 4.9
    assert rights.is_superuser(number, "alice")
    registry.now = 5.0
    assert not rights.is_superuser(number, "alice")
    assert registry.directory.asked.count("superuser alice") == 2 + 1  # once at the login
    never = registry.rights(seconds=0.0)
    asked = len(registry.directory.asked)
    assert [never.is_superuser(number, "alice") for _ in range(3)] == [False] * 3
    assert len(registry.directory.asked) == asked + 3


def test_no_more_is_remembered_than_has_a_bound(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.rights._MOST", 3)
    rights = registry.rights()
    users = registry.users()
    assert users is not None
    for number in range(10):
        found = users.user(Identity(f"user{number}"))
        rights.is_superuser(found.id, found.name)
    assert len(rights._known) == 3


def test_an_outage_is_asked_about_once_in_a_while(registry: Registry) -> None:
    registry.accounts().authenticate("alice", "theirs")
    number = registry.people.find(User, username="alice")
    rights = registry.rights(restricts=True)
    registry.directory.down = True
    registry.directory.asked.clear()
    for _ in range(5):
        assert not rights.is_superuser(number, "alice")
        assert not rights.reads_everything(number, "alice")
        with pytest.raises(DirectoryUnavailable):
            rights.is_restricted(number, "alice")
    assert registry.directory.asked == ["superuser alice"]
    registry.now += 60
    registry.directory.down = False
    assert not rights.is_restricted(number, "alice")


@pytest.mark.parametrize(
    ("whitelist", "filtered", "restricted"),
    [
        (None, set(), set()),
        (None, {"alice"}, {"alice"}),
        ({"alice"}, {"alice"}, {"bob"}),
        ({"nobody"}, set(), {"alice", "bob"}),
    ],
)
def test_who_is_restricted_is_said_as_in_quay(
    registry: Registry, whitelist: set[str] | None, filtered: set[str], restricted: set[str]
) -> None:
    registry.directory.restricted = filtered
    rights = registry.rights(restricts=True, whitelist=whitelist)
    accounts = registry.accounts(rights=rights)
    for name, password in (("alice", "theirs"), ("bob", "bob's")):
        account = accounts.authenticate(name, password)
        assert accounts.may_create(account, name) is (name not in restricted)
    assert registry.accounts(rights=registry.rights(restricts=False)).may_create(account, "bob")


def test_without_a_directory_all_are_restricted_but_those_on_the_list(registry: Registry) -> None:
    number = registry.people.user("alice")
    assert UserRights(restricts=True).is_restricted(number, "alice")
    assert not UserRights(restricts=True, whitelist={"alice"}).is_restricted(number, "alice")
    assert not UserRights().is_restricted(number, "alice")


def test_who_is_restricted_makes_repositories_where_an_organization_lets_them(registry: Registry) -> None:
    accounts = registry.accounts(rights=registry.rights(restricts=True, whitelist={"nobody"}))
    alice = accounts.authenticate("alice", "theirs")
    registry.people.organization("acme", {"makers:creator": ("alice",)})
    assert accounts.may_create(alice, "acme")
    assert not accounts.may_create(alice, "alice")
