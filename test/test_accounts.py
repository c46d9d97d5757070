"""Accounts as Quay keeps them: who comes in by which credentials, and who may do what."""

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, event, insert, update

from data.accounts import (
    Account,
    AccountDisabled,
    CredentialsRefused,
    InvalidRole,
    Role,
    SqlAccounts,
    TooManyLogins,
)
from data.database import Engine, create_tables, make_engine, writing
from data.logins import Logins
from data.owntables import LoginRow, SuperuserRow, changing, upgrade
from data.passwords import Passwords
from data.registry import RegistryUnavailable
from data.secretbox import SecretBox
from data.tables import MARKED_FOR_DELETION, Repository, RepositoryPermission, TeamMember, User
from test.databases import KINDS, database
from test.people import PASSWORD, ROBOT_TOKEN, SECRET, People, failed_before, quick_hash

APP_TOKEN = "N" * 60 + "S" * 60


@dataclass
class Registry:
    engine: Engine
    people: People

    def accounts(self, *, secret: str | None = SECRET, **more: Any) -> SqlAccounts:
        box = None if secret is None else SecretBox(secret)
        return SqlAccounts(self.engine, self.engine, Logins(self.engine), secrets=lambda: box, **more)

    def change(self, table: Any, where: Any, **values: Any) -> None:
        with writing(self.engine) as connection:
            connection.execute(update(table).where(where).values(**values))

    def passed(self, milliseconds: int) -> None:
        earlier = update(LoginRow).values(last_ms=LoginRow.last_ms - milliseconds)
        changing(self.engine, lambda connection: connection.execute(earlier).rowcount)


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    with database(request.param, tmp_path) as engine:
        create_tables(engine)
        upgrade(engine)
        yield Registry(engine, People(engine))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Registry]:
    """A registry on SQLite, for what is the same on every database."""
    with database("sqlite", tmp_path) as engine:
        create_tables(engine)
        upgrade(engine)
        yield Registry(engine, People(engine))


# --- Users ------------------------------------------------------------------------------------------------------------


def test_a_user_comes_in_by_name_and_password(registry: Registry) -> None:
    number = registry.people.user("alice")
    assert registry.accounts().authenticate("alice", PASSWORD) == Account(number, "alice", robot=False, superuser=False)


def test_a_user_comes_in_by_e_mail(registry: Registry) -> None:
    registry.people.user("alice", email="alice@example.com")
    assert registry.accounts().authenticate("alice@example.com", PASSWORD).name == "alice"


def test_no_filled_in_e_mail_lets_anybody_in(small: Registry) -> None:
    small.people.user("alice", email="0123456789abcdef")
    with pytest.raises(CredentialsRefused):
        small.accounts().authenticate("0123456789abcdef", PASSWORD)


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("alice", "wrong-horse"),
        ("alice", ""),
        ("alice", PASSWORD + "x"),
        ("alice", "x" * 5000),
        ("alice", "\0"),
        ("alice", "\ud800"),
        ("Alice", PASSWORD),
        ("alice ", PASSWORD),
        ("nobody", PASSWORD),
        ("", PASSWORD),
        ("", ""),
        ("ali\0ce", PASSWORD),
        ("\ud800", PASSWORD),
        ("al%", PASSWORD),
        ("älice", PASSWORD),
        ("nobody@example.com", PASSWORD),
        ("$token", PASSWORD),
        ("$oauthtoken", PASSWORD),
        ("x" * 100_000, PASSWORD),
    ],
)
def test_wrong_credentials_are_refused_in_the_same_words(small: Registry, username: str, password: str) -> None:
    small.people.user("alice", email="alice@example.com")
    with pytest.raises(CredentialsRefused) as caught:
        small.accounts().authenticate(username, password)
    assert str(caught.value) == "the user name or the password is wrong"
    assert type(caught.value) is CredentialsRefused
    assert caught.value.code == "UNAUTHORIZED"


def test_what_no_database_could_hold_is_nobody_s_name(registry: Registry) -> None:
    registry.people.user("alice")
    for username in ("ali\0ce", "\ud800", "\0+ci", "x" * 100_000, "alice\n"):
        with pytest.raises(CredentialsRefused):
            registry.accounts().authenticate(username, PASSWORD)
    for code in ("\0" * 120, "\ud800" * 120, "n" * 60 + "\0"):
        with pytest.raises(CredentialsRefused):
            registry.accounts().authenticate("$app", code)


def test_an_organization_does_not_log_in(small: Registry) -> None:
    small.people.organization("acme", password_hash=quick_hash(PASSWORD), email="acme@example.com")
    for name in ("acme", "acme@example.com"):
        with pytest.raises(CredentialsRefused):
            small.accounts().authenticate(name, PASSWORD)


def test_who_has_no_password_does_not_log_in(small: Registry) -> None:
    small.people.user("alice", password=None)
    with pytest.raises(CredentialsRefused):
        small.accounts().authenticate("alice", "")


def test_a_disabled_user_is_told_so_only_by_the_right_password(registry: Registry) -> None:
    registry.people.user("alice", enabled=False)
    with pytest.raises(AccountDisabled):
        registry.accounts().authenticate("alice", PASSWORD)
    with pytest.raises(CredentialsRefused) as caught:
        registry.accounts().authenticate("alice", "wrong-horse")
    assert type(caught.value) is CredentialsRefused


def test_disabling_and_another_password_count_at_once(small: Registry) -> None:
    small.people.user("alice")
    accounts = small.accounts()
    accounts.authenticate("alice", PASSWORD)
    small.change(User, User.username == "alice", password_hash=quick_hash("another-horse"))
    with pytest.raises(CredentialsRefused):
        accounts.authenticate("alice", PASSWORD)
    small.change(User, User.username == "alice", password_hash=quick_hash(PASSWORD), enabled=False)
    small.passed(1000)
    with pytest.raises(AccountDisabled):
        accounts.authenticate("alice", PASSWORD)


class Counting(Passwords):
    """Counts what was compared."""

    def __init__(self) -> None:
        super().__init__()
        self.compared: list[str | None] = []

    def match(self, name: str, password: str, kept: str | None) -> bool:
        self.compared.append(kept)
        return super().match(name, password, kept)


@pytest.mark.parametrize("username", ["nobody", "acme", "nobody@example.com", "\0"])
def test_an_unknown_name_costs_what_a_known_one_does(small: Registry, username: str) -> None:
    small.people.organization("acme")
    passwords = Counting()
    with pytest.raises(CredentialsRefused):
        small.accounts(passwords=passwords).authenticate(username, PASSWORD)
    assert passwords.compared == [None]


# --- Guessing ---------------------------------------------------------------------------------------------------------


def test_failed_logins_slow_the_next_one_down_also_with_the_right_password(registry: Registry) -> None:
    registry.people.user("alice")
    registry.people.user("bob")
    passwords = Counting()
    accounts = registry.accounts(passwords=passwords)
    failed_before(registry.engine, "alice")
    for wait in (255.5, 511.5, 1023.5):
        with pytest.raises(CredentialsRefused) as refused:
            accounts.authenticate("alice", "wrong-horse")
        assert type(refused.value) is CredentialsRefused
        compared = len(passwords.compared)
        for password in (PASSWORD, "wrong-horse"):
            with pytest.raises(TooManyLogins) as caught:
                accounts.authenticate("alice", password)
            assert wait - 60 < caught.value.retry_after <= wait
            assert caught.value.code == "TOOMANYREQUESTS"
        assert len(passwords.compared) == compared  # it was not even looked at
        registry.passed(1_100_000)
    assert accounts.authenticate("bob", PASSWORD).name == "bob"
    assert accounts.authenticate("alice", PASSWORD).name == "alice"
    with pytest.raises(CredentialsRefused):
        accounts.authenticate("alice", "wrong-horse")
    registry.passed(600)  # as after the first failure: the success cleared the others
    assert accounts.authenticate("alice", PASSWORD).name == "alice"


def test_another_process_waits_too(small: Registry) -> None:
    small.people.user("alice", email="alice@example.com")
    failed_before(small.engine, "alice")
    with pytest.raises(CredentialsRefused):
        small.accounts().authenticate("alice@example.com", "wrong-horse")
    with pytest.raises(TooManyLogins):
        small.accounts().authenticate("alice", PASSWORD)


def test_of_many_guesses_at_once_one_is_looked_at(small: Registry) -> None:
    small.people.user("alice")
    failed_before(small.engine, "alice", 8)
    accounts, refused = small.accounts(), []

    def guess(number: int) -> None:
        with pytest.raises(CredentialsRefused) as caught:
            accounts.authenticate("alice", f"wrong-horse-{number}")
        refused.append(type(caught.value))

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.__name__ for each in refused) == ["CredentialsRefused"] + ["TooManyLogins"] * 23
    assert Logins(small.engine).standing("alice").failures == 9


def test_names_of_nobody_are_not_counted(small: Registry) -> None:
    for _ in range(3):
        with pytest.raises(CredentialsRefused) as caught:
            small.accounts().authenticate("nobody", PASSWORD)
        assert not isinstance(caught.value, TooManyLogins)
    with small.engine.connect() as connection:
        assert connection.execute(LoginRow.__table__.select()).all() == []


def now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def test_what_quay_itself_has_counted_is_heeded(registry: Registry) -> None:
    registry.people.user("alice", invalid_login_attempts=10, last_invalid_login=now() - timedelta(seconds=400))
    registry.people.user("bob", invalid_login_attempts=10, last_invalid_login=now() - timedelta(seconds=512))
    registry.people.user("carol", invalid_login_attempts=0, last_invalid_login=now() + timedelta(days=1))
    with pytest.raises(TooManyLogins) as caught:
        registry.accounts().authenticate("alice", PASSWORD)  # of 511.5 seconds
    assert 30 < caught.value.retry_after <= 111.5
    assert registry.accounts().authenticate("bob", PASSWORD).name == "bob"
    assert registry.accounts().authenticate("carol", PASSWORD).name == "carol"


def test_of_quay_s_wait_and_ours_the_later_counts(small: Registry) -> None:
    small.people.user("alice", invalid_login_attempts=10, last_invalid_login=now())
    failed_before(small.engine, "alice", 12)
    with pytest.raises(TooManyLogins) as caught:
        small.accounts().authenticate("alice", PASSWORD)
    assert 450 < caught.value.retry_after <= 511.5


def test_quay_s_columns_are_only_read(small: Registry) -> None:
    number = small.people.user("alice", invalid_login_attempts=1, last_invalid_login=now() - timedelta(seconds=60))
    before = small.engine.connect().execute(User.__table__.select().where(User.id == number)).one()
    with pytest.raises(CredentialsRefused):
        small.accounts().authenticate("alice", "wrong-horse")
    small.passed(1000)
    small.accounts().authenticate("alice", PASSWORD)
    assert small.engine.connect().execute(User.__table__.select().where(User.id == number)).one() == before


def test_without_our_database_everybody_comes_in_who_may(small: Registry, tmp_path: Path) -> None:
    small.people.user("alice")
    broken = make_engine(f"sqlite:///{tmp_path / 'nothing.db'}")
    accounts = SqlAccounts(small.engine, broken, Logins(broken), secrets=lambda: None, superusers=frozenset({"root"}))
    for _ in range(3):
        with pytest.raises(CredentialsRefused) as caught:
            accounts.authenticate("alice", "wrong-horse")
        assert not isinstance(caught.value, TooManyLogins)
    assert accounts.authenticate("alice", PASSWORD).superuser is False


def test_logins_side_by_side_are_all_answered(registry: Registry) -> None:
    registry.people.user("alice")
    accounts = registry.accounts()
    found: list[str] = []

    def log_in() -> None:
        found.append(accounts.authenticate("alice", PASSWORD).name)

    threads = [threading.Thread(target=log_in) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["alice"] * 8


# --- Robots and tokens ------------------------------------------------------------------------------------------------


def test_a_robot_comes_in_by_its_token(registry: Registry) -> None:
    registry.people.organization("acme")
    number = registry.people.robot("acme+ci")
    expected = Account(number, "acme+ci", robot=True, superuser=False)
    assert registry.accounts().authenticate("acme+ci", ROBOT_TOKEN) == expected


@pytest.mark.parametrize(
    ("username", "token"),
    [
        ("acme+ci", "WRONG" + ROBOT_TOKEN[5:]),
        ("acme+ci", ROBOT_TOKEN[:-1]),
        ("acme+ci", ""),
        ("acme+ci", "ü" * 64),
        ("acme+cd", ROBOT_TOKEN),
        ("acme+", ROBOT_TOKEN),
        ("+ci", ROBOT_TOKEN),
        ("+", ROBOT_TOKEN),
        ("acme+ci+x", ROBOT_TOKEN),
        ("other+ci", ROBOT_TOKEN),
        ("alice+", PASSWORD),
    ],
)
def test_a_wrong_robot_or_token_is_refused(small: Registry, username: str, token: str) -> None:
    small.people.user("alice")
    small.people.organization("acme")
    small.people.robot("acme+ci")
    with pytest.raises(CredentialsRefused) as caught:
        small.accounts().authenticate(username, token)
    assert str(caught.value) == "the user name or the password is wrong"


def test_a_robot_is_out_with_its_owner_or_by_itself(small: Registry) -> None:
    small.people.organization("acme", enabled=False)
    small.people.organization("free")
    small.people.robot("acme+ci")
    small.people.robot("free+ci", enabled=False)
    for name in ("acme+ci", "free+ci"):
        with pytest.raises(AccountDisabled):
            small.accounts().authenticate(name, ROBOT_TOKEN)
        with pytest.raises(CredentialsRefused) as caught:
            small.accounts().authenticate(name, "WRONG")
        assert type(caught.value) is CredentialsRefused


def test_a_robot_without_owner_or_token_is_refused(small: Registry) -> None:
    small.people.robot("gone+ci")
    small.people.organization("acme")
    small.people.add(User, username="acme+bare", robot=True)
    for name in ("gone+ci", "acme+bare"):
        with pytest.raises(CredentialsRefused):
            small.accounts().authenticate(name, ROBOT_TOKEN)


def test_a_robot_is_no_user_with_a_password(small: Registry) -> None:
    small.people.organization("acme")
    small.people.add(User, username="acme+ci", robot=True, password_hash=quick_hash(PASSWORD))
    with pytest.raises(CredentialsRefused):
        small.accounts().authenticate("acme+ci", PASSWORD)


@pytest.mark.parametrize("secret", [None, "another-key"])
def test_without_the_key_robots_are_refused_and_the_log_says_so_once(
    small: Registry, secret: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    small.people.organization("acme")
    small.people.robot("acme+ci")
    accounts = small.accounts(secret=secret)
    for _ in range(3):
        with pytest.raises(CredentialsRefused):
            accounts.authenticate("acme+ci", ROBOT_TOKEN)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "DATABASE_SECRET_KEY" in said[0]
    assert ROBOT_TOKEN not in caplog.text


def test_an_app_specific_token_is_its_user_s(registry: Registry) -> None:
    number = registry.people.user("alice")
    registry.people.app_token("alice", APP_TOKEN, expiration=now() + timedelta(hours=1))
    expected = Account(number, "alice", robot=False, superuser=False)
    assert registry.accounts().authenticate("$app", APP_TOKEN) == expected


def test_an_app_specific_token_without_an_end_has_none(small: Registry) -> None:
    small.people.user("alice")
    small.people.app_token("alice", APP_TOKEN)
    assert small.accounts().authenticate("$app", APP_TOKEN).name == "alice"


@pytest.mark.parametrize("code", ["", "N" * 60, APP_TOKEN[:-1], APP_TOKEN + "S", "n" * 60 + "S" * 60, "\0" * 120])
def test_a_wrong_app_specific_token_is_refused(small: Registry, code: str) -> None:
    small.people.user("alice")
    small.people.app_token("alice", APP_TOKEN)
    with pytest.raises(CredentialsRefused):
        small.accounts().authenticate("$app", code)


def test_an_app_specific_token_ends_by_its_time_its_user_or_its_key(small: Registry) -> None:
    small.people.user("alice")
    small.people.user("bob", enabled=False)
    small.people.app_token("alice", APP_TOKEN, expiration=now() - timedelta(minutes=1))
    small.people.app_token("bob", "B" * 120)
    small.people.app_token("alice", "K" * 120, secret="another")
    accounts = small.accounts()
    for code, kind in ((APP_TOKEN, CredentialsRefused), ("B" * 120, AccountDisabled), ("K" * 120, CredentialsRefused)):
        with pytest.raises(CredentialsRefused) as caught:
            accounts.authenticate("$app", code)
        assert type(caught.value) is kind


def test_app_specific_tokens_may_be_turned_off(small: Registry) -> None:
    small.people.user("alice")
    small.people.app_token("alice", APP_TOKEN)
    with pytest.raises(CredentialsRefused):
        small.accounts(app_specific_tokens=False).authenticate("$app", APP_TOKEN)


# --- Who there is -----------------------------------------------------------------------------------------------------


def test_an_account_is_found_by_its_name_as_long_as_it_may_come_in(registry: Registry) -> None:
    alice = registry.people.user("alice", email="alice@example.com")
    registry.people.user("bob", enabled=False)
    registry.people.organization("acme")
    registry.people.organization("closed", enabled=False)
    robot = registry.people.robot("acme+ci")
    registry.people.robot("acme+old", enabled=False)
    registry.people.robot("closed+ci")
    registry.people.robot("gone+ci")
    accounts = registry.accounts()
    assert accounts.find("alice") == Account(alice, "alice", robot=False, superuser=False)
    assert accounts.find("acme+ci") == Account(robot, "acme+ci", robot=True, superuser=False)
    for name in ("bob", "acme", "acme+old", "closed+ci", "gone+ci", "alice@example.com", "nobody", "", "\0", "+"):
        assert accounts.find(name) is None, name


def test_superusers_are_those_of_the_settings_and_of_our_table(small: Registry) -> None:
    for name in ("alice", "bob", "carol"):
        small.people.user(name)
    small.people.organization("acme")
    small.people.robot("alice+ci")
    values = [{"username": "bob", "created_ms": 0}, {"username": "alice+ci", "created_ms": 0}]
    changing(small.engine, lambda connection: connection.execute(insert(SuperuserRow), values).rowcount)
    accounts = small.accounts(superusers=frozenset({"alice", "acme+ci"}))
    found = {name: accounts.find(name) for name in ("alice", "bob", "carol", "alice+ci")}
    assert {name: account and account.superuser for name, account in found.items()} == {
        "alice": True,
        "bob": True,
        "carol": False,
        "alice+ci": False,  # a robot never is
    }
    assert accounts.authenticate("bob", PASSWORD).superuser


# --- Roles ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def acme(registry: Registry) -> Registry:
    """An organization with everybody in it whose roles differ, and a user's own namespace."""
    people = registry.people
    for name in ("owner", "maker", "member", "granted", "stranger"):
        people.user(name)
    people.organization("other")
    for name in ("other+ci", "stranger+ci"):
        people.robot(name)
    people.organization(
        "acme",
        {"owners:admin": ("owner",), "makers:creator": ("maker",), "devs": ("member", "granted", "other+ci")},
    )
    people.repository("acme/app", {"team:devs": "write", "granted": "admin", "stranger+ci": "read"})
    people.repository("acme/public", public=True)
    people.repository("stranger/own")
    return registry


ROLES = {
    ("owner", "acme/app"): Role.ADMIN,  # by a team that is admin
    ("owner", "acme/public"): Role.ADMIN,
    ("owner", "acme/absent"): Role.ADMIN,
    ("owner", "other/app"): None,
    ("maker", "acme/app"): None,  # who may make some has none of the others
    ("maker", "acme/absent"): None,
    ("member", "acme/app"): Role.WRITE,  # by a team
    ("member", "acme/public"): None,
    ("member", "acme/absent"): None,
    ("granted", "acme/app"): Role.ADMIN,  # by themselves, which is higher than by the team
    ("stranger", "acme/app"): None,
    ("stranger", "acme/public"): None,  # that it is public is not theirs
    ("stranger", "stranger/own"): Role.ADMIN,
    ("stranger", "stranger/absent"): Role.ADMIN,
    ("owner", "stranger/own"): None,
    ("other+ci", "acme/app"): Role.WRITE,
    ("other+ci", "other/absent"): None,  # not what their organization may
    ("stranger+ci", "acme/app"): Role.READ,
    ("stranger+ci", "stranger/own"): None,  # nor what their owner may
    ("stranger+ci", "stranger+ci/app"): None,
    ("owner", "nowhere/app"): None,
    ("owner", "acme/\0"): None,
    ("owner", "\0/app"): None,
    ("owner", "ACME/app"): None,
}


def test_roles_are_quay_s(acme: Registry) -> None:
    accounts = acme.accounts()
    found = {}
    for who, repository in ROLES:
        account = accounts.find(who)
        assert account is not None
        found[who, repository] = accounts.role(account, *repository.split("/"))
    assert found == ROLES


MAKERS = {
    ("owner", "acme"): True,
    ("maker", "acme"): True,
    ("member", "acme"): False,
    ("granted", "acme"): False,
    ("stranger", "acme"): False,
    ("stranger", "stranger"): True,
    ("owner", "stranger"): False,
    ("stranger+ci", "stranger"): False,
    ("stranger+ci", "stranger+ci"): False,
    ("owner", "nowhere"): False,
    ("owner", "owner"): True,
    ("owner", "\0"): False,
}


def test_who_may_make_repositories(acme: Registry) -> None:
    accounts = acme.accounts()
    found = {}
    for who, namespace in MAKERS:
        account = accounts.find(who)
        assert account is not None
        found[who, namespace] = accounts.may_create(account, namespace)
    assert found == MAKERS


def test_nobody_makes_repositories_in_a_disabled_namespace(small: Registry) -> None:
    small.people.user("alice")
    small.people.organization("acme", {"owners:admin": ("alice",)}, enabled=False)
    accounts = small.accounts(superusers=frozenset({"alice"}))
    alice = accounts.find("alice")
    assert alice is not None
    assert not accounts.may_create(alice, "acme")
    assert not accounts.may_create(replace(alice, superuser=False), "acme")


def test_superusers_may_do_everything_if_the_setting_says_so(small: Registry) -> None:
    small.people.user("root")
    small.people.organization("acme")
    small.people.robot("acme+ci")
    small.people.repository("acme/app")
    for full in (True, False):
        accounts = small.accounts(superusers=frozenset({"root"}), superusers_full_access=full)
        root = accounts.find("root")
        assert root is not None
        assert root.superuser
        assert accounts.role(root, "acme", "app") == (Role.ADMIN if full else None)
        assert accounts.role(root, "nowhere", "app") == (Role.ADMIN if full else None)
        assert accounts.may_create(root, "acme") is full
        assert not accounts.may_create(root, "nowhere")
        assert not accounts.may_create(root, "acme+ci")


def test_what_is_taken_away_is_gone_at_once(acme: Registry) -> None:
    accounts = acme.accounts()
    member, granted = accounts.find("member"), accounts.find("granted")
    assert member is not None
    assert granted is not None
    with writing(acme.engine) as connection:
        connection.execute(delete(RepositoryPermission).where(RepositoryPermission.user_id == granted.id))
        connection.execute(delete(TeamMember).where(TeamMember.user_id == member.id))
    assert accounts.role(granted, "acme", "app") == Role.WRITE
    assert accounts.role(member, "acme", "app") is None


def test_a_repository_that_is_deleted_gives_no_role(acme: Registry) -> None:
    acme.change(Repository, Repository.name == "app", state=MARKED_FOR_DELETION)
    accounts = acme.accounts()
    member = accounts.find("member")
    assert member is not None
    assert accounts.role(member, "acme", "app") is None


def test_coming_in_asks_little_of_the_databases(small: Registry) -> None:
    small.people.user("alice")
    accounts = small.accounts()
    accounts.authenticate("alice", PASSWORD)
    queries: list[str] = []
    event.listen(small.engine, "before_cursor_execute", lambda _, __, query, *___: queries.append(query))
    accounts.authenticate("alice", PASSWORD)
    asked = [query.partition("FROM")[2].split()[0] for query in queries if query.startswith("SELECT")]
    assert asked == ["user", "verbs_login", "verbs_superuser"]
    assert not [query for query in queries if query.startswith(("INSERT", "UPDATE", "DELETE"))]


def test_a_role_is_one_query_whatever_somebody_was_granted(acme: Registry) -> None:
    accounts = acme.accounts()
    member = accounts.find("member")
    assert member is not None
    for number in range(20):
        acme.people.repository(f"acme/more{number}", {"team:devs": "read", "member": "write"})
    queries: list[str] = []
    event.listen(acme.engine, "before_cursor_execute", lambda _, __, query, *___: queries.append(query))
    assert accounts.role(member, "acme", "more7") == Role.WRITE
    assert len([query for query in queries if query.lstrip().startswith("SELECT")]) == 1


def test_roles_have_quay_s_names_and_order() -> None:
    assert [role.word for role in Role] == ["read", "write", "admin"]
    assert Role.READ < Role.WRITE < Role.ADMIN
    assert [Role.parse(word) for word in ("admin", "read")] == [Role.ADMIN, Role.READ]
    for word in ("owner", "", "ADMIN", "1"):
        with pytest.raises(InvalidRole):
            Role.parse(word)


def test_a_database_that_is_down_is_said_to_be(tmp_path: Path) -> None:
    down = make_engine("postgresql://postgres@127.0.0.1:1/none")
    accounts = SqlAccounts(down, down, Logins(down), secrets=lambda: None)
    account = Account(1, "alice", robot=False, superuser=False)
    for ask in (
        lambda: accounts.authenticate("alice", PASSWORD),
        lambda: accounts.authenticate("alice+ci", ROBOT_TOKEN),
        lambda: accounts.authenticate("$app", APP_TOKEN),
        lambda: accounts.find("alice"),
        lambda: accounts.role(account, "acme", "app"),
        lambda: accounts.may_create(account, "acme"),
    ):
        with pytest.raises(RegistryUnavailable):
            ask()
