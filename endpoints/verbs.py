"""The blueprint `/c1`: derived images over HTTP, under the URLs that Quay gave them.

The law: a URL says what is wanted and nothing of how it comes (delivery.py); what it says wrongly is told at once, with
what is allowed. Every URL of an image has another one, with `.sha256` after it, of its checksum.
"""

from dataclasses import replace

from flask import Blueprint, Response, current_app, jsonify, request, url_for
from werkzeug.exceptions import HTTPException, NotFound

from data.registry import ManifestNotFound, TagNotFound
from endpoints import answers, audit
from endpoints.delivery import CHECKSUM, Delivery
from endpoints.derive import Deriver, Wish
from endpoints.making import MAKINGS, Makings
from endpoints.services import Services
from formats.aci import platform_of_appc
from util.compression import Compression
from util.oci import InvalidPlatform, Platform
from util.problem import Problem

EXTENSION = "registry_verbs"
"""Where a Flask application keeps our Services."""

blueprint = Blueprint("registry_verbs", __name__, url_prefix="/c1")
audit.watch(blueprint)
blueprint.register_error_handler(Problem, answers.of_problem)
blueprint.register_error_handler(HTTPException, answers.of_http_exception)
blueprint.register_error_handler(Exception, answers.of_exception)


@blueprint.get("/_internal_ping")
def ping() -> Response:
    """Answer that the service runs; asks nothing of database and storage."""
    return Response("true", content_type="application/json")


@blueprint.get("/")
def verbs() -> Response:
    """List what can be made of an image."""
    formatters = _services().formatters
    return jsonify(
        {
            "verbs": [
                {
                    "verb": formatter.verb,
                    "summary": formatter.summary,
                    "media_type": formatter.media_type,
                    "file_extension": formatter.file_extension,
                    "default_compression": str(formatter.default_compression),
                    "url": f"{request.base_url}{formatter.verb}/{{namespace}}/{{repository}}/{{tag}}",
                }
                for formatter in formatters.values()
            ],
            "compression": [str(compression) for compression in Compression],
        }
    )


@blueprint.get("/aci/<_>/<namespace>/<path:repository>/<tag>/aci/<os>/<arch>/")
def appc(_: str, *, namespace: str, repository: str, tag: str, os: str, arch: str) -> Response:
    """Answer as App Container discovery asks: `os` and `arch` in its own names; what it calls us does not matter."""
    platform = platform_of_appc(os, arch)
    return _resolved(Wish("aci", namespace, repository, tag, platform, _compression())).answer()


@blueprint.get("/aci/<_>/<namespace>/<path:repository>/<tag>/aci/<os>/<arch>/.sha256")
@blueprint.get("/aci/<_>/<namespace>/<path:repository>/<tag>/aci/<os>/<arch>.sha256")
def appc_checksum(_: str, *, namespace: str, repository: str, tag: str, os: str, arch: str) -> Response:
    """Answer with the checksum of what discovery's URL gives."""
    platform = platform_of_appc(os, arch)
    return _resolved(Wish("aci", namespace, repository, tag, platform, _compression())).checksum()


@blueprint.get("/<verb>/<namespace>/<path:repository>/<tag>")
def derived(verb: str, namespace: str, repository: str, tag: str) -> Response:
    """Answer with the tag, or the manifest of that digest, as `verb` makes it; or with its checksum.

    A tag may end in `.sha256` itself, and goes before the checksum of the one that is called without.
    """
    wish = Wish(verb, namespace, repository, tag, _platform(), _compression())
    bare = tag.removesuffix(CHECKSUM)
    try:
        delivery = _resolved(wish)
    except (TagNotFound, ManifestNotFound):
        if bare in ("", tag):
            raise
        return _resolved(replace(wish, reference=bare)).checksum()
    return delivery.answer()


@blueprint.get("/<path:_>")
def unknown(_: str) -> Response:
    """Answer what is no URL of ours in our own form, whatever application we are mounted in."""
    verbs = ", ".join(_services().formatters)
    base = url_for(".verbs")
    raise NotFound(
        f"there is nothing at {request.path}; write {base}VERB/NAMESPACE/REPOSITORY/TAG, VERB one of {verbs}"
    )


def _services() -> Services:
    services: Services = current_app.extensions[EXTENSION]
    return services


def _platform() -> Platform | None:
    text = _parameter("platform")
    try:
        return None if text is None else Platform.parse(text)
    except InvalidPlatform as problem:
        raise answers.InvalidQuery(f"platform: {problem}") from None


def _compression() -> Compression | None:
    text = _parameter("compression")
    try:
        return None if text is None else Compression(text)
    except ValueError:
        raise answers.InvalidQuery(f"compression is {text!r}; allowed: {', '.join(Compression)}") from None


def _parameter(name: str) -> str | None:
    values = request.args.getlist(name)
    if len(values) > 1:
        raise answers.InvalidQuery(f"{name} is given {len(values)} times; allowed: once")
    return values[0] if values else None


def _flag(name: str) -> bool | None:
    text = _parameter(name)
    if text not in (None, "true", "false"):
        raise answers.InvalidQuery(f"{name} is {text!r}; allowed: true, false")
    return None if text is None else text == "true"


def _resolved(wish: Wish) -> Delivery:
    services, redirect = _services(), _flag("redirect")
    image = Deriver(services).resolve(wish)
    audit.resolved(image)
    makings: Makings = current_app.extensions[MAKINGS]
    return Delivery(services, makings, image, redirect, current_app.extensions[audit.AUDIT].who())
