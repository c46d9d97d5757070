"""Robots of a federation: tokens of an OpenID provider that runs over TLS, exchanged as at a Quay, and its lies."""

import base64
import hmac
import json
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from sqlalchemy import insert, select, update

from data import robotfederation
from data import tables as db
from data.accounts import AccountDisabled, Accounts, CredentialsRefused
from data.database import Engine, create_tables, make_engine, writing
from data.directories.trust import client_context
from data.robotfederation import InvalidFederation, IssuerUnavailable, RobotFederation, Trusted, trusted_in
from test.oidcissuer import KID, SUBJECT, Handler, Issuer, issuer
from test.people import People
from test.place import Place
from test.quayside import Quay, quay
from test.server import served
from test.test_quay import Side

ROBOT = "acme+deploy"
PATH = "/oauth2/federation/robot/token"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    with issuer(tmp_path_factory.mktemp("issuer")) as there:
        yield there


@pytest.fixture(autouse=True)
def _honest(provider: Issuer) -> Iterator[None]:
    yield
    provider.lies.clear()
    provider.asked.clear()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{tmp_path}/registry.db")
    create_tables(engine)
    people = People(engine)
    people.organization("acme")
    people.robot(ROBOT)
    yield engine
    engine.dispose()


def trust(engine: Engine, document: Any, robot: str = ROBOT) -> None:
    """Write whom a robot trusts, as Quay does."""
    text = document if isinstance(document, str) else json.dumps({"federation_config": document})
    with writing(engine) as connection:
        user = select(db.User.id).where(db.User.username == robot)
        number = connection.execute(user).scalar_one()
        changed = update(db.FederatedLogin).where(db.FederatedLogin.user_id == number).values(metadata_json=text)
        if connection.execute(changed).rowcount == 0:
            service = connection.execute(select(db.LoginService.id).filter_by(name="quayrobot")).scalar_one()
            values = {"user_id": number, "service_id": service, "service_ident": f"robot:{number}"}
            connection.execute(insert(db.FederatedLogin).values(**values, metadata_json=text))


class Known(Accounts):
    """Accounts of which one robot is there, or none."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find(self, name: str) -> Any:
        return db_account(name) if name in self.names else None


def db_account(name: str) -> Any:
    from data.accounts import Account

    return Account(7, name, robot=True, superuser=False)


@pytest.fixture
def federation(engine: Engine, provider: Issuer) -> RobotFederation:
    trust(engine, [{"issuer": provider.url, "subject": SUBJECT}])
    context = client_context([str(provider.authority.file)])
    return RobotFederation(engine, Known(ROBOT), lambda: context)  # type: ignore[abstract]


# --- Tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_of_a_trusted_issuer_is_the_robot_s(federation: RobotFederation, provider: Issuer) -> None:
    assert federation.authenticate(ROBOT, provider.token()).name == ROBOT


def test_an_issuer_is_asked_once_for_its_keys(federation: RobotFederation, provider: Issuer) -> None:
    for _ in range(3):
        federation.authenticate(ROBOT, provider.token())
    assert provider.asked == ["/.well-known/openid-configuration", "/keys"]


def test_of_a_token_with_an_audience_that_is_asked_for_it_counts(
    federation: RobotFederation, engine: Engine, provider: Issuer
) -> None:
    trust(engine, [{"issuer": provider.url, "subject": SUBJECT, "audiences": ["quay.example.com", "other"]}])
    assert federation.authenticate(ROBOT, provider.token(aud="quay.example.com")).name == ROBOT
    assert federation.authenticate(ROBOT, provider.token(aud=["x", "other"])).name == ROBOT
    for audience in (None, "somebody", ["x"]):
        with pytest.raises(CredentialsRefused):
            federation.authenticate(ROBOT, provider.token(aud=audience))


def _by_public_key(provider: Issuer) -> str:
    """Return a token that is signed with the published key, as if that were a secret: libraries refuse to make one."""
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head = (
        base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "typ": "JWT", "kid": KID}).encode()).decode().rstrip("=")
    )
    signed = f"{head}.{provider.token().split('.')[1]}"
    signature = hmac.digest(provider.key.public_key().public_bytes(*form), signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def wrong(provider: Issuer) -> dict[str, str]:
    return {
        "another subject": provider.token("somebody"),
        "no subject": provider.token(sub=None),
        "another key": provider.token(key=generate_private_key(65537, 2048)),
        "no key": provider.token(kid=None),
        "an unknown key": provider.token(kid="none"),
        "another issuer": provider.token(iss="https://elsewhere.example.com"),
        "no issuer": provider.token(iss=None),
        "expired": provider.token(exp=1),
        "no end": provider.token(exp=None),
        "no beginning": provider.token(iat=None),
        "no signature": provider.token(key="", algorithm="none"),
        "signed with the public key": _by_public_key(provider),
        "no token": "x",
        "three parts of nothing": "a.b.c",
        "too long": provider.token(more="x" * 20_000),
    }


def test_no_other_token_is(federation: RobotFederation, provider: Issuer) -> None:
    came_in = []
    for what, token in wrong(provider).items():
        try:
            federation.authenticate(ROBOT, token)
        except CredentialsRefused:
            continue
        came_in.append(what)
    assert came_in == []


def test_a_robot_that_is_not_there_or_trusts_nobody_does_not_come_in(
    federation: RobotFederation, engine: Engine, provider: Issuer
) -> None:
    People(engine).robot("acme+other")
    for robot in ("acme+other", "acme+none", "acme", "", "a\0b"):
        with pytest.raises(CredentialsRefused):
            federation.authenticate(robot, provider.token())
    assert provider.asked == []


def test_a_robot_that_is_disabled_does_not_come_in(engine: Engine, provider: Issuer) -> None:
    trust(engine, [{"issuer": provider.url, "subject": SUBJECT}])
    context = client_context([str(provider.authority.file)])
    federation = RobotFederation(engine, Known(), lambda: context)  # type: ignore[abstract]
    with pytest.raises(AccountDisabled):
        federation.authenticate(ROBOT, provider.token())


@pytest.mark.parametrize(
    "document",
    ["", "null", "[]", "{", "[" * 100_000, '{"federation_config": 5}', '{"federation_config": [5, null, [], {}]}'],
)
def test_a_row_that_lists_nobody_trusts_nobody(
    federation: RobotFederation, engine: Engine, provider: Issuer, document: str
) -> None:
    trust(engine, document)
    with pytest.raises(CredentialsRefused):
        federation.authenticate(ROBOT, provider.token())
    assert provider.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:1",
        "ftp://localhost",
        "file:///etc/passwd",
        "https://",
        "https://user:password@localhost",
        "https://localhost?x=y",
        "https://localhost#x",
        "https://localhost:0",
        "https://localhost:99999",
        "https://local host",
        "https://local\nhost",
        f"https://localhost/{'x' * 3000}",
        "localhost",
        "",
    ],
)
def test_only_https_urls_are_issuers(federation: RobotFederation, engine: Engine, provider: Issuer, url: str) -> None:
    with pytest.raises(InvalidFederation):
        Trusted.checked(url, "x")
    trust(engine, [{"issuer": url, "subject": SUBJECT}])
    with pytest.raises(CredentialsRefused):
        federation.authenticate(ROBOT, provider.token(iss=url))


def test_what_is_kept_is_what_is_read() -> None:
    trusted = [Trusted("https://one.example.com", "x"), Trusted("https://two.example.com/a", "y", ("b", "c"))]
    assert trusted_in(json.dumps({"federation_config": [each.document for each in trusted]})) == trusted


# --- Issuers that lie, or are not there -------------------------------------------------------------------------------


def _redirect(handler: Handler) -> None:
    handler.answer(302, b"", Location="/elsewhere")


def _huge(handler: Handler) -> None:
    handler.answer(200, b'{"issuer": "' + b"x" * (1 << 20) + b'"}')


def _endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" ")
            handler.wfile.flush()
    except OSError:
        pass


LIES = {
    "/.well-known/openid-configuration": [
        _redirect,
        _huge,
        _endless,
        lambda handler: handler.answer(500, b"{}"),
        lambda handler: handler.answer(200, b"[]"),
        lambda handler: handler.answer(200, b"[" * 100_000),
        lambda handler: handler.answer(200, b'{"issuer": "https://elsewhere.example.com", "jwks_uri": "https://x"}'),
        lambda handler: handler.answer(200, json.dumps({"issuer": handler.issuer.url}).encode()),
        lambda handler: handler.answer(
            200, json.dumps({"issuer": handler.issuer.url, "jwks_uri": "http://localhost/keys"}).encode()
        ),
        lambda handler: handler.answer(
            200, json.dumps({"issuer": handler.issuer.url, "jwks_uri": "file:///etc/passwd"}).encode()
        ),
    ],
    "/keys": [
        _redirect,
        _huge,
        _endless,
        lambda handler: handler.answer(200, b'{"keys": 5}'),
        lambda handler: handler.answer(200, b"\xff"),
    ],
}


@pytest.mark.parametrize(("path", "number"), [(path, number) for path in LIES for number in range(len(LIES[path]))])
def test_an_issuer_that_lies_is_no_refusal_and_lets_nobody_in(
    federation: RobotFederation,
    provider: Issuer,
    path: str,
    number: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider.lies[path] = LIES[path][number]
    with pytest.raises(IssuerUnavailable, match="the server's log says why"):
        federation.authenticate(ROBOT, provider.token())
    assert f"the issuer {provider.url} cannot be asked: " in caplog.text
    assert "/elsewhere" not in provider.asked
    provider.lies.clear()
    assert federation.authenticate(ROBOT, provider.token()).name == ROBOT


def test_an_issuer_that_stops_in_the_middle_does_not_hold_anybody(
    federation: RobotFederation, provider: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robotfederation, "_SECONDS", 0.2)

    def still(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"{")
        handler.wfile.flush()
        handler.connection.settimeout(None)
        handler.rfile.read(1)  # until the other side has had enough

    provider.lies["/keys"] = still
    with pytest.raises(IssuerUnavailable):
        federation.authenticate(ROBOT, provider.token())


def test_an_issuer_whose_certificate_nobody_signed_is_not_asked(engine: Engine, provider: Issuer) -> None:
    trust(engine, [{"issuer": provider.url, "subject": SUBJECT}])
    federation = RobotFederation(engine, Known(ROBOT), ssl.create_default_context)  # type: ignore[abstract]
    with pytest.raises(IssuerUnavailable):
        federation.authenticate(ROBOT, provider.token())
    assert provider.asked == []


def test_a_key_that_is_new_is_found_after_a_while(engine: Engine, provider: Issuer) -> None:
    trust(engine, [{"issuer": provider.url, "subject": SUBJECT}])
    now = [0.0]
    context = client_context([str(provider.authority.file)])
    federation = RobotFederation(engine, Known(ROBOT), lambda: context, clock=lambda: now[0])  # type: ignore[abstract]
    provider.lies["/keys"] = lambda handler: handler.answer(200, b'{"keys": []}')
    for _ in range(5):
        with pytest.raises(CredentialsRefused):
            federation.authenticate(ROBOT, provider.token())
    assert provider.asked.count("/keys") == 1
    provider.lies.clear()
    now[0] = 60.0
    assert federation.authenticate(ROBOT, provider.token()).name == ROBOT


# --- Over HTTP, and by the command line -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def side(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, provider: Issuer) -> Iterator[Side]:
    with quay(request.param, tmp_path_factory.mktemp("quay")) as there:
        engine = make_engine(there.uri)
        trust(engine, [{"issuer": provider.url, "subject": SUBJECT}])
        engine.dispose()
        with served(there.place, more=_trusting(there, provider)) as running:
            yield Side(there, running.url)


def _trusting(there: Quay, provider: Issuer) -> dict[str, str]:
    """Return an environment in which certificates of `provider` are trusted, as Quay's config.yaml has that."""
    (there.folder / "extra_ca_certs").mkdir()
    shutil.copy(provider.authority.file, there.folder / "extra_ca_certs")
    (there.folder / "config.yaml").write_text("{}")
    return {"VERBS_CONFIG": str(there.folder / "config.yaml")}


def test_a_provider_s_token_is_exchanged_for_a_password(side: Side, provider: Issuer) -> None:
    answer = side.ask(PATH, login=(ROBOT, provider.token()))
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    login = (ROBOT, json.loads(answer.body)["token"])
    assert side.ask("/c1/rootfs/acme/app/v1", login=login).status == 200
    assert side.v2("/v2/acme/app/manifests/v1", "repository:acme/app:pull", login).status == 200
    assert side.ask("/c1/rootfs/acme/app/v1", login=("alice+ci", login[1])).status == 401
    assert side.ask("/c1/rootfs/acme/app/v1", login=("alice", login[1])).status in (401, 429)


def test_other_tokens_are_not_exchanged(side: Side, provider: Issuer) -> None:
    for login in ((ROBOT, provider.token("somebody")), (ROBOT, side.quay.password(ROBOT)), ("alice", provider.token())):
        answer = side.ask(PATH, login=login)
        assert (answer.status, list(json.loads(answer.body))) == (401, ["error"])
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert side.ask(PATH).status == 401
    assert side.ask("/c1/rootfs/acme/app/v1", login=(ROBOT, provider.token())).status == 401  # it is no password


def test_a_provider_that_is_down_is_a_503(side: Side, provider: Issuer) -> None:
    provider.lies["/keys"] = lambda handler: handler.answer(500, b"")
    answer = side.ask(PATH, login=(ROBOT, provider.token(kid="a key that is new")))
    assert answer.status in (401, 503)  # it was asked a moment ago, and then needs not be asked
    robot = (ROBOT, side.quay.password(ROBOT))
    assert side.ask("/c1/rootfs/acme/app/v1", login=robot).status == 200


def test_the_command_line_says_whom_a_robot_trusts(tmp_path: Path) -> None:
    place = Place(tmp_path)
    administration = place.services().administration
    administration.create_organization("acme")
    administration.create_robot("acme+ci")

    def command(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
        program = [sys.executable, "-c", "import app; app.main()", "robot", "federate", *arguments]
        return subprocess.run(
            program, env={"PATH": "/usr/bin", **place.configuration}, capture_output=True, check=False
        )

    def kept() -> list[Trusted]:
        with place.engine.connect() as connection:
            return trusted_in(connection.scalars(select(db.FederatedLogin.metadata_json)).one())

    issuing = ("acme+ci", "--issuer", "https://id.example.com", "--subject", "x")
    done = command(*issuing, "--audience", "a", "--audience", "b")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert kept() == [Trusted("https://id.example.com", "x", ("a", "b"))]
    assert command(*issuing).returncode == 0
    assert kept() == [Trusted("https://id.example.com", "x")]
    assert command("acme+ci", "--off").returncode == 0
    assert kept() == []
    for wrong_ones, status in (
        (("acme+ci",), 2),
        (("acme+ci", "--issuer", "https://id.example.com"), 2),
        ((*issuing, "--off"), 2),
        (("acme+ci", "--issuer", "http://id.example.com", "--subject", "x"), 1),
        (("acme+none", *issuing[1:]), 1),
    ):
        done = command(*wrong_ones)
        assert (done.returncode, b"Traceback" in done.stderr) == (status, False)


def test_a_quay_s_robots_are_told_nothing(tmp_path: Path) -> None:
    with quay("sqlite", tmp_path) as there:
        off = replace(there, more={})
        program = [sys.executable, "-c", "import app; app.main()", "robot", "federate", ROBOT, "--off"]
        environment = {"PATH": "/usr/bin", **off.configuration}
        done = subprocess.run(program, env=environment, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
