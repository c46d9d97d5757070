"""`/oauth2/federation/robot/token`: a robot's short-lived token for one of its identity provider, as at a Quay.

The path, the way to ask and the form of the answer are Quay's: Basic, with the robot's name and the provider's token as
its password. quay/quay, endpoints/oauth/robot_identity_federation.py.
"""

from http import HTTPStatus

from flask import Blueprint, Response, current_app, json, request

from endpoints import answers, audit
from endpoints.access import Unauthenticated
from endpoints.robottokens import SignedRobotTokens
from endpoints.services import Services
from endpoints.verbs import EXTENSION
from util.problem import Problem

blueprint = Blueprint("registry_verbs_federation", __name__)


class NoFederatedLogin(Unauthenticated):
    """A request that says neither which robot it is, nor by which token."""


@blueprint.get("/oauth2/federation/robot/token")
def robot_token() -> Response:
    """Answer with a token that is the robot's password for an hour."""
    services: Services = current_app.extensions[EXTENSION]
    given = request.authorization
    if given is None or given.type != "basic":
        raise NoFederatedLogin("say the robot's name and the token of its identity provider by Basic")
    robot = services.federation.authenticate(given.username or "", given.password or "")
    return _answer(HTTPStatus.OK, {"token": SignedRobotTokens(services.settings).sign(robot.name)})


@blueprint.errorhandler(Problem)
def of_problem(problem: Problem) -> Response:
    """Answer with what is wrong, in the form that Quay has here."""
    audit.failed("answer", problem)
    status = answers.status_of(problem)
    answer = _answer(status, {"error": str(problem)})
    if status is HTTPStatus.UNAUTHORIZED:
        answer.headers["WWW-Authenticate"] = answers.basic_challenge()
    return answer


def _answer(status: HTTPStatus, document: dict[str, str]) -> Response:
    answer = Response(json.dumps(document) + "\n", status=status, content_type="application/json")
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["X-Content-Type-Options"] = "nosniff"
    return answer
