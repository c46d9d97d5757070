"""A service that checks passwords over HTTP: who comes in, and that none of its lies lets anybody in."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from data.directories.directory import (
    DirectoryUnavailable,
    GroupsUnsupported,
    Identity,
    JwtSettings,
    Refusal,
    UnusableDirectory,
)
from data.directories.jwtservice import MAX_ANSWER, JwtDirectory
from data.directories.tokensonly import TokensOnly
from test.jwtservice import ISSUER, Handler, JwtService, jwt_service
from test.slapd import Authority

PEOPLE = {"alice": ("secret", "alice@example.com"), "bob": ("bob's: secrét", None)}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[JwtService]:
    with jwt_service(tmp_path / "conf", PEOPLE) as running:
        yield running


def settings(service: JwtService, **more: Any) -> JwtSettings:
    return replace(JwtSettings(service.url, ISSUER, str(service.public_key), timeout=20.0), **more)


def who(service: JwtService, name: str, password: str = "secret", **more: Any) -> Identity | Refusal:
    return JwtDirectory(settings(service, **more)).verify(name, password)


def unavailable(service: JwtService, name: str = "alice", **more: Any) -> str:
    with pytest.raises(DirectoryUnavailable) as caught:
        who(service, name, **more)
    assert str(caught.value) == "the directory of users does not answer; try again later"
    assert "secret" not in caught.value.reason
    return caught.value.reason


def test_who_the_service_knows_comes_in(service: JwtService) -> None:
    assert who(service, "alice") == Identity("alice", "alice@example.com")
    assert who(service, "alice@example.com") == Identity("alice", "alice@example.com")
    assert who(service, "bob", "bob's: secrét") == Identity("bob", None)
    assert isinstance(who(service, "bob", "bob's: secrét", requires_email=True), Refusal)


@pytest.mark.parametrize(
    ("name", "password"),
    [("alice", "wrong"), ("nobody", "secret"), ("bob", "secret"), ("alice", "secret\r\nX: y"), ("alice", "x" * 8000)],
)
def test_who_it_does_not_know_does_not(service: JwtService, name: str, password: str) -> None:
    assert isinstance(who(service, name, password), Refusal)


@pytest.mark.parametrize(
    ("name", "password"),
    [("alice", ""), ("", "secret"), ("alice:x", "secret"), ("\ud800", "x"), ("alice", "\ud800"), ("alice", "x" * 9000)],
)
def test_what_can_be_nobody_s_is_not_sent(service: JwtService, name: str, password: str) -> None:
    assert isinstance(who(service, name, password), Refusal)
    assert service.asked == []


def other_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def confused(service: JwtService) -> str:
    """Return a token whose HMAC is by the public key, which everybody knows."""
    import base64
    import hashlib
    import hmac

    def part(content: bytes) -> bytes:
        return base64.urlsafe_b64encode(content).rstrip(b"=")

    claims = jwt.decode(service.token(), options={"verify_signature": False})
    text = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(json.dumps(claims).encode())
    return (text + b"." + part(hmac.digest(service.public_key.read_bytes(), text, hashlib.sha256))).decode()


LIES: dict[str, Callable[[JwtService], str]] = {
    "another issuer": lambda service: service.token(iss="https://evil.example.com"),
    "no issuer": lambda service: service.token(iss=None),
    "another audience": lambda service: service.token(aud="quay.io/jwtauthn/getuser"),
    "no audience": lambda service: service.token(aud=None),
    "no algorithm": lambda service: service.token(algorithm="none", key=""),
    "another algorithm": lambda service: service.token(algorithm="RS512"),
    "the public key as a secret": confused,
    "another key": lambda service: service.token(key=other_key()),
    "expired": lambda service: service.token(iat=int(time.time()) - 120, exp=int(time.time()) - 60),
    "for ever": lambda service: service.token(exp=int(time.time()) + 10**9),
    "no end": lambda service: service.token(exp=None),
    "an end at infinity": lambda service: service.token(exp=10**400),
    "no beginning": lambda service: service.token(iat=None),
    "no first moment": lambda service: service.token(nbf=None),
    "from the future": lambda service: service.token(nbf=int(time.time()) + 1000),
    "made in the future": lambda service: service.token(iat=int(time.time()) + 1000),
    "another subject": lambda service: service.token("bob"),
    "no subject": lambda service: service.token(sub=None),
    "an empty subject": lambda service: service.token(sub=""),
    "an endless subject": lambda service: service.token(sub="alice" * 100),
    "no token": lambda _: "nonsense",
    "an empty token": lambda _: "",
}


@pytest.mark.parametrize("lie", LIES)
def test_no_other_token_lets_anybody_in(service: JwtService, lie: str) -> None:
    token = LIES[lie](service)
    service.lie = lambda handler: handler.answer_token(token)
    assert unavailable(service)


def test_how_long_a_token_may_live_is_said(service: JwtService) -> None:
    assert who(service, "alice", fresh_seconds=60) == Identity("alice", "alice@example.com")
    assert "longer than 59 seconds" in unavailable(service, fresh_seconds=59)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b'"token"', b'{"token": null}', b'{"token": 7}', b'{"token": {}}', b"[" * 60_000, b"\xff"],
)
def test_an_answer_that_holds_no_token_lets_nobody_in(service: JwtService, body: bytes) -> None:
    service.lie = lambda handler: handler.answer(200, body)
    assert unavailable(service)


@pytest.mark.parametrize("status", [204, 301, 302, 307, 429, 500, 502, 503])
def test_any_other_status_is_no_refusal(service: JwtService, status: int) -> None:
    service.lie = lambda handler: handler.answer(status, b"", Location=service.url)
    assert str(status) in unavailable(service)
    assert service.asked == ["alice"]  # once: a redirect would take the password along


def test_an_answer_has_a_bound(service: JwtService) -> None:
    def flood(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b" " * 65536)

    service.lie = flood
    assert str(MAX_ANSWER) in unavailable(service)


@pytest.mark.parametrize("dripped", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_an_answer_that_never_ends_is_given_up(service: JwtService, dripped: bytes) -> None:
    def drip(handler: Handler) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(dripped)
            while True:
                handler.wfile.write(b"x")
                time.sleep(0.01)

    service.lie = drip
    assert unavailable(service, timeout=0.5)


def test_a_service_that_is_down_is_no_refusal(service: JwtService) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert "refused" in unavailable(service, verify_url=f"http://127.0.0.1:{closed.getsockname()[1]}/")


def test_a_service_that_speaks_no_tls_is_no_refusal(service: JwtService) -> None:
    assert unavailable(service, verify_url=service.url.replace("http:", "https:"))


def test_a_certificate_is_taken_for_its_key(service: JwtService, tmp_path: Path) -> None:
    certificate, _ = Authority(tmp_path / "tls").certificate("people.example.com")
    with pytest.raises(UnusableDirectory, match="not one of RSA"):
        JwtDirectory(settings(service, public_key=str(certificate)))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"])
def test_a_file_that_holds_no_key_is_refused_by_name(service: JwtService, content: bytes) -> None:
    service.public_key.write_bytes(content)
    with pytest.raises(UnusableDirectory, match=r"jwt-authn\.cert"):
        JwtDirectory(settings(service))
    service.public_key.unlink()
    with pytest.raises(UnusableDirectory, match="No such file"):
        JwtDirectory(settings(service))


def test_a_key_of_another_kind_is_refused(service: JwtService) -> None:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    service.public_key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UnusableDirectory, match="not one of RSA"):
        JwtDirectory(settings(service))


@pytest.mark.parametrize("directory", [TokensOnly("oidc"), TokensOnly(None)])
def test_where_there_are_tokens_only_no_password_is_right(directory: TokensOnly) -> None:
    assert isinstance(directory.verify("alice", "secret"), Refusal)
    assert not directory.is_superuser("alice")
    assert not directory.is_readonly_superuser("alice")
    assert directory.is_restricted("alice") is (directory.service is None)
    with pytest.raises(GroupsUnsupported):
        directory.members("cn=devs")


def test_a_service_says_nothing_of_rights_and_groups(service: JwtService) -> None:
    asked = JwtDirectory(settings(service))
    assert not asked.is_superuser("alice")
    assert not asked.is_readonly_superuser("alice")
    assert not asked.is_restricted("alice")
    with pytest.raises(GroupsUnsupported):
        asked.members("cn=devs")
    assert service.asked == []
