"""Strays: objects in the places of blobs that no row of the registry knows, left by an import or a push that died.

The law: whoever puts a blob's object into storage makes its row soon after, under the lock that all hold who write to
the registry, and sees there that the object still lies where it should. So an object that is old, and has no row when
that is looked up under the lock, goes under the lock; only paths that are made of a digest are looked at.

That is right only where nobody else keeps blobs in the same storage. The registry therefore puts its sign into a
storage in which it has found nothing strange, and deletes blobs, its own too, from one with its sign alone.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from itertools import islice

from sqlalchemy import Connection, exists, select

from data.database import Engine
from data.garbage import Failed, Kind, Waste
from data.owntables import MarkRow, changing, insert_unless_there, reading
from data.registry import RegistryUnavailable, SqlRegistry, content_path, reached
from data.storage.base import OWN, BlobNotFound, StoredBlob
from data.storage.distributed import DistributedStorage
from data.tables import ImageStorage
from util.digest import Digest, InvalidDigest
from util.problem import Problem

SIGN = f"{OWN}/registry"
"""Where the storage says whose it is."""

STRAY_SECONDS = 24 * 3600
"""How long an object without a row is left alone: its row may be on its way."""

_FOLDERS = ("sha256", "sha384", "sha512", "blake3")
_NAME = "registry"
_PAGE = 200
_LONGEST_SIGN = 64


class StorageNotOurs(Problem):
    """A storage that may hold another registry's blobs, too."""

    code = "STORAGE_NOT_OURS"


class Strays:
    """The objects of a registry's preferred storage that have no row. `own_engine` leads to our own tables."""

    def __init__(
        self,
        engine: Engine,
        own_engine: Engine,
        storage: DistributedStorage,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` is held against the storage's."""
        self._engine, self._own_engine, self._storage, self._clock = engine, own_engine, storage, clock
        self._registry = SqlRegistry(engine)

    def check(self, *, dry_run: bool = False) -> None:
        """Raise StorageNotOurs unless the storage is this registry's alone.

        A storage without a sign in which nothing is strange gets the sign, but with `dry_run`.
        """
        sign, found = self._sign(make=not dry_run), self._found_sign()
        if found is not None and found == sign:
            return
        if found is not None:
            raise StorageNotOurs(
                f"the storage is another registry's, or this one has lost its own tables: {SIGN} is not its sign; no"
                " blob is deleted. If it is this registry's alone: registry-verbs gc --adopt"
            )
        for blob, _ in self._strange():
            raise StorageNotOurs(
                f"the storage holds {blob.path}, and maybe more, that this registry knows nothing of; it may be another"
                " registry's, and no blob is deleted. If it is this registry's alone: registry-verbs gc --adopt"
            )
        if not dry_run:
            self.adopt()

    def adopt(self) -> None:
        """Say that the storage is this registry's alone: what is strange in it is its garbage."""
        with self._storage.create(SIGN) as writer:
            writer.write((self._sign(make=True) or "").encode())
            writer.commit()

    def collect(self, failed: Failed, *, dry_run: bool = False) -> Iterator[Waste]:
        """Delete the strays, and yield each once it is gone; with `dry_run` what would go.

        `failed` is told of one that cannot be deleted. Raises what `check` raises, RegistryUnavailable,
        StorageUnavailable.
        """
        self.check(dry_run=dry_run)
        for blob, digest in self._strange():
            try:
                gone = dry_run or self._delete(blob, digest)
            except RegistryUnavailable:
                raise
            except Problem as error:
                failed(f"{blob.path} is not deleted", error)
                continue
            if gone:
                yield Waste(Kind.STRAY, blob.path, blob.path, blob.size)

    def _strange(self) -> Iterator[tuple[StoredBlob, Digest]]:
        since = (self._clock() - STRAY_SECONDS) * 1000
        for folder in _FOLDERS:
            blobs = ((blob, _named(blob.path)) for blob in self._storage.preferred.list(folder))
            old = ((blob, digest) for blob, digest in blobs if digest is not None and blob.modified_ms < since)
            while page := list(islice(old, _PAGE)):
                known = self._registry.registered(digest for _, digest in page)
                yield from ((blob, digest) for blob, digest in page if digest not in known)

    def _delete(self, blob: StoredBlob, digest: Digest) -> bool:
        with reached(self._engine, writes=True) as connection:
            if connection.scalar(select(exists().where(ImageStorage.content_checksum == str(digest)))):
                return False
            self._storage.delete([self._storage.preferred_location], blob.path)
            return True

    def _found_sign(self) -> str | None:
        with contextlib.suppress(BlobNotFound):
            stream = self._storage.preferred.open(SIGN, length=_LONGEST_SIGN)
            with contextlib.closing(stream):
                return b"".join(iter(lambda: stream.read(_LONGEST_SIGN), b"")).decode("ascii", "replace").strip()
        return None

    def _sign(self, *, make: bool) -> str | None:
        """Return the sign of this registry, a number that it has drawn once; None where it has not, and is not to."""
        query = select(MarkRow.position).where(MarkRow.name == _NAME)

        def sign(connection: Connection) -> int | None:
            number = connection.execute(query).scalar_one_or_none()
            if number is None and make:
                insert_unless_there(connection, MarkRow, {"name": _NAME, "position": secrets.randbits(62)})
                number = connection.execute(query).scalar_one()
            return number

        number = changing(self._own_engine, sign) if make else reading(self._own_engine, sign)
        return None if number is None else str(number)


def _named(path: str) -> Digest | None:
    """Return the digest whose blob lies at `path`, None where it is no place of a blob."""
    algorithm, _, rest = path.partition("/")
    try:
        digest = Digest.parse(f"{algorithm}:{rest.rpartition('/')[2]}")
    except InvalidDigest:
        return None
    return digest if content_path(digest) == path else None
