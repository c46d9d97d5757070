"""Quay's side, for tests: the databases and the storage in test/quay, which Quay's own models wrote, loaded anew."""

import base64
import hashlib
import json
import sqlite3
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sqlalchemy import MetaData, select, text

from data.database import make_engine
from test.databases import POSTGRESQL
from test.place import Place
from test.s3server import s3_client

DUMPS = Path(__file__).parent / "quay"
SECRET_KEY = "a-secret-key-of-quay-for-tests"
BUCKET = "quay"


@dataclass(frozen=True)
class Quay:
    """One copy of the registry: what is known of it, and the configuration that Quay would have for it."""

    folder: Path
    kind: str
    uri: str
    facts: dict[str, Any]
    storage: tuple[str, dict[str, Any]]
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def configuration(self) -> dict[str, Any]:
        """A configuration in the keys of Quay's own, with our tables and files apart from Quay's."""
        return {
            "DB_URI": self.uri,
            "DISTRIBUTED_STORAGE_CONFIG": json.dumps({self.facts["location"]: list(self.storage)}),
            "DISTRIBUTED_STORAGE_PREFERENCE": json.dumps([self.facts["location"]]),
            "DATABASE_SECRET_KEY": self.facts["database_secret_key"],
            "SECRET_KEY": SECRET_KEY,
            "SERVER_HOSTNAME": "quay.example.com",
            "VERBS_DB_URI": f"sqlite:///{self.folder / 'verbs.db'}",
            **self.more,
        }

    @property
    def place(self) -> Place:
        return Place(self.folder, self.configuration)

    def password(self, name: str) -> str:
        """Return what the user or robot `name` logs in with."""
        return cast("str", {**self.facts["passwords"], **self.facts["robots"]}[name])

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return every row of every table of Quay's."""
        engine = make_engine(self.uri)
        tables = MetaData()
        tables.reflect(engine)
        with engine.connect() as connection:
            found = {
                name: sorted(map(tuple, connection.execute(select(table))), key=repr)
                for name, table in tables.tables.items()
            }
        engine.dispose()
        return found

    def blobs(self) -> dict[str, str]:
        """Return the SHA-256 of everything that lies in the storage outside of our own folder, by path."""
        driver, parameters = self.storage
        if driver == "LocalStorage":
            root = Path(parameters["storage_path"])
            content = {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}
        else:
            client = s3_client(parameters["endpoint_url"])
            keys = [item["Key"] for item in client.list_objects_v2(Bucket=parameters["s3_bucket"])["Contents"]]
            content = {key: client.get_object(Bucket=parameters["s3_bucket"], Key=key)["Body"].read() for key in keys}
        return {
            path: hashlib.sha256(blob).hexdigest()
            for path, blob in content.items()
            if not path.startswith(("verbs/", ".parts/"))
        }


@contextmanager
def quay(kind: str, folder: Path, *, s3: str | None = None, **more: Any) -> Iterator[Quay]:
    """Give Quay's registry on a database of `kind`, its blobs in a folder, or in a bucket of the S3 at the URL `s3`.

    All of it is gone afterwards. `more` are further settings.
    """
    facts = json.loads((DUMPS / f"{kind}.json").read_text())
    storage = _folder(folder / "storage") if s3 is None else _bucket(s3)
    with _database(kind, folder) as uri:
        yield Quay(folder, kind, uri, facts, storage, more)


@contextmanager
def _database(kind: str, folder: Path) -> Iterator[str]:
    dump = DUMPS / f"{kind}.sql"
    if kind == "sqlite":
        with closing(sqlite3.connect(folder / "quay.db")) as connection:
            connection.executescript(dump.read_text())
        yield f"sqlite:///{folder / 'quay.db'}"
        return
    name = f"quay_{uuid.uuid4().hex}"
    keeper = make_engine(POSTGRESQL).execution_options(isolation_level="AUTOCOMMIT")
    try:
        with keeper.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        uri = POSTGRESQL.rpartition("/")[0] + f"/{name}"
        command = ["psql", "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--file={dump}"]
        subprocess.run([*command, uri.replace("+psycopg", "")], check=True, stdout=subprocess.DEVNULL)
        yield uri
    finally:
        with keeper.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        keeper.dispose()


def stored() -> dict[str, bytes]:
    """Return what Quay's storage holds, by path."""
    kept = json.loads((DUMPS / "storage.json").read_text())
    return {path: base64.b64decode(blob) for path, blob in kept.items()}


def _folder(root: Path) -> tuple[str, dict[str, Any]]:
    for path, blob in stored().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(blob)
    return "LocalStorage", {"storage_path": str(root)}


def _bucket(url: str) -> tuple[str, dict[str, Any]]:
    name = f"{BUCKET}-{uuid.uuid4().hex[:12]}"
    client = s3_client(url)
    client.create_bucket(Bucket=name)
    for path, blob in stored().items():
        client.put_object(Bucket=name, Key=path, Body=blob)
    return "S3Storage", {"s3_bucket": name, "s3_access_key": "key", "s3_secret_key": "secret", "endpoint_url": url}
