"""The tokens of `/v2/auth` by themselves: what is signed is read, and nothing else is."""

import base64
import json
import time
from pathlib import Path

import jwt
import pytest

from data.accounts import Account
from endpoints.settings import Settings
from endpoints.tokens import CATALOG, Access, TokenRefused, Tokens, TokensUnavailable

ALICE = Account(7, "alice", robot=False, superuser=False)
APP = Access("repository", "acme/app", ("pull", "push"))


def settings(**more: object) -> Settings:
    return Settings.parse({"SERVER_HOSTNAME": "registry.example.com", "SECRET_KEY": "s3cret", **more})


TOKENS = Tokens(settings())


def claims_of(token: str) -> dict[str, object]:
    claims: dict[str, object] = jwt.decode(token, options={"verify_signature": False})
    return claims


def test_what_is_signed_is_read() -> None:
    token = TOKENS.sign(ALICE, [APP, Access("registry", CATALOG, ("*",))])
    claims = TOKENS.read(token.text)
    assert (claims.account, claims.account_id) == ("alice", 7)
    assert claims.granted == {"acme/app": {"pull", "push"}, CATALOG: {"*"}}


def test_nobody_s_token_has_no_account() -> None:
    claims = TOKENS.read(TOKENS.sign(None, []).text)
    assert (claims.account, claims.account_id, claims.granted) == (None, None, {})


def test_the_claims_are_docker_s() -> None:
    token = TOKENS.sign(ALICE, [APP])
    claims = claims_of(token.text)
    assert claims["iss"] == claims["aud"] == "registry.example.com"
    assert claims["sub"] == "alice"
    assert claims["iat"] == claims["nbf"] == token.issued
    assert claims["exp"] == token.issued + 300
    assert claims["access"] == [{"type": "repository", "name": "acme/app", "actions": ["pull", "push"]}]
    assert claims["jti"] != claims_of(TOKENS.sign(ALICE, [APP]).text)["jti"]


def test_a_token_is_valid_for_as_long_as_the_settings_say() -> None:
    tokens = Tokens(settings(VERBS_TOKEN_SECONDS=60))
    token = tokens.sign(None, [])
    assert token.seconds == 60
    assert claims_of(token.text)["exp"] == token.issued + 60


@pytest.mark.parametrize(("ago", "valid"), [(300, True), (328, True), (332, False), (-28, True), (-35, False)])
def test_clocks_may_differ_by_half_a_minute(ago: int, valid: bool) -> None:
    token = Tokens(settings(), clock=lambda: time.time() - ago).sign(ALICE, [APP])
    if valid:
        assert TOKENS.read(token.text).account == "alice"
    else:
        with pytest.raises(TokenRefused):
            TOKENS.read(token.text)


@pytest.mark.parametrize("other", [{"SECRET_KEY": "another"}, {"SERVER_HOSTNAME": "other.example.com"}])
def test_another_registry_s_token_is_refused(other: dict[str, str]) -> None:
    with pytest.raises(TokenRefused):
        TOKENS.read(Tokens(settings(**other)).sign(ALICE, [APP]).text)


def test_the_secret_itself_signs_nothing() -> None:
    """What else SECRET_KEY may sign, in a host application, is no token here."""
    claims = claims_of(TOKENS.sign(ALICE, [APP]).text)
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        forged = jwt.encode(claims, "s3cret", algorithm="HS256")
    with pytest.raises(TokenRefused):
        TOKENS.read(forged)


def test_only_one_algorithm_is_read() -> None:
    claims = claims_of(TOKENS.sign(ALICE, [APP]).text)
    unsigned = jwt.encode(claims, "", algorithm="none")
    other = jwt.encode(claims, TOKENS._key * 2, algorithm="HS512")
    same_key = jwt.encode(claims, TOKENS._key + b"\0" * 32, algorithm="HS512")
    for forged in (unsigned, other, same_key):
        with pytest.raises(TokenRefused):
            TOKENS.read(forged)


def test_a_token_that_was_changed_is_refused() -> None:
    head, body, signature = TOKENS.sign(ALICE, [APP]).text.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    changed = base64.urlsafe_b64encode(json.dumps({**claims, "sub": "root"}).encode()).decode().rstrip("=")
    with pytest.raises(TokenRefused):
        TOKENS.read(f"{head}.{changed}.{signature}")


@pytest.mark.parametrize("lacking", ["iss", "aud", "sub", "iat", "nbf", "exp", "jti", "access"])
def test_a_token_that_lacks_a_claim_is_refused(lacking: str) -> None:
    claims = claims_of(TOKENS.sign(ALICE, [APP]).text)
    del claims[lacking]
    with pytest.raises(TokenRefused):
        TOKENS.read(jwt.encode(claims, TOKENS._key, algorithm="HS256"))


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "rvt_" + "x" * 43, "é.é.é", "." * 10_000])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(TokenRefused):
        TOKENS.read(text)


def test_without_a_secret_one_is_kept_in_a_file_for_all_processes(tmp_path: Path) -> None:
    alone = Settings.parse({"VERBS_DATA_DIR": str(tmp_path / "data")})
    token = Tokens(alone).sign(ALICE, [APP])
    assert Tokens(alone).read(token.text).account == "alice"
    (file,) = (tmp_path / "data").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_where_no_secret_can_be_kept_there_are_no_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    alone = Settings.parse({"VERBS_DATA_DIR": str(tmp_path / "file")})
    with pytest.raises(TokensUnavailable) as caught:
        Tokens(alone).sign(ALICE, [APP])
    assert str(tmp_path) not in str(caught.value)
    assert "set SECRET_KEY" in caplog.text
