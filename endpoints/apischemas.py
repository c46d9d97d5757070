"""The schemas of the API's document: what goes in and what comes out. JSON Schema 2020-12, as OpenAPI 3.1 has it.

The law: an object has all the fields that are described, and no others. Knows no HTTP.
"""

from collections.abc import Iterable
from typing import Any

TIME = {"type": ["string", "null"], "format": "date-time"}
TEXT = {"type": "string"}
MAYBE = {"type": ["string", "null"]}
COUNT = {"type": "integer", "minimum": 0}
BYTES = {"type": ["integer", "null"], "minimum": 0}
KEY = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
COMPRESSION = {"type": "string", "enum": ["none", "gzip", "zstd"]}
JOB_STATE = {"type": "string", "enum": ["queued", "running", "done", "failed", "cancelled"]}
STATE = {"type": "string", "enum": ["generating", "complete", "failed"]}


def told(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {**schema, "description": description}


def an_object(**properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has these fields, all of them, and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def of(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _forms(verbs: Iterable[str]) -> dict[str, Any]:
    """Return the fields that say what is to be made of each image."""
    return {
        "verbs": {
            "type": "array",
            "items": TEXT,
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
            "anyOf": [COMPRESSION, {"type": "null"}],
            "description": "What they are wrapped in. Without it: what the format has.",
        },
    }


def request(verbs: Iterable[str]) -> dict[str, Any]:
    forms = _forms(verbs)
    images = {"type": "array", "items": TEXT, "minItems": 1, "examples": [["acme/app:1.0", "acme/app@sha256:…"]]}
    repositories = told(TEXT, "A glob of NAMESPACE/REPOSITORY; `*` stands for anything, slashes too.")
    tags = told(TEXT, "A glob of tags. Without it: all.")
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


JOB = an_object(
    id=told(TEXT, "Rises with time."),
    group=told(TEXT, "Common to what was asked for at once."),
    state=JOB_STATE,
    verb=TEXT,
    namespace=TEXT,
    repository=TEXT,
    reference=told(TEXT, "A tag, or a manifest's digest."),
    manifest_digest=told(MAYBE, "What the reference meant when it was asked for."),
    platform=told(MAYBE, "As it was asked for; null is the default."),
    compression=told(MAYBE, "As it was asked for; null is what the format has."),
    key=told({"anyOf": [KEY, {"type": "null"}]}, "The derived image's key, as soon as it is known."),
    bytes_done=told(BYTES, "How much is made, while it is running."),
    bytes_total=told(BYTES, "Of how much, where that is known before the end."),
    asked_by=told(MAYBE, "A token's name or a user's, `VERBS_PRIME` for a rule, or who was at the command line."),
    reason=told(MAYBE, "Why it failed, or why the last attempt did."),
    attempts=COUNT,
    worker=MAYBE,
    created=TIME,
    started=told(TIME, "When the last attempt began."),
    finished=TIME,
    due=told(TIME, "When somebody looks at it next; null once it has ended."),
)

DERIVED = an_object(
    key=told(KEY, "Names the bytes; also their ETag."),
    state=STATE,
    live=told({"type": "boolean"}, "Whether it is being made, by somebody who is heard of."),
    verb=TEXT,
    namespace=TEXT,
    repository=TEXT,
    reference=TEXT,
    manifest_digest=TEXT,
    platform=TEXT,
    compression=COMPRESSION,
    media_type=TEXT,
    file_name=TEXT,
    size=told(BYTES, "In bytes, once it is complete."),
    sha256=told({"anyOf": [KEY, {"type": "null"}]}, "Of the bytes, once it is complete."),
    bytes_done=COUNT,
    bytes_total=BYTES,
    asked_by=MAYBE,
    reason=told(MAYBE, "Why it could not be made."),
    attempts=COUNT,
    host=told(TEXT, "Who makes it, or made it."),
    created=TIME,
    completed=TIME,
    fetched=told(TIME, "When it was asked for last."),
)

NUMBER = {"type": "integer", "minimum": 1}
SHADOW = an_object(
    by=told(NUMBER, "The layer that hides them; its own number where it has one name several times."),
    how=told(
        {"type": "string", "enum": ["opaque", "whiteout", "replaced", "rewritten"]},
        "`rewritten`: by a file of the same size and time, so that only metadata has changed, if that.",
    ),
    files=COUNT,
    bytes=COUNT,
)
ANALYZED_LAYER = an_object(
    number=told(NUMBER, "The base is 1."),
    digest=TEXT,
    diff_id=TEXT,
    created=MAYBE,
    created_by=told(MAYBE, "Its line of the history; null where the history does not have one for each layer."),
    stored_bytes=told(COUNT, "Of the blob, as it is stored."),
    tar_bytes=told(COUNT, "Of the uncompressed tar."),
    entries=told(COUNT, "All but whiteouts."),
    files=told(COUNT, "Regular files; further names of one do not count."),
    bytes=told(COUNT, "Of the files' contents."),
    kept_files=COUNT,
    kept_bytes=told(COUNT, "Of the files that the merged image has."),
    shadowed_files=COUNT,
    shadowed_bytes=told(COUNT, "Of the others."),
    shadowed={"type": "array", "items": SHADOW, "description": "By which layers, and how."},
    whiteouts=told(COUNT, "Opaque ones too."),
    idle_whiteouts=told(COUNT, "Those that hide nothing, as the lower layers have nothing there."),
    idle=told({"type": "array", "items": TEXT}, "The names of these, the first 20, or all."),
)
ANALYSIS = an_object(
    namespace=TEXT,
    repository=TEXT,
    reference=told(TEXT, "A tag, or a manifest's digest."),
    manifest_digest=TEXT,
    platform=TEXT,
    stored_bytes=told(COUNT, "Of the layers' blobs, as they are stored; one that is there twice counts once."),
    tar_bytes=told(COUNT, "Of the uncompressed tars of all layers."),
    squashed_bytes=told(COUNT, "Of the one tar that they are merged to, exactly."),
    saved_bytes=told({"type": "integer"}, "What squashing saves: `tar_bytes` less `squashed_bytes`."),
    saved_percent=told({"type": "number"}, "The same, in percent of `tar_bytes`."),
    bytes=told(COUNT, "Of the contents of all layers' files."),
    kept_bytes=told(COUNT, "Of the files that the merged image has."),
    shadowed_bytes=told(COUNT, "Of the others."),
    efficiency=told(
        {"type": "number", "minimum": 0, "maximum": 1},
        "As `dive` has it: of each name the smallest file, as a part of all files. To delete a directory costs nothing"
        " there.",
    ),
    layers={"type": "array", "items": of("AnalyzedLayer"), "description": "The base first."},
    wasted_paths=told(COUNT, "How many names there are under which bytes are stored that the image does not have."),
    wasted={
        "type": "array",
        "items": an_object(
            path=told(TEXT, "What is not UTF-8 is written as `\\xff`."),
            bytes=told(COUNT, "Stored, and not in the image."),
            times=told(NUMBER, "How often a file is stored under this name."),
            layers={"type": "array", "items": NUMBER},
        ),
        "description": "The 20 with the most bytes, or all.",
    },
)

ERRORS = an_object(
    errors={
        "type": "array",
        "minItems": 1,
        "items": an_object(code={"type": "string", "pattern": "^[A-Z][A-Z0-9_]+$"}, message=TEXT, detail={}),
    }
)
