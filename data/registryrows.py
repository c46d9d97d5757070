"""The registry's rows of images, made as far as they are not there: by an import and by a push alike.

The law: all of it happens in the caller's one transaction, under the lock of those who write (see data.database), so
that nobody ever sees half an image and looking and then inserting is safe. Making the same again changes nothing. A tag
that is moved keeps its past: the old row ends, another begins.
"""

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, insert, or_, select, update

from data.lifetimes import not_ended
from data.manifestdocuments import ManifestDocument
from data.tables import (
    Base,
    ImageStorage,
    ImageStorageLocation,
    ImageStoragePlacement,
    Manifest,
    ManifestBlob,
    ManifestChild,
    MediaType,
    Tag,
    TagKind,
    now_ms,
)
from util.digest import Digest

MANY = 1000
"""As many values stand in one statement: databases bound them."""


@dataclass(slots=True)
class RegistryRows:
    """The rows of one transaction that writes."""

    connection: Connection
    _enumerated: dict[tuple[type[Base], str], int] = field(default_factory=dict)

    def blob(self, digest: Digest, *, size: int, uncompressed_size: int | None = None, location: str) -> int:
        """Return the row of a blob that lies at its content path in the storage `location`."""
        row = self.row(
            ImageStorage,
            {"content_checksum": str(digest), "cas_path": True},
            image_size=size,
            uncompressed_size=uncompressed_size,
        )
        self.row(ImageStoragePlacement, {"storage_id": row, "location_id": self.named(ImageStorageLocation, location)})
        return row

    def manifest(
        self, repository: int, document: ManifestDocument, *, blobs: Iterable[int], children: Iterable[int]
    ) -> int:
        """Return the row of `document`, which has the rows `blobs`, and as an index the manifests `children`."""
        sizes = [blob.descriptor.size for blob in document.blobs if blob.is_layer]
        row = self.row(
            Manifest,
            {"repository_id": repository, "digest": str(document.digest)},
            media_type_id=self.named(MediaType, document.media_type),
            manifest_bytes=document.content.decode(),
            config_media_type=document.config_media_type,
            layers_compressed_size=sum(sizes) if sizes else None,
            subject=str(document.subject) if document.subject else None,
            subject_backfilled=True,
            artifact_type=document.artifact_type,
            artifact_type_backfilled=True,
        )
        self._link(ManifestBlob, "blob_id", repository, row, blobs)
        self._link(ManifestChild, "child_manifest_id", repository, row, children)
        return row

    def _link(self, table: type[Base], column: str, repository: int, manifest: int, linked: Iterable[int]) -> None:
        columns = table.__table__.columns
        there = set(self.connection.scalars(select(columns[column]).where(columns["manifest_id"] == manifest)))
        absent = [number for number in dict.fromkeys(linked) if number not in there]
        if absent:
            same = {"repository_id": repository, "manifest_id": manifest}
            self.connection.execute(insert(table), [{**same, column: number} for number in absent])

    # --- Tags ---------------------------------------------------------------------------------------------------------

    def tag(self, repository: int, name: str, manifest: int) -> None:
        """Let the tag `name` mean the row `manifest` from now on."""
        same = (Tag.repository_id == repository, Tag.name == name)
        now = self._next_ms(*same)
        unended = or_(Tag.lifetime_end_ms.is_(None), Tag.lifetime_end_ms > now)
        alive = self.connection.execute(
            select(Tag.id, Tag.manifest_id, Tag.lifetime_end_ms).where(*same, Tag.hidden.is_(False), unended)
        ).all()
        if [(row.manifest_id, row.lifetime_end_ms) for row in alive] == [(manifest, None)]:
            return
        for at, row in enumerate(alive):  # no two may end at the same time
            self.connection.execute(update(Tag).where(Tag.id == row.id).values(lifetime_end_ms=now + at))
        self.connection.execute(
            insert(Tag).values(
                name=name,
                repository_id=repository,
                manifest_id=manifest,
                lifetime_start_ms=now + max(len(alive) - 1, 0),
                tag_kind_id=self.named(TagKind, "tag"),
            )
        )

    def _next_ms(self, *same: ColumnElement[bool]) -> int:
        """Return the time, or the first after it at which no row of the tag has begun or ended."""
        now = now_ms()
        begun = self.connection.scalar(select(func.max(Tag.lifetime_start_ms)).where(*same))
        ended = self.connection.scalar(select(func.max(Tag.lifetime_end_ms)).where(*same, Tag.lifetime_end_ms <= now))
        return max(now, (begun or 0) + 1, (ended or 0) + 1)

    def keep(self, repository: int, manifest: int) -> None:
        """Let a hidden tag without an end lead to the row `manifest`, unless one does."""
        kept = select(Tag.id).where(
            Tag.repository_id == repository,
            Tag.manifest_id == manifest,
            Tag.hidden.is_(True),
            Tag.lifetime_end_ms.is_(None),
        )
        if self.connection.execute(kept).first() is None:
            self.connection.execute(
                insert(Tag).values(
                    name=f"$temp-{uuid.uuid4()}",  # as Quay calls them; no client can
                    repository_id=repository,
                    manifest_id=manifest,
                    hidden=True,
                    tag_kind_id=self.named(TagKind, "tag"),
                )
            )

    def stop_keeping(self, repository: int, manifests: Collection[int]) -> None:
        """End the hidden tags that lead to the rows `manifests`."""
        for part in parts(manifests):
            hidden = (Tag.repository_id == repository, Tag.manifest_id.in_(part), Tag.hidden.is_(True))
            self.end(*hidden)

    def end(self, *which: ColumnElement[bool]) -> int:
        """End the tags that have not ended and of which `which` holds, as of now; return how many they were."""
        now = now_ms()
        query = select(Tag.id, Tag.repository_id, Tag.name).where(*which, not_ended(now))
        ending = self.connection.execute(query.order_by(Tag.id)).all()
        for number, repository, name in ending:
            # Not later than now, or it could still be seen; and no two of a name may end at the same time.
            taken = set(
                self.connection.scalars(
                    select(Tag.lifetime_end_ms).where(
                        Tag.repository_id == repository, Tag.name == name, Tag.lifetime_end_ms <= now
                    )
                )
            )
            at = now
            while at in taken:
                at -= 1
            self.connection.execute(update(Tag).where(Tag.id == number).values(lifetime_end_ms=at))
        return len(ending)

    # --- Any row ------------------------------------------------------------------------------------------------------

    def named(self, table: type[Base], name: str) -> int:
        """Return the row of `table` that is called `name`."""
        if (table, name) not in self._enumerated:
            self._enumerated[table, name] = self.row(table, {"name": name})
        return self._enumerated[table, name]

    def row(self, table: type[Base], key: Mapping[str, Any], **more: Any) -> int:
        """Return the row of `table` that has `key`, made with `more` where it is not there."""
        columns = table.__table__.columns
        query = select(table.id).where(*(columns[name] == value for name, value in key.items()))
        found = self.connection.scalar(query.order_by(table.id).limit(1))
        if found is not None:
            return found
        return self.connection.execute(insert(table).values(**key, **more).returning(table.id)).scalar_one()


def parts(values: Collection[Any]) -> Iterable[list[Any]]:
    """Return `values` in parts of at most MANY, each for a statement of its own."""
    ordered = list(values)
    return (ordered[at : at + MANY] for at in range(0, len(ordered), MANY))
