"""Who sends the request that is being answered: an account by its credentials or its token, or nobody.

The law: it is worked out once a request, and only when somebody wants to know. Credentials that are wrong are refused
wherever they are looked at, also where nobody need have any. A token only says who was logged in and what they asked
for; whether that account may still come is looked up.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flask import current_app, request

from data.accounts import Account
from data.programlogins import OAUTH_TOKEN_USER, limited, may_be_oauth_token
from endpoints.access import Action, Unauthenticated
from endpoints.services import Services
from endpoints.tokens import TokenRefused, Tokens
from endpoints.verbs import EXTENSION

TOKENS = "registry_verbs_tokens"
"""Where a Flask application keeps its Tokens."""

_CALLER = "registry_verbs.caller"
"""Where a request's environment keeps who sends it. Flask's `g` may be shared by several requests."""

_GRANTS = {
    "pull": frozenset({Action.READ}),
    "push": frozenset({Action.WRITE, Action.CREATE, Action.DELETE}),
    "delete": frozenset({Action.DELETE}),
    "*": frozenset(Action),
}


class CredentialsUnusable(Unauthenticated):
    """Credentials of a kind that is not taken here."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `account` is None for nobody. `granted`: what their token is for, by repository; None without one."""

    account: Account | None = None
    granted: Mapping[str, frozenset[str]] | None = None

    def may(self, namespace: str, repository: str, action: Action) -> bool:
        """Tell whether the token allows it, if there is one. What the account may do is another question."""
        if self.granted is None:
            return True
        words = self.granted.get(f"{namespace}/{repository}", frozenset())
        return any(action in _GRANTS.get(word, ()) for word in words)


def caller() -> Caller:
    """Return who sends the request that is being answered.

    Raises CredentialsRefused, CredentialsUnusable, TokenRefused, TokensUnavailable, RegistryUnavailable,
    DirectoryUnavailable.
    """
    known: Caller | None = request.environ.get(_CALLER)
    if known is None:
        known = _read()
        become(known)
    return known


def become(known: Caller) -> None:
    """Have the rest of the request be one of `known`."""
    request.environ[_CALLER] = known


def who() -> str | None:
    """Return the name of who sends the request, as far as somebody wanted to know; else of whom a server before us has
    authenticated; None for nobody.
    """
    known: Caller | None = request.environ.get(_CALLER)
    if known is None or known.account is None:
        return request.remote_user
    return known.account.name


def _read() -> Caller:
    if "Authorization" not in request.headers:
        return Caller()
    given = request.authorization
    services: Services = current_app.extensions[EXTENSION]
    if given is not None and given.type == "basic":
        return Caller(services.accounts.authenticate(given.username or "", given.password or ""))
    if given is not None and given.type == "bearer" and given.token:
        if may_be_oauth_token(given.token):
            return Caller(services.accounts.authenticate(OAUTH_TOKEN_USER, given.token))
        return _of_token(services, given.token)
    raise CredentialsUnusable(
        "these credentials are not understood: Basic, or Bearer with a token of /v2/auth or an OAuth token"
    )


def _of_token(services: Services, text: str) -> Caller:
    tokens: Tokens = current_app.extensions[TOKENS]
    claims = tokens.read(text)
    if claims.account is None:
        return Caller(None, claims.granted)
    account = services.accounts.find(claims.account)
    if account is None or account.id != claims.account_id:
        raise TokenRefused("the token is not valid: its account is not there any more, or disabled")
    return Caller(account if claims.scopes is None else limited(account, claims.scopes), claims.granted)
