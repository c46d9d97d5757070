"""Secrets that a registry of our own makes for itself where none is configured: one file each, in the data folder.

The law: a secret is made once. Whoever comes second, in another process too, reads what the first has written; a file
is there only with all that belongs into it, and only its owner may read it.
"""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import PurePath

from util.problem import Problem


class SecretFileUnusable(Problem):
    """A file of a secret that cannot be made, or read, or that is empty."""

    code = "SECRET_FILE_UNUSABLE"


def kept_secret(data_dir: str, name: str) -> str:
    """Return the secret in the file `name` of the folder, made where it is not there. Raises SecretFileUnusable."""
    found = secret_there(data_dir, name)
    if found is not None:
        return found
    path = _path(data_dir, name)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _make(path)
    except OSError as error:
        raise SecretFileUnusable(f"the secret in {path} cannot be made: {error.strerror}") from error
    return _read(path)


def secret_there(data_dir: str, name: str) -> str | None:
    """Return the secret in the file `name` of the folder, None where none was made. Raises SecretFileUnusable."""
    path = _path(data_dir, name)
    return _read(path) if os.path.lexists(path) else None


def _path(data_dir: str, name: str) -> str:
    return os.path.abspath(PurePath(data_dir, name))


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            secret = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SecretFileUnusable(f"the secret in {path} cannot be read: {reason}") from error
    if not secret:
        raise SecretFileUnusable(f"the secret in {path} is empty; delete the file to have another made")
    return secret


def _make(path: str) -> None:
    """Make the file with a new secret, unless it is there."""
    descriptor, written = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".secret-")  # which is 0600
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{secrets.token_urlsafe(48)}\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(written, path)
    finally:
        os.unlink(written)
