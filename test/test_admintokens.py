"""Admin tokens: shown once, kept hashed, valid until they end or are revoked."""

import hashlib
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, text

from data import admintokens
from data.admintokens import AdminTokens, InvalidTokenName, TokenNameTaken
from data.database import Engine
from data.owntables import DatabaseUnavailable, changing, database_now_ms, reading


@pytest.fixture
def tokens(engine: Engine) -> AdminTokens:
    return AdminTokens(engine)


def let_pass(engine: Engine, seconds: float) -> None:
    def change(connection: Connection) -> None:
        for column in ("expires_ms", "last_used_ms"):
            ms = {"ms": round(seconds * 1000)}
            connection.execute(text(f"UPDATE verbs_admintoken SET {column} = {column} - :ms"), ms)

    changing(engine, change)


def test_a_token_is_long_random_and_known_by_its_beginning(tokens: AdminTokens) -> None:
    made = {tokens.create(name) for name in ("a", "b", "c")}
    assert len(made) == 3
    assert all(re.fullmatch(r"rvt_[A-Za-z0-9_-]{43}", token) for token in made)


def test_a_token_lets_in_who_shows_it_and_nobody_else(tokens: AdminTokens) -> None:
    alice, bob = tokens.create("alice"), tokens.create("bob")
    assert tokens.check(alice) == "alice"
    assert tokens.check(bob) == "bob"
    for wrong in ("", "alice", alice[:-1], alice + "x", alice.upper(), " " + alice, alice + "\n", "rvt_" + "x" * 43):
        assert tokens.check(wrong) is None


def test_the_token_itself_is_kept_nowhere(engine: Engine, tokens: AdminTokens) -> None:
    token = tokens.create("alice")
    with engine.connect() as connection:
        (row,) = connection.execute(text("SELECT * FROM verbs_admintoken")).all()
    assert hashlib.sha256(token.encode()).hexdigest() in row
    assert not [value for value in row if isinstance(value, str) and token[4:] in value]
    assert tokens.check(hashlib.sha256(token.encode()).hexdigest()) is None


def test_a_token_ends_by_the_database_s_clock(engine: Engine, tokens: AdminTokens) -> None:
    before = reading(engine, database_now_ms)
    token = tokens.create("alice", days=2)
    after = reading(engine, database_now_ms)
    (known,) = tokens.list()
    assert known.expires_ms == known.created_ms + 2 * 86_400_000
    assert before <= known.created_ms <= after
    assert not known.expired
    let_pass(engine, 2 * 86_400 - 60)
    assert tokens.check(token) == "alice"
    let_pass(engine, 61)
    assert tokens.check(token) is None
    assert tokens.list()[0].expired


def test_a_token_without_an_end_stays_valid(engine: Engine, tokens: AdminTokens) -> None:
    token = tokens.create("alice")
    let_pass(engine, 10**9)
    assert tokens.check(token) == "alice"
    assert not tokens.list()[0].expired


def test_a_use_is_noted_once_in_a_while(engine: Engine, tokens: AdminTokens) -> None:
    token = tokens.create("alice")
    assert tokens.list()[0].last_used_ms is None
    tokens.check(token)
    first = tokens.list()[0].last_used_ms
    assert first is not None
    time.sleep(0.02)
    tokens.check(token)
    assert tokens.list()[0].last_used_ms == first
    let_pass(engine, 61)
    tokens.check(token)
    assert (tokens.list()[0].last_used_ms or 0) >= first


def test_a_use_that_cannot_be_noted_is_still_one(tokens: AdminTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tokens.create("alice")

    def refuse(*_: object) -> None:
        raise DatabaseUnavailable("the database only reads")

    monkeypatch.setattr(admintokens, "changing", refuse)
    assert tokens.check(token) == "alice"


def test_a_token_that_is_revoked_is_valid_no_more(tokens: AdminTokens) -> None:
    token, other = tokens.create("alice"), tokens.create("bob")
    assert tokens.revoke("alice")
    assert not tokens.revoke("alice")
    assert tokens.check(token) is None
    assert tokens.check(other) == "bob"
    assert tokens.create("alice") != token


def test_tokens_are_listed_by_name(tokens: AdminTokens) -> None:
    for name in ("b", "a", "c"):
        tokens.create(name)
    assert [token.name for token in tokens.list()] == ["a", "b", "c"]


def test_a_name_is_one_token_s(tokens: AdminTokens) -> None:
    token = tokens.create("alice")
    with pytest.raises(TokenNameTaken, match="'alice'"):
        tokens.create("alice")
    assert tokens.check(token) == "alice"
    tokens.create("Alice")


def test_of_many_who_take_a_name_one_gets_it(tokens: AdminTokens) -> None:
    def create(_: int) -> str | None:
        try:
            return tokens.create("alice")
        except TokenNameTaken:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [token for token in pool.map(create, range(16)) if token is not None]
    assert len(made) == 1
    assert tokens.check(made[0]) == "alice"


@pytest.mark.parametrize("name", ["", "-x", "a b", "ä", "a\n", "x" * 256, "a/b"])
def test_a_name_that_a_command_line_could_not_say_is_refused(tokens: AdminTokens, name: str) -> None:
    with pytest.raises(InvalidTokenName, match="no name for a token"):
        tokens.create(name)


def test_a_database_that_fails_is_one_error_from_every_method(engine: Engine, tokens: AdminTokens) -> None:
    token = tokens.create("alice")
    changing(engine, lambda connection: connection.execute(text("DROP TABLE verbs_admintoken")))
    for attempt in (lambda: tokens.create("b"), lambda: tokens.check(token), tokens.list, lambda: tokens.revoke("a")):
        with pytest.raises(DatabaseUnavailable, match="verbs_admintoken"):
            attempt()
