"""The blueprint itself, and what holds for all its routes.

The law: every answer says which API this is, and an error is told in the specification's form (answers.py), also where
no route has been reached. An answer to a request whose body nobody has read reaches its client all the same, and leaves
the connection as it should be. Routes stand in modules of their own, which `endpoints.v2` imports.
"""

from functools import partial

from flask import Blueprint, Response, current_app, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from endpoints import audit
from endpoints.v2 import answers
from endpoints.wire import read_on
from util.problem import Problem

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

blueprint = Blueprint(audit.REGISTRY, __name__, url_prefix="/v2")
audit.watch(blueprint)
blueprint.register_error_handler(Problem, answers.of_problem)
blueprint.register_error_handler(HTTPException, answers.of_http_exception)
blueprint.register_error_handler(Exception, answers.of_exception)


@blueprint.after_request
def tell_version(answer: Response) -> Response:
    answer.headers["Docker-Distribution-API-Version"] = "registry/2.0"
    answer.headers.setdefault("X-Content-Type-Options", "nosniff")
    return answer


@blueprint.after_request
def let_the_client_end(answer: Response) -> Response:
    if request.content_length or "Transfer-Encoding" in request.headers:
        answer.call_on_close(partial(read_on, request.environ))
    return answer


@blueprint.route("/<path:_>", methods=_METHODS)
def unknown(_: str) -> Response:
    """Answer what is no URL of ours, or one that takes other methods, in the specification's form.

    Routing's own errors are the application's to answer, and that may be a host's.
    """
    allowed = [method for method in _METHODS if _leads_somewhere(method)]
    if allowed:
        raise MethodNotAllowed(allowed, f"{request.method} means nothing here")
    raise NotFound("there is nothing here by the distribution-spec")


def _leads_somewhere(method: str) -> bool:
    """Tell whether the URL of the request is one of ours by another method."""
    try:
        endpoint, _ = current_app.create_url_adapter(request).match(method=method)  # type: ignore[union-attr] # within one
    except HTTPException:  # a redirect too
        return False
    return bool(endpoint != request.endpoint)
