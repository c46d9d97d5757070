"""The registry's tables, in Quay's names and columns.

The law: a table here has the columns of Quay's that we read or that a row cannot be without, under Quay's names;
foreign keys end in `_id`. Defaults are made here and not by the database, as Quay's are.
quay/quay, data/database.py.
"""

import secrets
import time
import uuid
from datetime import UTC, datetime

from sqlalchemy import BigInteger, Connection, ForeignKey, Index, Integer, Text, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from util.oci import INDEX_OCI, LIST_V2, MANIFEST_OCI, MANIFEST_V1, MANIFEST_V1_SIGNED, MANIFEST_V2

NORMAL = 0
"""The `state` of a repository that may be changed. One that is read-only (1) or a mirror (2, 4) may only be read."""

MARKED_FOR_DELETION = 3
"""The `state` of a repository that is on its way out and must not be seen."""

_NEVER_AGAIN = {"sqlite_autoincrement": True}
"""An id that is gone is given to nobody else: whoever looks at what came after an id misses nothing, and what was
signed for a user is not another's."""


def now_ms() -> int:
    """Return the time as the tables have it: milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _uuid() -> str:
    return str(uuid.uuid4())


def now_utc() -> datetime:
    """Return the time as the tables have it that do not count milliseconds."""
    return datetime.now(UTC).replace(tzinfo=None)


class Base(DeclarativeBase):
    """The tables. Their defaults are made here and not by the database, as Quay's are."""

    id: Mapped[int] = mapped_column(primary_key=True)


class User(Base):
    """A namespace: a user, an organization or a robot."""

    __tablename__ = "user"
    __table_args__ = _NEVER_AGAIN
    uuid: Mapped[str | None] = mapped_column(default=_uuid, index=True)
    username: Mapped[str] = mapped_column(unique=True)
    email: Mapped[str] = mapped_column(index=True, default=lambda: secrets.token_hex(32))
    verified: Mapped[bool] = mapped_column(default=False)
    organization: Mapped[bool] = mapped_column(default=False, index=True)
    robot: Mapped[bool] = mapped_column(default=False, index=True)
    password_hash: Mapped[str | None]
    invoice_email: Mapped[bool] = mapped_column(default=False)
    invalid_login_attempts: Mapped[int] = mapped_column(default=0)
    last_invalid_login: Mapped[datetime] = mapped_column(default=now_utc)
    removed_tag_expiration_s: Mapped[int] = mapped_column(BigInteger, default=14 * 24 * 60 * 60)
    enabled: Mapped[bool] = mapped_column(default=True)
    creation_date: Mapped[datetime | None] = mapped_column(default=now_utc)


# An Index with a dialect's own words would load that dialect, and another, whenever the command line starts.
@event.listens_for(User.__table__, "after_create")
def _make_partial_index(_: object, connection: Connection, **__: object) -> None:
    if connection.dialect.name in ("sqlite", "postgresql"):
        partial = 'CREATE UNIQUE INDEX user_email_unique_non_org ON "user" (email) WHERE organization = false'
        connection.execute(text(partial))


class Visibility(Base):
    """`public` or `private`."""

    __tablename__ = "visibility"
    name: Mapped[str] = mapped_column(unique=True)


class RepositoryKind(Base):
    """`image` or `application`."""

    __tablename__ = "repositorykind"
    name: Mapped[str] = mapped_column(unique=True)


class Repository(Base):
    """A repository; `name` may have slashes."""

    __tablename__ = "repository"
    __table_args__ = (
        Index("repository_namespace_user_id_name", "namespace_user_id", "name", unique=True),
        _NEVER_AGAIN,
    )
    namespace_user_id: Mapped[int | None] = mapped_column(ForeignKey("user.id"))
    name: Mapped[str]
    visibility_id: Mapped[int] = mapped_column(ForeignKey("visibility.id"), index=True)
    description: Mapped[str | None] = mapped_column(Text)
    badge_token: Mapped[str] = mapped_column(default=_uuid)
    kind_id: Mapped[int] = mapped_column(ForeignKey("repositorykind.id"), index=True)
    trust_enabled: Mapped[bool] = mapped_column(default=False)
    state: Mapped[int] = mapped_column(default=0, index=True)


class MediaType(Base):
    """What a manifest is."""

    __tablename__ = "mediatype"
    name: Mapped[str] = mapped_column(unique=True)


class Manifest(Base):
    """A manifest or an image index, once in a repository."""

    __tablename__ = "manifest"
    __table_args__ = (
        Index("manifest_repository_id_digest", "repository_id", "digest", unique=True),
        Index("manifest_repository_id_media_type_id", "repository_id", "media_type_id"),
        Index("manifest_repository_id_config_media_type", "repository_id", "config_media_type"),
        Index("manifest_repository_id_subject", "repository_id", "subject"),
        Index("manifest_repository_id_artifact_type", "repository_id", "artifact_type"),
    )
    repository_id: Mapped[int] = mapped_column(ForeignKey("repository.id"))
    digest: Mapped[str] = mapped_column(index=True)
    media_type_id: Mapped[int] = mapped_column(ForeignKey("mediatype.id"), index=True)
    manifest_bytes: Mapped[str] = mapped_column(Text)
    config_media_type: Mapped[str | None]
    layers_compressed_size: Mapped[int | None] = mapped_column(BigInteger)
    subject: Mapped[str | None]
    subject_backfilled: Mapped[bool] = mapped_column(default=False, index=True)
    artifact_type: Mapped[str | None]
    artifact_type_backfilled: Mapped[bool] = mapped_column(default=False, index=True)


class ManifestChild(Base):
    """Which manifests an image index has."""

    __tablename__ = "manifestchild"
    __table_args__ = (
        Index("manifestchild_manifest_id_child_manifest_id", "manifest_id", "child_manifest_id", unique=True),
        Index("manifestchild_repository_id_child_manifest_id", "repository_id", "child_manifest_id"),
    )
    repository_id: Mapped[int] = mapped_column(ForeignKey("repository.id"))
    manifest_id: Mapped[int] = mapped_column(ForeignKey("manifest.id"))
    child_manifest_id: Mapped[int] = mapped_column(ForeignKey("manifest.id"), index=True)


class TagKind(Base):
    """`tag`."""

    __tablename__ = "tagkind"
    name: Mapped[str] = mapped_column(unique=True)


class Tag(Base):
    """A name of a manifest for a time: a tag that is moved ends, and another row begins."""

    __tablename__ = "tag"
    __table_args__ = (
        Index("tag_repository_id_name", "repository_id", "name"),
        Index("tag_repository_id_name_lifetime_end_ms", "repository_id", "name", "lifetime_end_ms", unique=True),
        Index("tag_manifest_id_lifetime_end_ms", "manifest_id", "lifetime_end_ms"),
        _NEVER_AGAIN,
    )
    name: Mapped[str]
    repository_id: Mapped[int] = mapped_column(ForeignKey("repository.id"))
    manifest_id: Mapped[int | None] = mapped_column(ForeignKey("manifest.id"))
    lifetime_start_ms: Mapped[int] = mapped_column(BigInteger, default=now_ms)
    lifetime_end_ms: Mapped[int | None] = mapped_column(BigInteger, index=True)
    hidden: Mapped[bool] = mapped_column(default=False)
    reversion: Mapped[bool] = mapped_column(default=False)
    tag_kind_id: Mapped[int] = mapped_column(ForeignKey("tagkind.id"), index=True)
    linked_tag_id: Mapped[int | None] = mapped_column(ForeignKey("tag.id"), index=True)


class ImageStorage(Base):
    """A blob. `content_checksum` is its digest; with `cas_path` its place follows from that, else from `uuid`.

    `uploading` says nothing: Quay's uploads leave it at its default of true, and old rows have false or null there.
    Whether the bytes are there is said by the placements.
    """

    __tablename__ = "imagestorage"
    uuid: Mapped[str] = mapped_column(unique=True, default=_uuid)
    image_size: Mapped[int | None] = mapped_column(BigInteger)
    uncompressed_size: Mapped[int | None] = mapped_column(BigInteger)
    uploading: Mapped[bool | None] = mapped_column(default=True)
    cas_path: Mapped[bool] = mapped_column(default=True)
    content_checksum: Mapped[str | None] = mapped_column(index=True)


class ManifestBlob(Base):
    """Which blobs a manifest has, and by that which a repository has."""

    __tablename__ = "manifestblob"
    __table_args__ = (Index("manifestblob_manifest_id_blob_id", "manifest_id", "blob_id", unique=True),)
    repository_id: Mapped[int] = mapped_column(ForeignKey("repository.id"), index=True)
    manifest_id: Mapped[int] = mapped_column(ForeignKey("manifest.id"))
    blob_id: Mapped[int] = mapped_column(ForeignKey("imagestorage.id"), index=True)


class UploadedBlob(Base):
    """Which blobs were uploaded to a repository lately, so that a manifest may name them; until when they are kept."""

    __tablename__ = "uploadedblob"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    repository_id: Mapped[int] = mapped_column(ForeignKey("repository.id"), index=True)
    blob_id: Mapped[int] = mapped_column(ForeignKey("imagestorage.id"), index=True)
    uploaded_at: Mapped[datetime] = mapped_column(default=now_utc)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class ImageStorageLocation(Base):
    """A storage by its name in DISTRIBUTED_STORAGE_CONFIG."""

    __tablename__ = "imagestoragelocation"
    name: Mapped[str] = mapped_column(unique=True)


class ImageStoragePlacement(Base):
    """Which storages hold a blob."""

    __tablename__ = "imagestorageplacement"
    __table_args__ = (Index("imagestorageplacement_storage_id_location_id", "storage_id", "location_id", unique=True),)
    storage_id: Mapped[int] = mapped_column(ForeignKey("imagestorage.id"))
    location_id: Mapped[int] = mapped_column(ForeignKey("imagestoragelocation.id"), index=True)


class ProxyCacheConfig(Base):
    """The upstream registry, e.g. `docker.io` or `quay.io/acme`, of an organization that is a cache of it."""

    __tablename__ = "proxycacheconfig"
    organization_id: Mapped[int] = mapped_column(ForeignKey("user.id"), index=True)
    creation_date: Mapped[datetime] = mapped_column(default=now_utc)
    upstream_registry: Mapped[str]
    upstream_registry_username: Mapped[str | None]
    upstream_registry_password: Mapped[str | None]
    expiration_s: Mapped[int] = mapped_column(default=86400)
    insecure: Mapped[bool] = mapped_column(default=False)


# --- Accounts ---------------------------------------------------------------------------------------------------------


class TeamRole(Base):
    """What a team is in its organization: `admin`, `creator` or `member`."""

    __tablename__ = "teamrole"
    name: Mapped[str] = mapped_column(index=True)


class Team(Base):
    """A team of an organization."""

    __tablename__ = "team"
    __table_args__ = (Index("team_name_organization_id", "name", "organization_id", unique=True),)
    name: Mapped[str] = mapped_column(index=True)
    organization_id: Mapped[int] = mapped_column(ForeignKey("user.id"), index=True)
    role_id: Mapped[int] = mapped_column(ForeignKey("teamrole.id"))
    description: Mapped[str] = mapped_column(Text, default="")


class TeamMember(Base):
    """A user or a robot in a team."""

    __tablename__ = "teammember"
    __table_args__ = (Index("teammember_user_id_team_id", "user_id", "team_id", unique=True),)
    user_id: Mapped[int] = mapped_column(ForeignKey("user.id"), index=True)
    team_id: Mapped[int] = mapped_column(ForeignKey("team.id"), index=True)


class Role(Base):
    """What somebody may do with a repository: `read`, `write` or `admin`."""

    __tablename__ = "role"
    name: Mapped[str] = mapped_column(unique=True)


class RepositoryPermission(Base):
    """The role that a team, or a user or a robot, has in a repository."""

    __tablename__ = "repositorypermission"
    __table_args__ = (
        Index("repositorypermission_team_id_repository_id", "team_id", "repository_id", unique=True),
        Index("repositorypermission_user_id_repository_id", "user_id", "repository_id", unique=True),
    )
    team_id: Mapped[int | None] = mapped_column(ForeignKey("team.id"))
    user_id: Mapped[int | None] = mapped_column(ForeignKey("user.id"))
    repository_id: Mapped[int] = mapped_column(ForeignKey("repository.id"), index=True)
    role_id: Mapped[int] = mapped_column(ForeignKey("role.id"))


class RobotAccountToken(Base):
    """A robot's token, encrypted."""

    __tablename__ = "robotaccounttoken"
    robot_account_id: Mapped[int] = mapped_column(ForeignKey("user.id"), unique=True)
    token: Mapped[str]
    fully_migrated: Mapped[bool] = mapped_column(default=False)


class AppSpecificAuthToken(Base):
    """A token that a user has made for a program: its name, and its secret, encrypted."""

    __tablename__ = "appspecificauthtoken"
    __table_args__ = (Index("appspecificauthtoken_user_id_expiration", "user_id", "expiration"),)
    user_id: Mapped[int] = mapped_column(ForeignKey("user.id"))
    uuid: Mapped[str] = mapped_column(default=_uuid, index=True)
    title: Mapped[str]
    token_name: Mapped[str] = mapped_column(unique=True)
    token_secret: Mapped[str]
    created: Mapped[datetime] = mapped_column(default=now_utc)
    expiration: Mapped[datetime | None]
    last_accessed: Mapped[datetime | None]


class OAuthApplication(Base):
    """An application of an organization, which users give tokens to."""

    __tablename__ = "oauthapplication"
    client_id: Mapped[str] = mapped_column(index=True)
    fully_migrated: Mapped[bool] = mapped_column(default=False)
    redirect_uri: Mapped[str]
    application_uri: Mapped[str]
    organization_id: Mapped[int] = mapped_column(ForeignKey("user.id"), index=True)
    name: Mapped[str]
    description: Mapped[str] = mapped_column(Text, default="")


class OAuthAccessToken(Base):
    """A token that somebody gave to an application, for some scopes. `token_code` is the hash of its secret part."""

    __tablename__ = "oauthaccesstoken"
    uuid: Mapped[str] = mapped_column(default=_uuid, index=True)
    application_id: Mapped[int] = mapped_column(ForeignKey("oauthapplication.id"), index=True)
    authorized_user_id: Mapped[int] = mapped_column(ForeignKey("user.id"), index=True)
    scope: Mapped[str]
    token_name: Mapped[str] = mapped_column(unique=True)
    token_code: Mapped[str]
    token_type: Mapped[str] = mapped_column(default="Bearer")
    expires_at: Mapped[datetime]
    data: Mapped[str] = mapped_column(Text, default="")


class AccessToken(Base):
    """A token that is good for one repository, whoever brings it. `token_code` is its secret part, encrypted."""

    __tablename__ = "accesstoken"
    token_name: Mapped[str] = mapped_column(unique=True)
    token_code: Mapped[str]
    repository_id: Mapped[int] = mapped_column(ForeignKey("repository.id"), index=True)
    created: Mapped[datetime] = mapped_column(default=now_utc)
    role_id: Mapped[int] = mapped_column(ForeignKey("role.id"), index=True)
    temporary: Mapped[bool] = mapped_column(default=True)


class ServiceKeyApproval(Base):
    """That a key of Quay's counts, and why."""

    __tablename__ = "servicekeyapproval"
    approver_id: Mapped[int | None] = mapped_column(ForeignKey("user.id"), index=True)
    approval_type: Mapped[str] = mapped_column(index=True)
    approved_date: Mapped[datetime] = mapped_column(default=now_utc)
    notes: Mapped[str] = mapped_column(Text, default="")


class ServiceKey(Base):
    """A public key of one of Quay's instances. It counts once somebody, or Quay itself, has approved it."""

    __tablename__ = "servicekey"
    name: Mapped[str]
    kid: Mapped[str] = mapped_column(unique=True)
    service: Mapped[str] = mapped_column(index=True)
    jwk: Mapped[str] = mapped_column(Text)
    metadata_json: Mapped[str] = mapped_column("metadata", Text, default="{}")
    created_date: Mapped[datetime] = mapped_column(default=now_utc)
    expiration_date: Mapped[datetime | None]
    approval_id: Mapped[int | None] = mapped_column(ForeignKey("servicekeyapproval.id"), index=True)


class LoginService(Base):
    """Where users may come from who have no password here: `ldap`, `jwtauthn`, `oidc` and others."""

    __tablename__ = "loginservice"
    name: Mapped[str] = mapped_column(unique=True)


class FederatedLogin(Base):
    """Who a user is elsewhere: `service_ident` is what that service calls them."""

    __tablename__ = "federatedlogin"
    __table_args__ = (
        Index("federatedlogin_service_id_service_ident", "service_id", "service_ident", unique=True),
        Index("federatedlogin_service_id_user_id", "service_id", "user_id", unique=True),
    )
    user_id: Mapped[int] = mapped_column(ForeignKey("user.id"), index=True)
    service_id: Mapped[int] = mapped_column(ForeignKey("loginservice.id"), index=True)
    service_ident: Mapped[str]
    metadata_json: Mapped[str] = mapped_column(Text, default="{}")


class TeamSync(Base):
    """A team whose members are those of a group elsewhere. `config` is JSON, in a text that is JSON itself.

    `transaction_id` changes whenever the team is brought in line, and `last_updated` is when that was last.
    """

    __tablename__ = "teamsync"
    team_id: Mapped[int] = mapped_column(ForeignKey("team.id"), unique=True)
    transaction_id: Mapped[str]
    last_updated: Mapped[datetime | None] = mapped_column(index=True)
    service_id: Mapped[int] = mapped_column(ForeignKey("loginservice.id"), index=True)
    config: Mapped[str] = mapped_column(Text)


ENUMERATED: dict[
    type[Visibility | RepositoryKind | TagKind | MediaType | Role | TeamRole | LoginService], tuple[str, ...]
] = {
    Visibility: ("public", "private"),
    RepositoryKind: ("image", "application"),
    TagKind: ("tag",),
    Role: ("admin", "write", "read"),
    TeamRole: ("admin", "creator", "member"),
    LoginService: ("google", "github", "quayrobot", "ldap", "jwtauthn", "keystone", "dex", "oidc"),
    MediaType: (MANIFEST_V1, MANIFEST_V1_SIGNED, MANIFEST_V2, LIST_V2, MANIFEST_OCI, INDEX_OCI),
}
"""The rows that every registry has."""
