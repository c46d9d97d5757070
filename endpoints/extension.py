"""The Flask extension: puts the verbs on any application, with that application's own services where it has some.

The law: nothing happens at import time, and the extension keeps no application. What it makes for one lies in that
one's `extensions`; so one extension serves several.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from data.directories.unusable import UnusableNow
from endpoints import admin, analysis, metrics, v2
from endpoints.access import AccountPermission, Permission, PublicOnly, ReadPermission, of_host
from endpoints.audit import AUDIT, Audit
from endpoints.background import Background
from endpoints.caller import TOKENS, caller
from endpoints.caller import who as asking
from endpoints.celeryapp import teller
from endpoints.collecting import collecting
from endpoints.indexing import INDEXING, Indexing
from endpoints.jobpool import Ended, MakeServices
from endpoints.making import MAKINGS, Makings
from endpoints.priming import check_rules
from endpoints.services import Services, make_services, operators_services
from endpoints.settings import Settings
from endpoints.signer import Signer, SigningFailed
from endpoints.tokens import Tokens
from endpoints.verbs import EXTENSION, blueprint
from endpoints.virtualimages import VIRTUAL_IMAGES, VirtualImages
from util.problem import Problem

if TYPE_CHECKING:
    from flask import Flask

    from data.database import Engine
    from data.storage.base import Storage
    from data.storage.distributed import DistributedStorage

log = logging.getLogger(__name__)

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
        permission: Permission | ReadPermission | None = None,
        who: Callable[[], str | None] = asking,
        url_prefix: str = "/c1",
        admin_prefix: str | None = None,
        v2_prefix: str | None = None,
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
                v2_prefix=v2_prefix,
            )

    def init_app(
        self,
        app: "Flask",
        *,
        engine: "Engine | None" = None,
        storage: "DistributedStorage | Storage | None" = None,
        permission: Permission | ReadPermission | None = None,
        who: Callable[[], str | None] = asking,
        url_prefix: str = "/c1",
        admin_prefix: str | None = None,
        v2_prefix: str | None = None,
    ) -> None:
        """Put the verbs on `app` under `url_prefix`, and the admin API and `/v2` where they are given a prefix.

        `engine` leads to the registry's database, which is only read unless VERBS_REGISTRY is `own`; `storage` holds
        its blobs, and gets what is derived of them; `permission` is asked within each request, and `who` for the
        audit's log. What is not given is made from the settings, and then the registry's accounts and their permissions
        count. Raises InvalidSetting.
        """
        settings = Settings.parse(app.config)
        if engine is not None and "VERBS_REGISTRY" not in app.config:
            settings = replace(settings, own_registry=False)  # a host's database is the host's, until that says more
        asked = PublicOnly(settings.anonymous_access) if permission is None else of_host(permission)
        services = make_services(settings, engine=engine, storage=storage, permission=asked)
        if permission is None:
            ours = AccountPermission(services.accounts, caller, settings.anonymous_access)
            services = replace(services, permission=ours)
        app.extensions[EXTENSION] = services
        app.extensions[TOKENS] = Tokens(settings)
        if isinstance(services.directory, UnusableNow):
            log.error("nobody can log in with a password: %s", services.directory.reason)
        jobs = services.jobs
        metrics.look_up(app, "registry_verbs_jobs", "Jobs by state.", "state", lambda: dict(jobs.counts().items()))
        if services.signer is not None:
            _check(services.signer)
            metrics.look_up(
                app,
                "registry_verbs_signer_up",
                "Whether what is made can be signed: 1, or 0.",
                "engine",
                partial(_signer_up, services.signer),
            )
        app.extensions[MAKINGS] = Makings(services, watcher=metrics)
        app.extensions[INDEXING] = Indexing(services)
        app.extensions[VIRTUAL_IMAGES] = VirtualImages(services, app.extensions[MAKINGS])
        app.extensions[AUDIT] = Audit(settings.audit_log, who, frozenset(services.formatters))
        app.register_blueprint(blueprint, url_prefix=url_prefix)
        check_rules(settings.prime, services.formatters)
        app.extensions[_OWN] = engine is not None or storage is not None
        if admin_prefix is not None:
            app.extensions[admin.TELL] = teller(settings)
            app.register_blueprint(admin.blueprint, url_prefix=admin_prefix)
            app.register_blueprint(analysis.blueprint, url_prefix=f"{admin_prefix}/analysis")
        if v2_prefix is not None:
            app.register_blueprint(v2.blueprint, url_prefix=v2_prefix)

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


def _check(signer: Signer) -> None:
    """Have the log say at once that nothing can be signed. Everything else can be done all the same."""
    try:
        signer.check()
    except SigningFailed as problem:
        log.error("nothing can be signed, and every signature is an error: %s", problem)  # noqa: TRY400 no traceback
    else:
        log.info("what is made is signed by the key %s", signer.fingerprint)
    finally:
        signer.close()  # whoever only begins others has no use for a key


def _signer_up(signer: Signer) -> dict[str, float]:
    return {"gpg2": float(signer.trouble is None)}
