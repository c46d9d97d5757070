"""Lists over `/v2`: a repository's tags, what refers to a manifest, and the repositories there are.

The law: a list that goes on says so by a Link, which the client follows as it is. A list of repositories has only those
that who asks may read, and neither its pages nor its links tell of others.
Distribution-spec, "Content Discovery"; the list of repositories is Docker's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from urllib.parse import urlencode

from flask import Response, json, request, url_for

from data.discovery import Referrer
from endpoints.access import AccountPermission, Action
from endpoints.answers import InvalidQuery
from endpoints.v2.blueprint import blueprint
from endpoints.v2.names import Named, catalog, may, readable, reader, services
from util.digest import Digest
from util.oci import INDEX_OCI

_MOST_TAGS = 10_000
_MOST_REPOSITORIES = 1000
_REPOSITORIES = 100
_REFERRERS = 100


@blueprint.get("/<path:name>/tags/list")
def list_tags(name: str) -> Response:
    """Answer with the names of the tags in the order of ASCII: all, or the first `n` behind `last`."""
    _, info = readable(name)
    number = _number("n")
    limit = None if number is None else min(number, _MOST_TAGS)
    tags = services().discovery.tags(info.id, after=_text("last"), limit=None if not limit else limit + 1)
    page = tags[:limit]
    link = {"n": limit, "last": page[-1]} if page and len(tags) > len(page) else None
    return _listed({"name": name, "tags": page}, url_for(".list_tags", name=name), link)


@blueprint.get("/_catalog")
def list_repositories() -> Response:
    """Answer with the repositories that who asks may read, in the order of ASCII: the first `n` behind `last`."""
    catalog()
    number = _number("n")
    limit = _REPOSITORIES if number is None else min(number, _MOST_REPOSITORIES)
    names = _readable_names(_text("last"), limit + 1) if limit else []
    page = names[:limit]
    link = {"n": limit, "last": page[-1]} if len(names) > limit else None
    return _listed({"repositories": page}, url_for(".list_repositories"), link)


@blueprint.get("/<path:name>/referrers/<digest>")
def list_referrers(name: str, digest: str) -> Response:
    """Answer with an image index of the manifests whose subject is `digest`, of one `artifactType` if that is said."""
    _, info = readable(name)
    subject, kind, last = Digest.parse(digest), _text("artifactType"), _text("last")
    found, more = services().discovery.referrers(
        info.id, subject, artifact_type=kind or None, after=last, limit=min(_number("n") or _REFERRERS, _REFERRERS)
    )
    link = {"last": found[-1].digest, **({"artifactType": kind} if kind else {})} if more else None
    index = {"schemaVersion": 2, "mediaType": INDEX_OCI, "manifests": [_descriptor(each) for each in found]}
    response = _listed(index, url_for(".list_referrers", name=name, digest=digest), link)
    response.content_type = INDEX_OCI
    if kind:
        response.headers["OCI-Filters-Applied"] = "artifactType"
    return response


def _descriptor(referrer: Referrer) -> dict[str, object]:
    descriptor: dict[str, object] = {
        "mediaType": referrer.media_type,
        "digest": referrer.digest,
        "size": referrer.size,
    }
    if referrer.artifact_type:
        descriptor["artifactType"] = referrer.artifact_type
    if referrer.annotations:
        descriptor["annotations"] = dict(referrer.annotations)
    return descriptor


def _readable_names(after: str | None, limit: int) -> Sequence[str]:
    """Return the first `limit` names of repositories behind `after` that who asks may read.

    Public ones that are nobody's in particular are left out unless FEATURE_PUBLIC_CATALOG lists them.
    """
    ours = services()
    listed = ours.settings.public_catalog
    if isinstance(ours.permission, AccountPermission):
        found = ours.discovery.repositories(replace(reader(), public=listed), after=after, limit=limit)
        return [f"{namespace}/{repository}" for namespace, repository, _ in found]
    names: list[str] = []
    while len(names) < limit:  # a host's own check knows no SQL
        found = ours.discovery.repositories(reader(), after=after, limit=_MOST_REPOSITORIES)
        for namespace, repository, public in found:
            after = f"{namespace}/{repository}"
            if may(Named(namespace, repository), Action.READ, public=public and listed):
                names.append(after)
        if len(found) < _MOST_REPOSITORIES:
            break
    return names[:limit]


def _listed(document: Mapping[str, object], url: str, link: Mapping[str, object] | None) -> Response:
    """Answer with one page of the list at `url`; `link` is the query of the next one, None where there is none."""
    response = Response(json.dumps(document), content_type="application/json")
    response.headers["Cache-Control"] = "private, no-cache"
    if link is not None:
        response.headers["Link"] = f'<{url}?{urlencode(link)}>; rel="next"'
    return response


def _number(name: str) -> int | None:
    """Return a number of the query, None where it is not there. Raises InvalidQuery."""
    text = request.args.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidQuery(f"{name} is {text!r}; it should be a number from 0 on")
    return int(text)


def _text(name: str) -> str | None:
    """Return a text of the query that a database could hold, None where it is not there. Raises InvalidQuery."""
    text = request.args.get(name)
    if text is not None and not text.isprintable():
        raise InvalidQuery(f"{name} is {text!r}; it should be a text that can be printed")
    return text
