"""What a problem becomes over `/v2`: a status, and a body with a code that the distribution-spec knows.

The law: `errors[].code` is one of the specification's, whatever our own is; the text is the problem's own. Its kind
decides the status: here where `/v2` answers otherwise than the verbs do, else as there (endpoints/answers.py). A 401
comes with a challenge that says where a token is had, and for what. Distribution-spec, "Error Codes".

A module that raises something new adds a row to `_ANSWERS`.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from flask import Response, json, request, url_for
from werkzeug.exceptions import HTTPException

from data.pushedblobs import BlobInUse
from data.pushedmanifests import HeldByIndex, NamedContentUnknown
from data.uploads import UploadCut, UploadTaken
from endpoints import answers, audit
from endpoints.access import InsufficientScope
from endpoints.image import NamespaceDisabled
from endpoints.maker import MakingGivenUp, NotKept
from endpoints.making import Busy
from endpoints.tokens import TokenRefused
from endpoints.v2.names import PushesRefused, services, wanted
from endpoints.virtualimages import StillMaking
from util.digest import DigestMismatch, InvalidDigest
from util.problem import Damaged, Malformed, Missing, Problem, TooLarge

log = logging.getLogger(__name__)

CODES = frozenset(
    {
        "BLOB_UNKNOWN",
        "BLOB_UPLOAD_INVALID",
        "BLOB_UPLOAD_UNKNOWN",
        "DIGEST_INVALID",
        "MANIFEST_BLOB_UNKNOWN",
        "MANIFEST_INVALID",
        "MANIFEST_UNKNOWN",
        "NAME_INVALID",
        "NAME_UNKNOWN",
        "SIZE_INVALID",
        "UNAUTHORIZED",
        "DENIED",
        "UNSUPPORTED",
        "TOOMANYREQUESTS",
    }
)
"""Every code that the specification has."""

_RETRY_SECONDS = 5

# The first that fits: what is more particular stands above what is more general.
_ANSWERS: tuple[tuple[type[Problem], HTTPStatus], ...] = (
    (PushesRefused, HTTPStatus.METHOD_NOT_ALLOWED),
    (BlobInUse, HTTPStatus.METHOD_NOT_ALLOWED),
    (UploadCut, HTTPStatus.BAD_REQUEST),
    (UploadTaken, HTTPStatus.CONFLICT),
    (HeldByIndex, HTTPStatus.METHOD_NOT_ALLOWED),
    (NamespaceDisabled, HTTPStatus.FORBIDDEN),
    (Busy, HTTPStatus.TOO_MANY_REQUESTS),
    (StillMaking, HTTPStatus.TOO_MANY_REQUESTS),
    (MakingGivenUp, HTTPStatus.SERVICE_UNAVAILABLE),
    (NotKept, HTTPStatus.SERVICE_UNAVAILABLE),
    (InvalidDigest, HTTPStatus.BAD_REQUEST),
    (Malformed, HTTPStatus.BAD_REQUEST),
    (TooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
)
_CODE_OF = {
    "TAG_UNKNOWN": "MANIFEST_UNKNOWN",
    "MANIFEST_NOT_FETCHED": "MANIFEST_UNKNOWN",
    "NAMESPACE_DISABLED": "DENIED",
    "DIGEST_MISMATCH": "DIGEST_INVALID",
    "MANIFEST_TYPE_UNSUPPORTED": "MANIFEST_INVALID",  # on which clients try another type
    "SCHEMA1_NOT_IMPORTED": "MANIFEST_INVALID",
}
_CODE_BY_STATUS = {
    HTTPStatus.BAD_REQUEST: "UNSUPPORTED",
    HTTPStatus.UNAUTHORIZED: "UNAUTHORIZED",
    HTTPStatus.FORBIDDEN: "DENIED",
    HTTPStatus.NOT_FOUND: "NAME_UNKNOWN",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "SIZE_INVALID",
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "SIZE_INVALID",
    HTTPStatus.TOO_MANY_REQUESTS: "TOOMANYREQUESTS",
    HTTPStatus.SERVICE_UNAVAILABLE: "TOOMANYREQUESTS",  # what is meant is: not now
}
_WRITING = frozenset({"POST", "PUT", "PATCH"})


@dataclass(frozen=True, slots=True)
class Error:
    """One entry of `errors`. `code` is one of CODES."""

    code: str
    message: str
    detail: Any = None


def status_of(problem: Problem) -> HTTPStatus:
    """Return the status that answers `problem` here."""
    if isinstance(problem, DigestMismatch) and request.method in _WRITING:
        return HTTPStatus.BAD_REQUEST  # it is the client's bytes that are not as it says
    return next((status for kind, status in _ANSWERS if isinstance(problem, kind)), answers.status_of(problem))


def code_of(problem: Problem) -> str:
    """Return the specification's code for `problem`."""
    code = _CODE_OF.get(problem.code, problem.code)
    if code in CODES:
        return code
    if isinstance(problem, Damaged):
        return "BLOB_UNKNOWN"
    if isinstance(problem, Malformed):
        return "MANIFEST_INVALID"
    status = status_of(problem)
    if isinstance(problem, Missing) and status is HTTPStatus.NOT_FOUND:
        return "MANIFEST_UNKNOWN"
    return _CODE_BY_STATUS.get(status, "UNSUPPORTED")


def of_problem(problem: Problem) -> Response:
    """Answer a problem with the specification's code and its own text; what it knows beside that is the detail."""
    status = status_of(problem)
    audit.failed("answer", problem)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s %s: %s", request.method, request.path, answers.said_to_log(problem))
    response = answer(status, _errors(problem))
    retry_after = getattr(problem, "retry_after", None)
    if retry_after is None and status is HTTPStatus.SERVICE_UNAVAILABLE:
        retry_after = _RETRY_SECONDS
    if retry_after is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if status is HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = challenge(problem)
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = ""  # no other method would do: RFC 9110, 10.2.1
    return response


def _errors(problem: Problem) -> Sequence[Error]:
    code, existing = code_of(problem), getattr(problem, "existing", None)
    if isinstance(problem, NamedContentUnknown):
        return [
            Error(code, f"{digest} is not in the repository", {"digest": str(digest)}) for digest in problem.missing
        ]
    detail = {"existing": [str(item) for item in existing]} if existing is not None else None
    return [Error(code, str(problem), detail)]


def of_http_exception(exception: HTTPException) -> Response | HTTPException:
    """Answer what routing or a host's permission check raised; an answer that it brought along is left as it is."""
    if exception.response is not None or exception.code is None or exception.code < HTTPStatus.BAD_REQUEST:
        return exception
    code = _CODE_BY_STATUS.get(HTTPStatus(exception.code), "UNSUPPORTED")
    audit.failed("answer", code)
    response = answer(exception.code, [Error(code, exception.description or code)])
    for name, value in exception.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def of_exception(exception: Exception) -> Response:
    """Answer what nobody foresaw: the log has all of it, the client none."""
    log.error("%s %s failed", request.method, request.path, exc_info=exception)
    audit.failed("answer", exception)
    return answer(HTTPStatus.INTERNAL_SERVER_ERROR, [Error("UNSUPPORTED", "the server failed; its log says why")])


def answer(status: int, errors: Iterable[Error], headers: Mapping[str, str] | None = None) -> Response:
    """Answer with `errors` in the specification's form."""
    listed = [{"code": each.code, "message": each.message, "detail": each.detail} for each in errors]
    response = Response(
        json.dumps({"errors": listed}) + "\n", status=status, headers=headers, content_type="application/json"
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def challenge(problem: Problem | None = None) -> str:
    """Return the field WWW-Authenticate: where a token is had, and the scope that this request needs."""
    settings = services().settings
    if request.endpoint in _WHERE_TOKENS_ARE:
        return f"Basic realm={_quoted(request.host)}"
    fields = {
        "realm": f"{settings.url_scheme}://{request.host}{url_for(_WHERE_TOKENS_ARE[0])}",
        "service": settings.server_hostname,
        "scope": wanted(),
        "error": _ERRORS.get(type(problem)) if problem is not None else None,
    }
    return "Bearer " + ",".join(f"{name}={_quoted(text)}" for name, text in fields.items() if text is not None)


_WHERE_TOKENS_ARE = ("registry_verbs_v2.auth", "registry_verbs_v2.auth_by_form")
_ERRORS: dict[type[Problem], str] = {InsufficientScope: "insufficient_scope", TokenRefused: "invalid_token"}


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
