"""What a database's driver is told beside the URL, as Quay's DB_CONNECTION_ARGS writes it.

Invariants:
- What Quay's own library takes for itself (peewee's pool and transactions) is passed over; all else reaches the driver,
  or is an error that names it. Nothing that was meant to secure the connection is dropped in silence.
- A certificate that is named has to be there: libpq without one does not verify the server, and says nothing.
- What the URL says about host, port, user and password stands, as in Quay.

quay/quay, data/database.py (`_db_from_url`) and config-tool/pkg/lib/fieldgroups/database; psycopg2 and psycopg hand
the same words to libpq ("Parameter Key Words" in PostgreSQL's manual); PyMySQL, `pymysql.connections.Connection`.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from util.problem import Problem


class UnusableDatabase(Problem):
    """A database URL that cannot be used, or a folder that cannot be made. The text never shows a password."""

    code = "DATABASE_UNUSABLE"


_PEEWEE = frozenset(
    {
        "_driver_autocommit",
        "autocommit",
        "autoconnect",
        "autorollback",
        "encoding",
        "field_types",
        "isolation_level",
        "max_connections",
        "operations",
        "pragmas",
        "register_hstore",
        "register_unicode",
        "server_side_cursors",
        "stale_timeout",
        "thread_safe",
        "threadlocals",
        "timeout",
    }
)
"""What Quay's object-relational mapper takes before the driver sees it (peewee, playhouse.pool)."""

_IN_URL = {
    "host": "host",
    "hostaddr": "host",
    "port": "port",
    "user": "username",
    "password": "password",
    "passwd": "password",
    "dbname": "database",
    "database": "database",
    "db": "database",
}
_FILES = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
_MYSQL_TLS = frozenset({"ca", "capath", "cert", "key", "cipher", "check_hostname", "verify_mode", "password"})
_MYSQL_NUMBERS = frozenset({"connect_timeout", "read_timeout", "write_timeout", "max_allowed_packet", "port"})
_MYSQL = _MYSQL_NUMBERS | {
    "bind_address",
    "charset",
    "collation",
    "host",
    "init_command",
    "local_infile",
    "password",
    "program_name",
    "read_default_file",
    "read_default_group",
    "server_public_key",
    "sql_mode",
    "ssl_ca",
    "ssl_cert",
    "ssl_disabled",
    "ssl_key",
    "ssl_key_password",
    "ssl_verify_cert",
    "ssl_verify_identity",
    "unix_socket",
    "use_unicode",
    "user",
}


def shown(uri: str) -> str:
    """Return where a database is, without who logs in and by what: a file, or a host with port and name."""
    file = sqlite_file(uri)
    if file is not None:
        return os.path.abspath(file)
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        return "a URL that is none"
    return f"{url.host or 'localhost'}{'' if url.port is None else f':{url.port}'}/{url.database or ''}"


def sqlite_file(uri: str) -> str | None:
    """Return the file of an SQLite database; None of another, and of one in memory."""
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        return None
    if url.drivername.partition("+")[0] != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return None if str(url.database).startswith("file:") else url.database


def check_there(uri: str) -> None:
    """Raise UnusableDatabase for an SQLite database whose file is not there; of others nothing is looked at."""
    file = sqlite_file(uri)
    if file is not None and not os.path.exists(file):
        raise UnusableDatabase(f"there is no file {os.path.abspath(file)}")


def driver_arguments(url: URL, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `arguments` that the driver for `url` is told. Raises UnusableDatabase."""
    backend = url.drivername.partition("+")[0]
    said = {name: value for name, value in arguments.items() if name not in _PEEWEE and value is not None}
    said = {name: value for name, value in said.items() if not _in_url(url, name)}
    if backend == "sqlite" or not said:
        return {}
    read: Callable[[str, Any], Any] = _postgresql if backend in ("postgresql", "postgres") else _mysql
    return {name: read(name, value) for name, value in said.items()}


def _in_url(url: URL, name: str) -> bool:
    return name in url.query or (name in _IN_URL and getattr(url, _IN_URL[name]) not in (None, ""))


def _postgresql(name: str, value: Any) -> str:
    from psycopg import pq

    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    if name not in known:
        hint = "; for PostgreSQL write sslmode and sslrootcert" if name == "ssl" else ""
        raise UnusableDatabase(f"DB_CONNECTION_ARGS: {name} is nothing that PostgreSQL's driver knows{hint}")
    if isinstance(value, bool):
        value = int(value)  # libpq's switches are numbers
    if not isinstance(value, (str, int, float)):
        raise UnusableDatabase(f"DB_CONNECTION_ARGS: {name} must be a text or a number")
    if name in _FILES and value not in ("", "system"):
        _check_file(name, value)
    return str(value)


def _mysql(name: str, value: Any) -> Any:
    if name == "ssl":
        return _mysql_tls(value)
    if name not in _MYSQL:
        hint = "; for MySQL write ssl: {ca: FILE}" if name.startswith("ssl") else ""
        raise UnusableDatabase(f"DB_CONNECTION_ARGS: {name} is nothing that MySQL's driver knows{hint}")
    if name in _MYSQL_NUMBERS:
        text = str(value).strip()
        if isinstance(value, bool) or not text.isascii() or not text.isdigit():
            raise UnusableDatabase(f"DB_CONNECTION_ARGS: {name} must be a whole number")
        return int(text)
    if name in ("ssl_ca", "ssl_cert", "ssl_key"):
        _check_file(name, value)
    return value


def _mysql_tls(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UnusableDatabase("DB_CONNECTION_ARGS: ssl must have names and values, e.g. {ca: /etc/ssl/database.pem}")
    for name, each in value.items():
        if name not in _MYSQL_TLS:
            raise UnusableDatabase(f"DB_CONNECTION_ARGS: ssl.{name} is nothing that MySQL's driver knows")
        if name in ("ca", "cert", "key"):
            _check_file(f"ssl.{name}", each)
    return dict(value)


def _check_file(name: str, path: Any) -> None:
    if not isinstance(path, str):
        raise UnusableDatabase(f"DB_CONNECTION_ARGS: {name} must be the path of a file")
    try:
        with open(path, "rb"):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this is no path"
        raise UnusableDatabase(
            f"DB_CONNECTION_ARGS: {name} names {path}, which cannot be read here: {reason}; copy it from Quay"
        ) from None
