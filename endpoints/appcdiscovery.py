"""App Container discovery: the pages that tell where images, their signatures and the key are, from a name alone.

The law: a page is the same for every name, whether there is such a repository or not, so nobody needs to be asked who
wants it. What is somewhere else in the application stays there: a page is never under a name that a route begins with.
Our own application has it; a host that wants it registers it, without a prefix, for discovery knows none.
"""

from flask import Blueprint, Response, current_app, url_for
from markupsafe import Markup
from werkzeug.exceptions import NotFound

from endpoints import answers
from endpoints.delivery import PUBLIC_KEY_TYPE, SignerNotFound
from endpoints.services import Services
from endpoints.verbs import EXTENSION
from formats.appc import prefix_of
from util.names import InvalidName, check_namespace, check_repository
from util.problem import Problem

blueprint = Blueprint("registry_verbs_discovery", __name__)
blueprint.register_error_handler(Problem, answers.of_problem)

_ACI = "aci"
_PAGE = Markup("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{metas}<title>{title}</title>
</head>
<body>
<h1>{title}</h1>
<p>Images of this registry come as something else than a pull, too: each as one file, from a tag.</p>
<pre>curl -fL {base}squash/{name}/TAG | docker load</pre>
<p><a href="{base}">What there is</a></p>
</body>
</html>
""")
_META = Markup('<meta name="{name}" content="{content}">\n')
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


@blueprint.get("/")
def root() -> Response:
    """Answer with a page for people, in which programs find the images of all repositories."""
    return _page("NAMESPACE/REPOSITORY", _services().settings.server_hostname)


@blueprint.get("/<namespace>/<path:repository>")
def repository(namespace: str, repository: str) -> Response:
    """Answer with the page of a name that a repository can have."""
    try:
        check_namespace(namespace)
        check_repository(repository)
    except InvalidName as problem:
        raise NotFound(str(problem)) from problem
    if namespace in _routes():
        raise NotFound
    name = f"{namespace}/{repository}"
    return _page(name, name)


@blueprint.get("/aci-signing-key")
def signing_key() -> Response:
    """Answer with the public key that verifies every signature of ours."""
    signer = _services().signer
    if signer is None:
        raise SignerNotFound("this registry signs nothing: SIGNING_ENGINE is not set")
    headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    return Response(signer.public_key(), headers=headers, content_type=PUBLIC_KEY_TYPE)


def _page(name: str, title: str) -> Response:
    services = _services()
    host, scheme = services.settings.server_hostname, services.settings.url_scheme
    base = f"{scheme}://{host}{url_for('registry_verbs.verbs')}"
    content = _PAGE.format(metas=Markup("").join(_metas(services, base)), title=title, base=base, name=name)
    return Response(content, headers=_HEADERS, content_type="text/html; charset=utf-8")


def _metas(services: Services, base: str) -> list[Markup]:
    """Return what programs read: where an image is by its name and labels, and by all but its version; and the key."""
    if _ACI not in services.formatters:
        return []
    prefix = prefix_of(services.settings.server_hostname)
    url = f"{base}{_ACI}/{{name}}/%s/{{ext}}/{{os}}/{{arch}}/"
    metas = [("ac-discovery", url % version) for version in ("{version}", "latest")]
    if services.signer is not None:
        scheme, host = services.settings.url_scheme, services.settings.server_hostname
        metas.append(("ac-discovery-pubkeys", f"{scheme}://{host}{url_for('.signing_key')}"))
    return [_META.format(name=name, content=f"{prefix} {value}") for name, value in metas]


def _routes() -> set[str]:
    """Return what other routes of the application begin with."""
    firsts = {rule.rule.split("/")[1] for rule in current_app.url_map.iter_rules()}
    return {first for first in firsts if not first.startswith("<")}


def _services() -> Services:
    services: Services = current_app.extensions[EXTENSION]
    return services
