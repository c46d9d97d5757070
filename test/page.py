"""The page for operators, docs/beside-a-quay.md, as tests take it: its blocks, to be run as they stand there."""

import re
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import make_url

from data.database import make_engine
from test.databases import POSTGRESQL
from test.quayside import Quay

PAGE = Path(__file__).parent.parent / "docs" / "beside-a-quay.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """Return the page's blocks in `language`, from top to bottom. There is at least one."""
    found = [content for named, content in _BLOCK.findall(PAGE.read_text()) if named == language]
    assert found, f"{PAGE.name} has no block of {language}"
    return found


def commands() -> list[str]:
    """Return the lines of the page that are indented by four blanks, and so are commands to copy."""
    return [line.strip() for line in _BLOCK.sub("", PAGE.read_text()).splitlines() if line.startswith("    ")]


def replaced(content: str, words: Mapping[str, str]) -> str:
    """Return `content` with every word of the page's that stands for something of the operator's own replaced.

    A word that does not occur is an error: the page has become another one.
    """
    for word, instead in words.items():
        assert word in content, f"{word!r} is not in:\n{content}"
        content = content.replace(word, instead)
    return content


def granted() -> set[str]:
    """Return the tables that the page's SQL lets the role read."""
    (sql,) = blocks("sql")
    bare = re.sub(r"--.*", "", sql)
    (tables,) = re.findall(r"GRANT SELECT ON\s(.*?)\sTO quay_reader", bare, re.DOTALL)
    return {table.strip().strip('"') for table in tables.split(",")}


@contextmanager
def beside(there: Quay) -> Iterator[Quay]:
    """Give the same PostgreSQL registry as who follows the page reaches it: by a role that may do what the page says.

    Our own tables are in the database that the page makes for them. Roles and database have names of this test's own,
    and passwords, and are gone afterwards.
    """
    url = make_url(there.uri)
    assert url.database is not None
    mark = uuid.uuid4().hex
    reader, verbs, database = f"reader_{mark}", f"own_{mark}", f"verbs_{mark}"
    (sql,) = blocks("sql")
    sql = replaced(
        sql,
        {
            "quay_reader": reader,
            "DATABASE quay ": f"DATABASE {url.database} ",
            "ROLE verbs ": f"ROLE {verbs} ",
            "DATABASE verbs OWNER verbs": f"DATABASE {database} OWNER {verbs}",
            "change-me-too": f"own-{mark}",
            "change-me": f"reads-{mark}",
        },
    )
    try:
        # Quay's migrations note themselves in it; the dumps are what its models alone make.
        psql(there.uri, "CREATE TABLE IF NOT EXISTS alembic_version (version_num character varying(32) PRIMARY KEY)")
        psql(there.uri, sql)
        own = url.set(username=verbs, password=f"own-{mark}", database=database)
        more = {**there.more, "VERBS_DB_URI": own.render_as_string(hide_password=False)}
        uri = url.set(username=reader, password=f"reads-{mark}").render_as_string(hide_password=False)
        yield replace(there, uri=uri, more=more)
    finally:
        ours = f"SELECT FROM pg_roles WHERE rolname = '{reader}'"
        psql(there.uri, f"DO $$BEGIN IF EXISTS ({ours}) THEN DROP OWNED BY {reader}; END IF; END$$")
        keeper = make_engine(POSTGRESQL).execution_options(isolation_level="AUTOCOMMIT")
        with keeper.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)"))
            connection.execute(text(f"DROP ROLE IF EXISTS {reader}"))
            connection.execute(text(f"DROP ROLE IF EXISTS {verbs}"))
        keeper.dispose()


def psql(uri: str, sql: str) -> str:
    """Run `sql` as psql runs a file: each statement by itself, up to the first that fails. Return what it writes."""
    command = ["psql", "--quiet", "--no-psqlrc", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", "--file=-"]
    bare = make_url(uri).set(drivername="postgresql").render_as_string(hide_password=False)
    done = subprocess.run([*command, bare], input=sql, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
