"""The Flask extension: puts the verbs on any application, with that application's own services where it has some.

The law: nothing happens at import time, and the extension keeps no application. What it makes for one lies in that
one's `extensions`; so one extension serves several.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from endpoints import metrics
from endpoints.access import Permission, PublicOnly
from endpoints.audit import AUDIT, Audit, remote_user
from endpoints.making import MAKINGS, Makings
from endpoints.services import make_services
from endpoints.settings import Settings
from endpoints.verbs import EXTENSION, blueprint

if TYPE_CHECKING:
    from flask import Flask

    from data.database import Engine
    from data.storage.base import Storage
    from data.storage.distributed import DistributedStorage


class RegistryVerbs:
    """`RegistryVerbs(app)`, or `verbs = RegistryVerbs()` and later `verbs.init_app(app)`.

    The settings are those of `app.config`, under the names of Quay's configuration and ours.
    """

    def __init__(
        self,
        app: "Flask | None" = None,
        *,
        engine: "Engine | None" = None,
        storage: "DistributedStorage | Storage | None" = None,
        permission: Permission | None = None,
        who: Callable[[], str | None] = remote_user,
        url_prefix: str = "/c1",
    ) -> None:
        if app is not None:
            self.init_app(app, engine=engine, storage=storage, permission=permission, who=who, url_prefix=url_prefix)

    def init_app(
        self,
        app: "Flask",
        *,
        engine: "Engine | None" = None,
        storage: "DistributedStorage | Storage | None" = None,
        permission: Permission | None = None,
        who: Callable[[], str | None] = remote_user,
        url_prefix: str = "/c1",
    ) -> None:
        """Put the verbs on `app` under `url_prefix`.

        `engine` leads to the registry's database, and only reads it; `storage` holds its blobs, and gets what is
        derived of them; `permission` is asked within each request, and `who` for the audit's log. What is not given is
        made from the settings, and then public repositories are everybody's. Raises InvalidSetting.
        """
        settings = Settings.parse(app.config)
        app.extensions[EXTENSION] = make_services(
            settings,
            engine=engine,
            storage=storage,
            permission=PublicOnly(settings.anonymous_access) if permission is None else permission,
        )
        jobs = app.extensions[EXTENSION].jobs
        metrics.look_up(app, "registry_verbs_jobs", "Jobs by state.", "state", lambda: dict(jobs.counts()))
        app.extensions[MAKINGS] = Makings(app.extensions[EXTENSION], watcher=metrics)
        app.extensions[AUDIT] = Audit(settings.audit_log, who, frozenset(app.extensions[EXTENSION].formatters))
        app.register_blueprint(blueprint, url_prefix=url_prefix)
