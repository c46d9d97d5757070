"""The blueprint `/api/v1`: derived images made ahead, for administrators and their programs, in JSON.

The law: what goes in and out is what the OpenAPI document in openapi.py says, and nothing is done for nobody: an admin
token and a superuser may do everything, others what concerns a repository that they administer (adminaccess.py). Lists
come in pages, and a Link leads to the next. RFC 8288.
"""

import json
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlencode

from flask import Blueprint, Response, current_app, g, jsonify, request, url_for

from data.derivedimages import DerivedRecord, State
from data.jobs import Job, JobState
from endpoints import answers, openapi, queries, stock
from endpoints.adminaccess import Administrator, administrator, answer_as_api
from endpoints.priming import Priming, Tell
from endpoints.rules import Forms, ImageName, InvalidRequest, Selection, fields_of, texts
from endpoints.services import Services
from endpoints.stock import DerivedNotFound, JobNotFound, Made
from endpoints.verbs import EXTENSION

TELL = "registry_verbs_tell"
"""Where a Flask application keeps what tells workers of jobs."""

_MAX_BODY = 1 << 20
_LIMITS = range(1, 1001)
_JOB_FILTERS = {"group": "group_id", "namespace": "namespace", "repository": "repository", "verb": "verb"}
_DERIVED_FILTERS = ("namespace", "repository", "verb")

_Choice = TypeVar("_Choice", bound=StrEnum)

blueprint = Blueprint("registry_verbs_admin", __name__, url_prefix="/api/v1")
answer_as_api(blueprint)


@blueprint.before_request
def authenticate() -> None:
    if request.endpoint != f"{blueprint.name}.{document.__name__}":
        g.registry_verbs_admin = administrator(_services())


@blueprint.get("/openapi.json")
def document() -> Response:
    """Describe this API; everybody may read that."""
    base = url_for(".document").removesuffix("/openapi.json")
    return jsonify(openapi.document(base, verbs=_services().formatters))


# --- Jobs -------------------------------------------------------------------------------------------------------------


@blueprint.post("/jobs")
def ask() -> tuple[Response, int]:
    """Ask for derived images."""
    body = fields_of(_body(), ("images", *Selection.FIELDS, *Forms.FIELDS))
    names = texts(body, "images", 'a list of images, e.g. ["acme/app:1.0"]')
    if bool(names) == ("repositories" in body):
        raise InvalidRequest("either images or repositories is needed, and not both")
    if names and "tags" in body:
        raise InvalidRequest("tags goes with repositories; images name their tags")
    what: list[ImageName | Selection] = [ImageName.parse(name) for name in names]
    if not names:
        what = [Selection.parse(body)]
    for each in what:
        _check_wanted(each)
    tell: Tell = current_app.extensions[TELL]
    jobs = Priming(_services(), tell).ask(what, Forms.parse(body), asked_by=_asking().name)
    return _jobs(jobs), HTTPStatus.ACCEPTED


@blueprint.get("/jobs")
def list_jobs() -> Response:
    """List jobs, the newest first."""
    queries.check_names(*_JOB_FILTERS, "state", "after", "limit")
    limit = _limit()
    filters = {name: _parameter(parameter) for parameter, name in _JOB_FILTERS.items()}
    _check_listed(filters["namespace"], filters["repository"])
    jobs = _services().jobs.list(**filters, state=_choice("state", JobState), after=_parameter("after"), limit=limit)
    return _linked(_jobs(jobs), jobs[-1].id if len(jobs) == limit else None)


@blueprint.delete("/jobs")
def cancel_jobs() -> Response:
    """Cancel what has not ended of a group."""
    queries.check_names("group")
    group = _parameter("group")
    if group is None:
        raise answers.InvalidQuery("group is missing; it says which jobs to cancel")
    _check_group(group)
    return jsonify({"cancelled": stock.cancel_group(_services(), group)})


@blueprint.get("/jobs/<job_id>")
def show_job(job_id: str) -> Response:
    """Show one job."""
    return _job(_checked_job(job_id))


@blueprint.delete("/jobs/<job_id>")
def cancel_job(job_id: str) -> Response:
    """Cancel one job."""
    _checked_job(job_id)
    return _job(stock.cancel(_services(), job_id))


# --- Derived images ---------------------------------------------------------------------------------------------------


@blueprint.get("/derived")
def list_derived() -> Response:
    """List derived images, by their keys."""
    queries.check_names(*_DERIVED_FILTERS, "state", "after", "limit")
    limit = _limit()
    filters = {name: _parameter(name) for name in _DERIVED_FILTERS}
    _check_listed(filters["namespace"], filters["repository"])
    records = _services().derived.list(**filters, state=_choice("state", State), after=_parameter("after"), limit=limit)
    answer = jsonify({"derived": [_derived_document(record) for record in records]})
    return _linked(answer, records[-1].key if len(records) == limit else None)


@blueprint.get("/derived/<key>")
def show_derived(key: str) -> Response:
    """Show one derived image."""
    return jsonify(_derived_document(_checked_derived(key)))


@blueprint.delete("/derived/<key>")
def delete_derived(key: str) -> tuple[str, int]:
    """Delete one derived image; the next who asks for it has it made again."""
    _checked_derived(key)
    stock.drop(_services(), key)
    return "", HTTPStatus.NO_CONTENT


# --- Who asks ---------------------------------------------------------------------------------------------------------


def _asking() -> Administrator:
    asking: Administrator = g.registry_verbs_admin
    return asking


def _check_wanted(what: ImageName | Selection) -> None:
    if isinstance(what, ImageName):
        _asking().check(what.namespace, what.repository, what=f"{what.namespace}/{what.repository}")
    elif what.repository is None:
        _asking().check_everything(f"repositories is {what.repositories!r}")
    else:
        namespace, repository = what.repository
        _asking().check(namespace, repository, what=what.repositories)


def _check_listed(namespace: str | None, repository: str | None) -> None:
    if namespace is None or repository is None:
        _asking().check_everything("a list without namespace and repository")
    else:
        _asking().check(namespace, repository, what=f"{namespace}/{repository}")


def _checked_job(job_id: str) -> Job:
    """Return the job. Raises JobNotFound for who may know, NotAdministered."""
    try:
        job = stock.job(_services(), job_id)
    except JobNotFound:
        if _asking().everything:
            raise
        raise _asking().refusal(f"job {job_id}") from None
    _asking().check(job.namespace, job.repository, what=f"job {job_id}")
    return job


def _checked_derived(key: str) -> DerivedRecord:
    """Return the derived image. Raises DerivedNotFound for who may know, NotAdministered."""
    try:
        record = stock.derived(_services(), key)
    except DerivedNotFound:
        if _asking().everything:
            raise
        raise _asking().refusal(f"derived image {key}") from None
    _asking().check(record.namespace, record.repository, what=f"derived image {key}")
    return record


def _check_group(group: str) -> None:
    """Raise NotAdministered unless all jobs of the group are for repositories of who asks."""
    if _asking().everything:
        return
    repositories = stock.repositories_of_group(_services(), group)
    if not repositories:
        raise _asking().refusal(f"group {group}")
    for namespace, repository in repositories:
        _asking().check(namespace, repository, what=f"group {group}")


# --- Documents --------------------------------------------------------------------------------------------------------


def _jobs(jobs: list[Job]) -> Response:
    progress = stock.progress(_services(), jobs)
    return jsonify({"jobs": [_job_document(job, progress.get(job.id)) for job in jobs]})


def _job(job: Job) -> Response:
    return jsonify(_job_document(job, stock.progress(_services(), [job]).get(job.id)))


def _job_document(job: Job, progress: Made | None) -> dict[str, Any]:
    return {
        "id": job.id,
        "group": job.group_id,
        "state": job.state,
        "verb": job.verb,
        "namespace": job.namespace,
        "repository": job.repository,
        "reference": job.reference,
        "manifest_digest": job.manifest_digest,
        "platform": job.platform,
        "compression": job.compression,
        "key": job.key,
        "bytes_done": None if progress is None else progress.done,
        "bytes_total": None if progress is None else progress.total,
        "asked_by": job.asked_by,
        "reason": job.reason,
        "attempts": job.attempts,
        "worker": job.worker,
        "created": _time(job.created_ms),
        "started": _time(job.started_ms),
        "finished": _time(job.finished_ms),
        "due": _time(job.due_ms),
    }


def _derived_document(record: DerivedRecord) -> dict[str, Any]:
    return {
        "key": record.key,
        "state": record.state,
        "live": record.lease_live,
        "verb": record.verb,
        "namespace": record.namespace,
        "repository": record.repository,
        "reference": record.reference,
        "manifest_digest": record.manifest_digest,
        "platform": record.platform,
        "compression": record.compression,
        "media_type": record.media_type,
        "file_name": record.file_name,
        "size": record.size,
        "sha256": record.sha256,
        "bytes_done": record.bytes_done,
        "bytes_total": record.bytes_total,
        "asked_by": record.asked_by,
        "reason": record.reason,
        "attempts": record.attempts,
        "host": record.host,
        "created": _time(record.created_ms),
        "completed": _time(record.completed_ms),
        "fetched": _time(record.fetched_ms),
    }


def _time(milliseconds: int | None) -> str | None:
    """Return a time as RFC 3339 has it."""
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _linked(answer: Response, after: str | None) -> Response:
    """Let `answer` lead to the next page, which begins behind `after`, if there is one."""
    if after is not None:
        query = urlencode({**request.args.to_dict(), "after": after})
        answer.headers["Link"] = f'<{url_for(request.endpoint or "")}?{query}>; rel="next"'
    return answer


# --- What is asked ----------------------------------------------------------------------------------------------------


def _services() -> Services:
    services: Services = current_app.extensions[EXTENSION]
    return services


def _body() -> Any:
    text = request.stream.read(_MAX_BODY + 1)
    if len(text) > _MAX_BODY:
        raise InvalidRequest(f"the body has more than {_MAX_BODY} bytes")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def _parameter(name: str) -> str | None:
    value = request.args.get(name)
    if value is not None and not value.isprintable():  # no row has it, and a database may refuse to look
        raise answers.InvalidQuery(f"{name} is {value!r}; allowed: printable characters")
    return value


def _choice(name: str, choices: type[_Choice]) -> _Choice | None:
    value = _parameter(name)
    try:
        return None if value is None else choices(value)
    except ValueError:
        raise answers.InvalidQuery(f"{name} is {value!r}; allowed: {', '.join(choices)}") from None


def _limit() -> int:
    value = _parameter("limit") or "100"
    if not value.isascii() or not value.isdigit() or len(value) > 9 or int(value) not in _LIMITS:
        raise answers.InvalidQuery(f"limit is {value!r}; allowed: {_LIMITS.start} to {_LIMITS.stop - 1}")
    return int(value)
