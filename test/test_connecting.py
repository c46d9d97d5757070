"""DB_CONNECTION_ARGS as Quay writes it: what reaches the driver, what does not, and TLS with a real PostgreSQL."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from data.connecting import UnusableDatabase, driver_arguments
from data.database import make_engine
from test.databases import PostgresqlServer, postgresql_server

QUAYS = {"threadlocals": True, "autorollback": True, "max_connections": 10, "stale_timeout": 30, "timeout": 5}


def told(uri: str, **arguments: Any) -> dict[str, Any]:
    return driver_arguments(make_url(uri), {**QUAYS, **arguments})


@pytest.mark.parametrize("uri", ["postgresql://db/quay", "postgresql+psycopg2://db/quay", "mysql+pymysql://db/quay"])
def test_what_quay_s_own_library_takes_is_passed_over(uri: str) -> None:
    assert told(uri) == {}


def test_postgresql_is_told_what_libpq_knows() -> None:
    arguments = {"sslmode": "require", "keepalives_idle": 20, "sslcompression": False, "sslcrl": None}
    assert told("postgresql://db/quay", **arguments) == {
        "sslmode": "require",
        "keepalives_idle": "20",
        "sslcompression": "0",
    }


def test_mysql_is_told_what_pymysql_knows(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("certificate")
    arguments = {"ssl": {"ca": f"{tmp_path}/ca.pem"}, "read_timeout": "90", "charset": "utf8"}
    assert told("mysql+pymysql://db/quay", **arguments) == {
        "ssl": {"ca": f"{tmp_path}/ca.pem"},
        "read_timeout": 90,
        "charset": "utf8",
    }


def test_the_url_stands_where_both_say_something() -> None:
    uri = "postgresql://quay:pw@db:5433/quay?sslmode=disable"
    given = {"host": "other", "port": 1, "user": "x", "password": "y", "dbname": "z", "sslmode": "require"}
    assert told(uri, **given) == {}
    assert told("postgresql:///quay", host="db", user="quay") == {"host": "db", "user": "quay"}


def test_sqlite_is_told_nothing() -> None:
    assert told("sqlite:///quay.db", sslmode="require") == {}


@pytest.mark.parametrize(
    ("uri", "arguments", "named"),
    [
        ("postgresql://db/quay", {"ssl": {"ca": "/x"}}, "ssl is nothing that PostgreSQL's driver knows.*sslrootcert"),
        ("postgresql://db/quay", {"sslmod": "require"}, "sslmod is nothing"),
        ("postgresql://db/quay", {"sslmode": ["require"]}, "sslmode must be a text"),
        (
            "postgresql://db/quay",
            {"sslrootcert": "/nowhere/ca.pem"},
            "sslrootcert names /nowhere/ca.pem.*copy it",
        ),
        ("mysql://db/quay", {"sslmode": "require"}, "sslmode is nothing that MySQL's driver knows.*ssl: {ca: FILE}"),
        ("mysql://db/quay", {"ssl": True}, "ssl must have names and values"),
        ("mysql://db/quay", {"ssl": {"ca": "/nowhere/ca.pem"}}, "ssl.ca names /nowhere/ca.pem"),
        ("mysql://db/quay", {"ssl": {"ca": 5}}, "ssl.ca must be the path"),
        ("mysql://db/quay", {"ssl": {"root": "/x"}}, "ssl.root is nothing"),
        ("mysql://db/quay", {"read_timeout": "soon"}, "read_timeout must be a whole number"),
    ],
)
def test_what_would_be_dropped_in_silence_is_an_error_that_names_it(
    uri: str, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnusableDatabase, match=f"DB_CONNECTION_ARGS: {named}"):
        make_engine(uri, {**QUAYS, **arguments})


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PostgresqlServer, Path]]:
    """A PostgreSQL that takes connections by TLS alone, and the folder of its certificate and of another's."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("ca", "stranger"):
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{folder}/{name}.key"]
        subprocess.run([*command, "-out", f"{folder}/{name}.pem"], check=True, capture_output=True)
    with postgresql_server() as postgresql:
        postgresql.stop()
        for source, target in (("ca.pem", "server.crt"), ("ca.key", "server.key")):
            shutil.copy(folder / source, postgresql.data / target)
            shutil.chown(postgresql.data / target, "postgres")
            os.chmod(postgresql.data / target, 0o600)
        with (postgresql.data / "postgresql.conf").open("a") as file:
            file.write("ssl = on\n")
        (postgresql.data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust\n")
        postgresql.start()
        yield postgresql, folder


def is_encrypted(uri: str, arguments: dict[str, Any]) -> bool:
    engine = make_engine(uri, {**QUAYS, **arguments})
    try:
        with closing(engine.connect()) as connection:
            return bool(connection.scalar(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")))
    finally:
        engine.dispose()


def test_a_connection_to_postgresql_is_encrypted_and_verified(server: tuple[PostgresqlServer, Path]) -> None:
    postgresql, folder = server
    assert is_encrypted(postgresql.uri, {"sslmode": "verify-full", "sslrootcert": f"{folder}/ca.pem"})
    with pytest.raises(OperationalError, match="certificate verify failed"):
        is_encrypted(postgresql.uri, {"sslmode": "verify-full", "sslrootcert": f"{folder}/stranger.pem"})
    with pytest.raises(OperationalError, match="no encryption"):
        is_encrypted(postgresql.uri, {"sslmode": "disable"})
