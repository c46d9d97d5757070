"""Our own application: Flask with nothing but the verbs on it. A host has its own instead, and takes the extension.

The law: whatever goes wrong here is answered in JSON, also where no route of the verbs has been reached.
"""

from collections.abc import Mapping
from typing import Any

from flask import Flask, redirect, url_for
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Response

from endpoints import answers, audit, metrics
from endpoints.extension import RegistryVerbs
from endpoints.verbs import EXTENSION


def make_service(configuration: Mapping[str, Any]) -> Flask:
    """Return an application made of `configuration`. Raises InvalidSetting."""
    app = Flask("registry_verbs", static_folder=None, template_folder=None)
    app.config.update(configuration)
    audit.watch(app)
    RegistryVerbs(app, admin_prefix="/api/v1")
    proxies = app.extensions[EXTENSION].settings.proxies
    if proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=0, x_host=0)  # type: ignore[method-assign]
    app.register_blueprint(metrics.blueprint)
    app.register_error_handler(HTTPException, answers.of_http_exception)
    app.register_error_handler(Exception, answers.of_exception)
    app.add_url_rule("/", "root", _root)
    return app


def _root() -> Response:
    return redirect(url_for("registry_verbs.verbs"))
