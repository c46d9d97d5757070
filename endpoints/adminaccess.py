"""Who may use the admin API: who brings an admin token, superusers, and who administers a repository, for that one.

The law: who asks is settled before anything else is looked at. An admin token may do everything, and is good for
nothing but this API. Who may not do everything is told the same of what is another's and of what is not there. RFC
6750.
"""

from dataclasses import dataclass

from flask import Blueprint, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.http import quote_header_value

from data.accounts import CredentialsRefused, TooManyLogins
from data.admintokens import PREFIX
from endpoints import answers
from endpoints.access import Action, Denied, Permission, Unauthenticated, allows, everything
from endpoints.caller import caller
from endpoints.services import Services
from endpoints.tokens import TokenRefused
from util.problem import Problem


class LoginRequired(Unauthenticated):
    """A request to the admin API by nobody, or with a token that is not valid."""


class NotAdministered(Denied):
    """What is no repository of who asks, or of no one repository."""


@dataclass(frozen=True, slots=True)
class Administrator:
    """Who asks. `everything`: they need not administer what they ask for."""

    name: str
    everything: bool
    permission: Permission

    def check(self, namespace: str, repository: str, *, what: str) -> None:
        """Raise NotAdministered unless they administer the repository; `what` is how the error calls what is asked."""
        if not self.everything and not allows(
            self.permission, namespace, repository, public=False, action=Action.ADMIN
        ):
            raise self.refusal(what)

    def check_everything(self, what: str) -> None:
        """Raise NotAdministered unless they may do everything."""
        if not self.everything:
            raise NotAdministered(f"{what}: only for superusers and admin tokens; name a repository of yours")

    def refusal(self, what: str) -> NotAdministered:
        """Return what refuses `what`, whether or not it exists."""
        return NotAdministered(f"{what} does not exist or is not yours to administer")


def administrator(services: Services) -> Administrator:
    """Return who asks.

    Raises LoginRequired, what `caller` raises, DatabaseUnavailable.
    """
    given = request.authorization
    if given is not None and _with_admin_token():
        name = services.tokens.check(given.token or "")
        if name is None:
            raise LoginRequired("this admin token is not valid: it was revoked, has run out, or never was")
        return Administrator(name, everything=True, permission=services.permission)
    asking = caller()
    if asking.account is None:
        raise LoginRequired("the admin API wants an admin token (Authorization: Bearer rvt_…), or a user's login")
    everything = asking.account.superuser and asking.granted is None  # a token of /v2/auth is for what it names
    return Administrator(asking.account.name, everything, services.permission)


def reader(services: Services) -> Permission:
    """Return the permission check for what is only looked at: that of the verbs; who brings an admin token reads all.

    Raises LoginRequired, DatabaseUnavailable.
    """
    return everything if _with_admin_token() and administrator(services).everything else services.permission


def _with_admin_token() -> bool:
    given = request.authorization
    return given is not None and given.type == "bearer" and (given.token or "").startswith(PREFIX)


def answer_as_api(blueprint: Blueprint) -> None:
    """Have `blueprint` answer as all of the API does: errors in its form, and nothing for a cache to keep."""
    for refused in (Unauthenticated, TokenRefused, CredentialsRefused):
        blueprint.register_error_handler(refused, of_unauthenticated)
    blueprint.register_error_handler(TooManyLogins, answers.of_problem)
    blueprint.register_error_handler(Problem, answers.of_problem)
    blueprint.register_error_handler(HTTPException, answers.of_http_exception)
    blueprint.register_error_handler(Exception, answers.of_exception)
    blueprint.after_request(_keep_private)


def _keep_private(answer: Response) -> Response:
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["X-Content-Type-Options"] = "nosniff"
    return answer


def of_unauthenticated(problem: Problem) -> Response:
    """Answer with the challenges; that what was brought is not valid is said only to who brought something."""
    answer = answers.of_problem(problem)
    # Written by hand: a realm must be quoted, RFC 9110, 11.5.
    realm = f"realm={quote_header_value(request.host, allow_token=False)}"
    told = ', error="invalid_token"' if "Authorization" in request.headers else ""
    del answer.headers["WWW-Authenticate"]
    answer.headers.add("WWW-Authenticate", f"Bearer {realm}{told}")
    answer.headers.add("WWW-Authenticate", f"Basic {realm}")
    return answer
