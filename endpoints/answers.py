"""What a problem becomes over HTTP: a status, and a body in the form that registries share.

The law: the kind of a problem decides its status, its code and its text are passed on as they are, and an exception
that is no problem tells the client nothing but that it happened. Distribution-spec, "Error Codes".
"""

import logging
import math
from http import HTTPStatus
from typing import Any

from flask import Response, json, request
from werkzeug.exceptions import HTTPException
from werkzeug.http import quote_header_value

from data.accounts import CredentialsRefused, TooManyLogins
from data.directories.directory import DirectoryUnavailable
from data.owntables import DatabaseUnavailable
from data.registry import RegistryUnavailable
from data.robotfederation import IssuerUnavailable
from data.storage.base import StorageUnavailable
from endpoints import audit
from endpoints.access import Denied, Unauthenticated
from endpoints.image import NamespaceDisabled, NotAnImageRepository
from endpoints.making import Busy
from endpoints.priming import ReadOnlyRegistry
from endpoints.rules import InvalidRequest
from endpoints.signer import SigningFailed
from endpoints.signing import NothingToSign
from endpoints.stock import JobEnded
from endpoints.tokens import TokenRefused, TokensUnavailable
from formats.formatter import InvalidOption
from util.problem import Damaged, Inexpressible, Malformed, Missing, Problem, TooLarge, Unavailable, Unsupported

log = logging.getLogger(__name__)


class InvalidQuery(Problem):
    """A query parameter with a value that is not allowed; the text names those that are."""

    code = "QUERY_INVALID"


# The first that fits: what is more particular stands above what is more general.
_STATUS: tuple[tuple[type[Problem], HTTPStatus], ...] = (
    (TooManyLogins, HTTPStatus.TOO_MANY_REQUESTS),
    (CredentialsRefused, HTTPStatus.UNAUTHORIZED),
    (TokenRefused, HTTPStatus.UNAUTHORIZED),
    (Unauthenticated, HTTPStatus.UNAUTHORIZED),
    (Denied, HTTPStatus.FORBIDDEN),
    (InvalidQuery, HTTPStatus.BAD_REQUEST),
    (InvalidOption, HTTPStatus.BAD_REQUEST),
    (InvalidRequest, HTTPStatus.BAD_REQUEST),
    (ReadOnlyRegistry, HTTPStatus.CONFLICT),
    (JobEnded, HTTPStatus.CONFLICT),
    (NamespaceDisabled, HTTPStatus.BAD_REQUEST),
    (NotAnImageRepository, HTTPStatus.METHOD_NOT_ALLOWED),
    (Busy, HTTPStatus.SERVICE_UNAVAILABLE),
    (TokensUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (SigningFailed, HTTPStatus.SERVICE_UNAVAILABLE),
    (NothingToSign, HTTPStatus.SERVICE_UNAVAILABLE),
    (StorageUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (DirectoryUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (IssuerUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (DatabaseUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (RegistryUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (Missing, HTTPStatus.NOT_FOUND),
    (Unsupported, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    (Inexpressible, HTTPStatus.UNPROCESSABLE_ENTITY),
    (Malformed, HTTPStatus.UNPROCESSABLE_ENTITY),
    (TooLarge, HTTPStatus.UNPROCESSABLE_ENTITY),
    (Damaged, HTTPStatus.BAD_GATEWAY),
    (Unavailable, HTTPStatus.NOT_IMPLEMENTED),
)


def status_of(problem: Problem) -> HTTPStatus:
    """Return the status that answers `problem`."""
    return next((status for kind, status in _STATUS if isinstance(problem, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def said_to_log(problem: Problem) -> str:
    """Return what the log says of `problem`: more than its own text, where that is not for strangers."""
    return f"{problem}: {problem.reason}" if isinstance(problem, DirectoryUnavailable) else str(problem)


def of_problem(problem: Problem) -> Response:
    """Answer a problem with its own code and text, and with what there is instead where it knows that."""
    status = status_of(problem)
    audit.failed("answer", problem)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(problem, Unavailable):
        log.error("%s %s: %s", request.method, request.path, said_to_log(problem))
    existing = getattr(problem, "existing", None)
    detail = {"existing": [str(item) for item in existing]} if existing is not None else None
    answer = _answer(status, problem.code, str(problem), detail)
    if isinstance(problem, (Busy, TooManyLogins)):
        answer.headers["Retry-After"] = str(math.ceil(problem.retry_after))
    if status is HTTPStatus.UNAUTHORIZED:
        answer.headers["WWW-Authenticate"] = basic_challenge()
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        answer.headers["Allow"] = ""  # no other method would do: RFC 9110, 10.2.1
    return answer


def basic_challenge() -> str:
    """Return the field WWW-Authenticate that asks for a name and a password."""
    # Always quoted, as RFC 9110, 11.5 has it; Werkzeug quotes only what it has to.
    return f"Basic realm={quote_header_value(request.host, allow_token=False)}"


def of_http_exception(exception: HTTPException) -> Response | HTTPException:
    """Answer what routing or a host's permission check raised; an answer that it brought along is left as it is."""
    if exception.response is not None or exception.code is None or exception.code < HTTPStatus.BAD_REQUEST:
        return exception
    code = HTTPStatus(exception.code).phrase.upper().replace(" ", "_")
    audit.failed("answer", code)
    answer = _answer(exception.code, code, exception.description or code, None)
    for name, value in exception.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            answer.headers[name] = value
    return answer


def of_exception(exception: Exception) -> Response:
    """Answer what nobody foresaw: the log has all of it, the client none."""
    log.error("%s %s failed", request.method, request.path, exc_info=exception)
    audit.failed("answer", exception)
    return _answer(HTTPStatus.INTERNAL_SERVER_ERROR, "UNKNOWN", "the server failed; its log says why", None)


def _answer(status: int, code: str, message: str, detail: Any) -> Response:
    errors = {"errors": [{"code": code, "message": message, "detail": detail}]}
    answer = Response(json.dumps(errors) + "\n", status=status, content_type="application/json")
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Cache-Control"] = "no-store"
    return answer
