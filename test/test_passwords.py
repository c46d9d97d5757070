"""Passwords: what Quay's hashes let in, what a wrong one costs, and what is remembered."""

import threading
import time
from collections.abc import Callable

import bcrypt
import pytest

from data import passwords
from data.passwords import InvalidPassword, Passwords, hashed

RIGHT = "correct-horse"


def quick(password: str | bytes) -> str:
    """Return a hash that costs next to nothing."""
    given = password.encode() if isinstance(password, str) else password
    return bcrypt.hashpw(given[:72], bcrypt.gensalt(4)).decode()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hashings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the hashes that passwords were compared with by bcrypt."""
    seen: list[str] = []
    real: Callable[[str, str], bool] = passwords._matches

    def matches(password: str, kept: str) -> bool:
        seen.append(kept)
        return real(password, kept)

    monkeypatch.setattr(passwords, "_matches", matches)
    return seen


def test_a_password_is_right_for_the_hash_that_is_kept_of_it() -> None:
    kept = hashed(RIGHT)
    assert kept.startswith("$2b$12$")
    assert bcrypt.checkpw(RIGHT.encode(), kept.encode())
    assert Passwords().match("alice", RIGHT, kept)
    assert not Passwords().match("alice", RIGHT + "x", kept)


@pytest.mark.parametrize("version", ["2a", "2b", "2y"])
def test_hashes_of_every_bcrypt_are_read(version: str) -> None:
    kept = quick(RIGHT).replace("$2b$", f"${version}$")
    assert Passwords().match("alice", RIGHT, kept)
    assert not Passwords().match("alice", "other-horse", kept)


@pytest.mark.parametrize("password", ["1234567", "", "with space", "tab\tulator", "line\nbreak", "nul\0nul\0nul"])
def test_a_new_password_that_quay_would_not_take_is_refused(password: str) -> None:
    with pytest.raises(InvalidPassword) as caught:
        hashed(password)
    assert not password or password not in str(caught.value)


@pytest.mark.parametrize("password", ["x" * 72, "x" * 73, "x" * 500, "ä" * 40, "€" * 100])
def test_of_a_long_password_the_first_72_bytes_count(password: str) -> None:
    kept = quick(password)
    assert Passwords().match("alice", password, kept)
    assert Passwords().match("alice", password + "more", kept) == (len(password.encode()) >= 72)
    assert not Passwords().match("alice", password[:23], kept)


def test_a_long_password_may_be_new() -> None:
    assert Passwords().match("alice", "x" * 72, hashed("x" * 500))


@pytest.mark.parametrize("password", ["", "\0", "a\0b", "\ud800", "x" * 100_000, "🔑" * 20])
def test_whatever_is_given_is_right_or_wrong(password: str) -> None:
    assert not Passwords().match("alice", password, quick(RIGHT))


@pytest.mark.parametrize(
    "kept", [None, "", "plain", "$2b$12$short", "$2b$99$" + "a" * 53, "$2b$12$" + "a" * 53, "$1$md5$xxx", "$2b$12$é"]
)
def test_without_a_hash_no_password_is_right(kept: str | None) -> None:
    assert not Passwords().match("alice", RIGHT, kept)
    assert not Passwords().match("alice", "", kept)


def test_nobody_costs_as_much_as_somebody(hashings: list[str]) -> None:
    assert not Passwords().match("", RIGHT, None)
    [nobodys] = hashings
    rounds = hashed(RIGHT).split("$")[2]
    assert nobodys.split("$")[2] == rounds
    begin = time.perf_counter()
    bcrypt.checkpw(b"x", nobodys.encode())
    assert time.perf_counter() - begin > 0.02  # it was hashed, and not refused as no hash


def test_a_right_password_is_hashed_once_in_five_minutes(hashings: list[str]) -> None:
    clock, kept = Clock(), quick(RIGHT)
    remembering = Passwords(clock=clock)
    assert all(remembering.match("alice", RIGHT, kept) for _ in range(3))
    assert len(hashings) == 1
    clock.now += 301
    assert remembering.match("alice", RIGHT, kept)
    assert len(hashings) == 2


def test_a_wrong_password_is_never_remembered(hashings: list[str]) -> None:
    remembering, kept = Passwords(), quick(RIGHT)
    assert not any(remembering.match("alice", "wrong-horse", kept) for _ in range(3))
    assert len(hashings) == 3


def test_what_is_remembered_is_of_that_name_that_password_and_that_hash() -> None:
    remembering, kept = Passwords(), quick(RIGHT)
    assert remembering.match("alice", RIGHT, kept)
    assert not remembering.match("alice", RIGHT, quick("changed-horse"))
    assert not remembering.match("alice", "changed-horse", kept)
    assert not remembering.match("alice", RIGHT, None)
    assert not remembering.match("bob", RIGHT, quick("bobs-horse"))


def test_many_who_come_at_the_same_time_with_the_same_hash_it_once(hashings: list[str]) -> None:
    remembering, kept = Passwords(), bcrypt.hashpw(RIGHT.encode(), bcrypt.gensalt(9)).decode()
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(remembering.match("alice", RIGHT, kept))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 16
    assert len(hashings) == 1
    assert remembering._turns == {}


def test_no_password_lies_in_memory() -> None:
    remembering = Passwords()
    remembering.match("alice", RIGHT, quick(RIGHT))
    assert RIGHT.encode() not in repr(vars(remembering)).encode()


def test_no_more_is_remembered_than_a_bound(monkeypatch: pytest.MonkeyPatch, hashings: list[str]) -> None:
    monkeypatch.setattr(passwords, "_MAX_REMEMBERED", 3)
    remembering, kept = Passwords(), quick(RIGHT)
    for name in "abcde":
        assert remembering.match(name, RIGHT, kept)
    assert len(remembering._right) == 3
    assert remembering.match("e", RIGHT, kept)
    assert len(hashings) == 5
    assert remembering.match("a", RIGHT, kept)
    assert len(hashings) == 6
