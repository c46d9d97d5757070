"""What a registry has, page by page: tags, referrers, repositories.

The law: a page begins behind the name that ended the last one, in the order of the bytes of the names, whatever order
the database has for people; so what is added or deleted meanwhile neither repeats nor hides anything else. A page costs
what it holds, or a few queries over what one repository has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    LargeBinary,
    and_,
    cast,
    collate,
    exists,
    false,
    func,
    or_,
    select,
    true,
)
from sqlalchemy.orm import aliased

from data.database import Engine, byte_length
from data.lifetimes import alive, holders, not_ended
from data.registry import reached
from data.tables import (
    MARKED_FOR_DELETION,
    Manifest,
    MediaType,
    Repository,
    RepositoryKind,
    RepositoryPermission,
    Tag,
    Team,
    TeamMember,
    TeamRole,
    User,
    Visibility,
    now_ms,
)
from util.digest import Digest
from util.document import MAX_DOCUMENT_SIZE, MalformedManifest, read_document
from util.problem import TooLarge


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that has a subject, as the subject's list of referrers shows it. `size` in bytes."""

    digest: str
    media_type: str
    size: int
    artifact_type: str | None
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reader:
    """Who may read repositories that are not public: an account by its row, or who may read all there are.

    Without `public` those that are public count only where the account has a role in them.
    """

    account: int | None = None
    robot: bool = False
    everything: bool = False
    public: bool = True


class Discovery:
    """The lists of a registry. Every method may raise RegistryUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def tags(self, repository: int, *, after: str | None = None, limit: int | None = None) -> list[str]:
        """Return the first `limit` names, or all, of tags that are alive behind `after`, in the order of ASCII."""
        if limit == 0:
            return []
        with reached(self._engine) as connection:
            name = _bytewise(connection, Tag.name)
            query = select(Tag.name, name).where(Tag.repository_id == repository, alive(now_ms())).distinct()
            if after is not None:
                query = query.where(name > _bytes(connection, after))
            return [row[0] for row in connection.execute(query.order_by(name).limit(limit))]

    def referrers(
        self,
        repository: int,
        subject: Digest,
        *,
        artifact_type: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> tuple[list[Referrer], bool]:
        """Return the first of the manifests that have `subject` and are there, by digest, behind the digest `after`.

        At most `limit`, and as many as their documents have MAX_DOCUMENT_SIZE together, but one at least; and whether
        there are more.
        """
        chain = holders(
            select(Manifest.id, Manifest.repository_id, Manifest.id.label("referrer")).where(
                Manifest.repository_id == repository, Manifest.subject == str(subject)
            )
        )
        there = select(chain.c.referrer).join(
            Tag, and_(Tag.manifest_id == chain.c.id, Tag.repository_id == chain.c.repository_id)
        )
        kind = func.coalesce(func.nullif(Manifest.artifact_type, ""), func.nullif(Manifest.config_media_type, ""))
        with reached(self._engine) as connection:
            query = (
                select(
                    Manifest.id,
                    Manifest.digest,
                    MediaType.name,
                    byte_length(connection, Manifest.manifest_bytes).label("size"),
                    kind.label("kind"),
                )
                .join(MediaType, MediaType.id == Manifest.media_type_id)
                .where(Manifest.id.in_(there.where(not_ended(now_ms()))))
                .where(Manifest.digest > after if after is not None else true())
                .where(kind == artifact_type if artifact_type is not None else true())
                .order_by(Manifest.digest)
                .limit(limit + 1)
            )
            rows = connection.execute(query).all()
            page = _fitting(rows[:limit])
            contents = select(Manifest.id, Manifest.manifest_bytes).where(Manifest.id.in_([row.id for row in page]))
            annotations = {number: _annotations(content) for number, content in connection.execute(contents)}
        found = [Referrer(row.digest, row.name, row.size, row.kind, annotations.get(row.id, {})) for row in page]
        return found, len(rows) > len(page)

    def repositories(
        self, reader: Reader, *, after: str | None = None, limit: int = 100
    ) -> list[tuple[str, str, bool]]:
        """Return the first `limit` repositories of images that `reader` may read behind the name `after`.

        Each as namespace, name and whether it is public, in the order of the bytes of NAMESPACE/NAME; none of a
        namespace that is disabled.
        """
        with reached(self._engine) as connection:
            name = _bytewise(connection, User.username + "/" + Repository.name)
            query = (
                select(User.username, Repository.name, Visibility.name)
                .select_from(Repository)
                .join(User, User.id == Repository.namespace_user_id)
                .join(Visibility, Visibility.id == Repository.visibility_id)
                .join(RepositoryKind, RepositoryKind.id == Repository.kind_id)
                .where(RepositoryKind.name == "image", Repository.state != MARKED_FOR_DELETION, User.enabled.is_(True))
                .where(may_read(reader))
                .where(name > _bytes(connection, after) if after is not None else true())
                .order_by(name)
                .limit(limit)
            )
            return [(namespace, each, seen == "public") for namespace, each, seen in connection.execute(query)]


def may_read(reader: Reader) -> ColumnElement[bool]:
    """Tell of a repository in a query whether `reader` may read it, as data.accounts does of one."""
    if reader.everything:
        return true()
    public = Visibility.name == "public" if reader.public else false()
    if reader.account is None:
        return public
    theirs = select(TeamMember.team_id).where(TeamMember.user_id == reader.account)
    permitted = exists().where(
        RepositoryPermission.repository_id == Repository.id,
        or_(RepositoryPermission.user_id == reader.account, RepositoryPermission.team_id.in_(theirs)),
    )
    organization = aliased(User)
    administered = exists(
        select(Team.id)
        .join(TeamRole, TeamRole.id == Team.role_id)
        .join(organization, organization.id == Team.organization_id)
        .where(
            Team.organization_id == Repository.namespace_user_id,
            organization.organization.is_(True),
            TeamRole.name == "admin",
            Team.id.in_(theirs),
        )
    )
    own = Repository.namespace_user_id == reader.account
    return or_(public, permitted, administered, *(() if reader.robot else (own,)))


def _fitting(rows: Sequence[Any]) -> list[Any]:
    """Return the first of `rows`, as many as fit into one answer by their `size`, but one at least."""
    page: list[Any] = []
    size = 0
    for row in rows:
        size += row.size
        if page and size > MAX_DOCUMENT_SIZE:
            break
        page.append(row)
    return page


def _annotations(content: str) -> Mapping[str, str]:
    try:
        return read_document(content.encode(), "manifest", MalformedManifest).text_map("annotations")
    except (MalformedManifest, TooLarge):  # another service has taken it
        return {}


def _bytewise(connection: Connection, name: Any) -> ColumnElement[Any]:
    """Return `name` as something that is ordered by its bytes."""
    match connection.dialect.name:
        case "postgresql":
            return collate(name, "C")
        case "sqlite":
            return collate(name, "BINARY")
        case _:  # of MySQL's collations, those that order so go by the column's character set
            return cast(name, LargeBinary)


def _bytes(connection: Connection, name: str) -> Any:
    return name if connection.dialect.name in ("postgresql", "sqlite") else name.encode()
