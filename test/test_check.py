"""`registry-verbs check` beside a Quay: all well, and then each thing broken, with the line that tells of it."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from data import inspection
from data.connecting import UnusableDatabase
from data.database import make_engine
from data.registry import RegistryUnavailable
from data.schemacheck import Lack, SchemaMismatch, Why, check_schema, columns_read, find_lacks
from endpoints import checks
from endpoints.checks import Finding, Site, Verdict, findings
from endpoints.configuration import Configuration
from test.databases import free_port, mariadb, postgresql, postgresql_server
from test.place import Place
from test.quayside import Quay, quay

PROGRAM = [sys.executable, "-c", "import app; app.main()"]


@dataclass(frozen=True)
class Told:
    """What the command said: its lines, by word, and how it ended."""

    status: int
    lines: list[list[str]]
    said: str

    def line(self, subject: str) -> str:
        """Return the one line of `subject` that is not `ok`, without the subject."""
        (found,) = [line for line in self.said.splitlines() if not line.startswith("ok") and subject in line]
        return " ".join(found.split())

    @property
    def wrong(self) -> list[str]:
        return [" ".join(line.split()) for line in self.said.splitlines() if line.startswith("wrong")]


def told(side: Quay, *arguments: str, **more: Any) -> Told:
    """Run the command with the configuration of `side`, as a process."""
    settings = {"VERBS_DATA_DIR": str(side.folder / "var"), "PREFERRED_URL_SCHEME": "https", **side.configuration}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VERBS_")}
    done = subprocess.run(
        [*PROGRAM, "check", *arguments],
        env={**environment, **settings, **more},
        capture_output=True,
        check=False,
        timeout=300,
    )
    said = done.stdout.decode()
    assert done.stderr == b""
    for secret in (side.facts["database_secret_key"], side.configuration["SECRET_KEY"], "hunter2"):
        assert secret not in said
    return Told(done.returncode, [line.split() for line in said.splitlines()], said)


@pytest.fixture(params=["sqlite", "postgresql"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Quay]:
    with quay(request.param, tmp_path) as side:
        yield side


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Quay]:
    """A Quay's side on SQLite, for what is the same on every database."""
    with quay("sqlite", tmp_path) as side:
        yield side


def sql(side: Quay, *statements: str) -> None:
    engine = make_engine(side.uri)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


# --- All is well ------------------------------------------------------------------------------------------------------


def test_a_quay_s_registry_is_well(side: Quay) -> None:
    before = (side.rows(), side.blobs())
    found = told(side)
    assert found.status == 0, found.said
    assert found.wrong == []
    subjects = {" ".join(line.split()[1:3]) for line in found.said.splitlines()}
    for subject in (
        "database",
        "schema",
        "rights",
        "own",
        "DATABASE_SECRET_KEY",
        "storage default",
        "blobs",
        "formats",
    ):
        assert any(each.startswith(subject) for each in subjects), subject
    assert "should lie in backup, which is not configured; each of them lies in another location" in found.line(
        "placem"
    )
    assert (side.rows(), side.blobs()) == before
    assert [path for path in (side.folder / "storage").rglob("check/*") if path.is_file()] == []
    assert not (side.folder / "verbs.db").exists()  # no table is made
    assert not (side.folder / "var").exists()


def test_the_lines_are_aligned_and_without_colour_where_no_terminal_is(small: Quay) -> None:
    found = told(small)
    assert {line[:9].rstrip() for line in found.said.splitlines()} == {"ok", "warning"}
    assert "\033" not in found.said
    starts = {line.index(line.split(maxsplit=2)[1]) for line in found.said.splitlines()}
    assert starts == {9}


def test_the_findings_are_json_where_that_is_asked(small: Quay) -> None:
    found = told(small, "--json")
    document = json.loads(found.said)
    assert document["ok"] is True
    assert {"subject", "verdict", "fact", "advice"} == set(document["findings"][0])
    assert {finding["verdict"] for finding in document["findings"]} == {"ok", "warning"}
    sql(small, "DROP TABLE robotaccounttoken")
    found = told(small, "--json")
    assert (found.status, json.loads(found.said)["ok"]) == (1, False)


def test_after_a_start_our_own_tables_are_found(small: Quay) -> None:
    small.place.services()
    line = next(line for line in told(small).said.splitlines() if "own tables" in line)
    assert line.startswith("ok")
    assert "and writable" in line


# --- The configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{: :::", "which cannot be read"),
        ("- a\n- b\n", "does not consist of keys and values"),
        ("\0\0\0", "which cannot be read"),
        ("DB_URI: hunter2\n", "DB_URI is '…'; allowed: a database URL"),
        ("VERBS_KEEP_DYAS: 5\n", "did you mean VERBS_KEEP_DAYS"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_one_line_and_a_2(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    environment = {**os.environ, "VERBS_CONFIG": str(tmp_path / "config.yaml")}
    done = subprocess.run([*PROGRAM, "check"], env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    (line,) = done.stdout.decode().splitlines()
    assert line.startswith("wrong    configuration")
    assert said in line
    assert "hunter2" not in line


def test_a_file_that_is_not_there_is_a_2(tmp_path: Path) -> None:
    environment = {**os.environ, "VERBS_CONFIG": str(tmp_path / "nothing.yaml")}
    done = subprocess.run([*PROGRAM, "check", "--json"], env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout)["ok"] is False
    assert "No such file" in json.loads(done.stdout)["findings"][0]["fact"]


def site_of(**configuration: Any) -> list[Finding]:
    with closing(Site(configuration)) as site:
        return list(findings(site))


def test_what_is_read_and_from_where_is_told(tmp_path: Path) -> None:
    configuration = Configuration(
        {"SERVER_HOSTNAME": "localhost", "MAIL_PORT": 25, "FEATURE_FIPS": True, "QUAY_SECRET_OF_MINE": "hunter2"}
    )
    configuration.source, configuration.environment = "/etc/quay.yaml", frozenset({"SERVER_HOSTNAME"})
    configuration["VERBS_DATA_DIR"] = str(tmp_path)
    with closing(Site(configuration)) as site:
        first, second, third, fourth, *_ = findings(site)
    assert first.fact == (
        "read from /etc/quay.yaml; 2 keys are obeyed, 1 of them from the environment, 1 of Quay's have no meaning here"
    )
    assert second.fact == "obeyed: SERVER_HOSTNAME, VERBS_DATA_DIR"
    assert (third.verdict, third.fact.split()[0]) == (Verdict.DOUBTFUL, "FEATURE_FIPS")
    assert (fourth.verdict, fourth.fact.split()[0]) == (Verdict.DOUBTFUL, "QUAY_SECRET_OF_MINE")
    assert "hunter2" not in fourth.text


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        ({"SERVER_HOSTNAME": "quay.example.com", "PREFERRED_URL_SCHEME": "https"}, Verdict.RIGHT),
        ({"SERVER_HOSTNAME": "quay.example.com"}, Verdict.DOUBTFUL),
        ({"SERVER_HOSTNAME": "localhost:8080"}, Verdict.RIGHT),
        ({"SERVER_HOSTNAME": "localhost:8080", "VERBS_REGISTRY": "quay"}, Verdict.DOUBTFUL),
    ],
)
def test_a_name_that_no_client_can_use_is_told(tmp_path: Path, settings: dict[str, Any], verdict: Verdict) -> None:
    found = site_of(VERBS_DATA_DIR=str(tmp_path), **settings)
    assert [each.verdict for each in found if each.subject == "address"] == [verdict]


# --- The database -----------------------------------------------------------------------------------------------------


def test_a_renamed_column_is_one_line_that_names_it(side: Quay) -> None:
    sql(side, "ALTER TABLE tag RENAME COLUMN lifetime_end_ms TO ends")
    found = told(side)
    assert found.status == 1
    assert len(found.wrong) == 1
    assert "schema tag.lifetime_end_ms is missing (alembic_version names no version); DB_URI names" in found.wrong[0]


def test_a_table_that_is_missing_is_one_line(side: Quay) -> None:
    sql(side, f"DROP TABLE robotaccounttoken{' CASCADE' if side.kind == 'postgresql' else ''}")
    assert told(side).wrong == [
        (
            "wrong schema the table robotaccounttoken is missing (alembic_version names no version); "
            "DB_URI names another database than a Quay's, or a Quay of another version than this service knows"
        )
    ]


def test_a_newer_schema_that_has_what_is_read_is_used(side: Quay) -> None:
    sql(
        side,
        "CREATE TABLE alembic_version (version_num VARCHAR(255) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('ffffffffffff')",
        "ALTER TABLE tag ADD COLUMN novelty INTEGER",
    )
    found = told(side)
    assert found.status == 0
    assert "Quay's alembic_version ffffffffffff: each of the" in found.said


def test_a_serving_that_lacks_a_column_ends_with_one_line(side: Quay) -> None:
    sql(side, "ALTER TABLE manifest RENAME COLUMN manifest_bytes TO content")
    for command in (["serve", "--port", "0"], ["derive", "rootfs", "acme/app:v1"], ["derived", "ls"]):
        environment = {**os.environ, "VERBS_DATA_DIR": str(side.folder / "var"), **side.configuration}
        done = subprocess.run([*PROGRAM, *command], env=environment, capture_output=True, check=False, timeout=300)
        assert (done.returncode, done.stdout) == (1, b"")
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith(
            "registry-verbs: the registry's database cannot be used: manifest.manifest_bytes is missing; "
        )


def test_many_missing_columns_are_told_in_one_sentence() -> None:
    lacks = [Lack("tag", f"c{number}", Why.MISSING) for number in range(9)]
    assert "tag.c0 is missing, tag.c1 is missing, tag.c2 is missing, and 6 more; " in str(SchemaMismatch(lacks))


def test_what_no_driver_says_of_a_column_is_not_taken_for_a_text(small: Quay) -> None:
    """SQLite takes a name in double quotes that no column has for a text."""
    engine = make_engine(small.uri)
    assert find_lacks(engine, {"user": ["id", "no such"], "absent": ["a", "b"]}) == [
        Lack("user", "no such", Why.MISSING),
        Lack("absent", None, Why.MISSING),
    ]
    with pytest.raises(SchemaMismatch):
        check_schema(engine, {"user": ["no such"]})
    check_schema(engine, columns_read())


def test_on_mysql_too_the_schema_is_looked_at() -> None:
    with mariadb() as uri:
        engine = make_engine(uri)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE `user` (id INTEGER PRIMARY KEY, username TEXT)"))
        assert find_lacks(engine, {"user": ["id", "uuid"], "tag": ["id"]}) == [
            Lack("user", "uuid", Why.MISSING),
            Lack("tag", None, Why.MISSING),
        ]
        assert inspection.server(engine).kind == "MariaDB"
        assert inspection.quay_version(engine) is None
        assert inspection.writable_tables(engine, ["user"]) == ["user"]
        name = f"verbs{uuid.uuid4().hex[:12]}"
        with engine.begin() as connection:
            connection.execute(text(f"CREATE USER {name}@'127.0.0.1'"))
            connection.execute(text(f"GRANT SELECT (id) ON `{engine.url.database}`.`user` TO {name}@'127.0.0.1'"))
        weak = make_engine(uri.replace("root@", f"{name}@"))
        try:
            assert find_lacks(weak, {"user": ["id", "username"]}) == [Lack("user", "username", Why.FORBIDDEN)]
            assert inspection.writable_tables(weak, ["user"]) == []
        finally:
            weak.dispose()
            with engine.begin() as connection:
                connection.execute(text(f"DROP USER {name}@'127.0.0.1'"))
            engine.dispose()


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Quay]:
    with quay("postgresql", tmp_path) as side:
        yield side


def test_a_role_that_only_reads_is_enough_and_one_without_rights_is_told_what_it_needs(large: Quay) -> None:
    enough = [f'SELECT ON "{name}"' for name in columns_read()]
    with role_by_set(large, *enough) as uri:
        found = told(large, DB_URI=uri)
        assert found.status == 0, found.said
        assert "write nothing of the registry's" in found.said
    with role_by_set(large, *(grant for grant in enough if '"tag"' not in grant), "SELECT (id) ON tag") as uri:
        found = told(large, DB_URI=uri)
        assert found.status == 1
        assert "GRANT SELECT ON tag to the role in DB_URI" in found.wrong[0]
        assert all("wrong schema tag." in line and "may not be read" in line for line in found.wrong)
    with role_by_set(large) as uri:
        found = told(large, DB_URI=uri)
        assert "wrong schema the table user may not be read" in " ".join(found.wrong)
        assert len(found.wrong) == len(columns_read())


@contextmanager
def role_by_set(side: Quay, *grants: str) -> Iterator[str]:
    """Give the URI by which somebody is, from the start of each connection, a role with `grants` alone."""
    name = f"verbs_{uuid.uuid4().hex[:12]}"
    sql(side, f"CREATE ROLE {name}", *(f"GRANT {grant} TO {name}" for grant in grants))
    try:
        yield f"{side.uri}?options=-c%20role%3D{name}"
    finally:
        sql(side, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_a_database_that_is_down_is_told_and_the_rest_is_looked_at(small: Quay) -> None:
    found = told(small, DB_URI=f"postgresql://quay:hunter2@127.0.0.1:{free_port()}/quay")
    assert found.status == 1
    assert "Connection refused" in found.line("database")
    assert "whether the database is up" in found.line("database")
    assert "ok       storage default" in found.said
    assert "schema" not in found.said


def test_a_wrong_password_is_told_as_one(small: Quay) -> None:
    with postgresql_server() as server:
        engine = make_engine(server.uri)
        with engine.begin() as connection:
            connection.execute(text("CREATE ROLE quay LOGIN PASSWORD 'right'"))
        engine.dispose()
        server.stop()
        (server.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        server.start()
        found = told(small, DB_URI=f"postgresql://quay:hunter2@127.0.0.1:{server.port}/postgres")
    assert found.status == 1
    assert "password authentication failed" in found.line("database")
    assert "see the user and the password in DB_URI" in found.line("database")


def test_an_sqlite_file_that_is_not_there_is_not_made(small: Quay) -> None:
    uri = f"sqlite:///{small.folder / 'nothing.db'}"
    found = told(small, DB_URI=uri)
    assert "there is no file" in found.line("database")
    assert not (small.folder / "nothing.db").exists()


def test_a_registry_of_our_own_need_not_be_there_yet(tmp_path: Path) -> None:
    found = site_of(VERBS_DATA_DIR=str(tmp_path / "var"))
    assert [each for each in found if each.verdict is Verdict.WRONG] == []
    assert not (tmp_path / "var" / "registry.db").exists()
    Place(tmp_path).services()
    found = site_of(**Place(tmp_path).configuration)
    assert [each for each in found if each.verdict is Verdict.WRONG] == []
    assert any("which are ours" in each.fact for each in found)


def test_a_clock_that_differs_is_told() -> None:
    assert checks._clock("database", 400).verdict is Verdict.RIGHT
    ahead, behind = checks._clock("database", 61_000), checks._clock("database", -61_000)
    assert "61.0 seconds ahead of" in ahead.fact
    assert "61.0 seconds behind" in behind.fact
    assert (ahead.verdict, behind.verdict) == (Verdict.DOUBTFUL, Verdict.DOUBTFUL)


def test_our_own_tables_that_cannot_be_used_are_told(small: Quay) -> None:
    small.place.services()
    for settings, said in (
        ({"VERBS_DB_URI": f"postgresql://verbs:hunter2@127.0.0.1:{free_port()}/verbs"}, "Connection refused"),
        ({"VERBS_DB_URI": f"sqlite:///{small.folder}/quay.db/verbs.db"}, "cannot be written to"),
    ):
        found = told(small, **settings)
        assert found.status == 1
        assert said in found.line("own tables")
    with closing(sqlite3.connect(small.folder / "verbs.db")) as connection, connection:
        connection.execute("UPDATE verbs_alembic_version SET version_num = '9999'")
    assert "a newer service has been here" in told(small).line("own tables")


def test_our_own_tables_that_may_only_be_read_are_told(small: Quay) -> None:
    with postgresql() as uri:
        small.place.services()
        small_settings = {"VERBS_DB_URI": uri}
        Place(small.folder, {**small.configuration, **small_settings}).services().own_engine.dispose()
        readonly = uri.replace("&application_name", "%20-c%20default_transaction_read_only%3Don&application_name")
        found = told(small, VERBS_DB_URI=readonly)
    assert "our own tables cannot be written to" in found.line("own tables")


# --- Keys -------------------------------------------------------------------------------------------------------------


def test_a_key_that_reads_no_token_is_told(side: Quay) -> None:
    found = told(side, DATABASE_SECRET_KEY="another")
    assert found.status == 1
    assert found.line("DATABASE_SECRET_KEY") == (
        "wrong DATABASE_SECRET_KEY DATABASE_SECRET_KEY does not decrypt the token of robot acme+deploy: "
        "robots and app tokens will be refused; take it from Quay's config.yaml"
    )


def test_a_key_that_is_not_set_is_told(small: Quay) -> None:
    assert "DATABASE_SECRET_KEY is not set" in told(small, DATABASE_SECRET_KEY="").line("DATABASE_SECRET_KEY")


def test_without_robots_and_tokens_no_key_is_wrong(small: Quay) -> None:
    sql(small, "DELETE FROM robotaccounttoken", "DELETE FROM appspecificauthtoken")
    found = told(small, DATABASE_SECRET_KEY="another")
    assert found.status == 0
    assert "no robot and no app token to try it on" in found.said


def test_one_damaged_token_does_not_make_the_key_a_wrong_one(small: Quay) -> None:
    sql(small, "UPDATE robotaccounttoken SET token = 'v0$$AAAA' WHERE id = (SELECT MAX(id) FROM robotaccounttoken)")
    assert told(small).status == 0


def test_a_start_with_the_wrong_key_says_so_once(small: Quay, caplog: pytest.LogCaptureFixture) -> None:
    Place(small.folder, {**small.configuration, "DATABASE_SECRET_KEY": "another"}).app()
    said = [record.getMessage() for record in caplog.records if record.name == "endpoints.startup"]
    assert said == [
        "DATABASE_SECRET_KEY does not decrypt the token of robot acme+deploy: robots and app tokens will be refused"
    ]
    caplog.clear()
    small.place.app()
    assert [record for record in caplog.records if record.name == "endpoints.startup"] == []


def test_a_database_that_is_down_at_the_start_is_a_warning(small: Quay, caplog: pytest.LogCaptureFixture) -> None:
    down = f"postgresql://quay:hunter2@127.0.0.1:{free_port()}/quay"
    app = Place(small.folder, {**small.configuration, "DB_URI": down}).app()
    assert "nothing of the registry is known until its database can be used" in caplog.text
    assert "hunter2" not in caplog.text
    assert app.test_client().get("/c1/").status_code == 200


# --- The storage ------------------------------------------------------------------------------------------------------


def blob_files(side: Quay) -> list[Path]:
    """Return the files of the blobs that the check reads."""
    engine = make_engine(side.uri)
    sample = inspection.newest_tag(engine)
    engine.dispose()
    assert sample is not None
    return [side.folder / "storage" / blob.path for blob in sample.blobs]


def test_a_storage_that_is_gone_is_told(small: Quay) -> None:
    shutil.rmtree(small.folder / "storage")
    found = told(small)
    assert found.status == 1
    assert f"LocalStorage: there is no folder {small.folder}/storage" in found.line("storage default")


def test_a_blob_whose_object_is_gone_is_told(side: Quay) -> None:
    blob_files(side)[0].unlink()
    found = told(side)
    assert found.status == 1
    assert "cannot be read: there is no blob" in found.line("blobs")


def test_a_blob_whose_bytes_are_others_is_told(side: Quay) -> None:
    file = blob_files(side)[-1]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = told(side)
    assert found.status == 1
    assert "has other bytes in storage than its digest says" in found.line("blobs")


def test_a_location_that_holds_blobs_and_is_not_configured_is_told(side: Quay) -> None:
    sql(side, "UPDATE imagestoragelocation SET name = 'elsewhere' WHERE name = 'default'")
    found = told(side)
    assert found.status == 1
    (line,) = [line for line in found.wrong if line.startswith("wrong placements") and "elsewhere" in line]
    assert "should lie in elsewhere, which is not configured, and" in line
    assert "of them lie nowhere else; add elsewhere to DISTRIBUTED_STORAGE_CONFIG" in line


def test_a_storage_that_cannot_be_written_to_is_told_unless_nothing_is_written(small: Quay) -> None:
    (small.folder / "storage" / "verbs").write_text("a file where a folder should be")
    found = told(small)
    assert found.status == 1
    assert "can be read, and not written to under verbs/" in found.line("storage default")
    found = told(small, REGISTRY_STATE="readonly")
    assert "nothing is written, as REGISTRY_STATE is readonly" in found.said
    assert found.wrong == []


def test_a_driver_that_there_is_not_and_a_bucket_that_is_down_are_told(small: Quay) -> None:
    where = json.dumps({"default": ["FakeStorage", {"password": "hunter2"}]})
    assert "asks for the driver 'FakeStorage'" in told(small, DISTRIBUTED_STORAGE_CONFIG=where).line("storage")
    bucket = {"s3_bucket": "b", "s3_access_key": "k", "s3_secret_key": "hunter2"}
    bucket["endpoint_url"] = f"http://127.0.0.1:{free_port()}"
    found = told(small, DISTRIBUTED_STORAGE_CONFIG=json.dumps({"default": ["S3Storage", bucket]}))
    assert found.status == 1
    assert found.line("storage default").startswith("wrong storage default S3Storage: ")


# --- What else is configured ------------------------------------------------------------------------------------------


def test_a_signing_key_is_tried(small: Quay, tmp_path: Path) -> None:
    settings = {
        "SIGNING_ENGINE": "gpg2",
        "GPG2_PRIVATE_KEY_NAME": "registry.example.com",
        "GPG2_PRIVATE_KEY_FILENAME": str(tmp_path / "nothing.gpg"),
        "GPG2_PUBLIC_KEY_FILENAME": str(tmp_path / "nothing.gpg"),
    }
    found = told(small, **settings)
    assert found.status == 1
    assert "nothing.gpg" in found.line("signing")


def test_a_broker_is_tried(small: Quay) -> None:
    redis = "redis://127.0.0.1:6379/0"
    found = told(small, VERBS_BROKER_URL=redis)
    assert (found.status, "redis://127.0.0.1:6379 answers" in found.said) == (0, True)
    found = told(small, VERBS_BROKER_URL=f"redis://:hunter2@127.0.0.1:{free_port()}/0")
    assert found.status == 1
    assert "see VERBS_BROKER_URL" in found.line("broker")
    assert told(small, VERBS_BROKER_URL=f"amqp://verbs:hunter2@127.0.0.1:{free_port()}//").status == 1


def test_a_port_that_answers_nothing_does_not_hold_the_check_up(small: Quay) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        assert told(small, VERBS_BROKER_URL=url).status == 1


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: Site) -> Iterator[Finding]:
        raise RuntimeError("hunter2")

    def fails(_: Site) -> Iterator[Finding]:
        raise RegistryUnavailable("it is down")

    added: Mapping[str, Any] = {"first": breaks, "second": fails, "limits": checks.CHECKS["limits"]}
    monkeypatch.setattr(checks, "CHECKS", added)
    first, second, third = site_of(VERBS_DATA_DIR=str(tmp_path))
    assert (first.verdict, first.fact) == (Verdict.WRONG, "this could not be checked, because of RuntimeError")
    assert (second.verdict, second.fact) == (Verdict.WRONG, "it is down")
    assert third.subject == "limits"


def test_a_full_disk_and_a_folder_that_cannot_be_written_to_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    full = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    found = [each for each in site_of(VERBS_DATA_DIR=str(tmp_path)) if each.subject == "folders"]
    assert [each.verdict for each in found] == [Verdict.DOUBTFUL] * 2
    assert "has 0.0 GiB free" in found[0].fact
    found = [each for each in site_of(VERBS_DATA_DIR=f"{file}/var") if each.subject == "folders"]
    assert [each.verdict for each in found] == [Verdict.WRONG] * 2


def test_few_open_files_are_told(tmp_path: Path) -> None:
    environment = {**os.environ, "VERBS_DATA_DIR": str(tmp_path)}
    command = ["bash", "-c", 'ulimit -Sn 200; exec "$@"', "bash", *PROGRAM, "check"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert b"warning  limits" in done.stdout
    assert b"a process may have 200 files open; raise that to 1024" in done.stdout


def test_sqlite_files_are_not_made_by_looking(tmp_path: Path) -> None:
    with closing(Site({"DB_URI": f"sqlite:///{tmp_path}/no.db"})) as site, pytest.raises(UnusableDatabase):
        _ = site.engine
    assert os.listdir(tmp_path) == []
