"""`GET /v2/` and `/v2/auth`: whether somebody is logged in, and the tokens that the other routes take.

The law: a token is given to whoever has said rightly who they are, or to nobody at all if anybody may come; it allows
what was asked for as far as they may have it, and to ask for more is no error. Wrong credentials are. A token is no
credential here: otherwise one could be kept alive for ever.
Docker's token authentication, by GET and, as OAuth 2 has it (RFC 6749, 4.3), by POST.
"""

import logging
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice

from flask import Response, current_app, json, request

from data.directories.directory import DirectoryUnavailable
from data.registry import RepositoryNotFound
from endpoints.access import Action, Unauthenticated
from endpoints.answers import InvalidQuery
from endpoints.caller import TOKENS, Caller, CredentialsUnusable, become, caller
from endpoints.tokens import CATALOG, Access, Tokens
from endpoints.v2.blueprint import blueprint
from endpoints.v2.names import Named, may, named, services
from util.names import InvalidName

log = logging.getLogger(__name__)

_MOST = 50  # scopes of one token: it has to fit into a header, and each is looked up
_MAX_FORM = 64 << 10
_SCOPE = re.compile(r"(?P<kind>repository|registry):(?P<name>[^\s:]+):(?P<actions>[a-z*,]+)")
_ACTIONS = {"pull": Action.READ, "push": Action.WRITE, "delete": Action.DELETE, "*": Action.ADMIN}


class GrantUnsupported(InvalidQuery):
    """A way to ask for a token that there is not, or a form that lacks something."""

    code = "UNSUPPORTED"


@blueprint.get("/", strict_slashes=False)  # a redirect would have the scheme that a proxy came by
def version() -> Response:
    """Answer that this is a registry, to who has an account; others are told where to log in."""
    if caller().account is None:
        raise Unauthenticated("log in to use this registry")
    return Response("{}", content_type="application/json")


@blueprint.get("/auth")
def auth() -> Response:
    """Answer with a token for who brings a name and a password in Authorization, or for nobody."""
    if request.authorization is not None and request.authorization.type == "bearer":
        raise CredentialsUnusable("a token is given for a name and a password, not for another token")
    return _token(scope for text in request.args.getlist("scope") for scope in text.split())


@blueprint.post("/auth")
def auth_by_form() -> Response:
    """Answer with a token for the name and the password in a form."""
    request.max_content_length = _MAX_FORM
    form = request.form
    if form.get("grant_type") != "password":
        raise GrantUnsupported("grant_type has to be password; there are no refresh tokens here")
    if not form.get("username"):
        raise GrantUnsupported("username is missing")
    become(Caller(services().accounts.authenticate(form["username"], form.get("password", ""))))
    return _token(scope for text in form.getlist("scope") for scope in text.split())


def _token(scopes: Iterable[str]) -> Response:
    account = caller().account
    if account is None and not services().settings.anonymous_access:
        raise Unauthenticated("log in to use this registry")
    tokens: Tokens = current_app.extensions[TOKENS]
    token = tokens.sign(account, [access for scope in islice(scopes, _MOST) for access in _allowed(scope)])
    document = {
        "token": token.text,
        "access_token": token.text,
        "token_type": "Bearer",
        "expires_in": token.seconds,
        "issued_at": datetime.fromtimestamp(token.issued, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return Response(
        json.dumps(document),
        content_type="application/json",
        headers={"Cache-Control": "no-store", "Pragma": "no-cache"},
    )


def _allowed(scope: str) -> list[Access]:
    """Return what of `scope` is allowed: nothing where it is none of ours, or means nothing here."""
    match = _SCOPE.fullmatch(scope)
    if match is None:
        return []
    asked = match["actions"].split(",")
    if match["kind"] == "registry":
        return [Access("registry", CATALOG, ("*",))] if match["name"] == CATALOG and "*" in asked else []
    try:
        repository = named(match["name"])
    except InvalidName:
        return []
    wanted = list(_ACTIONS) if "*" in asked else [word for word in _ACTIONS if word in asked]
    allowed = _may(repository)
    actions = tuple(word for word in wanted if word in allowed)
    return [Access("repository", str(repository), actions)] if actions else []


def _may_create(repository: Named) -> bool:
    """Tell whether who asks may make a repository; also where nobody can say it now, since it is asked again then."""
    try:
        return may(repository, Action.CREATE)
    except DirectoryUnavailable as problem:
        log.warning("it is not known whether %s may be made: %s", repository, problem.reason)
        return True


def _may(repository: Named) -> set[str]:
    """Return what who asks may do with a repository, in the words of scopes."""
    try:
        public = services().registry.repository(repository.namespace, repository.repository).public
        there = True
    except RepositoryNotFound:
        public = there = False
    found = {word for word, action in _ACTIONS.items() if may(repository, action, public=public)}
    creates = _may_create(repository)  # asked of one that is there too: it takes as long then
    if there:
        return found
    return found | {"pull", "push"} if creates else found - {"push"}
