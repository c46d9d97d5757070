"""The blueprint `/api/v1/analysis`: what the layers of an image bring and waste, in JSON.

The law: whoever may read the image may read this, and an admin token, which may do everything. It is described in
openapi.py with the rest of the API.
"""

from flask import Blueprint, Response, current_app, jsonify

from endpoints import queries
from endpoints.adminaccess import answer_as_api, reader
from endpoints.analyzing import TOP, analysis_of, document
from endpoints.audit import ANALYSIS
from endpoints.making import MAKINGS, Makings
from endpoints.rules import ImageName
from endpoints.services import Services
from endpoints.verbs import EXTENSION

blueprint = Blueprint(ANALYSIS, __name__, url_prefix="/api/v1/analysis")
answer_as_api(blueprint)


@blueprint.get("/<namespace>/<path:repository>/<tag>")
def show(namespace: str, repository: str, tag: str) -> Response:
    """Show what the layers of an image bring and waste; `tag` may be a manifest's digest."""
    queries.check_names("platform", "all")
    platform, most = queries.platform(), None if queries.flag("all") else TOP
    services: Services = current_app.extensions[EXTENSION]
    makings: Makings = current_app.extensions[MAKINGS]
    permission = reader(services)
    with makings.occupied():
        analyzed = analysis_of(services, permission, ImageName(namespace, repository, tag), platform)
    return jsonify(document(analyzed, most=most))
