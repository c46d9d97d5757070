"""The OpenAPI document of the admin API. OpenAPI 3.1.

The law: every answer that the API gives is described here, and the tests hold each of theirs against it. Knows no HTTP.
"""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from endpoints.apischemas import (
    ANALYSIS,
    ANALYZED_LAYER,
    COUNT,
    DERIVED,
    ERRORS,
    JOB,
    JOB_STATE,
    STATE,
    TEXT,
    an_object,
    of,
    request,
)

_PROBLEMS = {
    "400": "A body or a parameter that cannot be used; the message names it and what is allowed.",
    "401": "Nobody, or a token or a login that is not valid.",
    "403": "It concerns no repository that you administer, or may read, or more than such; or there is no such thing.",
    "404": "Nothing is there under this name; the message says what is missing.",
    "405": "The repository is for something else than images.",
    "409": "It cannot be done as things stand: the registry is read-only, or the job has ended.",
    "415": "It is no container image, but an artifact.",
    "422": "What is asked for is too much at once, or an image that breaks its specification.",
    "429": "Too many logins of this user failed; Retry-After says when the next is looked at.",
    "500": "The server failed; its log says why.",
    "502": "What is stored is not what the registry says: layers are absent, cut short or other bytes.",
    "503": "The database or the storage does not answer, or as many images are being made as may be.",
}


def _parameter(name: str, where: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": description}


def _filter(name: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return _parameter(name, "query", schema or TEXT, f"Only those of this {name}.")


_PAGE = [
    _parameter("after", "query", TEXT, "Begin behind this one; the Link of a page has it."),
    _parameter(
        "limit", "query", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "At most so many."
    ),
]
_LINK = {"Link": {"schema": TEXT, "description": 'The next page, `rel="next"`; absent on the last. RFC 8288.'}}
_JOB_ID = _parameter("id", "path", TEXT, "A job's id.")
_DERIVED_KEY = _parameter("key", "path", TEXT, "A derived image's key.")


def _json(schema: dict[str, Any], description: str, **more: Any) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}, **more}


def _operation(
    name: str, summary: str, answers: dict[str, Any], *problems: str, tag: str, public: bool = False, **more: Any
) -> dict[str, Any]:
    problems = (*problems, "500", "503") if public else ("401", "403", "429", *problems, "500", "503")
    responses = answers | {status: {"$ref": f"#/components/responses/{status}"} for status in problems}
    return {
        "operationId": name,
        "summary": summary,
        "tags": [tag],
        **({"security": []} if public else {}),
        **more,
        "responses": dict(sorted(responses.items())),
    }


def _paths() -> dict[str, Any]:
    jobs, derived = (
        an_object(jobs={"type": "array", "items": of("Job")}),
        an_object(derived={"type": "array", "items": of("Derived")}),
    )
    body = {"required": True, "content": {"application/json": {"schema": of("Request")}}}
    return {
        "/jobs": {
            "post": _operation(
                "askForImages",
                "Ask for derived images; where the same waits or is under way, that job is answered.",
                {"202": _json(jobs, "The jobs, one for each image, verb and platform.")},
                "400", "404", "409", "422",
                tag="jobs",
                requestBody=body,
            ),
            "get": _operation(
                "listJobs",
                "List jobs, the newest first.",
                {"200": _json(jobs, "A page of jobs.", headers=_LINK)},
                "400",
                tag="jobs",
                parameters=[
                    _filter("group"), _filter("namespace"), _filter("repository"), _filter("verb"),
                    _filter("state", JOB_STATE), *_PAGE,
                ],
            ),
            "delete": _operation(
                "cancelJobs",
                "Cancel what has not ended of the jobs that were asked for at once.",
                {"200": _json(an_object(cancelled=COUNT), "How many were cancelled.")},
                "400", "409",
                tag="jobs",
                parameters=[{**_filter("group"), "required": True}],
            ),
        },
        "/jobs/{id}": {
            "parameters": [_JOB_ID],
            "get": _operation("showJob", "Show a job.", {"200": _json(of("Job"), "The job.")}, "404", tag="jobs"),
            "delete": _operation(
                "cancelJob",
                "Cancel a job; what runs stops within seconds.",
                {"200": _json(of("Job"), "The job, which is cancelled.")},
                "404", "409",
                tag="jobs",
            ),
        },
        "/derived": {
            "get": _operation(
                "listDerived",
                "List derived images, by their keys.",
                {"200": _json(derived, "A page of derived images.", headers=_LINK)},
                "400",
                tag="derived images",
                parameters=[
                    _filter("namespace"), _filter("repository"), _filter("verb"), _filter("state", STATE), *_PAGE,
                ],
            ),
        },
        "/derived/{key}": {
            "parameters": [_DERIVED_KEY],
            "get": _operation(
                "showDerived",
                "Show a derived image.",
                {"200": _json(of("Derived"), "The derived image.")},
                "404",
                tag="derived images",
            ),
            "delete": _operation(
                "deleteDerived",
                "Delete a derived image, or have the making of it given up. The next who asks has it made again.",
                {"204": {"description": "It is gone."}},
                "404", "409",
                tag="derived images",
            ),
        },
        "/analysis/{namespace}/{repository}/{tag}": {
            "parameters": [
                _parameter("namespace", "path", TEXT, "The image's namespace."),
                _parameter("repository", "path", TEXT, "Its repository, which may have slashes."),
                _parameter("tag", "path", TEXT, "A tag, or a manifest's digest."),
            ],
            "get": _operation(
                "analyze",
                "Tell what the layers of an image bring and waste, for all who may read it.",
                {"200": _json(of("Analysis"), "The analysis.")},
                "400", "404", "405", "415", "422", "502",
                tag="about images",
                parameters=[
                    _parameter("platform", "query", TEXT, "Of an image for several: OS/ARCHITECTURE[/VARIANT]."),
                    _parameter("all", "query", {"type": "boolean", "default": False}, "Whether to list all paths."),
                ],
                security=[{}, {"token": []}, {"login": []}],
            ),
        },
        "/openapi.json": {
            "get": _operation(
                "describe",
                "This document.",
                {"200": _json({"type": "object"}, "An OpenAPI document.")},
                tag="about",
                public=True,
            ),
        },
    }  # fmt: skip


def document(base: str, *, verbs: Iterable[str]) -> dict[str, Any]:
    """Return the document of the API at the URL `base`, where `verbs` are installed."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "registry-verbs: derived images made ahead",
            "version": _version(),
            "description": "Ask for derived images before anybody does, look at what there is, cancel and delete.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": base}],
        "security": [{"token": []}, {"login": []}],
        "tags": [
            {"name": "jobs", "description": "What was asked for ahead."},
            {"name": "derived images", "description": "What is there, is being made, or could not be made."},
            {"name": "about images", "description": "What they are made of."},
            {"name": "about", "description": "The API itself."},
        ],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An admin token (`registry-verbs admin-token create NAME`), which may do everything;"
                    " or a token of `/v2/auth`.",
                },
                "login": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "A user's or a robot's name and password. A superuser may do everything; others ask"
                    " for images of repositories that they administer, and list jobs and derived images of one such"
                    " with `namespace` and `repository`.",
                },
            },
            "schemas": {
                "Request": request(verbs),
                "Job": JOB,
                "Derived": DERIVED,
                "Analysis": ANALYSIS,
                "AnalyzedLayer": ANALYZED_LAYER,
                "Errors": ERRORS,
            },
            "responses": {
                status: _json(of("Errors"), description, **_challenge(status))
                for status, description in _PROBLEMS.items()
            },
        },
    }


def _challenge(status: str) -> dict[str, Any]:
    if status != "401":
        return {}
    return {"headers": {"WWW-Authenticate": {"schema": TEXT, "description": "`Bearer` and `Basic`. RFC 6750, 7617."}}}


def _version() -> str:
    try:
        return version("registry-verbs")
    except PackageNotFoundError:  # run from its sources
        return "0"
