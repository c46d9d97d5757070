"""What a virtual tag gives by its digest: the documents of an image in one layer, and where its layer lies.

The law: what is here is there only as long as its derived image is complete and has the bytes it had; the layer is that
image's own object, and there is no copy of it. It belongs to one repository, as what is pushed does. What is made anew
takes the place of what was made before of the same derived image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, Select, and_, delete, exists, func, literal, select
from sqlalchemy.orm import aliased

from data.derivedimages import DerivedRecord, State
from data.owntables import (
    DatabaseClock,
    DerivedRow,
    Engine,
    VirtualRow,
    changing,
    insert_unless_there,
    reading,
)
from util.digest import Digest


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or a configuration, as it is served. `content` is UTF-8."""

    media_type: str
    content: bytes

    @property
    def digest(self) -> Digest:
        return Digest.of(self.content)


@dataclass(frozen=True, slots=True)
class Virtual:
    """What a digest means: a document with its `content`, or a layer that is the object at `path`. `size` in bytes.

    `key` is the derived image's.
    """

    digest: Digest
    media_type: str
    content: bytes | None
    key: str
    size: int
    path: str | None


class Virtuals:
    """The rows of virtual tags. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, record: DerivedRecord, manifest: Document, config: Document, *, layer_media_type: str) -> bool:
        """Have `manifest`, `config`, and the layer that `record` is, found by their digests in its repository.

        False, and nothing is added, where the derived image is not any more what `record` says. Idempotent.
        """
        mine = and_(
            VirtualRow.namespace == record.namespace,
            VirtualRow.repository == record.repository,
            VirtualRow.key == record.key,
        )
        there = select(DerivedRow.key).where(
            DerivedRow.key == record.key, DerivedRow.token == record.token, DerivedRow.state == State.COMPLETE
        )
        given = {
            _layer_digest(record): (layer_media_type, None),
            **{str(each.digest): (each.media_type, each.content.decode()) for each in (manifest, config)},
        }

        def add(connection: Connection) -> bool:
            if connection.execute(there.with_for_update(read=True)).one_or_none() is None:
                return False
            # Anew, and not left as they are: a sweep that began before would take them.
            connection.execute(delete(VirtualRow).where(mine))
            for digest, (media_type, content) in sorted(
                given.items()
            ):  # in order: two that do so do not lock each other
                values = {
                    "namespace": record.namespace,
                    "repository": record.repository,
                    "digest": digest,
                    "key": record.key,
                    "media_type": media_type,
                    "content": content,
                    "created_ms": DatabaseClock(),
                }
                insert_unless_there(connection, VirtualRow, values)
            return True

        return changing(self._engine, add)

    def find(
        self, namespace: str, repository: str, digest: Digest, *, has: Callable[[str], bool] = lambda _: True
    ) -> Virtual | None:
        """Return what `digest` means in a repository, None where it is of no derived image that is there.

        `has` tells of a manifest's digest whether the repository has it: a name may have been another's before.
        """
        query = _virtuals().where(
            VirtualRow.namespace == namespace, VirtualRow.repository == repository, VirtualRow.digest == str(digest)
        )
        return self._first(query, has)

    def document(self, record: DerivedRecord, media_type: str) -> Virtual | None:
        """Return the document of that type which was added for `record`, None where there is none yet."""
        query = _virtuals().where(
            VirtualRow.namespace == record.namespace,
            VirtualRow.repository == record.repository,
            VirtualRow.key == record.key,
            VirtualRow.media_type == media_type,
            DerivedRow.token == record.token,
        )
        return self._first(query, lambda _: True)

    def _first(self, query: Select[Any], has: Callable[[str], bool]) -> Virtual | None:
        rows = reading(self._engine, lambda connection: connection.execute(query.order_by(VirtualRow.key)).all())
        row = next((row for row in rows if has(row.manifest_digest)), None)
        if row is None:
            return None
        digest, media_type, text, key, size, path, _ = row
        if text is None:
            return Virtual(Digest.parse(digest), media_type, None, key, size, path)
        content = text.encode()
        return Virtual(Digest.parse(digest), media_type, content, key, len(content), None)

    def sweep(self, *, dry_run: bool = False) -> int:
        """Drop what has no derived image any more, neither there nor being made; return how many rows those are."""
        orphaned = ~exists(select(DerivedRow.key).where(DerivedRow.key == VirtualRow.key))
        if dry_run:
            counted = select(func.count()).select_from(VirtualRow).where(orphaned)
            return reading(self._engine, lambda connection: connection.execute(counted).scalar_one())
        swept = delete(VirtualRow).where(orphaned)
        return changing(self._engine, lambda connection: connection.execute(swept).rowcount)


def _virtuals() -> Select[Any]:
    """Select what is there: of derived images that are complete, and whose bytes are the layer that was told of."""
    layer = aliased(VirtualRow)
    query = (
        select(
            VirtualRow.digest,
            VirtualRow.media_type,
            VirtualRow.content,
            VirtualRow.key,
            DerivedRow.size,
            DerivedRow.path,
            DerivedRow.manifest_digest,
        )
        .join(DerivedRow, DerivedRow.key == VirtualRow.key)
        .join(
            layer,
            and_(
                layer.namespace == VirtualRow.namespace,
                layer.repository == VirtualRow.repository,
                layer.key == VirtualRow.key,
                layer.digest == literal("sha256:") + DerivedRow.sha256,
            ),
        )
        .where(DerivedRow.state == State.COMPLETE)
    )
    return cast("Select[Any]", query)


def _layer_digest(record: DerivedRecord) -> str:
    return f"sha256:{record.sha256}"
