"""LDAP, asked of a real slapd: who comes in, who does not, and what happens where it is down, slow or lies."""

import contextlib
import logging
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.directories import ldapconnection
from data.directories.directory import (
    DirectoryUnavailable,
    GroupNotFound,
    Identity,
    LdapSettings,
    Refusal,
    UnusableDirectory,
)
from data.directories.ldap import LdapDirectory
from data.directories.ldapconnection import MAX_ANSWER, LdapConnection, escaped
from test.clients import program
from test.slapd import ADMIN, ADMIN_PASSWORD, BASE, Authority, Person, Slapd, slapd

ODD = "a*b()\\,=+\"<>;#/&|!~ \u00e9\u4e2d'd"
PEOPLE = (
    Person("alice", mail="alice@example.com", more={"title": "boss"}),
    Person("bob", "bob's secret", mail="bob@example.com", more={"title": "guest"}),
    Person("mallory", mail="victim", more={"title": "guest"}),
    Person("victim", "the victim's"),
    Person("twin1", mail="twins@example.com"),
    Person("twin2", mail="twins@example.com"),
    Person("double"),
    Person("double", unit="guests"),
    Person("carol", unit="guests", mail="carol@example.com"),
    Person("locked", None),
    Person("Ünï", "pässwörd"),
    Person(ODD, "odd"),
    Person("nomail"),
)
REFERRALS = f"""
dn: ou=moved,{BASE}
objectClass: referral
objectClass: extensibleObject
ou: moved
ref: ldap:///ou=guests,{BASE}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    with slapd(tmp_path_factory.mktemp("slapd") / "directory", *PEOPLE, more=REFERRALS) as running:
        running.group("devs", PEOPLE[0], PEOPLE[1])
        yield running


def who(directory: Slapd, name: str, password: str = "secret", **more: object) -> Identity | Refusal:
    return LdapDirectory(directory.settings(**more)).verify(name, password)


def unavailable(settings: LdapSettings) -> str:
    """Return why nobody can be asked about with `settings`, and that strangers are not told."""
    with pytest.raises(DirectoryUnavailable) as caught:
        LdapDirectory(settings).verify("alice", "secret")
    assert str(caught.value) == "the directory of users does not answer; try again later"
    assert ADMIN_PASSWORD not in caught.value.reason
    return caught.value.reason


# --- Who comes in -----------------------------------------------------------------------------------------------------


def test_somebody_comes_in_by_user_name_or_e_mail(directory: Slapd) -> None:
    for name in ("alice", "ALICE", "alice@example.com"):
        assert who(directory, name) == Identity("alice", "alice@example.com")
    assert who(directory, "nomail") == Identity("nomail", None)


@pytest.mark.parametrize("name", [ODD, "Ünï"])
def test_a_name_with_special_characters_is_that_name(directory: Slapd, name: str) -> None:
    password = {ODD: "odd"}.get(name, "pässwörd")
    assert who(directory, name, password) == Identity(name)
    assert isinstance(who(directory, name, "wrong"), Refusal)


@pytest.mark.parametrize(
    "name",
    [
        "*", "a*", "alice)", "alice)(uid=*", "*)(uid=alice))(|(uid=*", "alice\0", "ali\0ce", "\0", "alice\\2a",
        "\\61lice", "uid=alice", "alice,ou=people", f"uid=alice,ou=people,{BASE}", "alice ~= x", "alice>=a", "x:=alice",
        "(", ")", "\\", " ", "", "\ud800", "x" * 513, "\n", "alice\n", "&", "|(uid=*)", "!(uid=x)",
    ],
)  # fmt: skip
def test_no_name_is_more_than_a_value_in_the_search(directory: Slapd, name: str) -> None:
    answer = who(directory, name)
    assert isinstance(answer, Refusal)
    assert answer.identifier is None


def test_everything_but_letters_and_digits_is_escaped() -> None:
    assert escaped("a*Z9") == "a\\2aZ9"
    assert escaped("\0é²") == "\\00\\c3\\a9\\c2\\b2"


def test_a_wrong_password_is_refused_and_it_is_known_whose_it_was(directory: Slapd) -> None:
    for password in ("wrong", "secret ", "Secret", "\0", "x" * 100_000, "bob's secret"):
        answer = who(directory, "ALICE", password)
        assert isinstance(answer, Refusal)
        assert answer.identifier == "alice"
    assert isinstance(who(directory, "alice", "\ud800"), Refusal)


def test_an_empty_password_is_never_sent(directory: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [program("ldapwhoami"), "-x", "-H", directory.uri, "-D", PEOPLE[0].dn, "-w", ""]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"anonymous\n"  # which is success
    monkeypatch.setattr(LdapDirectory, "_search", lambda *_: pytest.fail("the directory was asked"))
    assert isinstance(who(directory, "alice", ""), Refusal)


def test_who_has_no_password_in_the_directory_does_not_come_in(directory: Slapd) -> None:
    for password in ("secret", "None", "{CLEARTEXT}"):
        assert isinstance(who(directory, "locked", password), Refusal)


def test_of_two_who_fit_the_one_of_that_user_name_is_meant(directory: Slapd) -> None:
    assert who(directory, "victim", "the victim's") == Identity("victim")
    answer = who(directory, "victim", "secret")  # that of who has set `victim` for an e-mail address
    assert isinstance(answer, Refusal)
    assert answer.identifier == "victim"


def test_two_who_fit_alike_are_nobody(directory: Slapd, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(who(directory, "twins@example.com"), Refusal)
    assert who(directory, "double") == Identity("double")
    assert isinstance(who(directory, "double", search_bases=(BASE,)), Refusal)
    assert caplog.text.count("several users") == 2


def test_an_e_mail_address_may_be_required(directory: Slapd, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(who(directory, "nomail", requires_email=True), Refusal)
    assert "has no mail, and FEATURE_MAILING needs one" in caplog.text
    assert who(directory, "alice", requires_email=True) == Identity("alice", "alice@example.com")


# --- Where they are looked for ----------------------------------------------------------------------------------------


def test_secondary_subtrees_are_searched_after_the_first(directory: Slapd) -> None:
    bases = (f"ou=people,{BASE}", f"ou=guests,{BASE}")
    assert isinstance(who(directory, "carol"), Refusal)
    assert who(directory, "carol", search_bases=bases) == Identity("carol", "carol@example.com")
    assert who(directory, "double", search_bases=bases) == Identity("double")


def test_a_subtree_that_is_not_there_is_passed_over_with_a_warning(
    directory: Slapd, caplog: pytest.LogCaptureFixture
) -> None:
    gone = f"ou=gone,{BASE}"
    assert who(directory, "carol", search_bases=(gone, f"ou=guests,{BASE}")) == Identity("carol", "carol@example.com")
    assert isinstance(who(directory, "x", search_bases=(f"ou=guests,{BASE}", gone)), Refusal)
    assert f"has nothing at {gone}" in caplog.text
    assert f"has nothing at {gone}" in unavailable(directory.settings(search_bases=(gone,)))


def test_the_user_filter_shuts_others_out(directory: Slapd) -> None:
    for text in ("(title=boss)", "title=boss", f"(memberOf=cn=devs,ou=groups,{BASE})"):
        assert who(directory, "alice", user_filter=text) == Identity("alice", "alice@example.com")
        assert isinstance(who(directory, "mallory", user_filter=text), Refusal)


@pytest.mark.parametrize("text", ["(", "(title=boss", "(&(a=b)", "title", "(title=boss))(uid=*", ")("])
def test_a_filter_that_is_none_is_refused_by_name(directory: Slapd, text: str) -> None:
    for key, name in (
        ("user_filter", "LDAP_USER_FILTER"),
        ("superuser_filter", "LDAP_SUPERUSER_FILTER"),
        ("restricted_filter", "LDAP_RESTRICTED_USER_FILTER"),
    ):
        with pytest.raises(UnusableDirectory, match=name):
            LdapDirectory(directory.settings(**{key: text}))


def test_an_attribute_s_name_is_no_place_for_a_filter(directory: Slapd) -> None:
    with pytest.raises(UnusableDirectory, match="LDAP_UID_ATTR"):
        LdapDirectory(directory.settings(uid_attribute="uid=*)(x"))


def test_a_referral_to_the_same_directory_is_followed(directory: Slapd) -> None:
    moved: dict[str, Any] = {"search_bases": (f"ou=moved,{BASE}",)}
    assert who(directory, "carol", **moved) == Identity("carol", "carol@example.com")
    assert isinstance(who(directory, "carol", "wrong", **moved), Refusal)
    assert isinstance(who(directory, "carol", follow_referrals=False, **moved), Refusal)


def test_a_referral_to_another_host_is_not_followed(directory: Slapd, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        port = elsewhere.getsockname()[1]
        directory.change(
            f"dn: ou=away,{BASE}\nchangetype: add\nobjectClass: referral\nobjectClass: extensibleObject\nou: away\n"
            f"ref: ldap://127.0.0.1:{port}/ou=guests,{BASE}\n"
        )
        assert isinstance(who(directory, "carol", search_bases=(f"ou=away,{BASE}",)), Refusal)
        assert "another host and is not asked" in caplog.text
        elsewhere.settimeout(0)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


# --- What they may do -------------------------------------------------------------------------------------------------


def test_filters_say_who_may_what(directory: Slapd) -> None:
    boss, guest = "(title=boss)", "(title=guest)"
    asked = LdapDirectory(
        directory.settings(superuser_filter=boss, readonly_superuser_filter=guest, restricted_filter=guest)
    )
    assert asked.is_superuser("alice")
    assert not asked.is_superuser("bob")
    assert asked.is_readonly_superuser("bob")
    assert not asked.is_readonly_superuser("alice")
    assert asked.is_restricted("bob")
    assert not asked.is_restricted("alice")
    for name in ("", "*", "nobody", "alice@example.com", "\ud800"):  # an identifier is no e-mail address
        assert not asked.is_superuser(name)


def test_without_filters_nothing_is_said_and_nobody_asked(directory: Slapd) -> None:
    asked = LdapDirectory(directory.settings(uris=("ldap://127.0.0.1:1",)))
    assert not asked.is_superuser("alice")
    assert not asked.is_readonly_superuser("alice")
    assert asked.is_restricted("alice")


def test_who_is_shut_out_is_no_superuser_either(directory: Slapd) -> None:
    asked = LdapDirectory(directory.settings(user_filter="(title=guest)", superuser_filter="(title=boss)"))
    assert not asked.is_superuser("alice")


# --- Groups -----------------------------------------------------------------------------------------------------------


def test_members_of_a_group_are_told(directory: Slapd) -> None:
    found = LdapDirectory(directory.settings()).members("cn=devs,ou=groups")
    assert set(found) == {Identity("alice", "alice@example.com"), Identity("bob", "bob@example.com")}
    filtered = LdapDirectory(directory.settings(user_filter="(title=boss)")).members("cn=devs,ou=groups")
    assert set(filtered) == {Identity("alice", "alice@example.com")}


def test_a_group_of_more_than_a_page_is_told_whole(directory: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    people = [Person(f"many{number}", unit="guests") for number in range(25)]
    directory.add(*people)
    directory.group("many", *people)
    monkeypatch.setattr(ldapconnection, "_PAGE", 10)
    asked = LdapDirectory(directory.settings(search_bases=(f"ou=people,{BASE}", f"ou=guests,{BASE}")))
    assert {each.identifier for each in asked.members("cn=many,ou=groups")} == {each.uid for each in people}
    monkeypatch.setattr(ldapconnection, "_MAX_PAGES", 2)
    with pytest.raises(DirectoryUnavailable):
        asked.members("cn=many,ou=groups")


@pytest.mark.parametrize("group", ["cn=gone,ou=groups", "", "*", "\ud800"])
def test_a_group_that_is_not_there_is_an_error_and_not_an_empty_group(directory: Slapd, group: str) -> None:
    with pytest.raises((GroupNotFound, DirectoryUnavailable)):
        LdapDirectory(directory.settings()).members(group)


def test_a_subtree_of_users_that_is_not_there_is_an_error_and_not_an_empty_group(directory: Slapd) -> None:
    with pytest.raises(DirectoryUnavailable):
        LdapDirectory(directory.settings(search_bases=(f"ou=gone,{BASE}",))).members("cn=devs,ou=groups")


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_within_tls_the_server_is_verified(directory: Slapd, tmp_path: Path) -> None:
    trusted = (str(directory.authority.file),)
    stranger = (str(Authority(tmp_path / "stranger").file),)
    for more in ({"uris": (directory.tls_uri,)}, {"start_tls": True}):
        assert who(directory, "alice", trusted=trusted, **more) == Identity("alice", "alice@example.com")
        besides = (str(directory.authority.folder / "none"), *trusted)
        assert isinstance(who(directory, "alice", trusted=besides, **more), Identity)
        for wrong in ((), stranger):
            assert "is not trusted" in unavailable(directory.settings(trusted=wrong, **more))


def test_a_folder_of_certificates_is_trusted(directory: Slapd, tmp_path: Path) -> None:
    folder = tmp_path / "extra_ca_certs"
    folder.mkdir()
    (folder / "ours.crt").write_bytes(directory.authority.file.read_bytes())
    assert who(directory, "alice", uris=(directory.tls_uri,), trusted=(str(folder),)) == Identity(
        "alice", "alice@example.com"
    )
    (folder / "nonsense.crt").write_text("nonsense")
    with pytest.raises(UnusableDirectory, match="nonsense"):
        LdapDirectory(directory.settings(trusted=(str(folder),)))


def test_a_server_of_another_name_is_not_trusted(directory: Slapd) -> None:
    uri = directory.tls_uri.replace("127.0.0.1", "localhost")
    trusted = (str(directory.authority.file),)
    assert who(directory, "alice", uris=(uri,), trusted=trusted) == Identity("alice", "alice@example.com")
    authority = Authority(directory.folder / "other")
    certificate, key = authority.certificate("ldap.example.org")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def handshake(peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            context.wrap_socket(peer, server_side=True).close()

    with answering(handshake) as port:
        settings = directory.settings(uris=(f"ldaps://127.0.0.1:{port}",), trusted=(str(authority.file),))
        assert "mismatch" in unavailable(settings)


def test_an_insecure_fallback_is_taken_only_where_it_is_allowed(
    directory: Slapd, caplog: pytest.LogCaptureFixture
) -> None:
    for more in ({"uris": (directory.tls_uri,)}, {"start_tls": True}):
        assert who(directory, "alice", insecure_fallback=True, **more) == Identity("alice", "alice@example.com")
    assert "LDAP_ALLOW_INSECURE_FALLBACK" in caplog.text


# --- A directory that is down, slow, or lies --------------------------------------------------------------------------


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve on a port, and have `answer` do with each connection what it wants."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    threading.Thread(target=served, args=(peer,), daemon=True).start()

        def served(peer: socket.socket) -> None:
            with peer, contextlib.suppress(OSError):
                answer(peer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def at(directory: Slapd, port: int, **more: object) -> LdapSettings:
    return directory.settings(uris=(f"ldap://127.0.0.1:{port}",), **more)


def test_a_server_that_is_down_is_no_refusal(directory: Slapd) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert "cannot be reached" in unavailable(at(directory, closed.getsockname()[1]))


def test_the_next_server_is_asked_where_the_first_is_down(directory: Slapd) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        down = f"ldap://127.0.0.1:{closed.getsockname()[1]}"
        assert who(directory, "alice", uris=(down, directory.uri)) == Identity("alice", "alice@example.com")


def test_a_wrong_password_of_the_administrator_s_is_no_refusal_and_not_told(directory: Slapd) -> None:
    reason = unavailable(directory.settings(admin_password="not-the-password"))
    assert ADMIN in reason
    assert "not-the-password" not in reason


def test_a_server_that_hangs_is_waited_for_no_longer_than_is_said(directory: Slapd) -> None:
    with directory.asleep():
        assert "timed out" in unavailable(directory.settings(timeout=0.3))
        assert "TLS" in unavailable(directory.settings(uris=(directory.tls_uri,), network_timeout=0.3))


def test_a_server_that_drips_is_waited_for_no_longer_than_is_said(directory: Slapd) -> None:
    stopped = threading.Event()

    def drip(peer: socket.socket) -> None:
        peer.sendall(b"\x30\x84\x00\x10\x00\x00")
        while not stopped.wait(0.01):
            peer.sendall(b"\x04")

    with answering(drip) as port:
        assert "cannot log in" in unavailable(at(directory, port, timeout=0.5))
    stopped.set()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x30\x03\x02\x01\x01",
        b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x63\x04\x00\x04\x00",  # a bind's answer with a code that there is not
        b"\x30\x0c\x02\x01\x63\x61\x07\x0a\x01\x00\x04\x00\x04\x00",  # success, of another message
        b"\x30\x0c\x02\x01\x01\x65\x07\x0a\x01\x00\x04\x00\x04\x00",  # success, of a search
        b"\x30\x80" + b"\0" * 64,
        b"\xff" * 64,
    ],
)
def test_nonsense_lets_nobody_in(directory: Slapd, answer: bytes) -> None:
    def say(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(answer)

    with answering(say) as port:
        assert unavailable(at(directory, port, timeout=5.0))


def test_an_answer_has_a_bound(directory: Slapd) -> None:
    sent = []

    def flood(peer: socket.socket) -> None:
        peer.sendall(b"\x30\x84\x7f\xff\xff\xff")
        while True:
            sent.append(peer.send(b"\x04" * 65536))

    with answering(flood) as port:
        assert str(MAX_ANSWER) in unavailable(at(directory, port))
    assert sum(sent) < 4 * MAX_ANSWER


def test_while_it_is_down_one_asks_and_the_others_are_told_at_once(directory: Slapd) -> None:
    now = [0.0]
    connected = []

    def hang_up(peer: socket.socket) -> None:
        connected.append(peer)

    with answering(hang_up) as port:
        asked = LdapDirectory(at(directory, port), clock=lambda: now[0])
        for _ in range(5):
            with pytest.raises(DirectoryUnavailable):
                asked.verify("alice", "secret")
        assert len(connected) == 1
        now[0] += 60
        for _ in range(5):
            with pytest.raises(DirectoryUnavailable):
                asked.verify("alice", "secret")
        assert len(connected) == 2


def test_a_directory_that_was_started_again_is_asked_again(tmp_path: Path) -> None:
    with slapd(tmp_path / "directory", PEOPLE[0]) as running:
        now = [0.0]
        asked = LdapDirectory(running.settings(), clock=lambda: now[0])
        assert isinstance(asked.verify("alice", "secret"), Identity)
        running.stop()
        running.start()
        assert isinstance(asked.verify("alice", "secret"), Identity)  # what was kept is dead, and another is made
        running.stop()
        with pytest.raises(DirectoryUnavailable):
            asked.verify("alice", "secret")
        running.start()
        now[0] += 60
        assert isinstance(asked.verify("alice", "secret"), Identity)


# --- Connections ------------------------------------------------------------------------------------------------------


def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made = []

    class Counted(LdapConnection):
        def __init__(self, uri: str, settings: LdapSettings, trust: ssl.SSLContext) -> None:
            made.append(uri)
            super().__init__(uri, settings, trust)

    monkeypatch.setattr("data.directories.ldap.LdapConnection", Counted)
    return made


def test_the_administrator_s_connections_are_kept_and_those_of_users_are_not(
    directory: Slapd, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = connections(monkeypatch)
    asked = LdapDirectory(directory.settings(superuser_filter="(title=boss)"))
    for _ in range(3):
        assert asked.is_superuser("alice")
    assert len(made) == 1
    for _ in range(2):
        assert isinstance(asked.verify("alice", "secret"), Identity)
    assert len(made) == 3
    for more in ({"pooling": False}, {"pool_lifetime": 0.0}):
        made.clear()
        alone = LdapDirectory(directory.settings(superuser_filter="(title=boss)", **more))
        assert [alone.is_superuser("alice") for _ in range(3)] == [True] * 3
        assert len(made) == 3


def test_many_at_once_are_each_answered_rightly(directory: Slapd) -> None:
    asked = LdapDirectory(directory.settings(pool_size=2, pool_wait=0.01))
    wrong: list[object] = []

    def log_in(name: str, password: str, *, right: bool) -> None:
        for _ in range(20):
            answer = asked.verify(name, password)
            if isinstance(answer, Identity) is not right or (right and answer.identifier != name):
                wrong.append(answer)

    cases = [("alice", "secret", True), ("bob", "bob's secret", True), ("alice", "bob's secret", False)] * 3
    threads = [threading.Thread(target=log_in, args=case[:2], kwargs={"right": case[2]}) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_no_password_is_in_what_is_written_about_it(directory: Slapd, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    asked = LdapDirectory(directory.settings())
    asked.verify("alice", "my-own-secret")
    written = repr(asked) + repr(directory.settings()) + caplog.text
    assert ADMIN_PASSWORD not in written
    assert "my-own-secret" not in written
