"""Our own application: Flask with nothing but the verbs on it. A host has its own instead, and takes the extension.

The law: whatever goes wrong here is answered in JSON, also where no route of the verbs has been reached.
"""

from collections.abc import Mapping
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from endpoints import answers, appcdiscovery, audit, federation, health, metrics
from endpoints.extension import RegistryVerbs
from endpoints.verbs import EXTENSION


def make_service(configuration: Mapping[str, Any]) -> Flask:
    """Return an application made of `configuration`. Raises InvalidSetting."""
    app = Flask("registry_verbs", static_folder=None, template_folder=None)
    app.config.update(configuration)
    audit.watch(app)
    app.after_request(_stay)
    RegistryVerbs(app, admin_prefix="/api/v1", v2_prefix="/v2")
    proxies = app.extensions[EXTENSION].settings.proxies
    if proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=0, x_host=0)  # type: ignore[method-assign]
    app.register_blueprint(metrics.blueprint)
    app.register_blueprint(health.blueprint)
    app.register_blueprint(appcdiscovery.blueprint)
    app.register_blueprint(federation.blueprint)
    app.register_error_handler(HTTPException, answers.of_http_exception)
    app.register_error_handler(Exception, answers.of_exception)
    return app


def _stay(answer: Response) -> Response:
    """Have a redirect to another path here say no more than the path.

    Routing names the scheme, too, which is not the client's where a proxy before us ends TLS: it would come again in
    the clear, and bring its credentials.
    """
    here, there = request.host_url, answer.headers.get("Location", "")
    if there.startswith(here):
        answer.headers["Location"] = f"/{there.removeprefix(here).lstrip('/')}"
    return answer
