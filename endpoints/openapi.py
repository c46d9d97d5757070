"""The OpenAPI document of the admin API. OpenAPI 3.1.

The law: every answer that the API gives is described here, and the tests hold each of theirs against it. Knows no HTTP.
"""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_TIME = {"type": ["string", "null"], "format": "date-time"}
_TEXT = {"type": "string"}
_MAYBE = {"type": ["string", "null"]}
_COUNT = {"type": "integer", "minimum": 0}
_BYTES = {"type": ["integer", "null"], "minimum": 0}
_KEY = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_COMPRESSION = {"type": "string", "enum": ["none", "gzip", "zstd"]}
_JOB_STATE = {"type": "string", "enum": ["queued", "running", "done", "failed", "cancelled"]}
_STATE = {"type": "string", "enum": ["generating", "complete", "failed"]}


def _told(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {**schema, "description": description}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has these fields, all of them, and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _forms(verbs: Iterable[str]) -> dict[str, Any]:
    """Return the fields that say what is to be made of each image."""
    return {
        "verbs": {
            "type": "array",
            "items": _TEXT,
            "minItems": 1,
            "description": "What to make of each image. Installed are: " + ", ".join(verbs),
            "examples": [["squash"]],
        },
        "platforms": {
            "type": ["array", "null"],
            "items": {"type": "string", "pattern": "^[^/]+/[^/]+(/[^/]+)?$"},
            "description": "For which platforms. Without it: the default one of each image.",
            "examples": [["linux/amd64", "linux/arm64"]],
        },
        "compression": {
            "anyOf": [_COMPRESSION, {"type": "null"}],
            "description": "What they are wrapped in. Without it: what the format has.",
        },
    }


def _request(verbs: Iterable[str]) -> dict[str, Any]:
    forms = _forms(verbs)
    images = {"type": "array", "items": _TEXT, "minItems": 1, "examples": [["acme/app:1.0", "acme/app@sha256:…"]]}
    repositories = _told(_TEXT, "A glob of NAMESPACE/REPOSITORY; `*` stands for anything, slashes too.")
    tags = _told(_TEXT, "A glob of tags. Without it: all.")
    return {
        "oneOf": [
            {
                "title": "By name",
                "type": "object",
                "properties": {"images": images, **forms},
                "required": ["images", "verbs"],
                "additionalProperties": False,
            },
            {
                "title": "By globs",
                "type": "object",
                "properties": {"repositories": repositories, "tags": tags, **forms},
                "required": ["repositories", "verbs"],
                "additionalProperties": False,
            },
        ],
        "examples": [{"repositories": "acme/*", "tags": "v*", "verbs": ["squash"], "platforms": ["linux/amd64"]}],
    }


_JOB = _object(
    id=_told(_TEXT, "Rises with time."),
    group=_told(_TEXT, "Common to what was asked for at once."),
    state=_JOB_STATE,
    verb=_TEXT,
    namespace=_TEXT,
    repository=_TEXT,
    reference=_told(_TEXT, "A tag, or a manifest's digest."),
    manifest_digest=_told(_MAYBE, "What the reference meant when it was asked for."),
    platform=_told(_MAYBE, "As it was asked for; null is the default."),
    compression=_told(_MAYBE, "As it was asked for; null is what the format has."),
    key=_told({"anyOf": [_KEY, {"type": "null"}]}, "The derived image's key, as soon as it is known."),
    bytes_done=_told(_BYTES, "How much is made, while it is running."),
    bytes_total=_told(_BYTES, "Of how much, where that is known before the end."),
    asked_by=_told(_MAYBE, "The name of a token, `VERBS_PRIME` for a rule, or who was at the command line."),
    reason=_told(_MAYBE, "Why it failed, or why the last attempt did."),
    attempts=_COUNT,
    worker=_MAYBE,
    created=_TIME,
    started=_told(_TIME, "When the last attempt began."),
    finished=_TIME,
    due=_told(_TIME, "When somebody looks at it next; null once it has ended."),
)

_DERIVED = _object(
    key=_told(_KEY, "Names the bytes; also their ETag."),
    state=_STATE,
    live=_told({"type": "boolean"}, "Whether it is being made, by somebody who is heard of."),
    verb=_TEXT,
    namespace=_TEXT,
    repository=_TEXT,
    reference=_TEXT,
    manifest_digest=_TEXT,
    platform=_TEXT,
    compression=_COMPRESSION,
    media_type=_TEXT,
    file_name=_TEXT,
    size=_told(_BYTES, "In bytes, once it is complete."),
    sha256=_told({"anyOf": [_KEY, {"type": "null"}]}, "Of the bytes, once it is complete."),
    bytes_done=_COUNT,
    bytes_total=_BYTES,
    asked_by=_MAYBE,
    reason=_told(_MAYBE, "Why it could not be made."),
    attempts=_COUNT,
    host=_told(_TEXT, "Who makes it, or made it."),
    created=_TIME,
    completed=_TIME,
    fetched=_told(_TIME, "When it was asked for last."),
)

_ERRORS = _object(
    errors={
        "type": "array",
        "minItems": 1,
        "items": _object(code={"type": "string", "pattern": "^[A-Z][A-Z0-9_]+$"}, message=_TEXT, detail={}),
    }
)

_PROBLEMS = {
    "400": "A body or a parameter that cannot be used; the message names it and what is allowed.",
    "401": "No token, or one that is not valid.",
    "404": "Nothing is there under this name; the message says what is missing.",
    "409": "It cannot be done as things stand: the registry is read-only, or the job has ended.",
    "422": "What is asked for is too much at once, or an image that breaks its specification.",
    "500": "The server failed; its log says why.",
    "503": "The database or the storage does not answer.",
}


def _parameter(name: str, where: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": description}


def _filter(name: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return _parameter(name, "query", schema or _TEXT, f"Only those of this {name}.")


_PAGE = [
    _parameter("after", "query", _TEXT, "Begin behind this one; the Link of a page has it."),
    _parameter(
        "limit", "query", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "At most so many."
    ),
]
_LINK = {"Link": {"schema": _TEXT, "description": 'The next page, `rel="next"`; absent on the last. RFC 8288.'}}
_JOB_ID = _parameter("id", "path", _TEXT, "A job's id.")
_DERIVED_KEY = _parameter("key", "path", _TEXT, "A derived image's key.")


def _of(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any], description: str, **more: Any) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}, **more}


def _operation(
    name: str, summary: str, answers: dict[str, Any], *problems: str, tag: str, public: bool = False, **more: Any
) -> dict[str, Any]:
    problems = (*problems, "500", "503") if public else ("401", *problems, "500", "503")
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
        _object(jobs={"type": "array", "items": _of("Job")}),
        _object(derived={"type": "array", "items": _of("Derived")}),
    )
    body = {"required": True, "content": {"application/json": {"schema": _of("Request")}}}
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
                    _filter("state", _JOB_STATE), *_PAGE,
                ],
            ),
            "delete": _operation(
                "cancelJobs",
                "Cancel what has not ended of the jobs that were asked for at once.",
                {"200": _json(_object(cancelled=_COUNT), "How many were cancelled.")},
                "400", "409",
                tag="jobs",
                parameters=[{**_filter("group"), "required": True}],
            ),
        },
        "/jobs/{id}": {
            "parameters": [_JOB_ID],
            "get": _operation("showJob", "Show a job.", {"200": _json(_of("Job"), "The job.")}, "404", tag="jobs"),
            "delete": _operation(
                "cancelJob",
                "Cancel a job; what runs stops within seconds.",
                {"200": _json(_of("Job"), "The job, which is cancelled.")},
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
                    _filter("namespace"), _filter("repository"), _filter("verb"), _filter("state", _STATE), *_PAGE,
                ],
            ),
        },
        "/derived/{key}": {
            "parameters": [_DERIVED_KEY],
            "get": _operation(
                "showDerived",
                "Show a derived image.",
                {"200": _json(_of("Derived"), "The derived image.")},
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
        "security": [{"token": []}],
        "tags": [
            {"name": "jobs", "description": "What was asked for ahead."},
            {"name": "derived images", "description": "What is there, is being made, or could not be made."},
            {"name": "about", "description": "The API itself."},
        ],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An admin token: `registry-verbs admin-token create NAME`.",
                }
            },
            "schemas": {"Request": _request(verbs), "Job": _JOB, "Derived": _DERIVED, "Errors": _ERRORS},
            "responses": {
                status: _json(_of("Errors"), description, **_challenge(status))
                for status, description in _PROBLEMS.items()
            },
        },
    }


def _challenge(status: str) -> dict[str, Any]:
    if status != "401":
        return {}
    return {"headers": {"WWW-Authenticate": {"schema": _TEXT, "description": "`Bearer`. RFC 6750."}}}


def _version() -> str:
    try:
        return version("registry-verbs")
    except PackageNotFoundError:  # run from its sources
        return "0"
