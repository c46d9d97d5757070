"""Teams whose users are those of a group: in line with a real directory, and never emptied by one that is down."""

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select, update

from data.accounts import Role
from data.directories.directory import DirectoryUnavailable, GroupNotFound
from data.teamgroups import config_of, group_of
from data.teams import TeamSynced
from data.teamsyncs import SyncNotFound
from endpoints.background import watch
from endpoints.commands import cli
from endpoints.services import Services
from endpoints.teamsyncing import GroupEmpty, SyncingOff, sync_stale, sync_team, syncs
from test.databases import postgresql
from test.people import ROBOT_TOKEN, SECRET, People
from test.place import Place
from test.slapd import BASE, Person, Slapd, slapd
from test.waiting import eventually

ALICE, BOB, CAROL = Person("alice", mail="alice@example.com"), Person("bob"), Person("carol")
GROUP = "cn=devs,ou=groups"


@dataclass
class Office:
    """A registry of our own whose organization `acme` has a team `devs`, with a robot in it, beside a directory."""

    place: Place
    directory: Slapd
    services: Services = field(init=False)

    def __post_init__(self) -> None:
        self.services = self.place.services()

    def members(self, team: str = "devs") -> tuple[str, ...]:
        return next(each.members for each in self.services.administration.teams("acme") if each.name == team)

    def change(self, name: str, *people: Person) -> None:
        members = "".join(f"member: {person.dn}\n" for person in people)
        self.directory.change(f"dn: cn={name},ou=groups,{BASE}\nchangetype: modify\nreplace: member\n{members}")

    def stale(self) -> None:
        """Let half a day pass since every team was brought in line."""
        from data.tables import TeamSync, now_utc

        with self.services.engine.begin() as connection:
            connection.execute(update(TeamSync).values(last_updated=now_utc() - timedelta(hours=12)))

    def row(self) -> Any:
        from data.tables import TeamSync

        with self.services.engine.connect() as connection:
            return connection.execute(select(TeamSync)).one()

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(cli, words, obj=lambda: self.place.configuration, prog_name="registry-verbs")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Slapd]:
    with slapd(tmp_path / "slapd", ALICE, BOB, CAROL) as running:
        running.group("devs", ALICE, BOB)
        yield running


def settings(directory: Slapd) -> dict[str, Any]:
    return {**directory.configuration, "FEATURE_TEAM_SYNCING": True, "DATABASE_SECRET_KEY": SECRET}


@pytest.fixture(params=["sqlite", "postgresql"])
def office(request: pytest.FixtureRequest, tmp_path: Path, directory: Slapd) -> Iterator[Office]:
    if request.param == "sqlite":
        yield made(tmp_path, directory)
        return
    with postgresql() as uri:
        office = made(tmp_path, directory, DB_URI=uri, VERBS_REGISTRY="own")
        yield office
        office.services.engine.dispose()
        office.services.own_engine.dispose()


@pytest.fixture
def small(tmp_path: Path, directory: Slapd) -> Office:
    return made(tmp_path, directory)


def made(folder: Path, directory: Slapd, **more: Any) -> Office:
    office = Office(Place(folder, {**settings(directory), **more}), directory)
    people = People(office.services.engine)
    people.organization("acme", {"owners:admin": (), "devs": ()})
    people.robot("acme+ci")
    office.services.administration.add_member("acme", "devs", "acme+ci")
    people.repository("acme/app", {"team:devs": "write"})
    return office


# --- In line ----------------------------------------------------------------------------------------------------------


def test_a_team_gets_the_users_of_a_group_at_once(office: Office) -> None:
    for group in (GROUP, f"{GROUP},{BASE}", f"{GROUP},{BASE.upper()}"):
        sync_team(office.services, "acme", "devs", group)
        assert office.members() == ("acme+ci", "alice", "bob")
    assert office.row().config == json.dumps(json.dumps({"group_dn": GROUP}))
    alice = office.services.accounts.authenticate("alice", "secret")
    assert office.services.accounts.role(alice, "acme", "app") is Role.WRITE


def test_what_changes_in_the_group_changes_in_the_team(office: Office) -> None:
    sync_team(office.services, "acme", "devs", GROUP)
    bob = office.services.accounts.authenticate("bob", "secret")
    office.change("devs", ALICE, CAROL)
    sync_stale(office.services)
    assert office.members() == ("acme+ci", "alice", "bob")  # it is not time yet
    before = office.row()
    office.stale()
    sync_stale(office.services)
    assert office.members() == ("acme+ci", "alice", "carol")
    assert office.services.accounts.role(bob, "acme", "app") is None
    after = office.row()
    assert after.transaction_id != before.transaction_id
    assert after.last_updated > before.last_updated - timedelta(seconds=1)


def test_robots_stay(small: Office) -> None:
    sync_team(small.services, "acme", "devs", GROUP)
    assert small.services.accounts.authenticate("acme+ci", ROBOT_TOKEN).robot
    assert "acme+ci" in small.members()
    small.services.administration.remove_member("acme", "devs", "acme+ci")
    small.services.administration.add_member("acme", "devs", "acme+ci")


def test_users_are_put_in_and_taken_out_in_the_directory_alone(small: Office) -> None:
    sync_team(small.services, "acme", "devs", GROUP)
    People(small.services.engine).user("zoe")
    for change in (small.services.administration.add_member, small.services.administration.remove_member):
        with pytest.raises(TeamSynced, match="team sync --off"):
            change("acme", "devs", "zoe")
    small.services.administration.unsync_team("acme", "devs")
    small.services.administration.add_member("acme", "devs", "zoe")
    assert small.members() == ("acme+ci", "alice", "bob", "zoe")


def test_who_cannot_be_made_a_user_is_left_out(small: Office, caplog: pytest.LogCaptureFixture) -> None:
    People(small.services.engine).user("other", email="alice@example.com")
    sync_team(small.services, "acme", "devs", GROUP)
    assert small.members() == ("acme+ci", "bob")
    assert "the team acme/devs does not get 'alice'" in caplog.text


def test_a_member_may_be_made_a_user_where_nobody_else_may(tmp_path: Path, directory: Slapd) -> None:
    office = made(tmp_path, directory, FEATURE_USER_CREATION=False)
    sync_team(office.services, "acme", "devs", GROUP)
    assert office.members() == ("acme+ci", "alice", "bob")


# --- Never emptied by mistake -----------------------------------------------------------------------------------------


def test_a_directory_that_is_down_changes_nobody(small: Office, caplog: pytest.LogCaptureFixture) -> None:
    sync_team(small.services, "acme", "devs", GROUP)
    small.directory.stop()
    small.stale()
    before = small.row()
    sync_stale(small.services)
    assert small.members() == ("acme+ci", "alice", "bob")
    assert small.row() == before
    assert "teams stay as they are, first of all acme/devs" in caplog.text


def test_a_group_that_is_gone_changes_nobody(small: Office, caplog: pytest.LogCaptureFixture) -> None:
    sync_team(small.services, "acme", "devs", GROUP)
    small.directory.group("other", CAROL)
    small.services.administration.create_team("acme", "other")
    sync_team(small.services, "acme", "other", "cn=other,ou=groups")
    small.directory.delete(f"{GROUP},{BASE}")
    small.change("other", BOB)
    small.stale()
    sync_stale(small.services)
    assert small.members() == ("acme+ci", "alice", "bob")
    assert small.members("other") == ("bob",)  # the others go on
    assert "the team acme/devs stays as it is: the directory has no group" in caplog.text


def test_a_group_whose_members_are_not_shown_changes_nobody(
    tmp_path: Path, small: Office, caplog: pytest.LogCaptureFixture
) -> None:
    sync_team(small.services, "acme", "devs", GROUP)
    for more in ({"LDAP_MEMBEROF_ATTR": "isMemberOf"}, {"LDAP_USER_RDN": ["ou=guests"]}):
        small.stale()
        sync_stale(Place(tmp_path, {**settings(small.directory), **more}).services())
        assert small.members() == ("acme+ci", "alice", "bob")
        assert "none of them is a user" in caplog.text
        caplog.clear()


def test_a_group_that_is_not_there_or_has_nobody_is_refused_at_once(small: Office) -> None:
    with pytest.raises(GroupNotFound):
        sync_team(small.services, "acme", "devs", "cn=gone,ou=groups")
    small.directory.change(
        f"dn: cn=posix,ou=groups,{BASE}\nchangetype: add\nobjectClass: organizationalRole\ncn: posix\n"
    )
    with pytest.raises(GroupEmpty):
        sync_team(small.services, "acme", "devs", "cn=posix,ou=groups")
    assert small.services.administration.stale_teams("ldap", seconds=0) == []
    small.services.administration.sync_team("acme", "devs", "cn=posix,ou=groups", "ldap")
    People(small.services.engine).user("zoe")
    sync_stale(small.services)  # a group that has really nobody empties the team
    assert small.members() == ("acme+ci",)


# --- Several who do it ------------------------------------------------------------------------------------------------


def test_of_many_at_once_one_brings_it_in_line(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sync_team(office.services, "acme", "devs", GROUP)
    office.change("devs", CAROL)
    office.stale()
    threads = [threading.Thread(target=sync_stale, args=(office.services,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert office.members() == ("acme+ci", "carol")
    assert caplog.text.count("the team acme/devs got 1 users and lost 2") == 1


def test_what_was_ended_meanwhile_is_left_alone(small: Office) -> None:
    sync_team(small.services, "acme", "devs", GROUP)
    [synced] = small.services.administration.stale_teams("ldap", seconds=-1)
    small.services.administration.unsync_team("acme", "devs")
    users = small.services.federated
    assert users is not None
    assert small.services.administration.bring_in_line(synced, (), users) is None
    assert small.members() == ("acme+ci", "alice", "bob")


def test_it_is_done_regularly_in_the_background(tmp_path: Path, directory: Slapd) -> None:
    office = made(tmp_path, directory, TEAM_SYNC_WORKER_FREQUENCY=1, TEAM_RESYNC_STALE_TIME="1s")
    office.services.administration.sync_team("acme", "devs", GROUP, "ldap")
    stopping = threading.Event()
    threads = watch(office.services, lambda _: None, stopping)
    try:
        eventually(lambda: office.members() == ("acme+ci", "alice", "bob"))
        office.change("devs", CAROL)
        eventually(lambda: office.members() == ("acme+ci", "carol"))
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


# --- Where it is not done ---------------------------------------------------------------------------------------------


def test_teams_are_synced_only_where_the_settings_say_so(tmp_path: Path, directory: Slapd) -> None:
    off = made(tmp_path, directory, FEATURE_TEAM_SYNCING=False)
    assert not syncs(off.services)
    assert watch(off.services, lambda _: None, threading.Event()) == []
    with pytest.raises(SyncingOff, match="FEATURE_TEAM_SYNCING"):
        sync_team(off.services, "acme", "devs", GROUP)
    here = Place(tmp_path, {"FEATURE_TEAM_SYNCING": True}).services()
    assert not syncs(here)
    with pytest.raises(SyncingOff, match="Database"):
        sync_team(here, "acme", "devs", GROUP)
    assert not syncs(Place(tmp_path, {**settings(directory), "REGISTRY_STATE": "readonly"}).services())
    assert not syncs(Place(tmp_path, {**settings(directory), "VERBS_REGISTRY": "quay"}).services())


def test_a_team_that_a_quay_has_synced_is_read_as_it_is(tmp_path: Path, directory: Slapd) -> None:
    """The rows are as quay/quay writes them: data/model/team.py (set_team_syncing), data/users/teamsync.py."""
    office = made(tmp_path, directory)
    sync_team(office.services, "acme", "devs", GROUP)
    office.change("devs", CAROL)
    office.stale()
    beside = Place(tmp_path, {**settings(directory), "VERBS_REGISTRY": "quay", "FEATURE_MAILING": False}).services()
    alice = beside.accounts.authenticate("alice", "secret")
    assert beside.accounts.role(alice, "acme", "app") is Role.WRITE  # until Quay's own worker takes her out
    [listed] = [each for each in beside.administration.teams("acme") if each.name == "devs"]
    assert (listed.members, listed.group) == (("acme+ci", "alice", "bob"), GROUP)


@pytest.mark.parametrize(
    ("config", "group"),
    [
        (json.dumps(json.dumps({"group_dn": "cn=a"})), "cn=a"),
        (json.dumps({"group_dn": "cn=a"}), "cn=a"),
        (config_of('cn="ä",ou=\\,x'), 'cn="ä",ou=\\,x'),
        (json.dumps(json.dumps({"group_id": "keystone"})), None),
        ("", None),
        ("null", None),
        ("[]", None),
        ('{"group_dn": 7}', None),
        ('{"group_dn": ""}', None),
        ("[" * 100_000, None),
    ],
)
def test_how_quay_keeps_a_group(config: str, group: str | None) -> None:
    assert group_of(config) == group


def test_a_group_that_cannot_be_read_is_passed_over(small: Office, caplog: pytest.LogCaptureFixture) -> None:
    from data.tables import TeamSync

    sync_team(small.services, "acme", "devs", GROUP)
    with small.services.engine.begin() as connection:
        connection.execute(update(TeamSync).values(config="{}", last_updated=None))
    sync_stale(small.services)
    assert small.members() == ("acme+ci", "alice", "bob")
    assert "a group that cannot be read" in caplog.text


# --- Deleting ---------------------------------------------------------------------------------------------------------


def test_a_synced_team_can_be_deleted_and_so_can_its_organization(office: Office) -> None:
    office.services.administration.create_team("acme", "other")
    for team in ("devs", "other"):
        sync_team(office.services, "acme", team, GROUP)
    office.services.administration.delete_team("acme", "devs")
    office.services.administration.delete_organization("acme", with_repositories=True)
    assert office.services.administration.stale_teams("ldap", seconds=-1) == []


# --- The command ------------------------------------------------------------------------------------------------------


def test_the_command_syncs_and_ends_it(small: Office) -> None:
    done = small.run("team", "sync", "acme", "devs", "--group", GROUP)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "acme/devs got 2 users and lost 0\n")
    assert (
        f"devs                      member   acme+ci alice bob  (group {GROUP})\n"
        in small.run("team", "ls", "acme").stdout
    )
    off = small.run("team", "sync", "acme", "devs", "--off")
    assert (off.exit_code, off.stdout, off.stderr) == (0, "", "")
    again = small.run("team", "sync", "acme", "devs", "--off")
    assert (again.exit_code, again.stderr) == (
        1,
        "registry-verbs: acme has no team 'devs' that is synced with a group\n",
    )
    for words in ((), ("--off", "--group", GROUP)):
        assert small.run("team", "sync", "acme", "devs", *words).exit_code == 2


def test_the_command_tells_the_operator_why(small: Office) -> None:
    assert "has no group" in small.run("team", "sync", "acme", "devs", "--group", "cn=gone,ou=groups").stderr
    assert "no team 'gone'" in small.run("team", "sync", "acme", "gone", "--group", GROUP).stderr
    small.directory.stop()
    failed = small.run("team", "sync", "acme", "devs", "--group", GROUP)
    assert failed.exit_code == 1
    assert f"{small.directory.uri} cannot be reached" in failed.stderr
    with pytest.raises(DirectoryUnavailable):
        sync_team(small.services, "acme", "devs", GROUP)
    with pytest.raises(SyncNotFound):
        small.services.administration.sync_team("acme", "gone", GROUP, "ldap")
