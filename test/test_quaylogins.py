"""Every kind of credentials that Quay has for programs, right, wrong, expired and disabled, over HTTP.

The database is the one that Quay's models wrote; what it has none of (a token that has expired, a robot of a disabled
user, …) is added in the form in which Quay writes it.
"""

import base64
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import bcrypt
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from sqlalchemy import insert, select

from data import tables as db
from data.database import make_engine, writing
from data.secretbox import SecretBox, key_of
from data.tables import now_utc
from test.clients import program
from test.databases import KINDS
from test.quayside import SECRET_KEY, Quay, quay
from test.server import served
from test.test_quay import Answer, Side

HOST = "quay.example.com"
DEPLOY = "acme+deploy"
OAUTH = {  # what is added, by the scope
    "repo:read": "READ",
    "repo:write": "WRITE",
    "repo:admin repo:create": "ADMIN",
    "user:read": "USERS",
    "super:user repo:read": "SUPER",
}


def oauth_token(word: str) -> str:
    return f"{word:0<20}" + f"{word:1<20}"


@dataclass(frozen=True)
class Kinds:
    """A server, and the credentials that are added to what the facts tell."""

    side: Side
    key: RSAPrivateKey

    def robot_token(self, robot: str, *, key: RSAPrivateKey | None = None, kid: str = "good", **claims: Any) -> str:
        """Return a token as an instance of Quay signs it for a robot of a federation."""
        now = int(now_utc().timestamp())
        said = {"iss": "quay", "aud": HOST, "sub": robot, "nbf": now, "iat": now, "exp": now + 3600, "access": {}}
        said |= {"context": {"entity_kind": "robot", "entity_reference": robot}, **claims}
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, key or self.key, algorithm="RS256", headers={"kid": kid})

    def image(self, login: tuple[str, str]) -> int:
        """Return the status of a private image, asked for by a verb."""
        return self.side.ask("/c1/rootfs/acme/app/v1", login=login).status

    def manifest(self, login: tuple[str, str]) -> int:
        """Return the status of a private image's manifest, asked for as docker does."""
        return self.side.v2("/v2/acme/app/manifests/v1", "repository:acme/app:pull", login).status


def add_credentials(quayside: Quay, key: RSAPrivateKey) -> None:
    """Add the kinds of credentials of which the dumps have none, in the form in which Quay writes them."""
    engine, box = make_engine(quayside.uri), SecretBox(quayside.facts["database_secret_key"])
    soon, past = now_utc() + timedelta(days=1), now_utc() - timedelta(seconds=5)
    with writing(engine) as connection:

        def add(table: type[db.Base], **values: Any) -> int:
            return int(connection.execute(insert(table).values(**values).returning(table.id)).scalar_one())

        def find(table: Any, **values: Any) -> int:
            return int(connection.execute(select(table.id).filter_by(**values)).scalar_one())

        def oauth(word: str, user: str, scope: str, expires: Any = soon) -> None:
            token = oauth_token(word)
            code = bcrypt.hashpw(token[20:].encode(), bcrypt.gensalt(4)).decode()
            statement = insert(db.OAuthAccessToken).values(
                application_id=1,
                authorized_user_id=find(db.User, username=user),
                scope=scope,
                token_name=token[:20],
                token_code=code,
                token_type="token",
                expires_at=expires,
            )
            connection.execute(statement)

        for scope, word in OAUTH.items():
            oauth(word, "alice", scope)
        oauth("EXPIRED", "alice", "repo:read", past)
        oauth("CAROLS", "carol", "repo:read")
        carol = find(db.User, username="carol")
        robot = add(db.User, username="carol+ci", robot=True, email="b5c9e1b0")
        add(db.RobotAccountToken, robot_account_id=robot, token=box.encrypt("C" * 64), fully_migrated=True)
        repository = find(db.Repository, name="app")
        read = find(db.Role, name="read")
        add(db.RepositoryPermission, user_id=robot, repository_id=repository, role_id=read)
        for word, user, expires in (("EXPIREDAPP", 1, past), ("CAROLSAPP", carol, None)):
            code = f"{word:0<60}"
            values = {"user_id": user, "title": "x", "token_name": code, "token_secret": box.encrypt("S" * 60)}
            add(db.AppSpecificAuthToken, **values, expiration=expires)
        for word, name in (("APP", "app"), ("GONE", "gone"), ("OPEN", "open")):
            values = {"token_name": f"{word:0<32}", "token_code": box.encrypt("T" * 32), "role_id": read}
            add(db.AccessToken, **values, repository_id=find(db.Repository, name=name))
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
        approval = add(db.ServiceKeyApproval, approval_type="ServiceKeyApprovalType.AUTOMATIC")
        changed: dict[str, dict[str, Any]] = {
            "good": {},
            "unapproved": {"approval_id": None},
            "expired": {"expiration_date": past},
            "clairs": {"service": "clair"},
            "broken": {"jwk": "{}"},
        }
        for kid, more in changed.items():
            values = {"name": kid, "kid": kid, "service": "quay", "approval_id": approval, "jwk": json.dumps(public)}
            connection.execute(insert(db.ServiceKey).values(**{**values, **more}))
    engine.dispose()


@pytest.fixture(scope="module")
def key() -> RSAPrivateKey:
    return generate_private_key(65537, 2048)


@pytest.fixture(scope="module", params=KINDS)
def kinds(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, key: RSAPrivateKey
) -> Iterator[Kinds]:
    with quay(request.param, tmp_path_factory.mktemp("quay"), SUPER_USERS='["alice"]') as there:
        add_credentials(there, key)
        with served(there.place) as running:
            yield Kinds(Side(there, running.url), key)


def basic(name: str, password: str) -> str:
    """Return what Authorization says of a name and a password."""
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def encrypted(password: str, secret: str = SECRET_KEY, document: bytes | None = None) -> str:
    """Return `password` as Quay encrypts it, by OpenSSL."""
    vector = "00112233445566778899aabbccddeeff"
    done = subprocess.run(
        [program("openssl"), "enc", "-aes-256-cbc", "-K", key_of(secret).hex(), "-iv", vector],
        input=json.dumps({"password": password}).encode() if document is None else document,
        capture_output=True,
        check=True,
    )
    return base64.b64encode(bytes.fromhex(vector) + done.stdout).decode()


def right(kinds: Kinds) -> dict[str, tuple[str, str]]:
    facts = kinds.side.quay.facts
    return {
        "password": ("alice", facts["passwords"]["alice"]),
        "e-mail": ("alice@example.com", facts["passwords"]["alice"]),
        "encrypted password": ("alice", encrypted(facts["passwords"]["alice"])),
        "robot": ("acme+deploy", facts["robots"]["acme+deploy"]),
        "federated robot": (DEPLOY, kinds.robot_token(DEPLOY)),
        "app token": ("$app", facts["app_token_of_alice"]),
        "OAuth token": ("$oauthtoken", facts["oauth_token_of_alice"]),
        "access token": ("$token", f"{'APP':0<32}{'T' * 32}"),
    }


def wrong(kinds: Kinds) -> dict[str, tuple[str, str]]:
    facts, other = kinds.side.quay.facts, generate_private_key(65537, 2048)
    unsigned = jwt.encode({"sub": DEPLOY, "iss": "quay", "aud": HOST}, "", algorithm="none", headers={"kid": "good"})
    return {
        "password": ("bob", "wrong-password"),
        "password of another": ("dave", facts["passwords"]["alice"]),
        "encrypted under another key": ("erin", encrypted("x", secret="another")),
        "robot": ("acme+deploy", facts["robots"]["alice+ci"]),
        "robot that is not there": ("acme+none", facts["robots"]["alice+ci"]),
        "app token": ("$app", facts["app_token_of_alice"][:-1] + "?"),
        "app token's name": ("$app", facts["app_token_of_alice"][:60]),
        "OAuth token": ("$oauthtoken", facts["oauth_token_of_alice"][:-1] + "?"),
        "OAuth token's name": ("$oauthtoken", facts["oauth_token_of_alice"][:20]),
        "OAuth token, long": ("$oauthtoken", facts["oauth_token_of_alice"] + "A" * 4000),
        "access token": ("$token", f"{'APP':0<32}{'U' * 32}"),
        "access token's name": ("$token", f"{'APP':0<32}"),
        "federated robot, another's token": ("alice+ci", kinds.robot_token(DEPLOY)),
        "federated robot, another key": (DEPLOY, kinds.robot_token(DEPLOY, key=other)),
        "federated robot, unknown key": (DEPLOY, kinds.robot_token(DEPLOY, kid="none")),
        "federated robot, unapproved key": (DEPLOY, kinds.robot_token(DEPLOY, kid="unapproved")),
        "federated robot, expired key": (DEPLOY, kinds.robot_token(DEPLOY, kid="expired")),
        "federated robot, key of another service": (DEPLOY, kinds.robot_token(DEPLOY, kid="clairs")),
        "federated robot, broken key": (DEPLOY, kinds.robot_token(DEPLOY, kid="broken")),
        "federated robot, another host": (DEPLOY, kinds.robot_token(DEPLOY, aud="other.example.com")),
        "federated robot, two hosts": (DEPLOY, kinds.robot_token(DEPLOY, aud=[HOST, "other.example.com"])),
        "federated robot, another issuer": (DEPLOY, kinds.robot_token(DEPLOY, iss="clair")),
        "federated robot, for a year": (DEPLOY, kinds.robot_token(DEPLOY, exp=9e9)),
        "federated robot, no end": (DEPLOY, kinds.robot_token(DEPLOY, exp=None)),
        "federated robot, a user's": ("alice", kinds.robot_token("alice")),
        "federated robot, no signature": (DEPLOY, unsigned),
        "name that is no name": ("$nothing", "x"),
    }


def expired(kinds: Kinds) -> dict[str, tuple[str, str]]:
    past = int(now_utc().timestamp()) - 3600
    return {
        "app token": ("$app", f"{'EXPIREDAPP':0<60}{'S' * 60}"),
        "OAuth token": ("$oauthtoken", oauth_token("EXPIRED")),
        "federated robot": (DEPLOY, kinds.robot_token(DEPLOY, iat=past, nbf=past, exp=past + 3500)),
        "federated robot, not yet": (DEPLOY, kinds.robot_token(DEPLOY, nbf=past + 7200, iat=past + 7200, exp=9e9)),
    }


def disabled(kinds: Kinds) -> dict[str, tuple[str, str]]:
    facts = kinds.side.quay.facts
    return {
        "password": ("carol", facts["passwords"]["carol"]),
        "encrypted password": ("carol", encrypted(facts["passwords"]["carol"])),
        "robot of a disabled user": ("carol+ci", "C" * 64),
        "federated robot of a disabled user": ("carol+ci", kinds.robot_token("carol+ci")),
        "app token": ("$app", f"{'CAROLSAPP':0<60}{'S' * 60}"),
        "OAuth token": ("$oauthtoken", oauth_token("CAROLS")),
        "access token of a deleted repository": ("$token", f"{'GONE':0<32}{'T' * 32}"),
    }


def test_right_credentials_of_every_kind_come_in(kinds: Kinds) -> None:
    for kind, login in right(kinds).items():
        assert (kind, kinds.image(login), kinds.manifest(login)) == (kind, 200, 200)


@pytest.mark.parametrize("credentials", [wrong, expired, disabled])
def test_other_credentials_do_not(kinds: Kinds, credentials: Any) -> None:
    for kind, login in credentials(kinds).items():
        assert (kind, kinds.image(login)) in ((kind, 401), (kind, 429))
        assert (kind, kinds.manifest(login)) in ((kind, 401), (kind, 429))


def test_an_oauth_token_is_taken_as_a_bearer(kinds: Kinds) -> None:
    token = kinds.side.quay.facts["oauth_token_of_alice"]
    for path in ("/c1/rootfs/acme/app/v1", "/v2/acme/app/manifests/v1", "/v2/acme/app/tags/list"):
        assert kinds.side.ask(path, Authorization=f"Bearer {token}").status == 200
        assert kinds.side.ask(path, Authorization=f"Bearer {token[:-1]}9").status == 401
        assert kinds.side.ask(path, Authorization=f"Bearer {oauth_token('EXPIRED')}").status == 401


def _bearer(kinds: Kinds, word: str, path: str, method: str = "GET") -> Answer:
    return kinds.side.ask(path, method=method, Authorization=f"Bearer {oauth_token(word)}")


def test_an_oauth_token_reaches_as_far_as_its_scopes(kinds: Kinds) -> None:
    for word, status in (("READ", 200), ("WRITE", 200), ("ADMIN", 200), ("USERS", 403), ("SUPER", 200)):
        assert (word, _bearer(kinds, word, "/c1/rootfs/acme/app/v1").status) == (word, status)
    assert _bearer(kinds, "USERS", "/c1/rootfs/acme/open/latest").status == 200
    listed = json.loads(_bearer(kinds, "USERS", "/v2/_catalog").body)["repositories"]
    assert listed == []
    assert "acme/app" in json.loads(_bearer(kinds, "READ", "/v2/_catalog").body)["repositories"]


def test_a_token_of_the_registry_reaches_no_further_than_the_oauth_token_it_was_given_for(kinds: Kinds) -> None:
    for word, status in (("READ", 200), ("USERS", 403)):
        login = ("$oauthtoken", oauth_token(word))
        assert kinds.side.v2("/v2/acme/app/manifests/v1", "repository:acme/app:pull", login).status == status
    listed = kinds.side.v2("/v2/_catalog", "registry:catalog:*", ("$oauthtoken", oauth_token("USERS")))
    assert json.loads(listed.body)["repositories"] == []


def test_the_admin_api_takes_an_oauth_token_by_its_scopes(kinds: Kinds) -> None:
    facts = kinds.side.quay.facts
    assert kinds.side.ask("/api/v1/jobs", login=("alice", facts["passwords"]["alice"])).status == 200
    assert _bearer(kinds, "SUPER", "/api/v1/jobs").status == 200
    for word in ("READ", "ADMIN", "USERS"):
        assert (word, _bearer(kinds, word, "/api/v1/jobs").status) == (word, 403)
    assert _bearer(kinds, "ADMIN", "/api/v1/jobs?namespace=acme&repository=app").status == 200
    assert _bearer(kinds, "READ", "/api/v1/jobs?namespace=acme&repository=app").status == 403
    for word in ("EXPIRED", "CAROLS", "NONE"):
        assert (word, _bearer(kinds, word, "/api/v1/jobs").status) == (word, 401)


def test_an_access_token_is_good_for_its_repository_alone(kinds: Kinds) -> None:
    login = ("$token", f"{'APP':0<32}{'T' * 32}")
    assert kinds.image(login) == 200
    assert kinds.side.ask("/c1/rootfs/acme/frozen/latest", login=login).status == 403
    assert kinds.side.ask("/c1/rootfs/acme/open/latest", login=login).status == 200
    listed = kinds.side.v2("/v2/_catalog", "registry:catalog:*", login)
    assert json.loads(listed.body)["repositories"] == []


@pytest.mark.parametrize(
    "document",
    [b"[]", b'"x"', b'{"password": 5}', b"{}", b"\xff\xfe", b"[" * 2000, b"null"],
)
def test_what_is_encrypted_and_no_password_does_not_come_in(kinds: Kinds, document: bytes) -> None:
    text = encrypted("", document=document)
    assert kinds.image(("erin", text)) in (401, 429)


def test_what_is_turned_off_does_not_come_in(kinds: Kinds) -> None:
    there = kinds.side.quay
    off = Quay(
        there.folder,
        there.kind,
        there.uri,
        there.facts,
        there.storage,
        {"FEATURE_APP_SPECIFIC_TOKENS": "false", "FEATURE_REQUIRE_ENCRYPTED_BASIC_AUTH": "true"},
    )
    with served(off.place) as running:
        less = Kinds(Side(off, running.url), kinds.key)
        answers = {kind: less.image(login) for kind, login in right(less).items()}
        refused = less.side.ask("/c1/rootfs/acme/app/v1", login=right(less)["password"])
    assert answers == {kind: 401 if kind in ("password", "e-mail", "app token") else 200 for kind in answers}
    assert "encrypted" in refused.error["message"]
