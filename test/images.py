"""Images for tests: OCI layouts on disk, from layers given as entries.

The law: nothing here comes from the project; the documents are written from the OCI image-spec, image-layout.md.
"""

import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from test.layers import Entry, gzipped, layer, zstd_frame

Wrapping = Literal["none", "gzip", "zstd"]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
_SUFFIX: Mapping[Wrapping, str] = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: entries, or the bytes of a tar where a test wants a broken one."""

    entries: Sequence[Entry] = ()
    wrapping: Wrapping = "gzip"
    tar: bytes | None = None

    @property
    def content(self) -> bytes:
        """The uncompressed tar."""
        return layer(*self.entries) if self.tar is None else self.tar

    @property
    def blob(self) -> bytes:
        """The layer as it is pushed."""
        match self.wrapping:
            case "none":
                return self.content
            case "gzip":
                return gzipped(self.content)
            case "zstd":
                return zstd_frame(self.content)


@dataclass(frozen=True, slots=True)
class Image:
    """One image: its layers, base first, its platform and what its configuration says of running it."""

    layers: Sequence[Layer] = ()
    platform: str = "linux/amd64"
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def platform_document(self) -> dict[str, str]:
        return dict(zip(("os", "architecture", "variant"), self.platform.split("/"), strict=False))


class Layout:
    """An OCI layout in `folder`, filled by its methods; each returns the descriptor of what it has added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs" / "sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._tagged: list[dict[str, Any]] = []

    def blob(self, content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs" / "sha256" / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def document(self, value: Mapping[str, Any], media_type: str) -> dict[str, Any]:
        return self.blob(json.dumps(value).encode(), media_type)

    def image(self, image: Image) -> dict[str, Any]:
        layers = [self.blob(each.blob, LAYER + _SUFFIX[each.wrapping]) for each in image.layers]
        diff_ids = [f"sha256:{hashlib.sha256(each.content).hexdigest()}" for each in image.layers]
        config = {
            **image.platform_document,
            "config": dict(image.run),
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": f"layer {at}"} for at in range(len(diff_ids))],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.document(config, CONFIG),
            "layers": layers,
        }
        return {**self.document(manifest, MANIFEST), "platform": image.platform_document}

    def index(self, *images: Image) -> dict[str, Any]:
        manifests = [self.image(image) for image in images]
        return self.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}, INDEX)

    def artifact(self, config_media_type: str = "application/vnd.cncf.helm.config.v1+json") -> dict[str, Any]:
        """Add something that is pushed like an image and is none."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.document({"name": "a chart"}, config_media_type),
            "layers": [self.blob(gzipped(b"chart"), "application/vnd.cncf.helm.chart.content.v1.tar+gzip")],
        }
        return self.document(manifest, MANIFEST)

    def tag(self, name: str, descriptor: Mapping[str, Any]) -> str:
        """Name what `descriptor` describes, and return how `import` is told of it."""
        plain = {key: value for key, value in descriptor.items() if key != "platform"}
        self._tagged.append({**plain, "annotations": {"org.opencontainers.image.ref.name": name}})
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": self._tagged}
        (self.folder / "index.json").write_text(json.dumps(index))
        return f"oci:{self.folder}:{name}"

    def archive(self, path: Path) -> str:
        """Write the layout as one tar, and return how `import` is told of it."""
        with tarfile.open(path, "w") as tar:
            tar.add(self.folder, arcname=".")
        return f"oci-archive:{path}"
