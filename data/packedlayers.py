"""What images are as one packed layer, remembered: so that the name of a layer is known before its bytes.

The law: a row is what packing came to, under a key that names all that decides the bytes. It is never more than a
saving: what is not remembered is found out again, and what does not fit is forgotten.
"""

from typing import cast

from sqlalchemy import Connection, and_, delete, func, select

from data.owntables import (
    DatabaseClock,
    Engine,
    PackedLayerRow,
    changing,
    insert_unless_there,
    reading,
)
from util.compression import Compression
from util.digest import Digest
from util.packedlayer import PackedLayer


class PackedLayers:
    """The rows of packed layers. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def find(self, key: str) -> PackedLayer | None:
        """Return what was remembered under `key`, None where nothing was."""
        row = PackedLayerRow
        query = select(row.compression, row.digest, row.size, row.diff_id).where(row.key == key)
        found = reading(self._engine, lambda connection: connection.execute(query).one_or_none())
        if found is None:
            return None
        compression, digest, size, diff_id = found
        return PackedLayer(Compression(compression), Digest.parse(digest), size, Digest.parse(diff_id))

    def add(self, key: str, layer: PackedLayer) -> None:
        """Remember `layer` under `key`, in the place of what was there."""
        values = {
            "key": key,
            "compression": str(layer.compression),
            "digest": str(layer.digest),
            "size": layer.size,
            "diff_id": str(layer.diff_id),
            "created_ms": DatabaseClock(),
        }

        def add(connection: Connection) -> None:
            connection.execute(delete(PackedLayerRow).where(PackedLayerRow.key == key))
            insert_unless_there(connection, PackedLayerRow, values)

        changing(self._engine, add)

    def forget(self, key: str, layer: PackedLayer) -> None:
        """Forget what is under `key`, if it is `layer`."""
        same = and_(PackedLayerRow.key == key, PackedLayerRow.digest == str(layer.digest))
        changing(self._engine, lambda connection: connection.execute(delete(PackedLayerRow).where(same)))

    def sweep(self, *, older_than: float, dry_run: bool = False) -> int:
        """Forget what was remembered more than `older_than` seconds ago; return how many that are."""
        old = cast("int", PackedLayerRow.created_ms) < DatabaseClock() - round(older_than * 1000)
        if dry_run:
            counted = select(func.count()).select_from(PackedLayerRow).where(old)
            return reading(self._engine, lambda connection: connection.execute(counted).scalar_one())
        swept = delete(PackedLayerRow).where(old)
        return changing(self._engine, lambda connection: connection.execute(swept).rowcount)
