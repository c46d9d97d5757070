"""Docker's schema 1 manifests: images as they were pushed until 2016, signed (JWS) or not.

The law: the document lists its layers top first, each with the v1 image that made it, as JSON in a string. We turn
that round, drop the layers that are said to be empty ("throwaway"), and make the configuration that Docker makes when
it pulls such an image. Signatures are not checked: the registry answers for what it holds. diff_ids are not known.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from util.digest import Digest
from util.document import Fields, MalformedConfig, MalformedManifest, read_document
from util.imageconfig import ImageConfig, config_of

MANIFEST_V1 = "application/vnd.docker.distribution.manifest.v1+json"
MANIFEST_V1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"

# What a v1 image says of its own place, which means nothing in a configuration.
_PLACE = {"id", "parent", "parent_id", "layer_id", "Size", "throwaway"}


@dataclass(frozen=True, slots=True)
class Schema1Manifest:
    """An image of schema 1: `layers` base first, without the empty ones; `config` has no diff_ids."""

    media_type: str
    layers: tuple[Digest, ...]
    config: ImageConfig


@dataclass(frozen=True, slots=True)
class _Step:
    blob: Digest
    v1: Fields

    @property
    def throwaway(self) -> bool:
        return self.v1.flag("throwaway")


def schema1_of(document: Fields, media_type: str) -> Schema1Manifest:
    """Return the manifest that `document` holds. Raises MalformedManifest, MalformedConfig."""
    steps = _chain(_steps(document), document)
    top = steps[-1].v1
    made = {key: value for key, value in top.values.items() if key not in _PLACE}
    made["history"] = [_history(step) for step in steps]
    made.pop("rootfs", None)
    config = config_of(Fields(made, "configuration in the manifest's history", MalformedConfig))
    return Schema1Manifest(media_type, tuple(step.blob for step in steps if not step.throwaway), config)


def signed_payload(content: bytes) -> bytes:
    """Return what a signed manifest's digest is taken of: `content` without its signatures. Raises MalformedManifest.

    Without signatures `content` comes back as it is.
    """
    document = read_document(content, "manifest", MalformedManifest)
    signatures = document.each("signatures")
    if not signatures:
        return content
    protected = read_document(_unpadded(signatures[0], "protected"), "signature's header", MalformedManifest)
    protected.required("formatLength")
    length = protected.number("formatLength") or 0
    if length > len(content):
        raise protected.error("formatLength", "reaches past the manifest's end")
    return content[:length] + _unpadded(protected, "formatTail")


def _steps(document: Fields) -> list[_Step]:
    """Return the manifest's layers, base first, each with the v1 image that made it."""
    blobs, history = document.each("fsLayers"), document.each("history")
    if len(blobs) != len(history):
        raise document.error("history", f"has {len(history)} entries, and fsLayers {len(blobs)}")
    if not blobs:
        raise document.error("fsLayers", "is empty")
    return [
        _Step(
            blob.digest("blobSum"),
            read_document(
                entry.required_text("v1Compatibility").encode(),
                f"v1 image in the manifest's {entry.path}",
                MalformedManifest,
            ),
        )
        for blob, entry in zip(reversed(blobs), reversed(history), strict=True)
    ]


def _chain(steps: Sequence[_Step], document: Fields) -> list[_Step]:
    """Return `steps` without repetitions, each the child of the one before; Docker refuses any other history."""
    kept: list[_Step] = []
    seen: set[str] = set()
    for step in steps:
        image, parent = step.v1.required_text("id"), step.v1.text("parent") or ""
        below = kept[-1].v1.required_text("id") if kept else ""
        if kept and image == below:
            continue
        if image in seen:
            raise document.error("history", f"has the image {image} in two places")
        if parent != below:
            stands_on = f"on {parent or 'nothing'}, not on {below or 'nothing'}"
            raise document.error("history", f"has the image {image} {stands_on}")
        seen.add(image)
        kept.append(step)
    return kept


def _history(step: _Step) -> Mapping[str, Any]:
    ran = step.v1.fields("container_config")
    entry = {name: step.v1.text(name) for name in ("created", "author", "comment")}
    entry["created_by"] = " ".join(ran.arguments("Cmd")) if ran else None
    told: dict[str, Any] = {name: text for name, text in entry.items() if text}
    return told | {"empty_layer": True} if step.throwaway else told


def _unpadded(fields: Fields, name: str) -> bytes:
    text = fields.required_text(name)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise fields.error(name, "is not in base64url") from None


def is_schema1(document: Mapping[str, Any]) -> bool:
    """Tell whether `document` is of schema 1 by its own word."""
    return json.dumps(document.get("schemaVersion")) == "1"
