"""Signatures of derived images, as they are kept beside them.

The law: a signature is of the bytes whose SHA-256 it is kept with, and is given out with no others; it is there only as
long as its derived image is. Once it is kept it stays the same: of two that were made at once the first counts.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, and_, delete, exists, func, select

from data.derivedimages import DerivedRecord, State
from data.owntables import (
    DatabaseClock,
    DerivedRow,
    Engine,
    SignatureRow,
    changing,
    insert_unless_there,
    reading,
)


@dataclass(frozen=True, slots=True)
class KeptSignature:
    """A detached signature in ASCII armour, and since when it is kept, in milliseconds by the database's clock."""

    armoured: str
    created_ms: int


class Signatures:
    """The rows of signatures. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def find(self, record: DerivedRecord, fingerprint: str) -> KeptSignature | None:
        """Return the signature of the complete image `record` by the key with that fingerprint, None without one."""
        return reading(self._engine, lambda connection: _kept(connection, record, fingerprint))

    def add(self, record: DerivedRecord, fingerprint: str, armoured: str) -> KeptSignature | None:
        """Keep a signature, and return the one that is kept: another's, where that was faster.

        None, and nothing is kept, where the derived image is not any more what `record` says.
        """
        there = select(DerivedRow.key).where(
            DerivedRow.key == record.key, DerivedRow.token == record.token, DerivedRow.state == State.COMPLETE
        )
        of_other_bytes = and_(
            SignatureRow.key == record.key,
            SignatureRow.fingerprint == fingerprint,
            SignatureRow.sha256 != record.sha256,  # one of these bytes may have come since it was looked for
        )

        def add(connection: Connection) -> KeptSignature | None:
            if connection.execute(there.with_for_update(read=True)).one_or_none() is None:
                return None
            found = _kept(connection, record, fingerprint)
            if found is not None:
                return found
            connection.execute(delete(SignatureRow).where(of_other_bytes))
            values = {
                "key": record.key,
                "fingerprint": fingerprint,
                "sha256": record.sha256,
                "armoured": armoured,
                "created_ms": DatabaseClock(),
            }
            insert_unless_there(connection, SignatureRow, values)
            return _kept(connection, record, fingerprint)

        return changing(self._engine, add)

    def sweep(self, *, dry_run: bool = False) -> int:
        """Drop what has no derived image any more, neither there nor being made; return how many rows those are."""
        orphaned = ~exists(select(DerivedRow.key).where(DerivedRow.key == SignatureRow.key))
        if dry_run:
            counted = select(func.count()).select_from(SignatureRow).where(orphaned)
            return reading(self._engine, lambda connection: connection.execute(counted).scalar_one())
        swept = delete(SignatureRow).where(orphaned)
        return changing(self._engine, lambda connection: connection.execute(swept).rowcount)


def _kept(connection: Connection, record: DerivedRecord, fingerprint: str) -> KeptSignature | None:
    query = select(SignatureRow.armoured, SignatureRow.created_ms).where(
        SignatureRow.key == record.key,
        SignatureRow.fingerprint == fingerprint,
        SignatureRow.sha256 == record.sha256,
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else KeptSignature(row.armoured, row.created_ms)
