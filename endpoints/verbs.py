"""The blueprint `/c1`: derived images over HTTP, under the URLs that Quay gave them.

The law: a URL says what is wanted and nothing of how it comes (delivery.py); what it says wrongly is told at once, with
what is allowed. Every URL of an image has two others: with `.sha256` after it, of its checksum, and with `.asc`, of its
signature.
"""

from dataclasses import replace

from flask import Blueprint, Response, current_app, jsonify, request, url_for
from werkzeug.exceptions import HTTPException, NotFound

from data.registry import ManifestNotFound, TagNotFound
from endpoints import answers, audit, queries, sums
from endpoints.delivery import CHECKSUM, SIGNATURE, Delivery
from endpoints.derive import Deriver, Wish
from endpoints.making import MAKINGS, Makings
from endpoints.services import Services
from formats.aci import platform_of_appc
from util.compression import Compression
from util.platform import Platform
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
    """List what can be made of an image, each with a line to copy, and what of it cannot be made here, and why."""
    listed = []
    base = f"{_services().settings.url_scheme}://{request.host}{url_for('.verbs')}"
    for formatter in _services().formatters.values():
        url = f"{base}{formatter.verb}/{{namespace}}/{{repository}}/{{tag}}"
        listed.append(
            {
                "verb": formatter.verb,
                "summary": formatter.summary,
                "media_type": formatter.media_type,
                "file_extension": formatter.file_extension,
                "default_compression": str(formatter.default_compression),
                "url": url,
                "usage": formatter.usage.format(url=url),
                "options": dict(formatter.options),
                "unavailable": formatter.unavailable,
            }
        )
    return jsonify({"verbs": listed, "compression": [str(compression) for compression in Compression]})


@blueprint.get("/aci/<_>/<namespace>/<path:repository>/<tag>/aci/<os>/<arch>/")
def appc(_: str, *, namespace: str, repository: str, tag: str, os: str, arch: str) -> Response:
    """Answer as App Container discovery asks: `os` and `arch` in its own names; what it calls us does not matter."""
    return _appc(namespace, repository, tag, os, arch).answer()


@blueprint.get("/aci/<_>/<namespace>/<path:repository>/<tag>/aci/<os>/<arch>/.sha256")
@blueprint.get("/aci/<_>/<namespace>/<path:repository>/<tag>/aci/<os>/<arch>.sha256")
def appc_checksum(_: str, *, namespace: str, repository: str, tag: str, os: str, arch: str) -> Response:
    """Answer with the checksum of what discovery's URL gives."""
    return _appc(namespace, repository, tag, os, arch).checksum()


@blueprint.get("/aci/<_>/<namespace>/<path:repository>/<tag>/aci.asc/<os>/<arch>/")
@blueprint.get("/aci/<_>/<namespace>/<path:repository>/<tag>/sig/<os>/<arch>/")
@blueprint.get("/aci/<_>/<namespace>/<path:repository>/<tag>/aci/<os>/<arch>/.asc")
@blueprint.get("/aci/<_>/<namespace>/<path:repository>/<tag>/aci/<os>/<arch>.asc")
def appc_signature(_: str, *, namespace: str, repository: str, tag: str, os: str, arch: str) -> Response:
    """Answer with the signature of what discovery's URL gives: by its own name for that, the older one, and ours."""
    return _appc(namespace, repository, tag, os, arch).signature()


@blueprint.get("/<verb>/<namespace>/<path:repository>/<tag>")
def derived(verb: str, namespace: str, repository: str, tag: str) -> Response:
    """Answer with the tag, or the manifest of that digest, as `verb` makes it; or with its checksum or signature.

    A tag may end in `.sha256` or `.asc` itself, and goes before what is of the one that is called without; or be called
    `SHA256SUMS`, which is the list of checksums elsewhere.
    """
    wish = _wish(verb, namespace, repository, tag, queries.platform())
    try:
        delivery = _resolved(wish)
    except (TagNotFound, ManifestNotFound):
        for ending, answer in _BESIDE.items():
            bare = tag.removesuffix(ending)
            if bare in ("", tag):
                continue
            try:
                delivery = _resolved(replace(wish, reference=bare))
            except TagNotFound:
                if tag in sums.NAMES:
                    continue
                raise
            return answer(delivery)
        if tag in sums.NAMES:
            return sums.answer(_services(), tag, wish)
        raise
    return delivery.answer()


_BESIDE = {CHECKSUM: sums.checksum, SIGNATURE: Delivery.signature}


@blueprint.get("/<path:_>")
def unknown(_: str) -> Response:
    """Answer what is no URL of ours in our own form, whatever application we are mounted in."""
    verbs = ", ".join(_services().formatters)
    base = url_for(".verbs")
    raise NotFound(
        f"there is nothing at {request.path}; write {base}VERB/NAMESPACE/REPOSITORY/TAG, VERB one of {verbs}"
    )


def _appc(namespace: str, repository: str, tag: str, os: str, arch: str) -> Delivery:
    return _resolved(_wish("aci", namespace, repository, tag, platform_of_appc(os, arch)))


def _wish(verb: str, namespace: str, repository: str, tag: str, platform: Platform | None) -> Wish:
    formatter = _services().formatters.get(verb)
    options = {} if formatter is None else queries.options(formatter.options)
    return Wish(verb, namespace, repository, tag, platform, queries.compression(), options)


def _services() -> Services:
    services: Services = current_app.extensions[EXTENSION]
    return services


def _resolved(wish: Wish) -> Delivery:
    services, redirect = _services(), queries.flag("redirect")
    image = Deriver(services).resolve(wish)
    audit.resolved(image)
    makings: Makings = current_app.extensions[MAKINGS]
    return Delivery(services, makings, image, redirect, current_app.extensions[audit.AUDIT].who())
