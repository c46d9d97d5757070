"""What is done to accounts and repositories, on every database that may be ours; and what is not done to a Quay's."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, event, func, select, update

from data import namespaces, passwords
from data.accounts import AccountDisabled, CredentialsRefused, InvalidRole, Role, SqlAccounts, TooManyLogins
from data.administered import NamespaceNotFound, NameTaken, NotOurRegistry, UserNotFound, new_token
from data.administration import Administration
from data.database import Engine, create_tables, make_engine, writing
from data.federated import FederatedUsers
from data.logins import Logins
from data.namespaces import InvalidEmail, NamespaceListed, NamespaceNotEmpty, NoSecretKey, RobotListed
from data.owntables import LoginRow, SuperuserRow, reading, upgrade
from data.passwords import InvalidPassword
from data.registry import RegistryUnavailable, RepositoryInfo, RepositoryNotFound, SqlRegistry
from data.repositories import Granted, PermissionNotFound, RepositoryListed
from data.robotfederation import Trusted
from data.secretbox import SecretBox
from data.tables import (
    MARKED_FOR_DELETION,
    AppSpecificAuthToken,
    Base,
    Repository,
    RepositoryPermission,
    RobotAccountToken,
    Team,
    TeamMember,
    User,
)
from data.teams import ForeignRobot, Rank, TeamListed, TeamNotFound
from data.teamsyncs import SyncedTeam
from test.databases import KINDS, database
from test.people import PASSWORD, SECRET, People, quick_hash
from util.names import InvalidName


@dataclass(frozen=True)
class Office:
    """A registry of our own, who administers it, and who looks in."""

    engine: Engine
    administration: Administration
    accounts: SqlAccounts
    registry: SqlRegistry
    people: People

    def count(self, table: Any) -> int:
        with self.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(table)).scalar_one()

    def role(self, who: str, repository: str) -> Role | None:
        account = self.accounts.find(who)
        assert account is not None
        namespace, _, name = repository.partition("/")
        return self.accounts.role(account, namespace, name)


def office_of(engine: Engine, **more: Any) -> Office:
    box = SecretBox(SECRET)
    return Office(
        engine,
        Administration(engine, engine, lambda: box, **more),
        SqlAccounts(engine, engine, Logins(engine), secrets=lambda: box),
        SqlRegistry(engine),
        People(engine),
    )


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash with few rounds, and check as ever."""
    real = passwords.hashed

    def hashed(password: str) -> str:
        return quick_hash(password) if len(password) > 8 and " " not in password else real(password)

    monkeypatch.setattr(namespaces, "hashed", hashed)


@pytest.fixture(params=KINDS)
def office(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Office]:
    with database(request.param, tmp_path) as engine:
        create_tables(engine)
        upgrade(engine)
        yield office_of(engine)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Office]:
    """An office on SQLite, for what is the same on every database."""
    with database("sqlite", tmp_path) as engine:
        create_tables(engine)
        upgrade(engine)
        yield office_of(engine)


# --- Users ------------------------------------------------------------------------------------------------------------


def test_a_user_is_made_and_comes_in(office: Office) -> None:
    made = office.administration.create_user("alice", PASSWORD, email="alice@example.com")
    assert made == office.accounts.authenticate("alice", PASSWORD)
    assert made == office.accounts.authenticate("alice@example.com", PASSWORD)
    assert not made.superuser
    assert office.accounts.may_create(made, "alice")


def test_a_superuser_is_one(office: Office) -> None:
    made = office.administration.create_user("root", PASSWORD, superuser=True)
    assert made.superuser
    assert office.accounts.authenticate("root", PASSWORD) == made


def test_a_user_becomes_a_superuser_and_is_one_no_more(office: Office) -> None:
    office.administration.create_user("alice", PASSWORD)
    for superuser in (True, True, False, False):
        office.administration.set_superuser("alice", superuser=superuser)
        assert office.accounts.authenticate("alice", PASSWORD).superuser is superuser
        assert [each.superuser for each in office.administration.users()] == [superuser]


def test_only_users_are_superusers(small: Office) -> None:
    small.administration.create_organization("acme")
    small.administration.create_robot("acme+ci")
    for name in ("nobody", "acme", "acme+ci"):
        with pytest.raises(UserNotFound, match=f"there is no user '{re.escape(name)}'"):
            small.administration.set_superuser(name, superuser=True)
    assert reading(small.engine, lambda connection: connection.scalars(select(SuperuserRow.username)).all()) == []


def test_users_are_listed_by_name(office: Office) -> None:
    office.administration.create_user("bob", PASSWORD)
    office.administration.create_user("alice", PASSWORD, email="alice@example.com", superuser=True)
    office.administration.set_enabled("bob", enabled=False)
    office.administration.create_organization("acme")
    office.administration.create_robot("alice+ci")
    assert office.administration.users() == [
        NamespaceListed("alice", "alice@example.com", enabled=True, superuser=True),
        NamespaceListed("bob", None, enabled=False),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a",
        "Alice",
        "al ice",
        "-alice",
        "alice-",
        "al--ice",
        "al__ice",
        "al/ice",
        "alice+ci",
        "älice",
        "$app",
        "x\n",
    ],
)
def test_names_that_quay_would_not_give_are_refused(small: Office, name: str) -> None:
    for make in (
        lambda: small.administration.create_user(name, PASSWORD),
        lambda: small.administration.create_organization(name),
    ):
        with pytest.raises(InvalidName):
            make()
    assert small.count(User) == 0


@pytest.mark.parametrize("password", ["short", "has space in it", ""])
def test_passwords_that_quay_would_not_take_are_refused(small: Office, password: str) -> None:
    with pytest.raises(InvalidPassword):
        small.administration.create_user("alice", password)
    small.administration.create_user("alice", PASSWORD)
    with pytest.raises(InvalidPassword):
        small.administration.set_password("alice", password)
    assert small.accounts.authenticate("alice", PASSWORD).name == "alice"


@pytest.mark.parametrize(
    "email",
    ["", "alice", "@example.com", "alice@", "alice@host", "a@b@c.de", "a b@c.de", "a@c..de", f"{'x' * 250}@c.de"],
)
def test_an_e_mail_address_is_one(small: Office, email: str) -> None:
    with pytest.raises(InvalidEmail):
        small.administration.create_user("alice", PASSWORD, email=email)


def test_a_name_or_an_address_is_given_once(office: Office) -> None:
    office.administration.create_user("alice", PASSWORD, email="alice@example.com", superuser=True)
    office.administration.create_organization("acme")
    for make in (
        lambda: office.administration.create_user("alice", "another-horse"),
        lambda: office.administration.create_user("acme", PASSWORD),
        lambda: office.administration.create_organization("alice"),
        lambda: office.administration.create_organization("acme"),
        lambda: office.administration.create_user("bob", PASSWORD, email="Alice@example.com"),
    ):
        with pytest.raises(NameTaken):
            make()
    assert office.accounts.authenticate("alice", PASSWORD).superuser  # nothing of hers was touched
    assert office.count(User) == 2


def test_another_password_counts_at_once_and_nobody_waits_any_more(office: Office) -> None:
    office.administration.create_user("alice", PASSWORD)
    with writing(office.engine) as connection:
        connection.execute(update(User).values(invalid_login_attempts=12))
    with pytest.raises(TooManyLogins):
        office.accounts.authenticate("alice", PASSWORD)
    Logins(office.engine).failed("alice")
    office.administration.set_password("alice", "another-horse")
    assert office.accounts.authenticate("alice", "another-horse").name == "alice"
    with pytest.raises(CredentialsRefused):
        office.accounts.authenticate("alice", PASSWORD)


def test_only_users_have_passwords(small: Office) -> None:
    small.administration.create_organization("acme")
    small.administration.create_robot("acme+ci")
    for name in ("acme", "acme+ci", "nobody"):
        with pytest.raises(UserNotFound):
            small.administration.set_password(name, PASSWORD)


def test_who_is_disabled_is_out_until_enabled(small: Office) -> None:
    small.administration.create_user("alice", PASSWORD)
    small.administration.create_organization("acme")
    token = small.administration.create_robot("acme+ci")
    for name in ("alice", "acme"):
        small.administration.set_enabled(name, enabled=False)
    with pytest.raises(AccountDisabled):
        small.accounts.authenticate("alice", PASSWORD)
    with pytest.raises(AccountDisabled):
        small.accounts.authenticate("acme+ci", token)
    for name in ("alice", "acme"):
        small.administration.set_enabled(name, enabled=True)
    assert small.accounts.authenticate("alice", PASSWORD).name == "alice"
    assert small.accounts.authenticate("acme+ci", token).robot
    small.administration.set_enabled("acme+ci", enabled=False)
    with pytest.raises(AccountDisabled):
        small.accounts.authenticate("acme+ci", token)
    with pytest.raises(UserNotFound):
        small.administration.set_enabled("nobody", enabled=False)


def full(office: Office) -> None:
    """Fill the office with everything that a user and an organization may have."""
    administration = office.administration
    administration.create_user("root", PASSWORD, superuser=True)
    for name in ("alice", "bob"):
        administration.create_user(name, PASSWORD, superuser=name == "alice")
        administration.create_robot(f"{name}+ci")
        office.people.app_token(name, name[0] * 120)
        Logins(office.engine).failed(name)
    for name in ("acme", "acme2"):
        administration.create_organization(name, owner="alice")
        administration.create_team(name, "devs")
        for member in ("alice", "bob"):
            administration.add_member(name, "devs", member)
        administration.create_robot(f"{name}+ci")
        administration.add_member(name, "devs", f"{name}+ci")
    for namespace in ("alice", "bob"):
        administration.create_repository(namespace, "own", public=True)
        for who in ("alice", "bob", "acme+ci"):
            administration.grant(namespace, "own", who, Role.READ)
    for namespace in ("acme", "acme2"):
        administration.create_repository(namespace, "app", public=True)
        for who in ("alice", "bob+ci", "team:devs"):
            administration.grant(namespace, "app", who, Role.WRITE)


def test_a_user_is_deleted_with_all_that_is_theirs_and_nothing_else(office: Office) -> None:
    full(office)
    tables = (Team, TeamMember, RepositoryPermission, RobotAccountToken, AppSpecificAuthToken)
    before = {table: office.count(table) for table in tables}
    with pytest.raises(NamespaceNotEmpty):
        office.administration.delete_user("alice")
    assert office.accounts.find("alice") is not None
    office.administration.delete_repository("alice", "own")
    office.administration.delete_user("alice")
    assert {table: before[table] - office.count(table) for table in tables} == {
        Team: 0,
        TeamMember: 4,  # two owners, two devs
        RepositoryPermission: 6,  # three in her repository, three of hers elsewhere
        RobotAccountToken: 1,
        AppSpecificAuthToken: 1,
    }
    for name in ("alice", "alice+ci"):
        assert office.accounts.find(name) is None
    assert reading(office.engine, lambda connection: connection.scalars(select(SuperuserRow.username)).all()) == [
        "root"
    ]
    assert reading(office.engine, lambda connection: connection.scalars(select(LoginRow.username)).all()) == ["bob"]
    assert [each.name for each in office.administration.repositories("bob")] == ["own"]


def test_a_user_may_be_deleted_with_the_repositories(office: Office) -> None:
    full(office)
    office.administration.delete_user("alice", with_repositories=True)
    with pytest.raises(RepositoryNotFound):
        office.registry.repository("alice", "own")
    assert office.administration.repositories("alice") == []
    with office.engine.connect() as connection:  # for the garbage
        states = select(Repository.state).where(Repository.namespace_user_id.is_(None))
        assert connection.scalars(states).all() == [MARKED_FOR_DELETION]


def test_a_later_user_of_a_deleted_name_has_nothing_of_the_first(small: Office) -> None:
    full(small)
    small.administration.delete_user("alice", with_repositories=True)
    again = small.administration.create_user("alice", "another-horse")
    assert small.accounts.authenticate("alice", "another-horse") == again
    assert not again.superuser
    for repository in ("acme/app", "bob/own"):
        assert small.role("alice", repository) is None
    assert small.administration.permissions("bob", "own") == [
        Granted("acme+ci", Role.READ),
        Granted("bob", Role.READ),
    ]


def test_what_our_tables_kept_of_a_name_is_not_a_later_user_s(small: Office) -> None:
    small.administration.create_user("alice", PASSWORD, superuser=True)
    with writing(small.engine) as connection:  # deleted by other means
        connection.execute(delete(User))
    assert not small.administration.create_user("alice", PASSWORD).superuser
    assert not small.accounts.authenticate("alice", PASSWORD).superuser


def test_only_users_are_deleted_as_users(small: Office) -> None:
    full(small)
    for name in ("acme", "alice+ci", "nobody"):
        with pytest.raises(UserNotFound):
            small.administration.delete_user(name, with_repositories=True)


# --- Organizations, teams, robots -------------------------------------------------------------------------------------


def test_an_organization_begins_with_its_owners(office: Office) -> None:
    office.administration.create_user("alice", PASSWORD)
    office.administration.create_organization("acme", owner="alice")
    office.administration.create_organization("bare")
    assert office.administration.teams("acme") == [TeamListed("owners", Rank.ADMIN, ("alice",))]
    assert office.administration.teams("bare") == [TeamListed("owners", Rank.ADMIN, ())]
    assert office.role("alice", "acme/whatever") == Role.ADMIN
    assert office.role("alice", "bare/whatever") is None
    names = [each.name for each in office.administration.organizations()]
    assert names == ["acme", "bare"]


def test_an_owner_must_be_a_user(small: Office) -> None:
    small.administration.create_organization("acme")
    small.administration.create_robot("acme+ci")
    for owner in ("nobody", "acme", "acme+ci"):
        with pytest.raises(UserNotFound):
            small.administration.create_organization("other", owner=owner)
    assert [each.name for each in small.administration.organizations()] == ["acme"]


def test_an_organization_is_deleted_with_all_that_is_its_own_and_nothing_else(office: Office) -> None:
    full(office)
    with pytest.raises(NamespaceNotEmpty):
        office.administration.delete_organization("acme")
    office.administration.delete_organization("acme", with_repositories=True)
    assert [each.name for each in office.administration.organizations()] == ["acme2"]
    assert office.accounts.find("acme+ci") is None
    assert office.accounts.find("acme2+ci") is not None
    assert [each.name for each in office.administration.teams("acme2")] == ["devs", "owners"]
    assert office.role("bob", "acme2/app") == Role.WRITE
    assert [each.who for each in office.administration.permissions("bob", "own")] == ["alice", "bob"]
    for name in ("acme", "alice", "acme2+ci"):
        with pytest.raises(NamespaceNotFound):
            office.administration.delete_organization(name, with_repositories=True)
    office.administration.create_organization("acme")
    with pytest.raises(RepositoryNotFound):
        office.registry.repository("acme", "app")


def test_teams_give_what_their_rank_says(office: Office) -> None:
    office.administration.create_user("alice", PASSWORD)
    office.administration.create_organization("acme")
    office.administration.create_team("acme", "makers", rank=Rank.CREATOR)
    alice = office.accounts.find("alice")
    assert alice is not None
    assert not office.accounts.may_create(alice, "acme")
    office.administration.add_member("acme", "makers", "alice")
    office.administration.add_member("acme", "makers", "alice")  # as it is
    assert office.accounts.may_create(alice, "acme")
    assert office.administration.teams("acme")[0] == TeamListed("makers", Rank.CREATOR, ("alice",))
    office.administration.remove_member("acme", "makers", "alice")
    assert not office.accounts.may_create(alice, "acme")


def test_a_team_that_is_deleted_gives_nothing_any_more(office: Office) -> None:
    full(office)
    office.administration.delete_team("acme", "devs")
    assert office.role("bob", "acme/app") is None
    assert office.role("bob", "acme2/app") == Role.WRITE
    assert [each.who for each in office.administration.permissions("acme", "app")] == ["alice", "bob+ci"]


def test_teams_and_members_that_are_not_there_are_named(small: Office) -> None:
    full(small)
    administration = small.administration
    cases: list[tuple[type[Exception], Callable[[], object]]] = [
        (NamespaceNotFound, lambda: administration.create_team("nowhere", "devs")),
        (NamespaceNotFound, lambda: administration.create_team("alice", "devs")),
        (NamespaceNotFound, lambda: administration.teams("nowhere")),
        (NameTaken, lambda: administration.create_team("acme", "devs")),
        (InvalidName, lambda: administration.create_team("acme", "De vs")),
        (TeamNotFound, lambda: administration.delete_team("acme", "absent")),
        (TeamNotFound, lambda: administration.add_member("acme", "absent", "alice")),
        (UserNotFound, lambda: administration.add_member("acme", "devs", "nobody")),
        (UserNotFound, lambda: administration.add_member("acme", "devs", "acme2")),
        (ForeignRobot, lambda: administration.add_member("acme", "devs", "alice+ci")),
        (UserNotFound, lambda: administration.remove_member("acme", "owners", "bob")),
        (TeamNotFound, lambda: administration.remove_member("acme", "absent", "bob")),
        (InvalidRole, lambda: Rank.parse("owner")),
    ]
    for problem, do in cases:
        with pytest.raises(problem):
            do()


def test_a_robot_is_made_and_its_token_told_once(office: Office) -> None:
    office.administration.create_organization("acme")
    token = office.administration.create_robot("acme+ci")
    assert len(token) == 64
    assert token.isalnum()
    assert token == token.upper()
    assert office.accounts.authenticate("acme+ci", token).robot
    with office.engine.connect() as connection:
        kept = connection.execute(select(RobotAccountToken.token)).scalar_one()
    assert kept.startswith("v0$$")
    assert token not in kept
    assert office.administration.robots() == [RobotListed("acme+ci", enabled=True)]
    with pytest.raises(NameTaken):
        office.administration.create_robot("acme+ci")
    assert office.accounts.authenticate("acme+ci", token).robot


def test_a_robot_s_new_token_is_the_only_one_that_is_good(office: Office) -> None:
    full(office)
    first = office.administration.renew_robot("acme+ci")
    second = office.administration.renew_robot("acme+ci")
    assert len(second) == 64
    with pytest.raises(CredentialsRefused):
        office.accounts.authenticate("acme+ci", first)
    assert office.accounts.authenticate("acme+ci", second).name == "acme+ci"
    with pytest.raises(CredentialsRefused):
        office.accounts.authenticate("bob+ci", second)
    assert office.role("acme+ci", "bob/own") is not None  # what it was granted it still has


def test_a_robot_without_a_token_gets_one(small: Office) -> None:
    small.administration.create_organization("acme")
    small.administration.create_robot("acme+ci")
    with writing(small.engine) as connection:
        connection.execute(delete(RobotAccountToken))
    token = small.administration.renew_robot("acme+ci")
    assert small.accounts.authenticate("acme+ci", token).robot


def test_tokens_are_of_all_letters_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(200)}
    assert len(tokens) == 200
    assert len(set("".join(tokens))) == 36


def test_robots_are_listed_by_owner(small: Office) -> None:
    for name in ("acme", "acme2", "ac.me", "ac_me"):
        small.administration.create_organization(name)
        small.administration.create_robot(f"{name}+ci")
    assert [each.name for each in small.administration.robots("acme")] == ["acme+ci"]
    assert [each.name for each in small.administration.robots("ac_me")] == ["ac_me+ci"]
    assert len(small.administration.robots()) == 4


def test_a_robot_that_is_deleted_is_gone_with_what_it_was_given(office: Office) -> None:
    full(office)
    office.administration.delete_robot("acme+ci")
    assert office.accounts.find("acme+ci") is None
    assert [each.who for each in office.administration.permissions("bob", "own")] == ["alice", "bob"]
    with pytest.raises(UserNotFound):
        office.administration.delete_robot("acme+ci")


@pytest.mark.parametrize("name", ["acme", "acme+", "+ci", "acme+c", "acme+C+I", "acme+ci+cd", "Acme+ci", "acme+c i"])
def test_names_that_no_robot_has_are_refused(small: Office, name: str) -> None:
    small.administration.create_organization("acme")
    each = small.administration
    for do in (each.create_robot, each.renew_robot, each.delete_robot):
        with pytest.raises(InvalidName):
            do(name)


def test_a_robot_needs_an_owner_and_a_key(small: Office) -> None:
    with pytest.raises(NamespaceNotFound):
        small.administration.create_robot("nobody+ci")
    small.administration.create_organization("acme")
    small.administration.create_robot("acme+ci")
    with pytest.raises(NamespaceNotFound):
        small.administration.create_robot("acme.ci+ci")
    without = Administration(small.engine, small.engine, lambda: None)
    with pytest.raises(NoSecretKey):
        without.create_robot("acme+cd")
    with pytest.raises(NoSecretKey):
        without.renew_robot("acme+ci")
    with pytest.raises(UserNotFound, match="there is no robot 'acme\\+cd'"):
        small.administration.renew_robot("acme+cd")
    assert [each.name for each in small.administration.robots()] == ["acme+ci"]


# --- Repositories -----------------------------------------------------------------------------------------------------


def test_a_repository_is_made_once_and_its_maker_is_its_admin(office: Office) -> None:
    alice = office.administration.create_user("alice", PASSWORD)
    office.administration.create_organization("acme")
    made = office.administration.create_repository("acme", "app/web", public=False, creator=alice.id)
    assert made == RepositoryInfo(made.id, "image", public=False, namespace_enabled=True)
    assert office.registry.repository("acme", "app/web") == made
    assert office.administration.create_repository("acme", "app/web", public=True, creator=None) == made
    assert office.administration.permissions("acme", "app/web") == [Granted("alice", Role.ADMIN)]
    assert office.role("alice", "acme/app/web") == Role.ADMIN
    assert office.administration.repositories() == [RepositoryListed("acme", "app/web", "image", public=False)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_repository_is_made_once_also_by_many(kind: str, tmp_path: Path) -> None:
    with database(kind, tmp_path) as engine:
        create_tables(engine)
        upgrade(engine)
        office = office_of(engine)
        alice = office.administration.create_user("alice", PASSWORD)
        made: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: made.append(
                    office.administration.create_repository("alice", "app", public=False, creator=alice.id).id
                )
            )
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 12
        assert len(set(made)) == 1
        assert office.count(RepositoryPermission) == 1


def test_a_repository_needs_a_namespace_and_a_name(small: Office) -> None:
    small.administration.create_user("alice", PASSWORD)
    small.administration.create_robot("alice+ci")
    for namespace in ("nobody", "alice+ci", ""):
        with pytest.raises(NamespaceNotFound):
            small.administration.create_repository(namespace, "app", public=True)
    for name in ("", "App", "a b", "/app", "app/", "a//b", "x" * 256, "-app"):
        with pytest.raises(InvalidName):
            small.administration.create_repository("alice", name, public=True)
    assert small.count(Repository) == 0


def test_visibility_changes(office: Office) -> None:
    office.administration.create_user("alice", PASSWORD)
    office.administration.create_repository("alice", "app", public=False)
    office.administration.set_visibility("alice", "app", public=True)
    assert office.registry.repository("alice", "app").public
    office.administration.set_visibility("alice", "app", public=False)
    assert not office.registry.repository("alice", "app").public


def test_a_deleted_repository_is_gone_and_its_name_is_free(office: Office) -> None:
    alice = office.administration.create_user("alice", PASSWORD)
    first = office.administration.create_repository("alice", "app", public=True, creator=alice.id)
    office.administration.delete_repository("alice", "app")
    with pytest.raises(RepositoryNotFound):
        office.registry.repository("alice", "app")
    assert office.administration.repositories() == []
    second = office.administration.create_repository("alice", "app", public=False)
    assert second.id != first.id
    assert office.administration.permissions("alice", "app") == []
    office.administration.delete_repository("alice", "app")  # a second of that name
    with office.engine.connect() as connection:
        rows = connection.execute(select(Repository.name, Repository.state)).all()
    assert len(rows) == 2
    for name, state in rows:
        assert state == MARKED_FOR_DELETION
        with pytest.raises(InvalidName):
            office.administration.create_repository("alice", name, public=True)


def test_granting_replaces_and_revoking_takes(office: Office) -> None:
    full(office)
    for role in (Role.ADMIN, Role.READ):
        office.administration.grant("acme", "app", "bob+ci", role)
        office.administration.grant("acme", "app", "team:devs", role)
        assert office.role("bob+ci", "acme/app") == role
        assert office.role("bob", "acme/app") == role
    assert office.administration.permissions("acme", "app") == [
        Granted("alice", Role.WRITE),
        Granted("bob+ci", Role.READ),
        Granted("team:devs", Role.READ),
    ]
    for who in ("bob+ci", "team:devs"):
        office.administration.revoke("acme", "app", who)
        with pytest.raises(PermissionNotFound):
            office.administration.revoke("acme", "app", who)
    assert office.role("bob", "acme/app") is None
    assert office.role("bob", "acme2/app") == Role.WRITE


def test_what_is_not_there_is_named(small: Office) -> None:
    full(small)
    administration = small.administration
    for namespace, name in (("acme", "absent"), ("nowhere", "app"), ("acme", ""), ("bob+ci", "app")):
        for do in (
            lambda owner, repository: administration.set_visibility(owner, repository, public=True),
            administration.delete_repository,
            lambda owner, repository: administration.grant(owner, repository, "alice", Role.READ),
            lambda owner, repository: administration.revoke(owner, repository, "alice"),
            administration.permissions,
        ):
            with pytest.raises(RepositoryNotFound) as caught:
                do(namespace, name)
            assert f"{namespace}/{name}" in str(caught.value)
    for who in ("nobody", "acme", "acme+cd", "team:absent", "team:", "devs", ""):
        with pytest.raises(UserNotFound):
            administration.grant("acme", "app", who, Role.READ)
        with pytest.raises(UserNotFound):
            administration.revoke("acme", "app", who)
    administration.create_team("acme2", "others")
    with pytest.raises(UserNotFound):
        administration.grant("acme", "app", "team:others", Role.READ)


# --- Registries that are not ours -------------------------------------------------------------------------------------


NOWHERE = make_engine("sqlite://")
FEDERATED = FederatedUsers(NOWHERE, NOWHERE, "ldap")
SYNCED = SyncedTeam(1, 1, "acme", "devs", "cn=devs", "")
CHANGES: dict[str, Callable[[Administration], object]] = {
    "create_user": lambda each: each.create_user("carol", PASSWORD),
    "set_password": lambda each: each.set_password("alice", "another-horse"),
    "set_superuser": lambda each: each.set_superuser("alice", superuser=True),
    "set_enabled": lambda each: each.set_enabled("alice", enabled=False),
    "delete_user": lambda each: each.delete_user("bob", with_repositories=True),
    "create_organization": lambda each: each.create_organization("other"),
    "delete_organization": lambda each: each.delete_organization("acme", with_repositories=True),
    "create_team": lambda each: each.create_team("acme", "others"),
    "delete_team": lambda each: each.delete_team("acme", "devs"),
    "add_member": lambda each: each.add_member("acme", "owners", "bob"),
    "remove_member": lambda each: each.remove_member("acme", "devs", "bob"),
    "sync_team": lambda each: each.sync_team("acme", "devs", "cn=devs", "ldap"),
    "unsync_team": lambda each: each.unsync_team("acme", "devs"),
    "bring_in_line": lambda each: each.bring_in_line(
        SYNCED, (), FederatedUsers(each._engine, each._own_engine, "ldap")
    ),
    "create_robot": lambda each: each.create_robot("acme+cd"),
    "renew_robot": lambda each: each.renew_robot("acme+ci"),
    "federate_robot": lambda each: each.federate_robot("acme+ci", [Trusted("https://id.example.com", "x")]),
    "delete_robot": lambda each: each.delete_robot("acme+ci"),
    "create_repository": lambda each: each.create_repository("acme", "new", public=True),
    "set_visibility": lambda each: each.set_visibility("acme", "app", public=False),
    "delete_repository": lambda each: each.delete_repository("acme", "app"),
    "grant": lambda each: each.grant("acme", "app", "bob", Role.ADMIN),
    "revoke": lambda each: each.revoke("acme", "app", "alice"),
}
LISTS = {"users", "organizations", "teams", "stale_teams", "robots", "repositories", "permissions"}


def rows(engine: Engine) -> dict[str, list[Any]]:
    with engine.connect() as connection:
        return {table.name: list(connection.execute(table.select())) for table in Base.metadata.sorted_tables}


def test_every_change_is_tried_here() -> None:
    public = {name for name in dir(Administration) if not name.startswith("_")}
    assert public == CHANGES.keys() | LISTS


@pytest.mark.parametrize(("more", "says"), [({"ours": False}, "Quay"), ({"readonly": True}, "REGISTRY_STATE")])
def test_a_registry_that_is_only_read_is_not_changed(small: Office, more: dict[str, bool], says: str) -> None:
    full(small)
    before = rows(small.engine)
    reading_only = office_of(small.engine, **more).administration
    for name, change in CHANGES.items():
        with pytest.raises(NotOurRegistry) as caught:
            change(reading_only)
        assert says in str(caught.value), name
    assert rows(small.engine) == before
    assert [each.name for each in reading_only.users()] == ["alice", "bob", "root"]
    assert len(reading_only.repositories()) == 4
    assert len(reading_only.permissions("acme", "app")) == 3
    assert len(reading_only.teams("acme")) == 2
    assert len(reading_only.robots("acme")) == 1
    assert len(reading_only.organizations()) == 2


@pytest.mark.parametrize("change", CHANGES)
def test_a_database_that_is_down_is_said_to_be(change: str) -> None:
    down = make_engine("postgresql://postgres@127.0.0.1:1/none")
    with pytest.raises(RegistryUnavailable):
        CHANGES[change](Administration(down, down, lambda: None))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_made_whole_or_not_at_all(small: Office, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full(small)
    if change == "unsync_team":
        CHANGES["sync_team"](small.administration)
    before = rows(small.engine)

    class Cut(Exception):
        pass

    def cut(*_: object) -> None:
        raise Cut

    event.listen(small.engine, "commit", cut)
    try:
        with suppress(Cut):
            CHANGES[change](small.administration)
            pytest.fail("it did not change anything")
    finally:
        event.remove(small.engine, "commit", cut)
    assert rows(small.engine) == before
