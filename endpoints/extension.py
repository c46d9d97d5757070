"""The Flask extension: puts the verbs on any application, with that application's own services where it has some.

The law: nothing happens at import time, and the extension keeps no application. What it makes for one lies in that
one's `extensions`; so one extension serves several.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from endpoints import admin, metrics
from endpoints.access import Permission, PublicOnly
from endpoints.audit import AUDIT, Audit, remote_user
from endpoints.background import Background
from endpoints.celeryapp import teller
from endpoints.collecting import collecting
from endpoints.jobpool import Ended, MakeServices
from endpoints.making import MAKINGS, Makings
from endpoints.priming import check_rules
from endpoints.services import Services, make_services, operators_services
from endpoints.settings import Settings
from endpoints.verbs import EXTENSION, blueprint
from util.problem import Problem

if TYPE_CHECKING:
    from flask import Flask

    from data.database import Engine
    from data.storage.base import Storage
    from data.storage.distributed import DistributedStorage

_OWN = "registry_verbs_own_services"  # whether a host has brought some of them along


class BackgroundImpossible(Problem):
    """Jobs that could only be run with services that nobody has said how to make."""

    code = "BACKGROUND_IMPOSSIBLE"


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
        admin_prefix: str | None = None,
    ) -> None:
        if app is not None:
            self.init_app(
                app,
                engine=engine,
                storage=storage,
                permission=permission,
                who=who,
                url_prefix=url_prefix,
                admin_prefix=admin_prefix,
            )

    def init_app(
        self,
        app: "Flask",
        *,
        engine: "Engine | None" = None,
        storage: "DistributedStorage | Storage | None" = None,
        permission: Permission | None = None,
        who: Callable[[], str | None] = remote_user,
        url_prefix: str = "/c1",
        admin_prefix: str | None = None,
    ) -> None:
        """Put the verbs on `app` under `url_prefix`, and the admin API under `admin_prefix` if it is to be there.

        `engine` leads to the registry's database, and only reads it; `storage` holds its blobs, and gets what is
        derived of them; `permission` is asked within each request, and `who` for the audit's log. What is not given is
        made from the settings, and then public repositories are everybody's. Raises InvalidSetting.
        """
        settings = Settings.parse(app.config)
        services = app.extensions[EXTENSION] = make_services(
            settings,
            engine=engine,
            storage=storage,
            permission=PublicOnly(settings.anonymous_access) if permission is None else permission,
        )
        jobs = app.extensions[EXTENSION].jobs
        metrics.look_up(app, "registry_verbs_jobs", "Jobs by state.", "state", lambda: dict(jobs.counts()))
        app.extensions[MAKINGS] = Makings(app.extensions[EXTENSION], watcher=metrics)
        app.extensions[AUDIT] = Audit(settings.audit_log, who, frozenset(services.formatters))
        app.register_blueprint(blueprint, url_prefix=url_prefix)
        check_rules(settings.prime, services.formatters)
        app.extensions[_OWN] = engine is not None or storage is not None
        if admin_prefix is not None:
            app.extensions[admin.TELL] = teller(settings)
            app.register_blueprint(admin.blueprint, url_prefix=admin_prefix)

    def start_background(
        self, app: "Flask", *, make_services: MakeServices | None = None, ended: Ended | None = None
    ) -> None:
        """Begin to run the jobs of `app`, to look at new tags and to bound what is kept, unless another process does.

        To be called once in a process, after any fork; nothing is started elsewhere. Jobs run in processes of their
        own, where `make_services` makes what they work with: a function that can be imported there. Without it that is
        done from the settings in `app.config`, so a host with an engine or a storage of its own has to say how; `ended`
        is told the number of each of these processes that has ended.
        With a broker no jobs are run: `registry-verbs worker` does that. Raises BackgroundImpossible.
        """
        services: Services = app.extensions[EXTENSION]
        if services.settings.readonly:
            return
        if services.settings.broker_url is not None:
            collecting(services).start()
            return
        if make_services is None:
            if app.extensions[_OWN]:
                raise BackgroundImpossible(
                    "the host's own engine and storage do not cross into other processes: say make_services"
                )
            configuration = {key: app.config[key] for key in Settings.KEYS if key in app.config}
            make_services = partial(operators_services, configuration)
        Background(services, make_services, ended=ended).start()
        collecting(services).start()
