"""The commands of accounts: what each does, what it prints where, and how it fails. Some as processes."""

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from data.accounts import CredentialsRefused, Role
from endpoints import accountcommands, services
from endpoints.commands import cli
from endpoints.services import Services
from test import place as place_module
from test.databases import postgresql
from test.place import Place

PASSWORD = "correct-horse"
PROGRAM = [sys.executable, "-c", "import app; app.main()"]


class Office:
    """The command line over one registry."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def run(self, *words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(
            cli, words, input=stdin, obj=lambda: self.place.configuration, prog_name="registry-verbs"
        )

    def done(self, *words: str, stdin: str | None = None) -> str:
        """Run a command that succeeds and says nothing but what it returns."""
        result = self.run(*words, stdin=stdin)
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout

    def failed(self, *words: str, stdin: str | None = None) -> str:
        """Run a command that fails with one line, which it returns."""
        result = self.run(*words, stdin=stdin)
        assert (result.exit_code, result.stdout) == (1, "")
        [line] = result.stderr.splitlines()
        assert line.startswith("registry-verbs: ")
        return line

    def wrong(self, *words: str, stdin: str | None = None) -> str:
        """Run a command that is asked for wrongly, and return what it says about it."""
        result = self.run(*words, stdin=stdin)
        assert (result.exit_code, result.stdout) == (2, "")
        return result.stderr

    def user(self, name: str, *more: str) -> None:
        assert self.done("user", "create", name, "--password-stdin", *more, stdin=f"{PASSWORD}\n") == ""

    def role(self, who: str, namespace: str, repository: str) -> Role | None:
        accounts = self.place.services().accounts
        account = accounts.find(who)
        assert account is not None
        return accounts.role(account, namespace, repository)


@pytest.fixture(autouse=True)
def disposed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the connections of what each command, and each look into the registry, has made."""
    made: list[Services] = []
    real = services.make_services

    def make_services(*arguments: Any, **more: Any) -> Services:
        made.append(real(*arguments, **more))
        return made[-1]

    monkeypatch.setattr(services, "make_services", make_services)
    monkeypatch.setattr(place_module, "make_services", make_services)
    yield
    for each in made:
        each.engine.dispose()
        each.own_engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def office(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Office]:
    if request.param == "sqlite":
        yield Office(Place(tmp_path))
        return
    with postgresql() as uri:
        yield Office(Place(tmp_path, {"DB_URI": uri, "VERBS_REGISTRY": "own"}))


@pytest.fixture
def small(tmp_path: Path) -> Office:
    return Office(Place(tmp_path))


def columns(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_users(office: Office) -> None:
    office.user("root", "--superuser")
    office.user("alice", "--email", "alice@example.com")
    accounts = office.place.services().accounts
    assert accounts.authenticate("root", PASSWORD).superuser
    assert accounts.authenticate("alice@example.com", PASSWORD).name == "alice"
    office.done("user", "disable", "alice")
    assert columns(office.done("user", "ls")) == [
        ["alice", "disabled", "alice@example.com"],
        ["root", "enabled", "superuser"],
    ]
    office.done("user", "enable", "alice")
    office.done("user", "password", "alice", "--password-stdin", stdin="another-horse")
    assert accounts.authenticate("alice", "another-horse").name == "alice"
    office.done("user", "superuser", "alice")
    office.done("user", "superuser", "--revoke", "root")
    assert columns(office.done("user", "ls")) == [
        ["alice", "enabled", "superuser", "alice@example.com"],
        ["root", "enabled"],
    ]
    office.done("user", "rm", "alice", "root")
    assert office.done("user", "ls") == ""


def test_organizations_teams_and_robots(office: Office) -> None:
    office.user("alice")
    office.user("bob")
    office.done("org", "create", "acme", "--owner", "alice")
    assert columns(office.done("org", "ls")) == [["acme", "enabled"]]
    office.done("team", "create", "acme", "devs")
    office.done("team", "create", "acme", "makers", "--role", "creator")
    token = office.done("robot", "create", "acme+ci")
    assert len(token) == 65  # and a line's end: the token alone
    accounts = office.place.services().accounts
    assert accounts.authenticate("acme+ci", token.strip()).name == "acme+ci"
    renewed = office.done("robot", "renew", "acme+ci")
    assert len(renewed) == 65
    with pytest.raises(CredentialsRefused):
        accounts.authenticate("acme+ci", token.strip())
    assert accounts.authenticate("acme+ci", renewed.strip()).name == "acme+ci"
    office.done("team", "add", "acme", "devs", "bob", "acme+ci")
    assert columns(office.done("team", "ls", "acme")) == [
        ["devs", "member", "acme+ci", "bob"],
        ["makers", "creator"],
        ["owners", "admin", "alice"],
    ]
    office.done("team", "remove", "acme", "devs", "bob")
    office.done("team", "rm", "acme", "makers")
    assert columns(office.done("team", "ls", "acme")) == [["devs", "member", "acme+ci"], ["owners", "admin", "alice"]]
    office.done("user", "disable", "acme+ci")
    assert (
        columns(office.done("robot", "ls")) == columns(office.done("robot", "ls", "acme")) == [["acme+ci", "disabled"]]
    )
    assert office.done("robot", "ls", "alice") == ""
    office.done("robot", "rm", "acme+ci")
    assert office.done("robot", "ls") == ""
    office.done("org", "rm", "acme")
    assert office.done("org", "ls") == ""


def test_repositories_and_permissions(office: Office) -> None:
    office.user("alice")
    office.done("org", "create", "acme")
    office.done("robot", "create", "acme+ci")
    office.done("team", "create", "acme", "devs")
    office.done("repo", "create", "acme/app/web", "--public")
    office.done("repo", "create", "acme/tool", "--private")
    office.done("repo", "create", "alice/own")
    assert columns(office.done("repo", "ls")) == [
        ["public", "acme/app/web"],
        ["private", "acme/tool"],
        ["private", "alice/own"],
    ]
    office.done("repo", "visibility", "acme/tool", "public")
    office.done("repo", "visibility", "acme/app/web", "private")
    assert columns(office.done("repo", "ls", "acme")) == [["private", "acme/app/web"], ["public", "acme/tool"]]
    for who, role in (("alice", "read"), ("acme+ci", "write"), ("team:devs", "admin"), ("alice", "admin")):
        office.done("permission", "grant", "acme/app/web", who, role)
    assert columns(office.done("permission", "ls", "acme/app/web")) == [
        ["write", "acme+ci"],
        ["admin", "alice"],
        ["admin", "team:devs"],
    ]
    assert office.role("alice", "acme", "app/web") == Role.ADMIN
    assert office.role("acme+ci", "acme", "app/web") == Role.WRITE
    office.done("permission", "revoke", "acme/app/web", "alice")
    assert office.role("alice", "acme", "app/web") is None
    office.done("repo", "rm", "acme/app/web", "acme/tool")
    assert columns(office.done("repo", "ls")) == [["private", "alice/own"]]


def test_a_namespace_goes_with_its_repositories_only_if_that_is_said(small: Office) -> None:
    small.user("alice")
    small.done("org", "create", "acme")
    for namespace in ("acme", "alice"):
        small.done("repo", "create", f"{namespace}/app")
    assert "alice has 1 repositories" in small.failed("user", "rm", "alice")
    assert "acme has 1 repositories" in small.failed("org", "rm", "acme")
    small.done("user", "rm", "alice", "--with-repositories")
    small.done("org", "rm", "acme", "--with-repositories")
    assert small.done("repo", "ls") == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("user", "create", "Alice", "--password-stdin"), "'Alice' is no name"),
        (("user", "create", "alice", "--password-stdin"), "there is a user 'alice' already"),
        (("user", "create", "carol", "--password-stdin", "--email", "x"), "'x' is no e-mail address"),
        (("user", "password", "nobody", "--password-stdin"), "there is no user 'nobody'"),
        (("user", "rm", "nobody"), "there is no user 'nobody'"),
        (("user", "superuser", "nobody"), "there is no user 'nobody'"),
        (("user", "disable", "nobody"), "'nobody'"),
        (("org", "create", "alice"), "there is a user 'alice' already"),
        (("org", "create", "other", "--owner", "nobody"), "there is no user 'nobody'"),
        (("org", "rm", "nowhere"), "there is no organization 'nowhere'"),
        (("team", "create", "nowhere", "devs"), "there is no organization 'nowhere'"),
        (("team", "add", "acme", "owners", "nobody"), "there is no user 'nobody'"),
        (("team", "rm", "acme", "absent"), "acme has no team 'absent'"),
        (("team", "ls", "nowhere"), "there is no organization 'nowhere'"),
        (("robot", "create", "acme"), "OWNER+NAME"),
        (("robot", "create", "nowhere+ci"), "'nowhere'"),
        (("robot", "renew", "acme+ci"), "there is no robot 'acme+ci'"),
        (("robot", "rm", "acme+ci"), "there is no robot 'acme+ci'"),
        (("repo", "create", "acme/app"), "there is a repository acme/app already"),
        (("repo", "create", "nowhere/app"), "'nowhere'"),
        (("repo", "create", "acme/APP"), "'APP' is no name"),
        (("repo", "rm", "acme/absent"), "there is no repository acme/absent"),
        (("repo", "rm", "acme"), "there is no repository acme/"),
        (("repo", "visibility", "acme/absent", "public"), "there is no repository acme/absent"),
        (("permission", "grant", "acme/absent", "alice", "read"), "there is no repository acme/absent"),
        (("permission", "grant", "acme/app", "nobody", "read"), "there is no user 'nobody'"),
        (("permission", "revoke", "acme/app", "alice"), "alice has been granted nothing in acme/app"),
        (("permission", "ls", "acme/absent"), "there is no repository acme/absent"),
    ],
)
def test_what_cannot_be_done_is_one_line(filled: Office, words: tuple[str, ...], says: str) -> None:
    assert says in filled.failed(*words, stdin=f"{PASSWORD}\n")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Office:
    office = Office(Place(tmp_path_factory.mktemp("filled")))
    office.user("alice")
    office.done("org", "create", "acme")
    office.done("repo", "create", "acme/app")
    return office


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("repo", "create", "acme"), "NAMESPACE/REPOSITORY"),
        (("repo", "create", "/app"), "NAMESPACE/REPOSITORY"),
        (("repo", "visibility", "acme/app", "secret"), "'secret'"),
        (("permission", "grant", "acme/app", "alice", "owner"), "'owner'"),
        (("permission", "grant", "acme/app", "alice"), "Missing argument"),
        (("team", "create", "acme", "devs", "--role", "owner"), "'owner'"),
        (("user", "rm"), "Missing argument"),
        (("user", "create", "bob"), "--password-stdin"),  # there is no terminal here
        (("user", "create", "bob", "--password", PASSWORD), "No such option"),
    ],
)
def test_what_is_asked_for_wrongly_is_said(filled: Office, words: tuple[str, ...], says: str) -> None:
    assert says in filled.wrong(*words)


@pytest.mark.parametrize("password", ["", "\n", "short\n", "two words\n", "two\nlines\n"])
def test_a_password_that_will_not_do_makes_no_user(small: Office, password: str) -> None:
    assert "a password has 8 characters" in small.failed("user", "create", "alice", "--password-stdin", stdin=password)
    assert small.done("user", "ls") == ""


def test_of_several_the_others_are_done_all_the_same(small: Office) -> None:
    small.user("alice")
    small.user("bob")
    assert "'nobody'" in small.failed("user", "rm", "alice", "nobody", "bob")
    assert small.done("user", "ls") == ""


@pytest.mark.parametrize(
    ("more", "says"),
    [({"VERBS_REGISTRY": "quay"}, "the registry is a Quay's"), ({"REGISTRY_STATE": "readonly"}, "only read")],
)
def test_a_registry_that_is_only_read_is_not_changed(small: Office, more: dict[str, str], says: str) -> None:
    small.user("alice")
    small.done("org", "create", "acme")
    reading = Office(Place(small.place.folder, more))
    for words in (
        ("user", "create", "bob", "--password-stdin"),
        ("user", "disable", "alice"),
        ("org", "create", "other"),
        ("team", "create", "acme", "devs"),
        ("robot", "create", "acme+ci"),
        ("robot", "renew", "acme+ci"),
        ("user", "superuser", "alice"),
        ("repo", "create", "acme/app"),
    ):
        assert says in reading.failed(*words, stdin=PASSWORD)
    assert columns(reading.done("user", "ls")) == [["alice", "enabled"]]
    assert columns(reading.done("org", "ls")) == [["acme", "enabled"]]


def test_who_the_settings_make_superuser_is_listed_as_one(small: Office) -> None:
    small.user("alice")
    listing = Office(Place(small.place.folder, {"SUPER_USERS": ["alice"]}))
    assert columns(listing.done("user", "ls")) == [["alice", "enabled", "superuser"]]
    assert "alice stays a superuser, because SUPER_USERS names them" in listing.failed(
        "user", "superuser", "alice", "--revoke"
    )


def leaves(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, *path, name)
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", [path for each in accountcommands.COMMANDS for path in leaves(each, each.name or "")])
def test_every_command_has_help_with_an_example_of_itself(small: Office, path: tuple[str, ...]) -> None:
    text = small.done(*path, "--help")
    assert f"registry-verbs {' '.join(path)}" in text.partition("Examples:")[2]


# --- As processes -----------------------------------------------------------------------------------------------------


def environment(place: Place, **more: str) -> dict[str, str]:
    return {**os.environ, "VERBS_DATA_DIR": place.configuration["VERBS_DATA_DIR"], "COLUMNS": "100", **more}


def process(place: Place, *words: str, stdin: bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*PROGRAM, *words], env=environment(place, **more), input=stdin, capture_output=True, check=False, timeout=300
    )


def test_as_processes_a_user_and_a_robot_log_in_elsewhere(small: Office) -> None:
    place = small.place
    assert process(place, "user", "create", "alice", "--password-stdin", stdin=b"correct-horse\r\n").returncode == 0
    made = process(place, "robot", "create", "alice+ci")
    assert (made.returncode, made.stderr) == (0, b"")
    accounts = place.services().accounts
    assert accounts.authenticate("alice", PASSWORD).name == "alice"
    assert accounts.authenticate("alice+ci", made.stdout.decode().strip()).name == "alice+ci"
    database = place.folder / "var" / "registry.db"
    assert database.stat().st_mode & 0o077 == 0
    for file in (place.folder / "var").iterdir():
        if file.is_file():
            assert made.stdout.strip() not in file.read_bytes()
            assert PASSWORD.encode() not in file.read_bytes()


def test_a_password_that_is_no_text_is_asked_for_wrongly(small: Office) -> None:
    done = process(small.place, "user", "create", "alice", "--password-stdin", stdin=b"\xff\xfe" * 8)
    assert done.returncode == 2
    assert b"the password is no text" in done.stderr
    assert small.done("user", "ls") == ""


def test_a_password_is_what_clients_send_of_it_whatever_the_locale(small: Office) -> None:
    password = "grüße-an-🔑"
    made = process(small.place, "user", "create", "alice", "--password-stdin", stdin=password.encode(), LC_ALL="C")
    assert made.returncode == 0
    assert small.place.services().accounts.authenticate("alice", password).name == "alice"


def typed(place: Place, *words: str, answers: list[str]) -> tuple[int, str]:
    """Run a command on a terminal on which `answers` are typed, and return its status and what the terminal shows."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*PROGRAM, *words], env=environment(place), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as running:
        os.close(theirs)
        shown = b""
        for answer in answers:
            asked = b""
            while not asked.rstrip().endswith(b":"):
                asked += os.read(ours, 1000)
            os.write(ours, f"{answer}\n".encode())
            shown += asked
        with contextlib.suppress(OSError):  # how a terminal says that nobody has it open any more
            while piece := os.read(ours, 1000):
                shown += piece
        status = running.wait(120)
    os.close(ours)
    return status, shown.decode()


def test_on_a_terminal_the_password_is_asked_for_twice_and_never_shown(small: Office) -> None:
    status, shown = typed(small.place, "user", "create", "alice", answers=[PASSWORD, PASSWORD])
    assert status == 0
    assert PASSWORD not in shown
    accounts = small.place.services().accounts
    assert accounts.authenticate("alice", PASSWORD).name == "alice"
    status, shown = typed(small.place, "user", "password", "alice", answers=["another-horse", "another-horse"])
    assert status == 0
    with pytest.raises(CredentialsRefused):
        accounts.authenticate("alice", PASSWORD)
