"""Who may use the admin API: who brings an admin token.

The law: the token is asked for before anything else is looked at, and who has one may do everything; so there is a 401
and no 403. RFC 6750.
"""

from flask import Response, request
from werkzeug.http import quote_header_value

from data.admintokens import AdminTokens
from endpoints import answers
from endpoints.access import Unauthenticated


class TokenRequired(Unauthenticated):
    """A request to the admin API without a token, or with one that is not valid."""


def authenticated(tokens: AdminTokens) -> str:
    """Return the name of the token that the request brings. Raises TokenRequired, DatabaseUnavailable."""
    given = request.authorization
    if given is None or given.type != "bearer" or given.token is None:
        raise TokenRequired("the admin API wants a token: Authorization: Bearer rvt_…")
    name = tokens.check(given.token)
    if name is None:
        raise TokenRequired("this admin token is not valid: it was revoked, has run out, or never was")
    return name


def of_token_required(problem: TokenRequired) -> Response:
    """Answer with the challenge; that a token is not valid is said only to who brought one."""
    answer = answers.of_problem(problem)
    # Written by hand: a realm must be quoted, RFC 9110, 11.5.
    challenge = f"Bearer realm={quote_header_value(request.host, allow_token=False)}"
    if "Authorization" in request.headers:
        challenge += ', error="invalid_token"'
    answer.headers["WWW-Authenticate"] = challenge
    return answer
