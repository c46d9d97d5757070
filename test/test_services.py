"""Services as they are made of settings: whose database is whose, and what happens where ours cannot be reached."""

import logging
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect

from data.database import Engine, UnusableDatabase, create_tables
from data.derivedimages import DerivedImages, Lease
from data.jobs import NewJob
from data.owntables import DatabaseUnavailable
from endpoints.access import everything
from endpoints.services import Services, make_services
from endpoints.settings import Settings
from test.databases import OWN_KINDS, database, database_uri, free_port, postgresql_server
from test.test_derivedimages import new


def services(folder: Path, *, engine: Engine | None = None, **more: Any) -> Services:
    settings = Settings.parse({"VERBS_DATA_DIR": str(folder / "var"), **more})
    return make_services(settings, permission=everything, engine=engine)


def ours(engine: Engine) -> set[str]:
    return {name for name in inspect(engine).get_table_names() if name.startswith("verbs_")}


def test_our_tables_lie_beside_the_registry_s(tmp_path: Path) -> None:
    made = services(tmp_path)
    assert made.own_engine.url == made.engine.url
    assert "verbs_derived" in ours(made.engine)
    assert isinstance(made.derived.claim(new(), host="a"), Lease)
    assert made.jobs.add([NewJob(verb="aci", namespace="a", repository="b", reference="c")])
    assert made.tokens.check(made.tokens.create("alice")) == "alice"


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_our_tables_lie_in_a_database_of_their_own_where_one_is_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    with database_uri(kind, tmp_path / "own") as uri:
        made = services(tmp_path, VERBS_DB_URI=uri)
        assert ours(made.engine) == set()
        assert "verbs_derived" in ours(made.own_engine)
        assert isinstance(made.derived.claim(new(), host="a"), Lease)
        made.own_engine.dispose()


def test_our_tables_lie_in_a_host_s_database_where_no_other_is_named(tmp_path: Path) -> None:
    with database("postgresql", tmp_path) as engine:
        create_tables(engine)
        with engine.connect() as kept:
            made = services(tmp_path, engine=engine)
            assert made.engine is engine
            assert "verbs_derived" in ours(engine)
            assert not kept.invalidated
        assert isinstance(made.derived.claim(new(), host="a"), Lease)
        elsewhere = services(tmp_path, engine=engine, VERBS_DB_URI=f"sqlite:///{tmp_path}/own.db")
        assert elsewhere.derived.find(new().key) is None


def test_a_registry_that_is_only_read_gets_no_tables(tmp_path: Path) -> None:
    made = services(tmp_path, REGISTRY_STATE="readonly")
    assert ours(made.own_engine) == set()
    with pytest.raises(DatabaseUnavailable, match="verbs_derived"):
        made.derived.find(new().key)
    assert ours(made.own_engine) == set()


def test_a_database_that_cannot_be_reached_does_not_keep_services_from_being_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"postgresql://verbs:hunter2@127.0.0.1:{free_port()}/verbs"
    with caplog.at_level(logging.WARNING):
        made = services(tmp_path, VERBS_DB_URI=uri)
    assert "nothing that is derived is kept until the database can be used" in caplog.text
    assert "hunter2" not in caplog.text
    with pytest.raises(DatabaseUnavailable):
        made.derived.find(new().key)


def test_a_database_that_comes_later_gets_its_tables_then(tmp_path: Path) -> None:
    with postgresql_server() as server:
        server.stop()
        made = services(tmp_path, VERBS_DB_URI=server.uri)
        with pytest.raises(DatabaseUnavailable):
            made.derived.claim(new(), host="a")
        server.start()
        assert isinstance(made.derived.claim(new(), host="a"), Lease)
        made.own_engine.dispose()


def test_a_database_that_is_named_wrongly_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnusableDatabase, match="oracle"):
        services(tmp_path, VERBS_DB_URI="oracle://db/verbs")


def test_no_connection_stays_open_that_could_cross_a_fork(tmp_path: Path) -> None:
    with database_uri("postgresql", tmp_path) as uri:
        made = services(tmp_path, DB_URI=uri, VERBS_REGISTRY="own")
        assert "Connections in pool: 0" in made.engine.pool.status()
        assert "Connections in pool: 0" in made.own_engine.pool.status()
        assert DerivedImages(made.own_engine).find(new().key) is None
        made.own_engine.dispose()
