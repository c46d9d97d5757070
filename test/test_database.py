"""The tables as Quay has them, on SQLite and PostgreSQL, and the engines that reach them."""

import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import insert, inspect, select, text
from sqlalchemy.exc import IntegrityError

from data import tables as db
from data.database import Engine, UnusableDatabase, create_tables, make_engine, writing
from test.databases import KINDS, database, database_uri


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(kind: str, tmp_path: Path) -> Iterator[Engine]:
    with database(kind, tmp_path) as engine:
        create_tables(engine)
        yield engine


# What quay/quay, data/database.py, declares: columns by table (foreign keys end in _id), `?` where null is allowed.
QUAY = {
    "user": "id uuid? username password_hash? email verified organization robot invoice_email invalid_login_attempts "
    "last_invalid_login removed_tag_expiration_s enabled creation_date?",
    "visibility": "id name",
    "repositorykind": "id name",
    "repository": "id namespace_user_id? name visibility_id description? badge_token kind_id trust_enabled state",
    "mediatype": "id name",
    "manifest": "id repository_id digest media_type_id manifest_bytes config_media_type? layers_compressed_size? "
    "subject? subject_backfilled artifact_type? artifact_type_backfilled",
    "manifestblob": "id repository_id manifest_id blob_id",
    "manifestchild": "id repository_id manifest_id child_manifest_id",
    "tagkind": "id name",
    "tag": "id name repository_id manifest_id? lifetime_start_ms lifetime_end_ms? hidden reversion tag_kind_id "
    "linked_tag_id?",
    "imagestorage": "id uuid image_size? uncompressed_size? uploading? cas_path content_checksum?",
    "imagestoragelocation": "id name",
    "imagestorageplacement": "id storage_id location_id",
    "uploadedblob": "id repository_id blob_id uploaded_at expires_at",
    "oauthapplication": "id client_id fully_migrated redirect_uri application_uri organization_id name description",
    "servicekeyapproval": "id approver_id? approval_type approved_date notes",
    "oauthaccesstoken": "id uuid application_id authorized_user_id scope token_name token_code token_type "
    "expires_at data",
    "accesstoken": "id token_name token_code repository_id created role_id temporary",
    "servicekey": "id name kid service jwk metadata created_date expiration_date? approval_id?",
    "proxycacheconfig": "id organization_id creation_date upstream_registry upstream_registry_username? "
    "upstream_registry_password? expiration_s insecure",
    "teamrole": "id name",
    "team": "id name organization_id role_id description",
    "teammember": "id user_id team_id",
    "role": "id name",
    "repositorypermission": "id team_id? user_id? repository_id role_id",
    "robotaccounttoken": "id robot_account_id token fully_migrated",
    "loginservice": "id name",
    "federatedlogin": "id user_id service_id service_ident metadata_json",
    "teamsync": "id team_id transaction_id last_updated? service_id config",
    "appspecificauthtoken": "id user_id uuid title token_name token_secret created expiration? last_accessed?",
}
UNIQUE: dict[str, list[tuple[str, ...]]] = {
    "user": [("email",), ("username",)],
    "visibility": [("name",)],
    "repositorykind": [("name",)],
    "repository": [("namespace_user_id", "name")],
    "mediatype": [("name",)],
    "manifest": [("repository_id", "digest")],
    "manifestblob": [("manifest_id", "blob_id")],
    "manifestchild": [("manifest_id", "child_manifest_id")],
    "tagkind": [("name",)],
    "tag": [("repository_id", "name", "lifetime_end_ms")],
    "imagestorage": [("uuid",)],
    "imagestoragelocation": [("name",)],
    "imagestorageplacement": [("storage_id", "location_id")],
    "uploadedblob": [],
    "proxycacheconfig": [],
    "oauthapplication": [],
    "servicekeyapproval": [],
    "oauthaccesstoken": [("token_name",)],
    "accesstoken": [("token_name",)],
    "servicekey": [("kid",)],
    "teamrole": [],
    "team": [("name", "organization_id")],
    "teammember": [("user_id", "team_id")],
    "role": [("name",)],
    "repositorypermission": [("team_id", "repository_id"), ("user_id", "repository_id")],
    "robotaccounttoken": [("robot_account_id",)],
    "loginservice": [("name",)],
    "federatedlogin": [("service_id", "service_ident"), ("service_id", "user_id")],
    "teamsync": [("team_id",)],
    "appspecificauthtoken": [("token_name",)],
}


def test_tables_and_columns_are_quay_s(engine: Engine) -> None:
    seen = inspect(engine)
    assert sorted(seen.get_table_names()) == sorted(QUAY)
    for table, columns in QUAY.items():
        found = {f"{column['name']}{'?' if column['nullable'] else ''}" for column in seen.get_columns(table)}
        assert found == set(columns.split()), table


@pytest.mark.parametrize("table", QUAY)
def test_what_is_unique_in_quay_is_unique_here(engine: Engine, table: str) -> None:
    seen = inspect(engine)
    unique = {tuple(index["column_names"]) for index in seen.get_indexes(table) if index["unique"]}
    unique |= {tuple(constraint["column_names"]) for constraint in seen.get_unique_constraints(table)}
    assert unique == set(UNIQUE[table])


def test_the_address_of_a_user_is_unique_and_that_of_an_organization_is_not(engine: Engine) -> None:
    with writing(engine) as connection:
        for name, organization in (("a", True), ("b", True), ("c", False)):
            connection.execute(insert(db.User).values(username=name, email="x@example.com", organization=organization))
    with pytest.raises(IntegrityError), writing(engine) as connection:
        connection.execute(insert(db.User).values(username="d", email="x@example.com"))


def test_every_foreign_key_is_one(engine: Engine) -> None:
    seen = inspect(engine)
    for table, columns in QUAY.items():
        keys = {key["constrained_columns"][0] for key in seen.get_foreign_keys(table)}
        named = {name for column in columns.split() if (name := column.rstrip("?")).endswith("_id")}
        assert keys == named - {"client_id", "transaction_id"}  # no keys of any table


def test_foreign_keys_are_held_to(engine: Engine) -> None:
    with pytest.raises(IntegrityError), writing(engine) as connection:
        connection.execute(insert(db.ImageStoragePlacement).values(storage_id=1, location_id=1))


def test_the_enumerated_rows_are_quay_s(engine: Engine) -> None:
    with engine.connect() as connection:
        names = {
            table: set(connection.scalars(text(f"SELECT name FROM {table}")))
            for table in ("visibility", "repositorykind", "tagkind", "mediatype", "role", "teamrole", "loginservice")
        }
    assert names == {
        "visibility": {"public", "private"},
        "repositorykind": {"image", "application"},
        "tagkind": {"tag"},
        "role": {"read", "write", "admin"},
        "teamrole": {"member", "creator", "admin"},
        "loginservice": {"google", "github", "quayrobot", "ldap", "jwtauthn", "keystone", "dex", "oidc"},
        "mediatype": {
            "application/vnd.docker.distribution.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.index.v1+json",
        },
    }


def test_tables_are_made_once(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(insert(db.User).values(username="kept"))
        connection.execute(text("DELETE FROM mediatype WHERE name LIKE '%index%'"))
    create_tables(engine)
    with engine.connect() as connection:
        assert list(connection.scalars(select(db.User.username))) == ["kept"]
        assert len(list(connection.scalars(select(db.MediaType.name)))) == 6


def test_several_processes_may_make_the_tables_at_once(kind: str, tmp_path: Path) -> None:
    program = "import sys; from data.database import *; create_tables(make_engine(sys.argv[1]))"
    with database_uri(kind, tmp_path) as uri:
        running = [subprocess.Popen([sys.executable, "-c", program, uri]) for _ in range(4)]
        assert [process.wait() for process in running] == [0] * 4


def test_writers_take_turns(engine: Engine) -> None:
    barrier = threading.Barrier(4)

    def raise_count(_: int) -> None:
        barrier.wait()
        for _ in range(5):
            with writing(engine) as connection:
                (count,) = connection.scalars(select(db.User.invalid_login_attempts))
                connection.execute(text(f'UPDATE "user" SET invalid_login_attempts = {count + 1}'))

    with writing(engine) as connection:
        connection.execute(insert(db.User).values(username="a"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(raise_count, range(4)))
    with engine.connect() as connection:
        assert list(connection.scalars(select(db.User.invalid_login_attempts))) == [20]


def test_a_reader_does_not_wait_for_a_writer(engine: Engine) -> None:
    with writing(engine) as writer:
        writer.execute(insert(db.User).values(username="new"))
        with engine.connect() as reader:
            assert list(reader.scalars(select(db.User.username))) == []


def test_an_error_undoes_what_was_written(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), writing(engine) as connection:  # noqa: PT012 the block is the point
        connection.execute(insert(db.User).values(username="a"))
        raise ZeroDivisionError
    with engine.connect() as connection:
        assert list(connection.scalars(select(db.User.username))) == []


def test_times_are_milliseconds(engine: Engine) -> None:
    assert 1_700_000_000_000 < db.now_ms() < 5_000_000_000_000


# --- MySQL ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mariadb(tmp_path: Path) -> Iterator[Engine]:
    with database("mariadb", tmp_path) as engine:
        with writing(engine) as connection:
            connection.execute(text("CREATE TABLE counted (number INT) ENGINE = InnoDB"))
            connection.execute(text("INSERT INTO counted VALUES (0)"))
        yield engine


def test_mysql_reads_what_is_committed_and_writes_every_character(mariadb: Engine) -> None:
    with mariadb.connect() as connection:
        assert connection.scalar(text("SELECT @@tx_isolation")) == "READ-COMMITTED"
        assert connection.scalar(text("SELECT @@character_set_client")) == "utf8mb4"
        assert connection.scalar(text("SELECT '😀'")) == "😀"


def test_writers_take_turns_on_mysql(mariadb: Engine) -> None:
    barrier = threading.Barrier(4)

    def raise_count(_: int) -> None:
        barrier.wait()
        for _ in range(5):
            with writing(mariadb) as connection:
                count = connection.execute(text("SELECT number FROM counted")).scalar_one()
                connection.execute(text(f"UPDATE counted SET number = {count + 1}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(raise_count, range(4)))
    with mariadb.connect() as connection:
        assert connection.scalar(text("SELECT number FROM counted")) == 20


def test_writers_of_two_databases_of_a_mysql_do_not_wait_for_each_other(mariadb: Engine, tmp_path: Path) -> None:
    with database("mariadb", tmp_path) as other, writing(mariadb), writing(other):
        pass


def test_a_writer_that_never_ends_is_told_to_the_next(mariadb: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.database._BUSY_SECONDS", 0)
    with writing(mariadb), pytest.raises(UnusableDatabase, match="another has been writing"), writing(mariadb):
        pass
    with writing(mariadb):
        pass


# --- Engines ----------------------------------------------------------------------------------------------------------


def test_a_database_of_somebody_else_s_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "quay.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE x (y)")
    before = file.read_bytes()
    engine = make_engine(f"sqlite:///{file}")
    with engine.connect() as connection_:
        assert list(connection_.execute(text("SELECT * FROM x"))) == []
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["quay.db"]


def test_a_database_of_our_own_has_a_write_ahead_log(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/deep/registry.db")
    create_tables(engine)
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
        assert connection.scalar(text("PRAGMA busy_timeout")) == 30_000


def test_a_database_in_memory_is_one_for_all_threads() -> None:
    engine = make_engine("sqlite://")
    create_tables(engine)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: inspect(engine).has_table("user")).result()
    engine.dispose()


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://quay:pw@db.example.com:5433/quay?sslmode=require",
        "postgres://quay:pw@db.example.com:5433/quay?sslmode=require",
        "postgresql+psycopg2://quay:pw@db.example.com:5433/quay?sslmode=require",
        "postgresql+psycopg://quay:pw@db.example.com:5433/quay?sslmode=require",
    ],
)
def test_quay_s_uris_of_postgresql_are_taken(uri: str) -> None:
    url = make_engine(uri).url
    assert (url.drivername, url.host, url.port, url.database) == ("postgresql+psycopg", "db.example.com", 5433, "quay")
    assert (url.username, url.password, url.query["sslmode"]) == ("quay", "pw", "require")


@pytest.mark.parametrize("scheme", ["mysql", "mysql+pymysql", "mariadb", "mysql+mysqldb"])
def test_quay_s_uris_of_mysql_are_taken(scheme: str) -> None:
    url = make_engine(f"{scheme}://quay:pw@db.example.com:3307/quay?charset=utf8").url
    assert (url.drivername, url.host, url.port, url.database) == ("mysql+pymysql", "db.example.com", 3307, "quay")
    assert (url.username, url.password, url.query["charset"]) == ("quay", "pw", "utf8")


@pytest.mark.parametrize(
    ("uri", "fact"),
    [
        ("hunter2", "the database URL is none"),
        ("postgresql://quay:hunter2@db:port/quay", "the database URL is none"),
        (
            "oracle://quay:hunter2@db/quay",
            "databases of kind oracle are not read; there are: postgresql, mysql, sqlite",
        ),
    ],
)
def test_a_uri_that_cannot_be_used_is_told_without_its_password(uri: str, fact: str) -> None:
    with pytest.raises(UnusableDatabase, match=re.escape(fact)) as caught:
        make_engine(uri)
    assert "hunter2" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnusableDatabase, match=r"folder of the database .*/file/x/registry\.db cannot be made"):
        make_engine(f"sqlite:///{tmp_path}/file/x/registry.db")


def test_a_driver_that_is_not_installed_is_named() -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from data.database import UnusableDatabase, make_engine\n"
        "try: make_engine('postgresql://db/quay')\n"
        "except UnusableDatabase as error: sys.exit(0 if 'psycopg' in str(error) else 1)\n"
        "sys.exit(2)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
