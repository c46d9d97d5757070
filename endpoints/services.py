"""What the ways in work with: look-ups, storage, layer indexes, formats, settings and a permission check, as one value.

The law: services are made once for an application, from its settings and from what its host brings along, and are
handed down; nothing looks for them elsewhere. None of them knows an application.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.accounts import Accounts, SqlAccounts
from data.administration import Administration
from data.admintokens import AdminTokens
from data.database import Engine, create_tables, make_engine
from data.derivedimages import DerivedImages
from data.discovery import Discovery
from data.jobs import Jobs
from data.layerindexes import LayerIndexes
from data.logins import Logins
from data.owntables import DatabaseUnavailable, upgrade, upgrading
from data.packedlayers import PackedLayers
from data.pushedblobs import PushedBlobs
from data.pushedmanifests import PushedManifests
from data.registry import Registry, SqlRegistry
from data.secretbox import SecretBox, Secrets
from data.signatures import Signatures
from data.storage.base import Storage
from data.storage.distributed import DistributedStorage, storage_from_config
from data.uploads import Uploads
from data.virtuals import Virtuals
from endpoints.access import Permission, everything
from endpoints.secretfiles import kept_secret, secret_there
from endpoints.settings import Settings
from endpoints.signer import Signer
from formats import installed_formatters
from formats.formatter import Formatter
from util.layerindex import LayerLimits

log = logging.getLogger(__name__)

_DATABASE_SECRET = "database-secret-key"  # noqa: S105 the name of its file


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that is needed to derive an image, and to know what has been derived.

    `engine` leads to the registry's tables, `own_engine` to ours. Without a `signer` nothing is signed.
    """

    settings: Settings
    engine: Engine
    registry: Registry
    storage: DistributedStorage
    indexes: LayerIndexes
    formatters: Mapping[str, Formatter]
    permission: Permission
    own_engine: Engine
    derived: DerivedImages
    virtuals: Virtuals
    packed_layers: PackedLayers
    jobs: Jobs
    tokens: AdminTokens
    accounts: Accounts
    administration: Administration
    pushed_blobs: PushedBlobs
    uploads: Uploads
    pushed_manifests: PushedManifests
    discovery: Discovery
    signatures: Signatures
    signer: Signer | None

    @property
    def limits(self) -> LayerLimits:
        """How much a layer, and an image, may have."""
        return self.settings.limits


def make_services(
    settings: Settings,
    *,
    permission: Permission,
    engine: Engine | None = None,
    storage: DistributedStorage | Storage | None = None,
) -> Services:
    """Return services as `settings` say, with a host's own `engine` and `storage` where they are given.

    The tables of a registry of our own are made when they are not there; those of a Quay are only read. Our own tables
    are made where `VERBS_DB_URI` says, or beside the registry's. No connection stays open, so what comes out may cross
    a fork.
    """
    given = engine
    engine = make_engine(settings.db_uri) if given is None else given
    if given is None and settings.own_registry:
        create_tables(engine)
    own_engine = engine if settings.own_db_uri == settings.db_uri else make_engine(settings.own_db_uri)
    if not settings.readonly:
        _upgrade(own_engine)
    for made in {engine, own_engine} - {given}:
        made.dispose()
    if not settings.readonly:
        own_engine = upgrading(own_engine)  # as soon as it can be reached, if that was not now
    if storage is None:
        storage = storage_from_config(settings)
    elif isinstance(storage, Storage):
        storage = DistributedStorage({"default": storage}, ["default"])
    pushed_blobs = PushedBlobs(engine, storage, grace_seconds=settings.grace_seconds)
    return Services(
        settings=settings,
        engine=engine,
        registry=SqlRegistry(engine),
        storage=storage,
        indexes=LayerIndexes(storage, settings.limits),
        formatters=installed_formatters(),
        permission=permission,
        own_engine=own_engine,
        derived=DerivedImages(own_engine, lease_seconds=settings.lease_seconds),
        virtuals=Virtuals(own_engine),
        packed_layers=PackedLayers(own_engine),
        jobs=Jobs(own_engine, heard_seconds=2 * settings.lease_seconds),
        tokens=AdminTokens(own_engine),
        accounts=SqlAccounts(
            engine,
            own_engine,
            Logins(own_engine, counts=not settings.readonly),
            secrets=_secrets(settings, make=False),
            superusers=settings.superusers,
            superusers_full_access=settings.superusers_full_access,
            app_specific_tokens=settings.app_specific_tokens,
        ),
        administration=Administration(
            engine,
            own_engine,
            _secrets(settings, make=True),
            ours=settings.own_registry,
            readonly=settings.readonly,
        ),
        pushed_blobs=pushed_blobs,
        uploads=Uploads(own_engine, storage, pushed_blobs, max_size=settings.max_layer),
        pushed_manifests=PushedManifests(engine),
        discovery=Discovery(engine),
        signatures=Signatures(own_engine),
        signer=None if settings.signing_key is None else Signer(settings.signing_key),
    )


def operators_services(configuration: Mapping[str, Any]) -> Services:
    """Return services as `configuration` says, for who may read all: commands, and what is made ahead."""
    return make_services(Settings.parse(configuration), permission=everything)


def _secrets(settings: Settings, *, make: bool) -> Secrets:
    """Return what gives the box of robots' tokens: its key is set, or kept in a file, which `make` may make."""
    kept = kept_secret if make and not settings.readonly else secret_there
    key = settings.database_secret_key
    known = [] if key is None else [SecretBox(key)]

    def box() -> SecretBox | None:
        if not known and settings.own_registry:
            key = kept(settings.data_dir, _DATABASE_SECRET)
            if key is not None:
                known.append(SecretBox(key))
        return known[0] if known else None

    return box


def _upgrade(engine: Engine) -> None:
    try:
        upgrade(engine)
    except DatabaseUnavailable as error:
        log.warning("nothing that is derived is kept until the database can be used: %s", error)
