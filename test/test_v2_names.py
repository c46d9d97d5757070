"""What the name in a URL means: repositories of the library, repositories that are made, and those that cannot be."""

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from data.accounts import Role, SqlAccounts
from data.administration import Administration
from data.registry import RepositoryNotFound
from data.tables import Team, TeamMember, User
from endpoints.access import Action, Denied, Unauthenticated
from endpoints.caller import caller
from endpoints.extension import RegistryVerbs
from endpoints.image import NamespaceDisabled, NotAnImageRepository
from endpoints.v2.auth import _allowed
from endpoints.v2.names import Named, PushesRefused, catalog, may, named, readable, writable
from test.people import PASSWORD, People
from test.place import Place
from util.names import InvalidName


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.services()
    people = People(place.engine)
    for who in ("alice", "bob", "carol"):
        people.user(who)
    people.organization("acme", {"owners:admin": ("alice",), "creators:creator": ("carol",)})
    people.repository("alice/app", {"bob": "read"})
    people.repository("alice/open", public=True)
    return place


def configured(place: Place, **more: object) -> Place:
    return Place(place.folder, {**place.more, **more})


@contextmanager
def asking(place: Place, who: str | None) -> Iterator[None]:
    headers = {}
    if who is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{who}:{PASSWORD}".encode()).decode()
    with app_of(place).test_request_context("/v2/", headers=headers):
        yield


_APPS: dict[str, Flask] = {}


def app_of(place: Place) -> Flask:
    """Return the application of a place; the same one for the same settings."""
    configuration = repr(sorted(place.configuration.items()))
    if configuration not in _APPS:
        _APPS[configuration] = place.app()
    return _APPS[configuration]


# --- Names ------------------------------------------------------------------------------------------------------------


def test_a_name_is_a_namespace_and_a_repository_which_may_be_nested(place: Place) -> None:
    with asking(place, None):
        assert named("acme/app") == Named("acme", "app")
        assert named("acme/deeply/nested/app") == Named("acme", "deeply/nested/app")
        assert str(named("acme/deeply/nested")) == "acme/deeply/nested"


def test_a_name_with_one_part_is_the_library_s(place: Place) -> None:
    with asking(place, None):
        assert named("alpine") == Named("library", "alpine")
    with asking(configured(place, LIBRARY_NAMESPACE="base"), None):
        assert named("alpine") == Named("base", "alpine")
    with asking(configured(place, FEATURE_LIBRARY_SUPPORT=False), None), pytest.raises(InvalidName):
        named("alpine")


@pytest.mark.parametrize(
    "name",
    ["", "/", "a/", "/a", "A/b", "a/B", "a//b", "a/b/", "a/.b", "a/b..c", "a/-b", "a/b\n", "a b/c", "a/" + "b" * 256],
)
def test_a_name_that_the_specification_does_not_have_is_refused(place: Place, name: str) -> None:
    for look in (named, readable, writable):
        with asking(place, "alice"), pytest.raises(InvalidName):
            look(name)


# --- Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "name", "raises"),
    [
        ("alice", "alice/app", None),
        ("bob", "alice/app", None),
        ("carol", "alice/app", Denied),
        (None, "alice/app", Unauthenticated),
        (None, "alice/open", None),
        ("alice", "alice/absent", RepositoryNotFound),
        ("bob", "alice/absent", Denied),
        (None, "alice/absent", Unauthenticated),
        ("alice", "nowhere/app", Denied),
        # Who may make it is told that it is not there.
        ("carol", "acme/absent", RepositoryNotFound),
    ],
)
def test_who_may_read(place: Place, who: str | None, name: str, raises: type[Exception] | None) -> None:
    with asking(place, who):
        if raises is None:
            repository, info = readable(name)
            assert (str(repository), info.kind) == (name, "image")
        else:
            with pytest.raises(raises) as caught:
                readable(name)
            assert type(caught.value) is raises


def test_a_disabled_namespace_and_another_kind_are_told_to_who_may_read(place: Place) -> None:
    place.sql("UPDATE repository SET kind_id = (SELECT id FROM repositorykind WHERE name = 'application')")
    for who, raises in (("alice", NotAnImageRepository), ("carol", Denied)):
        with asking(place, who), pytest.raises(raises):
            readable("alice/app")
    place.sql("UPDATE user SET enabled = 0 WHERE username = 'alice'")
    for who, name, problem in (("bob", "alice/app", NamespaceDisabled), ("carol", "alice/app", Denied)):
        with asking(place, who), pytest.raises(problem):
            readable(name)


def tokens_for(name: str) -> object:
    return _allowed(f"repository:{name}:pull,push,delete")


def noting(ask: Callable[..., Any], asked: list[str]) -> Callable[..., Any]:
    def noted(*arguments: Any) -> Any:
        asked.append(ask.__name__)
        return ask(*arguments)

    return noted


@pytest.mark.parametrize("who", ["bob", "carol", None])
@pytest.mark.parametrize(
    "look",
    [readable, writable, partial(writable, creates=True), partial(writable, action=Action.DELETE), tokens_for],
    ids=["read", "write", "create", "delete", "token"],
)
def test_a_refusal_costs_the_same_whether_or_not_the_repository_is_there(
    place: Place, monkeypatch: pytest.MonkeyPatch, who: str | None, look: Callable[[str], object]
) -> None:
    People(place.engine).repository("alice/secret")
    asked: list[str] = []
    for name in ("role", "may_create"):
        monkeypatch.setattr(SqlAccounts, name, noting(getattr(SqlAccounts, name), asked))
    costs = []
    for repository in ("alice/secret", "alice/absent"):
        asked.clear()
        with asking(place, who), suppress(Denied):
            look(repository)
        costs.append(sorted(asked))
    assert costs[0] == costs[1]


# --- Writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("who", "namespace"), [("alice", "alice"), ("alice", "acme"), ("carol", "acme")])
def test_a_first_push_makes_the_repository(place: Place, who: str, namespace: str) -> None:
    with asking(place, who):
        with pytest.raises(RepositoryNotFound if namespace == "alice" or who == "alice" else Denied):
            writable(f"{namespace}/new")
        repository, made = writable(f"{namespace}/new", creates=True)
        assert str(repository) == f"{namespace}/new"
        assert (made.public, made.kind, made.namespace_enabled) == (False, "image", True)
        account = caller().account
        assert account is not None
        assert place.services().accounts.role(account, namespace, "new") is Role.ADMIN
        assert writable(f"{namespace}/new", creates=True)[1] == made == readable(f"{namespace}/new")[1]


def test_who_comes_second_with_a_first_push_gets_nothing_of_the_first(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = People(place.engine)
    people.user("dave")
    team = people.find(Team, name="creators")
    people.add(TeamMember, team_id=team, user_id=people.find(User, username="dave"))
    create = Administration.create_repository

    def overtaken(self: Administration, *names: str, public: bool, creator: int | None) -> object:
        create(self, *names, public=public, creator=people.find(User, username="carol"))
        return create(self, *names, public=public, creator=creator)

    monkeypatch.setattr(Administration, "create_repository", overtaken)
    with asking(place, "dave"), pytest.raises(Denied):
        writable("acme/new", creates=True)
    with asking(place, "carol"):
        assert writable("acme/new", creates=True)


def test_what_is_made_is_public_where_the_settings_say_so(place: Place) -> None:
    with asking(configured(place, CREATE_PRIVATE_REPO_ON_PUSH=False), "alice"):
        assert writable("alice/new", creates=True)[1].public


@pytest.mark.parametrize(
    ("who", "name"),
    [("bob", "alice/new"), ("bob", "alice/app"), ("bob", "alice/open"), ("carol", "alice/new"), ("bob", "acme/new"),
     ("alice", "nowhere/new")],
)  # fmt: skip
def test_nothing_is_made_or_changed_by_who_may_not(place: Place, who: str, name: str) -> None:
    with asking(place, who):
        for creates in (True, False):
            with pytest.raises(Denied) as caught:
                writable(name, creates=creates)
            assert str(caught.value) == f"{name} does not exist or is not yours to write to"
    with asking(place, None), pytest.raises(Unauthenticated):
        writable(name, creates=True)
    assert not [each for each in place.services().administration.repositories() if each.name == "new"]


def test_who_may_write_is_told_where_nothing_may_be_changed(place: Place) -> None:
    uri = f"sqlite:///{place.folder}/var/registry.db"
    for more in ({"VERBS_REGISTRY": "quay", "DB_URI": uri}, {"REGISTRY_STATE": "readonly"}):
        closed = configured(place, **more)
        writes: tuple[Callable[[], object], ...] = (
            lambda: writable("alice/app"),
            lambda: writable("alice/new", creates=True),
            lambda: writable("alice/app", action=Action.DELETE),
        )
        for write in writes:
            with asking(closed, "alice"), pytest.raises(PushesRefused):
                write()
            with asking(closed, "bob"), pytest.raises(Denied):
                write()
        with asking(closed, "bob"):
            readable("alice/app")


def test_nested_names_are_not_made_where_they_are_ruled_out(place: Place) -> None:
    with asking(place, "alice"):
        writable("alice/a/b", creates=True)
    with asking(configured(place, FEATURE_EXTENDED_REPOSITORY_NAMES=False), "alice"):
        writable("alice/a/b", creates=True)  # it is there
        with pytest.raises(InvalidName):
            writable("alice/a/c", creates=True)


# --- What else is asked -----------------------------------------------------------------------------------------------


def test_may_only_tells(place: Place) -> None:
    with asking(place, None):
        assert may(Named("alice", "open"), Action.READ, public=True)
        assert not may(Named("alice", "app"), Action.READ)
    with asking(place, "bob"):
        assert may(Named("alice", "app"), Action.READ)
        assert not may(Named("alice", "app"), Action.WRITE)
        assert not may(Named("alice", "open"), Action.WRITE, public=True)


def test_a_list_is_for_whoever_may_come(place: Place) -> None:
    with asking(place, None):
        catalog()
    with asking(configured(place, FEATURE_ANONYMOUS_ACCESS=False), None), pytest.raises(Unauthenticated):
        catalog()


# --- A host's own check -----------------------------------------------------------------------------------------------


def host(place: Place, permission: Callable[..., bool]) -> Flask:
    app = Flask("host")
    app.config.update(place.configuration)
    RegistryVerbs(app, permission=permission, v2_prefix="/v2")
    return app


def test_a_host_s_check_that_only_reads_lets_nobody_write(place: Place) -> None:
    def permission(namespace: str, repository: str, /, *, public: bool) -> bool:
        return True

    with host(place, permission).test_request_context("/v2/"):
        readable("alice/app")
        for name, creates in (("alice/app", False), ("alice/new", True)):
            with pytest.raises(Denied):
                writable(name, creates=creates)


def test_a_host_s_check_is_asked_with_the_action(place: Place) -> None:
    asked = []

    def permission(namespace: str, repository: str, /, *, public: bool, action: Action = Action.READ) -> bool:
        asked.append((f"{namespace}/{repository}", public, str(action)))
        return action is not Action.DELETE

    with host(place, permission).test_request_context("/v2/"):
        readable("alice/open")
        writable("alice/app")
        writable("alice/new", creates=True)
        with pytest.raises(Denied):
            writable("alice/app", action=Action.DELETE)
    assert asked == [
        ("alice/open", True, "read"),
        ("alice/app", False, "write"),
        ("alice/new", False, "create"),
        ("alice/new", False, "write"),
        ("alice/app", False, "delete"),
    ]


def test_a_host_s_check_that_forgets_to_answer_allows_nothing(place: Place) -> None:
    with host(place, lambda *_, **__: None).test_request_context("/v2/"):  # type: ignore[arg-type]
        assert not may(Named("alice", "open"), Action.READ, public=True)
        with pytest.raises(Denied):
            readable("alice/open")
