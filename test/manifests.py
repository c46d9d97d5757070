"""Manifests for tests of pushes: documents written from the OCI image-spec, and what they name.

The law: nothing here comes from the project but the value of a digest.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from test.images import CONFIG, INDEX, LAYER, MANIFEST
from util.digest import Digest

EMPTY = "application/vnd.oci.empty.v1+json"


def described(content: bytes, media_type: str, *, algorithm: str = "sha256", **more: Any) -> dict[str, Any]:
    """Return the descriptor of `content`."""
    return {"mediaType": media_type, "digest": str(Digest.of(content, algorithm)), "size": len(content), **more}


def image(
    *layers: bytes,
    config: bytes | Mapping[str, Any] | None = b"{}",
    algorithm: str = "sha256",
    **more: Any,
) -> bytes:
    """Return an OCI manifest; `more` overrides its fields, None takes one away."""
    return written(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described(config, CONFIG, algorithm=algorithm) if isinstance(config, bytes) else config,
            "layers": [described(each, LAYER, algorithm=algorithm) for each in layers],
            **more,
        }
    )


def artifact(artifact_type: str | None = None, *files: bytes, **more: Any) -> bytes:
    """Return an OCI manifest that is no image, with the empty configuration."""
    layers = [described(each, "application/octet-stream") for each in files]
    fields = {"config": described(b"{}", EMPTY), "artifactType": artifact_type, "layers": layers}
    return written({"schemaVersion": 2, "mediaType": MANIFEST, **fields, **more})


def index(manifests: Iterable[bytes | Mapping[str, Any]], **more: Any) -> bytes:
    """Return an OCI image index of manifests, or of descriptors."""
    entries: Sequence[Any] = [
        described(each, json.loads(each)["mediaType"]) if isinstance(each, bytes) else each for each in manifests
    ]
    return written({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries, **more})


def written(document: Mapping[str, Any]) -> bytes:
    return json.dumps({name: value for name, value in document.items() if value is not None}).encode()


def digest_of(content: bytes) -> str:
    return str(Digest.of(content))
