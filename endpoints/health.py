"""`/health`: whether this process can do what it is there for, for who sends it requests, in the form of Quay's.

The law: it is 200 or 503, and names what is wrong no closer than what it is called: the log says why. It costs a query,
and a signature every half a minute. Our own application has it; a host has its own, or registers this.
"""

import logging
from http import HTTPStatus

from flask import Blueprint, Response, current_app, json

from data.owntables import DatabaseUnavailable
from endpoints.services import Services
from endpoints.verbs import EXTENSION

log = logging.getLogger(__name__)

blueprint = Blueprint("registry_verbs_health", __name__)


@blueprint.get("/health")
@blueprint.get("/health/instance")
def health() -> Response:
    """Answer 200 where all is well, else 503, and what is not."""
    services: Services = current_app.extensions[EXTENSION]
    well = {"database": _database(services)}
    if services.signer is not None:
        well["signer"] = services.signer.trouble is None
    status = HTTPStatus.OK if all(well.values()) else HTTPStatus.SERVICE_UNAVAILABLE
    document = {"data": {"services": well}, "status_code": int(status)}
    headers = {"Cache-Control": "no-store"}
    return Response(json.dumps(document) + "\n", status, headers, content_type="application/json")


def _database(services: Services) -> bool:
    try:
        services.derived.now_ms()
    except DatabaseUnavailable as problem:
        log.error("not healthy: %s", problem)  # noqa: TRY400 no traceback
        return False
    return True
