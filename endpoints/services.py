"""What the ways in work with: look-ups, storage, layer indexes, formats, settings and a permission check, as one value.

The law: services are made once for an application, from its settings and from what its host brings along, and are
handed down; nothing looks for them elsewhere. None of them knows an application.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.admintokens import AdminTokens
from data.database import Engine, create_tables, make_engine
from data.derivedimages import DerivedImages
from data.jobs import Jobs
from data.layerindexes import LayerIndexes
from data.owntables import DatabaseUnavailable, upgrade, upgrading
from data.registry import Registry, SqlRegistry
from data.storage.base import Storage
from data.storage.distributed import DistributedStorage, storage_from_config
from endpoints.access import Permission, everything
from endpoints.settings import Settings
from formats import installed_formatters
from formats.tarimageformatter import TarImageFormatter
from util.layerindex import LayerLimits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that is needed to derive an image, and to know what has been derived.

    `engine` leads to the registry's tables, `own_engine` to ours.
    """

    settings: Settings
    engine: Engine
    registry: Registry
    storage: DistributedStorage
    indexes: LayerIndexes
    formatters: Mapping[str, TarImageFormatter]
    permission: Permission
    own_engine: Engine
    derived: DerivedImages
    jobs: Jobs
    tokens: AdminTokens

    @property
    def limits(self) -> LayerLimits:
        """How much a layer, and an image, may have."""
        return limits_of(self.settings)


def limits_of(settings: Settings) -> LayerLimits:
    """Return the limits that `settings` set."""
    return LayerLimits(max_entries=settings.max_entries, max_size=settings.max_size)


def make_services(
    settings: Settings,
    *,
    permission: Permission,
    engine: Engine | None = None,
    storage: DistributedStorage | Storage | None = None,
) -> Services:
    """Return services as `settings` say, with a host's own `engine` and `storage` where they are given.

    The embedded database is made when it is not there; one that `DB_URI` names is somebody else's, and its tables are
    only read. Our own tables are made where `VERBS_DB_URI` says, or beside the registry's. No connection stays open,
    so what comes out may cross a fork.
    """
    given = engine
    engine = make_engine(settings.db_uri) if given is None else given
    if given is None and settings.embedded_database:
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
    return Services(
        settings=settings,
        engine=engine,
        registry=SqlRegistry(engine),
        storage=storage,
        indexes=LayerIndexes(storage, limits_of(settings)),
        formatters=installed_formatters(),
        permission=permission,
        own_engine=own_engine,
        derived=DerivedImages(own_engine, lease_seconds=settings.lease_seconds),
        jobs=Jobs(own_engine, heard_seconds=2 * settings.lease_seconds),
        tokens=AdminTokens(own_engine),
    )


def operators_services(configuration: Mapping[str, Any]) -> Services:
    """Return services as `configuration` says, for who may read all: commands, and what is made ahead."""
    return make_services(Settings.parse(configuration), permission=everything)


def _upgrade(engine: Engine) -> None:
    try:
        upgrade(engine)
    except DatabaseUnavailable as error:
        log.warning("nothing that is derived is kept until the database can be used: %s", error)
