"""The table of Quay's columns says all that is read beside a Quay, and nothing more."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from flask.testing import FlaskClient
from sqlalchemy import Engine, MetaData, event
from sqlalchemy.sql import visitors
from sqlalchemy.sql.schema import Column, Table

from data.database import make_engine
from data.directories.directory import Identity
from data.federated import FederatedUsers
from data.quaycolumns import READ
from data.registry import Referred
from data.tables import Base
from endpoints.collector import collector_of
from test.databases import KINDS
from test.quayside import Quay, quay
from test.test_quay import Side
from test.test_quaylogins import Kinds, add_credentials, basic, right
from util.digest import Digest

APP = "/v2/acme/app"


@contextmanager
def _noted() -> Iterator[dict[str, set[str]]]:
    """Give the columns of the registry's tables that statements name while this is open, by table."""
    seen: dict[str, set[str]] = {}

    def note(_: Any, clause: Any, *__: Any) -> None:
        for element in visitors.iterate(clause) if hasattr(clause, "get_children") else ():
            found: Any = element.table if isinstance(element, Column) else None
            while found is not None and not isinstance(found, Table):
                found = getattr(found, "element", None)
            if isinstance(found, Table) and found.metadata is Base.metadata and isinstance(element, Column):
                seen.setdefault(found.name, set()).add(element.name)

    event.listen(Engine, "before_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_execute", note)


def _look_everywhere(there: Quay, logins: dict[str, tuple[str, str]]) -> None:
    client = there.place.app().test_client()
    digest = there.facts["tags"]["acme/app"]["v1"]
    blob = json.loads(_get(client, f"{APP}/manifests/v1", basic(*logins["password"])).data)["config"]["digest"]
    for login in logins.values():
        for image in ("acme/app/v1", "acme/app/multi?platform=linux/arm64", "hub/library/alpine/latest"):
            _get(client, f"/c1/rootfs/{image}", basic(*login))
        scopes = "scope=repository:acme/app:pull,push,delete&scope=registry:catalog:*"
        bearer = f"Bearer {json.loads(_get(client, f'/v2/auth?{scopes}', basic(*login)).data)['token']}"
        for path in (
            "/v2/_catalog",
            "/v2/_catalog?n=1&last=acme/app",
            *(f"{APP}/{end}" for end in ("tags/list", "manifests/v1", "manifests/none", f"manifests/{digest}")),
            f"{APP}/referrers/{digest}",
            f"{APP}/blobs/{blob}",
        ):
            _get(client, path, bearer)
        _get(client, "/oauth2/federation/robot/token", basic(*login))
        mount = f"{APP}/blobs/uploads/?mount={blob}&from=acme/open"
        client.post(mount, headers={"Authorization": bearer})
        client.delete(f"{APP}/manifests/v1", headers={"Authorization": bearer})
    services = there.place.services()
    registry = services.registry
    registry.repositories()
    registry.tag_events(after=registry.last_tag_event() - 100)
    registry.tag_digests("acme", "app")
    registry.still_leading([Referred("acme", "app", "v1", digest)])
    registry.registered([Digest.parse(digest)])
    registry.has_manifest("acme", "app", digest)
    collector_of(services, search=True).collect()
    users = FederatedUsers(services.engine, services.own_engine, "ldap")
    erin = users.user(Identity("erin", "erin@example.com"))
    assert users.named("erin") == erin
    assert users.identifier(erin.id) == "erin"


def _get(client: FlaskClient, path: str, authorization: str) -> Any:
    return client.get(path, headers={"Authorization": authorization})


def test_the_table_says_what_is_read(tmp_path: Path) -> None:
    key = generate_private_key(65537, 2048)
    with quay("sqlite", tmp_path) as there:
        add_credentials(there, key)
        with _noted() as seen:
            _look_everywhere(there, right(Kinds(Side(there, ""), key)))
    assert seen == {table: set(columns) for table, columns in READ.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_quay_s_databases_have_what_is_read(tmp_path: Path, kind: str) -> None:
    with quay(kind, tmp_path) as there:
        engine, tables = make_engine(there.uri), MetaData()
        tables.reflect(engine)
        engine.dispose()
    for name, columns in READ.items():
        assert set(columns) <= set(tables.tables[name].columns.keys())
