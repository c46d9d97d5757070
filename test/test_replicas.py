"""Read replicas, real ones: PostgreSQL's streaming replication, paused, stopped, and in conflict with recovery."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from data.database import Engine, create_tables, make_engine, writing
from data.registry import RegistryUnavailable, SqlRegistry, TagNotFound
from data.replicas import REST_SECONDS, Replicas
from endpoints.checks import Finding, Site, Verdict, findings
from test.databases import PostgresqlServer, free_port, postgresql_server, standby
from test.images import Image, Layer
from test.layers import file
from test.place import Place
from test.waiting import eventually


@dataclass(frozen=True)
class Shared(Place):
    """A place whose pushes go through one engine."""

    through: Engine | None = None

    @property
    def engine(self) -> Engine:
        assert self.through is not None
        return self.through


@dataclass
class Pair:
    """A registry whose database has a replica."""

    primary: PostgresqlServer
    follower: PostgresqlServer
    place: Place
    engine: Engine
    replica: Engine

    def push(self, tag: str) -> str:
        return self.place.push(f"acme/app:{tag}", Image([Layer([file(b"name", tag.encode())])]))

    def sql(self, statement: str, *, at: Engine | None = None) -> Any:
        with (at or self.engine).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            result = connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None

    def caught_up(self) -> bool:
        """Tell whether the replica has replayed all that the database has written."""
        written = self.sql("SELECT pg_current_wal_lsn()")
        return bool(self.sql(f"SELECT pg_last_wal_replay_lsn() >= '{written}'", at=self.replica))

    def registry(self, replicas: Replicas) -> SqlRegistry:
        return SqlRegistry(self.engine, replicas)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[PostgresqlServer, PostgresqlServer]]:
    with postgresql_server() as primary, standby(primary) as follower:
        yield primary, follower


@pytest.fixture
def pair(servers: tuple[PostgresqlServer, PostgresqlServer], tmp_path: Path) -> Iterator[Pair]:
    primary, follower = servers
    engine, replica = make_engine(primary.uri), make_engine(follower.uri)
    create_tables(engine)
    settings = {
        "DB_URI": primary.uri,
        "VERBS_REGISTRY": "own",
        "VERBS_DB_URI": f"sqlite:///{tmp_path}/verbs.db",
        "DB_READ_REPLICAS": [{"DB_URI": follower.uri}],
    }
    pair = Pair(primary, follower, Shared(tmp_path, settings, engine), engine, replica)
    try:
        yield pair
    finally:
        if pair.sql("SELECT pg_is_wal_replay_paused()", at=replica):
            pair.sql("SELECT pg_wal_replay_resume()", at=replica)
        with writing(engine) as connection:
            connection.execute(text("TRUNCATE tag, manifestblob, manifestchild, manifest, uploadedblob CASCADE"))
        engine.dispose()
        replica.dispose()


def queries(engine: Engine) -> list[str]:
    """Return a list that gets every statement that goes to `engine`."""
    said: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        said.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    return said


def test_what_a_tag_means_is_asked_of_the_replica(pair: Pair) -> None:
    digest = pair.push("one")
    eventually(pair.caught_up)
    asked, followed = queries(pair.engine), queries(pair.replica)
    assert str(pair.registry(Replicas([pair.replica])).manifest("acme", "app", "one").digest) == digest
    assert (len(asked), len(followed)) == (0, 1)


def test_permissions_digests_and_blobs_are_asked_of_the_database_itself(pair: Pair) -> None:
    digest = pair.push("one")
    eventually(pair.caught_up)
    registry, followed = pair.registry(Replicas([pair.replica])), queries(pair.replica)
    assert registry.repository("acme", "app").kind == "image"
    assert str(registry.manifest("acme", "app", digest).digest) == digest
    registry.blobs("acme", "app", [registry.manifest("acme", "app", digest).digest])
    assert registry.tags("acme", "app") == ("one",)
    assert followed == []


def test_a_tag_that_the_replica_does_not_have_yet_is_found(pair: Pair) -> None:
    pair.push("one")
    eventually(pair.caught_up)
    pair.sql("SELECT pg_wal_replay_pause()", at=pair.replica)
    digest = pair.push("two")
    registry = pair.registry(Replicas([pair.replica]))
    assert str(registry.manifest("acme", "app", "two").digest) == digest
    with pytest.raises(TagNotFound, match="there are: two, one"):
        registry.manifest("acme", "app", "three")


def test_a_tag_that_moved_is_as_old_as_the_replica(pair: Pair) -> None:
    before = pair.push("one")
    eventually(pair.caught_up)
    pair.sql("SELECT pg_wal_replay_pause()", at=pair.replica)
    after = pair.place.push("acme/app:one", Image([Layer([file(b"name", b"another")])]))
    registry = pair.registry(Replicas([pair.replica]))
    assert str(registry.manifest("acme", "app", "one").digest) == before  # as in Quay
    pair.sql("SELECT pg_wal_replay_resume()", at=pair.replica)
    eventually(pair.caught_up)
    assert str(registry.manifest("acme", "app", "one").digest) == after


def test_a_query_that_gives_way_to_recovery_is_asked_of_the_database(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    pair.push("one")
    eventually(pair.caught_up)
    replicas = Replicas([pair.replica])

    def conflicts(connection: Connection) -> object:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        connection.execute(text("SELECT COUNT(*) FROM tag"))
        pair.sql("DELETE FROM tag")
        pair.sql("VACUUM tag")  # takes away rows that the snapshot above still sees
        eventually(pair.caught_up)
        return connection.execute(text("SELECT COUNT(*) FROM tag")).scalar()

    with caplog.at_level(logging.INFO):
        assert replicas.find(conflicts) is None
    assert "conflict with recovery" in caplog.text
    caplog.clear()
    assert replicas.find(lambda connection: connection.execute(text("SELECT 1")).scalar()) == 1  # it is well, and asked


def test_a_replica_that_is_down_costs_nobody_an_answer_and_is_left_alone_for_a_while(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    digest = pair.push("one")
    eventually(pair.caught_up)
    now = 0.0
    replicas = Replicas([pair.replica], clock=lambda: now)
    registry = pair.registry(replicas)
    assert str(registry.manifest("acme", "app", "one").digest) == digest
    pair.follower.stop()
    for _ in range(3):
        assert str(registry.manifest("acme", "app", "one").digest) == digest
    assert caplog.text.count("is not asked for 30 seconds") == 1
    pair.follower.start()
    asked = queries(pair.engine)
    assert str(registry.manifest("acme", "app", "one").digest) == digest
    assert len(asked) == 1
    now += REST_SECONDS
    assert str(registry.manifest("acme", "app", "one").digest) == digest
    assert len(asked) == 1


def test_of_several_replicas_another_is_asked_when_one_is_down(pair: Pair) -> None:
    pair.push("one")
    eventually(pair.caught_up)
    down = make_engine(f"postgresql://postgres:hunter2@127.0.0.1:{free_port()}/none")
    replicas, asked = Replicas([down, pair.replica]), queries(pair.engine)
    for _ in range(50):
        pair.registry(replicas).manifest("acme", "app", "one")
    assert len(asked) <= 1  # until it was found to be down


def test_the_password_of_a_replica_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    down = make_engine(f"postgresql://postgres:hunter2@127.0.0.1:{free_port()}/none")
    assert Replicas([down]).find(lambda _: 1) is None
    assert "is not asked" in caplog.text
    assert "hunter2" not in caplog.text


def test_where_the_database_is_down_too_that_is_told(tmp_path: Path) -> None:
    down = make_engine(f"postgresql://postgres@127.0.0.1:{free_port()}/none")
    with pytest.raises(RegistryUnavailable):
        SqlRegistry(down, Replicas([down])).manifest("acme", "app", "one")


# --- The settings, and the check of them ------------------------------------------------------------------------------


def found(pair: Pair, **more: Any) -> list[Finding]:
    site = Site({**pair.place.configuration, **more})
    try:
        return [finding for finding in findings(site) if finding.subject == "read replica"]
    finally:
        site.close()


def test_services_ask_the_replicas_of_the_settings(pair: Pair) -> None:
    digest = pair.push("one")
    eventually(pair.caught_up)
    pair.sql("SELECT pg_wal_replay_pause()", at=pair.replica)
    pair.place.push("acme/app:one", Image([Layer([file(b"name", b"another")])]))
    services = pair.place.services()
    assert str(services.registry.manifest("acme", "app", "one").digest) == digest
    assert isinstance(services.registry, SqlRegistry)
    services.registry.replicas.dispose()
    services.engine.dispose()


def test_the_check_tells_how_a_replica_is(pair: Pair) -> None:
    eventually(pair.caught_up)
    (well,) = found(pair)
    assert (well.verdict, "answers in" in well.fact) == (Verdict.RIGHT, True)
    (itself,) = found(pair, DB_READ_REPLICAS=[{"DB_URI": pair.primary.uri}])
    assert (itself.verdict, "follows no other database" in itself.fact) == (Verdict.DOUBTFUL, True)
    (down,) = found(pair, DB_READ_REPLICAS=[{"DB_URI": f"postgresql://q:hunter2@127.0.0.1:{free_port()}/q"}])
    assert (down.verdict, "hunter2" in down.text) == (Verdict.DOUBTFUL, False)
    assert "everything is asked of the database itself" in down.text
