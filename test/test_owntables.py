"""Our own tables: how they come to be on each database, and how work on them meets what databases do."""

import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, func, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError

from data import owntables
from data.database import Engine, begun, create_tables, make_engine
from data.owntables import (
    HEAD,
    AdminTokenRow,
    DatabaseUnavailable,
    OwnBase,
    changing,
    database_now_ms,
    insert_unless_there,
    reading,
    shortened,
    upgrade,
    upgrading,
)
from data.tables import now_ms
from test.databases import OWN_KINDS, cut_connections, database, free_port, postgresql, postgresql_server

TABLES = {
    "verbs_derived",
    "verbs_job",
    "verbs_admintoken",
    "verbs_mark",
    "verbs_upload",
    "verbs_login",
    "verbs_superuser",
    "verbs_virtual",
    "verbs_packedlayer",
    "verbs_signature",
}
SERVERS = tuple(kind for kind in OWN_KINDS if kind != "sqlite")


@pytest.fixture(params=OWN_KINDS)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with database(request.param, tmp_path) as engine:
        yield engine


@pytest.fixture
def engine(empty: Engine) -> Engine:
    upgrade(empty)
    return empty


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with database(request.param, tmp_path) as engine:
        upgrade(engine)
        yield engine


def token(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "sha256": name, "created_ms": 0, "expires_ms": None, "last_used_ms": None, **more}


def add(connection: Connection, name: str, **more: Any) -> None:
    connection.execute(insert(AdminTokenRow).values(token(name, **more)))


def names(engine: Engine) -> set[str]:
    return reading(engine, lambda connection: set(connection.scalars(select(AdminTokenRow.name))))


def differences(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        options = {
            "compare_type": True,
            "version_table": owntables.VERSION_TABLE,
            "include_object": lambda _, name, kind, *__: kind != "table" or name.startswith("verbs_"),
        }
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), OwnBase.metadata))


# --- History ----------------------------------------------------------------------------------------------------------


def test_the_history_makes_what_the_code_declares(engine: Engine) -> None:
    assert differences(engine) == []
    assert set(OwnBase.metadata.tables) == TABLES


def test_the_head_is_the_end_of_the_one_history() -> None:
    assert ScriptDirectory(owntables._MIGRATIONS).get_heads() == [HEAD]


def test_no_table_but_ours_is_made_or_touched(tmp_path: Path) -> None:
    for kind in ("sqlite", "postgresql"):
        with database(kind, tmp_path) as engine:
            create_tables(engine)
            before = set(inspect(engine).get_table_names())
            upgrade(engine)
            assert set(inspect(engine).get_table_names()) - before == TABLES | {"verbs_alembic_version"}


def test_an_upgrade_of_what_is_up_to_date_is_one_look(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    changing(engine, lambda connection: add(connection, "kept"))
    monkeypatch.delattr(owntables, "_migrate")
    upgrade(engine)
    assert names(engine) == {"kept"}


def test_the_history_s_library_is_not_loaded_where_nothing_is_to_do(engine: Engine) -> None:
    program = (
        "import sys; from data.owntables import *; from data.database import make_engine\n"
        "upgrade(make_engine(sys.argv[1])); sys.exit('alembic' in sys.modules)"
    )
    uri = engine.url.render_as_string(hide_password=False)
    assert subprocess.run([sys.executable, "-c", program, uri], check=False).returncode == 0


def test_many_processes_may_upgrade_at_once(empty: Engine) -> None:
    program = (
        "import sys; from data.owntables import *; from data.database import make_engine\n"
        "sys.stdin.read(1); upgrade(make_engine(sys.argv[1]))"
    )
    uri = empty.url.render_as_string(hide_password=False)
    running = [subprocess.Popen([sys.executable, "-c", program, uri], stdin=subprocess.PIPE) for _ in range(8)]
    for process in running:
        process.communicate(b"x")
    assert [process.returncode for process in running] == [0] * 8
    assert differences(empty) == []


def test_threads_may_upgrade_different_databases_at_once(tmp_path: Path) -> None:
    engines = [make_engine(f"sqlite:///{tmp_path}/{number}.db") for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(upgrade, engines))
    assert [differences(engine) for engine in engines] == [[]] * 6


def test_an_upgrade_that_was_cut_is_finished_by_the_next(empty: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    create = op.create_index

    def cut(name: str, *arguments: Any, **more: Any) -> None:
        if name == "verbs_job_due_ms":
            raise KeyboardInterrupt
        create(name, *arguments, **more)

    monkeypatch.setattr(op, "create_index", cut)
    with pytest.raises(KeyboardInterrupt):
        upgrade(empty)
    monkeypatch.undo()
    upgrade(empty)
    assert differences(empty) == []


def test_a_database_of_a_newer_version_is_left_alone(engine: Engine) -> None:
    with begun(engine, writes=True) as connection:
        connection.execute(text(f"UPDATE {owntables.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(DatabaseUnavailable, match="not of this version"):
        upgrade(engine)
    assert differences(engine) == []


def test_a_database_of_our_own_has_a_write_ahead_log(tmp_path: Path) -> None:
    with database("sqlite", tmp_path) as engine:
        upgrade(engine)
        with engine.connect() as connection:
            assert connection.scalar(text("PRAGMA journal_mode")) == "wal"


def test_tables_that_are_not_there_are_told(empty: Engine) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"verbs_admintoken"):
        names(empty)


def test_tables_that_are_not_there_are_made_when_they_are_met(empty: Engine) -> None:
    assert names(upgrading(empty)) == set()
    changing(upgrading(empty), lambda connection: add(connection, "a"))
    assert names(empty) == {"a"}


def test_an_upgrade_that_does_not_help_is_tried_once(engine: Engine) -> None:
    with begun(engine, writes=True) as connection:
        connection.execute(text("DROP TABLE verbs_admintoken"))
    with pytest.raises(DatabaseUnavailable, match=r"verbs_admintoken"):
        names(upgrading(engine))


# --- The clock --------------------------------------------------------------------------------------------------------


def test_the_clock_is_the_database_s_in_milliseconds(engine: Engine) -> None:
    before = now_ms()
    told = reading(engine, database_now_ms)
    assert before - 1 <= told <= now_ms() + 1  # the same machine's; SQLite rounds


@pytest.mark.parametrize(
    ("kind", "zone"), [("postgresql", "SET TimeZone = 'Asia/Kolkata'"), ("mariadb", "SET time_zone = '+05:30'")]
)
def test_the_clock_does_not_depend_on_the_time_zone(kind: str, zone: str, tmp_path: Path) -> None:
    with database(kind, tmp_path) as engine, begun(engine, writes=False) as connection:
        connection.execute(text(zone))
        before = now_ms()
        assert before - 1000 < database_now_ms(connection) < now_ms() + 1000


def test_the_clock_goes_on_within_a_transaction(engine: Engine) -> None:
    with begun(engine, writes=False) as connection:
        first = database_now_ms(connection)
        time.sleep(0.05)
        assert database_now_ms(connection) >= first + 40


# --- Transactions -----------------------------------------------------------------------------------------------------


def test_an_error_of_the_work_undoes_it(engine: Engine) -> None:
    def fail(connection: Connection) -> None:
        add(connection, "a")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        changing(engine, fail)
    assert names(engine) == set()


def test_a_row_that_is_there_is_not_inserted(engine: Engine) -> None:
    attempts = []

    def insert_same(connection: Connection) -> bool:
        attempts.append(1)
        if len(attempts) > 1:  # as all work does that inserts: another's row is met before
            return False
        return insert_unless_there(connection, AdminTokenRow, token("b", sha256="a"))

    assert changing(engine, lambda connection: insert_unless_there(connection, AdminTokenRow, token("a")))
    assert not changing(engine, insert_same)
    assert names(engine) == {"a"}


def test_a_mistake_of_ours_is_no_failure_of_the_database(engine: Engine) -> None:
    with pytest.raises(IntegrityError):
        changing(engine, lambda connection: add(connection, "a", created_ms=None))


def test_case_and_accents_count_in_texts(engine: Engine) -> None:
    def fill(connection: Connection) -> int:
        for name in ("a", "A", "ä", "a\N{COMBINING DIAERESIS}", "😀"):
            add(connection, name)
        query = select(func.count()).select_from(AdminTokenRow).where(AdminTokenRow.name == "a")
        return connection.execute(query).scalar_one()

    assert changing(engine, fill) == 1
    assert len(names(engine)) == 5


def test_transactions_that_wait_for_each_other_are_run_again(server: Engine) -> None:
    def seed(connection: Connection) -> None:
        add(connection, "a")
        add(connection, "b")

    changing(server, seed)
    barrier = threading.Barrier(2)

    def swap(first: str, second: str) -> int:
        runs = 0

        def work(connection: Connection) -> None:
            nonlocal runs
            runs += 1
            for name in (first, second):
                count = update(AdminTokenRow).values(created_ms=AdminTokenRow.created_ms + 1)
                connection.execute(count.where(AdminTokenRow.name == name))
                if runs == 1 and name == first:
                    barrier.wait()

        changing(server, work)
        return runs

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(swap, "ab", "ba"))
    assert sum(runs) > 2  # and once more where the other was too slow to take what came free
    query = select(AdminTokenRow.created_ms)
    assert reading(server, lambda connection: list(connection.scalars(query))) == [2, 2]


def test_a_connection_that_was_cut_while_it_was_kept_is_replaced(server: Engine) -> None:
    changing(server, lambda connection: add(connection, "a"))
    cut_connections(server)
    assert names(server) == {"a"}


def test_work_whose_connection_is_cut_is_run_again(server: Engine) -> None:
    runs = []

    def work(connection: Connection) -> None:
        add(connection, "a")
        runs.append(1)
        if len(runs) == 1:
            cut_connections(server)
        add(connection, "b")

    changing(server, work)
    assert len(runs) == 2
    assert names(server) == {"a", "b"}


def test_no_connection_that_comes_free_is_told(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        return  # it has one for each
    uri = engine.url.render_as_string(hide_password=False)
    small = create_engine(uri, pool_size=1, max_overflow=0, pool_timeout=0.05)
    with small.connect(), pytest.raises(DatabaseUnavailable, match="QueuePool limit"):
        names(small)
    small.dispose()


def test_a_text_is_cut_to_what_a_column_holds() -> None:
    assert shortened("short") == "short"
    assert shortened("x" * 255) == "x" * 255
    assert shortened("x" * 256) == "x" * 254 + "…"
    assert shortened("a\0b") == "a\N{REPLACEMENT CHARACTER}b"


# --- Databases that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "mysql+pymysql"])
def test_a_server_that_is_not_there_is_one_clear_error(scheme: str) -> None:
    engine = make_engine(f"{scheme}://verbs:hunter2@127.0.0.1:{free_port()}/verbs")
    for attempt in (upgrade, names, lambda engine: changing(engine, database_now_ms)):
        with pytest.raises(DatabaseUnavailable, match=r"the database of derived images cannot be used: .*127") as told:
            attempt(engine)
        assert "hunter2" not in str(told.value)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("scheme", ["postgresql", "mysql+pymysql"])
def test_a_server_that_does_not_answer_is_given_up_soon(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        query = "?connect_timeout=2" if scheme == "postgresql" else "?connect_timeout=1&read_timeout=1"
        with pytest.raises(DatabaseUnavailable):
            names(make_engine(f"{scheme}://verbs@127.0.0.1:{port}/verbs{query}"))
        silent.settimeout(0.1)
        silent.accept()[0].close()
        with pytest.raises(TimeoutError):
            silent.accept()  # it was tried once


def test_a_file_that_is_no_database_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "own.db").write_bytes(b"no database" * 1000)
    engine = make_engine(f"sqlite:///{tmp_path}/own.db")
    for attempt in (upgrade, names):
        with pytest.raises(DatabaseUnavailable, match="file is not a database"):
            attempt(engine)


def test_a_file_that_stays_locked_is_one_clear_error(tmp_path: Path) -> None:
    with database("sqlite", tmp_path) as engine:
        upgrade(engine)
        impatient = make_engine(engine.url.render_as_string() + "?timeout=0.05")
        with begun(engine, writes=True), pytest.raises(DatabaseUnavailable, match="database is locked"):
            changing(impatient, database_now_ms)


def test_a_user_who_may_not_make_tables_is_told() -> None:
    role = f"verbs_{uuid.uuid4().hex}"
    with postgresql() as uri:
        engine, weak = make_engine(uri), make_engine(uri.replace("postgres@", f"{role}@"))
        with begun(engine, writes=True) as connection:
            connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        try:
            with pytest.raises(DatabaseUnavailable, match=r"permission denied|no schema has been selected"):
                upgrade(weak)
        finally:
            weak.dispose()
            with begun(engine, writes=True) as connection:
                connection.execute(text(f"DROP ROLE {role}"))
            engine.dispose()


def test_a_postgresql_that_stops_is_told_and_one_that_is_back_is_used() -> None:
    with postgresql_server() as server:
        engine = make_engine(server.uri)
        with pytest.raises(DatabaseUnavailable):
            names(engine)  # no tables yet
        upgrade(engine)
        for mode in ("fast", "immediate"):
            changing(engine, partial(add, name=mode))
            server.stop(mode)
            with pytest.raises(DatabaseUnavailable):
                names(engine)
            server.start()
            assert mode in names(engine)
        engine.dispose()


def test_a_postgresql_that_restarts_between_two_uses_is_not_noticed() -> None:
    with postgresql_server() as server:
        engine = upgrading(make_engine(server.uri))
        changing(engine, partial(add, name="a"))
        server.stop()
        server.start()
        assert names(engine) == {"a"}
        engine.dispose()
