"""What the ways in work with: look-ups, storage, layer indexes, formats, settings and a permission check, as one value.

The law: services are made once for an application, from its settings and from what its host brings along, and are
handed down; nothing looks for them elsewhere. None of them knows an application.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from data.accounts import Accounts, SqlAccounts
from data.administration import Administration
from data.admintokens import AdminTokens
from data.database import Engine, create_tables, make_engine
from data.derivedimages import DerivedImages
from data.directories.directory import Directory
from data.directories.trust import client_context
from data.discovery import Discovery
from data.encryptedpasswords import EncryptedPasswords
from data.federated import FederatedUsers
from data.jobs import Jobs
from data.layerindexes import LayerIndexes
from data.logins import Logins
from data.owntables import DatabaseUnavailable, upgrade, upgrading
from data.packedlayers import PackedLayers
from data.programlogins import ProgramLogins
from data.pushedblobs import PushedBlobs
from data.pushedmanifests import PushedManifests
from data.registry import Registry, RegistryUnavailable, SqlRegistry
from data.replicas import Replicas
from data.robotfederation import RobotFederation
from data.schemacheck import all_columns, check_schema, columns_read
from data.secretbox import SecretBox, Secrets
from data.servicekeys import ServiceKeys
from data.signatures import Signatures
from data.storage.base import Storage
from data.storage.distributed import DistributedStorage, storage_from_config
from data.uploads import Uploads
from data.virtuals import Virtuals
from endpoints.access import Permission, everything
from endpoints.directories import directory_of, federated_users, logins_elsewhere, rights_of
from endpoints.robottokens import SignedRobotTokens
from endpoints.secretfiles import kept_secret, secret_there
from endpoints.settings import Settings
from endpoints.signer import Signer
from endpoints.tokens import SECRET_FILE
from formats import installed_formatters
from formats.formatter import Formatter
from util.layerindex import LayerLimits

log = logging.getLogger(__name__)

_DATABASE_SECRET = "database-secret-key"  # noqa: S105 the name of its file


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that is needed to derive an image, and to know what has been derived.

    `engine` leads to the registry's tables, `own_engine` to ours. Without a `signer` nothing is signed, and without a
    `directory` accounts live in the registry's tables alone; `federated` are the users who come from it.
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
    federation: RobotFederation
    directory: Directory | None
    federated: FederatedUsers | None

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
    engine = make_engine(settings.db_uri, settings.db_arguments) if given is None else given
    if given is None:
        if settings.own_registry:
            create_tables(engine)
        _check_schema(engine, settings)
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
    logins = Logins(own_engine, counts=not settings.readonly)
    directory = directory_of(settings)
    federated = federated_users(settings, directory, engine, own_engine)
    accounts = SqlAccounts(
        engine,
        own_engine,
        logins,
        secrets=secrets_of(settings, make=False),
        superusers=settings.superusers,
        superusers_full_access=settings.superusers_full_access,
        app_specific_tokens=settings.app_specific_tokens,
        superusers_enabled=settings.superusers_enabled,
        robots_allowed=settings.robots_allowed,
        elsewhere=logins_elsewhere(directory, federated, logins),
        rights=rights_of(settings, directory, federated),
    )
    program_logins = _with_program_logins(settings, engine, accounts)
    pushed_blobs = PushedBlobs(engine, storage, grace_seconds=settings.grace_seconds)
    return Services(
        settings=settings,
        engine=engine,
        registry=SqlRegistry(engine, Replicas() if given is not None else _replicas(settings)),
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
        accounts=program_logins,
        administration=Administration(
            engine,
            own_engine,
            secrets_of(settings, make=True),
            ours=settings.own_registry,
            readonly=settings.readonly,
        ),
        pushed_blobs=pushed_blobs,
        uploads=Uploads(own_engine, storage, pushed_blobs, max_size=settings.max_layer),
        pushed_manifests=PushedManifests(engine),
        discovery=Discovery(engine),
        signatures=Signatures(own_engine),
        signer=None if settings.signing_key is None else Signer(settings.signing_key),
        federation=RobotFederation(
            engine, program_logins, cache(partial(client_context, settings.authentication.trusted))
        ),
        directory=directory,
        federated=federated,
    )


def _with_program_logins(settings: Settings, engine: Engine, accounts: Accounts) -> Accounts:
    keys = ServiceKeys(
        engine,
        host=settings.server_hostname,
        service=settings.service_key_service,
        max_seconds=settings.signed_seconds,
    )
    return ProgramLogins(
        accounts,
        engine,
        secrets=secrets_of(settings, make=False),
        robot_tokens=(SignedRobotTokens(settings), *(() if settings.own_registry else (keys,))),
        encrypted_passwords=EncryptedPasswords(partial(_secret_key, settings)),
        require_encrypted=settings.require_encrypted_passwords,
    )


def _secret_key(settings: Settings) -> str | None:
    return settings.secret_key or secret_there(settings.data_dir, SECRET_FILE)


def operators_services(configuration: Mapping[str, Any]) -> Services:
    """Return services as `configuration` says, for who may read all: commands, and what is made ahead."""
    return make_services(Settings.parse(configuration), permission=everything)


def secrets_of(settings: Settings, *, make: bool) -> Secrets:
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


def _replicas(settings: Settings) -> Replicas:
    return Replicas([make_engine(each.uri, each.arguments) for each in settings.replicas])


def _check_schema(engine: Engine, settings: Settings) -> None:
    try:
        check_schema(engine, all_columns() if settings.own_registry else columns_read())
    except RegistryUnavailable as problem:
        log.warning("nothing of the registry is known until its database can be used: %s", problem)


def _upgrade(engine: Engine) -> None:
    try:
        upgrade(engine)
    except DatabaseUnavailable as error:
        log.warning("nothing that is derived is kept until the database can be used: %s", error)
