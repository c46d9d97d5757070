"""The page for operators holds what it says: its SQL, its policy and its files are run as they stand there.

Whoever changes what is read of Quay's database changes `docs/beside-a-quay.md`: a table that is read and not granted
fails here and in test_quay.py (`role-folder`), one that is granted and read by nobody fails here. What reads from a
table of its own is asked for in `everything`, or is a line of COMMANDS.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from data.database import make_engine
from data.schemacheck import columns_read
from test import statements
from test.page import PAGE, beside, granted, psql, replaced
from test.quayside import Quay, quay
from test.server import served
from test.slapd import Person, Slapd, slapd
from test.test_quay import VERBS, Side
from test.test_quaylogins import Kinds, add_credentials, oauth_token

COMMANDS = (
    ("formats",),
    ("derive", "rootfs", "acme/app:v1"),
    ("analyze", "acme/app:v1"),
    ("prime", "acme/*", "--tag", "v*", "--verb", "rootfs"),
    ("derived", "ls"),
    ("gc",),
    ("check",),
)


@dataclass(frozen=True)
class Reader:
    """A server that reaches a Quay as the page says; `quay` is how it does, `there` is the owner's own way."""

    there: Quay
    side: Side
    statements: Path

    @property
    def quay(self) -> Quay:
        return self.side.quay


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("quay")
    log = folder / "statements"
    with ExitStack() as stack:
        there = stack.enter_context(quay("postgresql", folder))
        reached = stack.enter_context(beside(there))
        more = {statements.FILE: str(log)}
        running = stack.enter_context(served(reached.place, more=more, program=statements.PROGRAM))
        yield Reader(there, Side(reached, running.url), log)


def everything(side: Side, key: RSAPrivateKey) -> None:
    """Ask for one of each that there is: verbs, credentials, and what a registry's clients want.

    `key` is that of an instance of Quay, which signs for robots.
    """
    for verb in VERBS:
        assert side.image("acme/app:v2", "alice", verb).status in (200, 422), verb
    for login in (
        *((who, side.quay.password(who)) for who in ("alice", "bob", "dave", "acme+deploy")),
        ("$app", side.quay.facts["app_token_of_alice"]),
        ("$oauthtoken", oauth_token("READ")),
        ("$token", f"{'APP':0<32}" + "T" * 32),
        ("acme+deploy", Kinds(side, key).robot_token("acme+deploy")),
    ):
        assert side.ask("/c1/rootfs/acme/app/v1", login=login).status == 200, login[0]
        listed = side.v2("/v2/acme/app/tags/list", "repository:acme/app:pull", login)
        assert listed.status == 200, login[0]
    alice = ("alice", side.quay.password("alice"))
    assert side.ask("/c1/rootfs/acme/open/latest").status == 200
    assert side.ask("/c1/rootfs/acme/app/v1").status == 401
    assert side.ask("/c1/rootfs/acme/app/v1", "alice+ci").status == 403
    assert side.image("hub/library/alpine:latest", "alice").status == 502
    assert side.image("alice/older:latest", "alice").status == 200
    assert side.image("acme/app:multi", "alice", query="?platform=linux/arm64").status == 200
    assert side.image("acme/app:v1", "alice", "rootfs.sha256").status == 404
    assert side.image("acme/app:v1.sha256", "alice").status in (200, 202)
    assert side.ask("/acme/app?ac-discovery=1").status == 200
    assert side.ask("/api/v1/analysis/acme/app/v1", login=alice).status == 200
    assert side.v2("/v2/_catalog", "registry:catalog:*", alice).status == 200
    manifest = side.manifest("acme/app", "v2", "alice")
    image = json.loads(manifest.body)
    for path in (
        f"blobs/{image['config']['digest']}",
        f"blobs/{image['layers'][0]['digest']}",
        f"referrers/{manifest.headers['Docker-Content-Digest']}",
        "manifests/v1.squash",
    ):
        assert side.v2(f"/v2/acme/app/{path}", "repository:acme/app:pull", alice).status == 200, path
    refused = side.v2("/v2/acme/app/blobs/uploads/", "repository:acme/app:pull,push", alice, "POST")
    assert refused.status == 405
    assert side.ask("/health").status == 200


def elsewhere(directory: Slapd) -> Iterable[tuple[str, object]]:
    """Return the settings by which accounts live in `directory`."""
    return directory.configuration.items()


def command(reader: Reader, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Run the command line where the server is, its statements written down as well."""
    environment = {"PATH": os.environ["PATH"], statements.FILE: str(reader.statements), **reader.quay.configuration}
    program = [sys.executable, "-c", statements.PROGRAM, *arguments]
    return subprocess.run(program, env=environment, input=stdin, capture_output=True, check=False)


# --- The database -----------------------------------------------------------------------------------------------------


def test_what_is_granted_is_what_is_read(reader: Reader, tmp_path: Path) -> None:
    key = generate_private_key(65537, 2048)
    add_credentials(reader.there, key)
    everything(reader.side, key)
    erin = Person("erin", mail="erin@example.com")
    with slapd(tmp_path / "slapd", erin) as directory:
        settings = {name: each if isinstance(each, str) else json.dumps(each) for name, each in elsewhere(directory)}
        more = {**settings, statements.FILE: str(reader.statements)}
        with served(reader.quay.place, more=more, program=statements.PROGRAM) as running:
            answer = Side(reader.quay, running.url).ask("/c1/rootfs/acme/open/latest", login=("erin", "secret"))
            assert answer.status == 200
    for arguments in COMMANDS:
        done = command(reader, *arguments)
        assert done.returncode == 0, (arguments, done.stderr)
    database = make_engine(reader.quay.uri).url.database
    assert database is not None
    tables = reader.there.rows()
    sent = statements.sent(reader.statements, database)
    assert {each for each in sent if not each.startswith(("SELECT", "WITH RECURSIVE"))} == set()
    used = {each for each in sent if not each.rstrip().endswith("WHERE false")}  # else it is only whether one could
    assert len(used) < len(sent)
    assert statements.read(tables, used) == granted()


def test_what_is_granted_is_what_a_server_looks_for_when_it_starts() -> None:
    assert {*columns_read(), "alembic_version"} == granted()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO visibility (name) VALUES ('secret')",
        """UPDATE "user" SET enabled = true""",
        "DELETE FROM tag",
        "TRUNCATE repository",
        "CREATE TABLE derivedimage (id integer)",
        "ALTER TABLE manifest ADD COLUMN more integer",
        "SELECT * FROM oauthapplication",
        "SELECT * FROM logentry3",
        "SELECT nextval('tag_id_seq')",
    ],
)
def test_the_database_refuses_everything_else(reader: Reader, statement: str) -> None:
    engine = make_engine(reader.quay.uri)
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW default_transaction_read_only")) == "on"
    with engine.connect() as connection:
        connection.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE"))  # so the rights alone decide
        connection.commit()
        with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
            connection.execute(text(statement))
    engine.dispose()


def test_the_commands_that_change_a_registry_refuse(reader: Reader) -> None:
    rows = reader.there.rows()
    for arguments in (
        ("user", "create", "mallory", "--password-stdin"),
        ("org", "create", "mallory"),
        ("repo", "create", "acme/new"),
        ("permission", "grant", "acme/app", "bob", "admin"),
        ("robot", "create", "alice+new"),
        ("team", "create", "acme", "new"),
    ):
        done = command(reader, *arguments, stdin=b"a-long-password\n")
        assert done.returncode == 1, (arguments, done.stderr)
        assert b"Traceback" not in done.stderr
    assert reader.there.rows() == rows


def test_a_table_that_may_not_be_read_is_named(reader: Reader) -> None:
    database = make_engine(reader.quay.uri).url
    psql(reader.there.uri, f"REVOKE SELECT ON manifestblob FROM {database.username}")
    try:
        refused = reader.side.image("acme/app:arm", "alice", "incus", query="?platform=linux/arm64")
        assert (refused.status, refused.error["code"]) == (503, "REGISTRY_UNAVAILABLE")
        assert "permission denied for table manifestblob" in refused.error["message"]
        assert "SELECT" not in refused.error["message"]
        done = command(reader, "derive", "rootfs", "acme/app:arm", "--platform", "linux/arm64")
        assert done.returncode == 1
        assert b"the table manifestblob may not be read" in done.stderr
        assert b"Traceback" not in done.stderr
    finally:
        psql(reader.there.uri, f"GRANT SELECT ON manifestblob TO {database.username}")


def test_without_a_database_of_our_own_nothing_is_made_in_quay_s(reader: Reader, tmp_path: Path) -> None:
    configuration = {**reader.quay.configuration, "VERBS_DATA_DIR": str(tmp_path)}
    del configuration["VERBS_DB_URI"]
    tables = set(reader.there.rows())
    program = [sys.executable, "-c", "import app; app.main()"]
    derived, listed = (
        subprocess.run([*program, *arguments], env=configuration, capture_output=True, check=False)
        for arguments in (("derive", "rootfs", "acme/app:v1"), ("derived", "ls"))
    )
    assert (derived.returncode, derived.stdout) == (0, reader.side.image("acme/app:v1", "alice").body)
    assert (listed.returncode, listed.stdout) == (1, b"")
    assert b"read-only transaction" in listed.stderr
    assert set(reader.there.rows()) == tables


def test_a_newer_schema_is_used_as_long_as_it_has_what_is_needed(tmp_path: Path) -> None:
    with quay("postgresql", tmp_path) as there, beside(there) as reached:
        psql(
            there.uri,
            """ALTER TABLE manifest ADD COLUMN from_a_later_version integer NOT NULL DEFAULT 7;
            ALTER TABLE "user" ADD COLUMN from_a_later_version text;
            CREATE TABLE from_a_later_version (id integer, manifest_id integer REFERENCES manifest (id));
            INSERT INTO alembic_version VALUES ('ffffffffffff')""",
        )
        with served(reached.place) as running:
            side = Side(reached, running.url)
            assert side.image("acme/app:v1", "alice").status == 200
            assert side.manifest("acme/app", "v1", "alice").status == 200
            psql(there.uri, "ALTER TABLE imagestorage RENAME COLUMN content_checksum TO of_a_later_version")
            refused = side.image("acme/app:v2", "alice")
            assert (refused.status, refused.error["code"]) == (503, "REGISTRY_UNAVAILABLE")
            assert "imagestorage.content_checksum does not exist" in refused.error["message"]


def test_our_own_tables_may_be_in_a_schema_of_quay_s_database(reader: Reader, tmp_path: Path) -> None:
    text = PAGE.read_text()
    create, options = "CREATE SCHEMA verbs AUTHORIZATION verbs", "?options=-csearch_path%3Dverbs"
    assert create in text
    assert options in text
    own = make_engine(reader.quay.configuration["VERBS_DB_URI"]).url
    assert own.username is not None
    psql(reader.there.uri, replaced(create, {"SCHEMA verbs": "SCHEMA verbs", "TION verbs": f"TION {own.username}"}))
    uri = own.set(database=make_engine(reader.there.uri).url.database).render_as_string(hide_password=False) + options
    configuration = {**reader.quay.configuration, "VERBS_DB_URI": uri, "VERBS_DATA_DIR": str(tmp_path)}
    program = [sys.executable, "-c", "import app; app.main()", "derived", "ls"]
    try:
        done = subprocess.run(program, env=configuration, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        tables = psql(reader.there.uri, "SELECT schemaname FROM pg_tables WHERE tableowner = '" + own.username + "'")
        assert set(tables.split()) == {"verbs"}
    finally:
        psql(reader.there.uri, "DROP SCHEMA verbs CASCADE")
