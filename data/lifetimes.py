"""When a tag is alive, which manifests tags lead to, and which blobs a repository holds: conditions for queries.

The law: a tag is alive when it is not hidden and has not ended. A manifest is there while a tag that has not ended,
hidden or not, leads to it: by itself, or by an image index that it is in. A repository holds the blobs that manifests
of it have, and those that were uploaded to it lately. Times of tags are in milliseconds since 1970, of uploads in UTC.
"""

from datetime import datetime
from typing import TypeVarTuple

from sqlalchemy import CTE, ColumnElement, Select, and_, exists, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from data.tables import ImageStorage, Manifest, ManifestBlob, ManifestChild, Tag, UploadedBlob

Columns = TypeVarTuple("Columns")


def not_ended(now: int, tag: type[Tag] = Tag) -> ColumnElement[bool]:
    """Tell of a tag whether it leads to its manifest at `now`, hidden or not."""
    return or_(tag.lifetime_end_ms.is_(None), tag.lifetime_end_ms > now)


def alive(now: int, tag: type[Tag] = Tag) -> ColumnElement[bool]:
    """Tell of a tag whether it can be seen at `now`."""
    return and_(tag.hidden.is_(False), not_ended(now, tag))


def holders(bottom: Select[*Columns]) -> CTE:
    """Return the manifests that `bottom` selects and the indexes that they are in. Its columns: id, repository_id, …"""
    chain = bottom.cte("holders", recursive=True)
    _, _, *more = chain.c
    return chain.union(
        select(ManifestChild.manifest_id, ManifestChild.repository_id, *more).where(
            ManifestChild.child_manifest_id == chain.c.id, ManifestChild.repository_id == chain.c.repository_id
        )
    )


def reachable(digest: str, now: int) -> ColumnElement[bool]:
    """Tell of the manifest `digest`, of whichever repository a query is about, whether it is there at `now`."""
    chain = holders(select(Manifest.id, Manifest.repository_id).where(Manifest.digest == digest))
    return exists(
        select(Tag.id).where(
            Tag.manifest_id == chain.c.id, chain.c.repository_id == Manifest.repository_id, not_ended(now)
        )
    )


def kept_by_upload(now: datetime) -> ColumnElement[bool]:
    """Tell of a link that an upload made whether it counts at `now`."""
    return UploadedBlob.expires_at > now


def holds(repository: InstrumentedAttribute[int] | int, now: datetime) -> ColumnElement[bool]:
    """Tell of a blob whether the repository holds it at `now`."""
    return or_(
        exists().where(ManifestBlob.repository_id == repository, ManifestBlob.blob_id == ImageStorage.id),
        exists().where(
            UploadedBlob.repository_id == repository, UploadedBlob.blob_id == ImageStorage.id, kept_by_upload(now)
        ),
    )
