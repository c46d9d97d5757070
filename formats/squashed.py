"""One archive of one layer, which `docker load` and `podman load` read.

The law: the layer comes first and the documents that carry its digest after it, so one pass makes the archive. The
configuration is the image's own, with every field, known to us or not; only what speaks of layers is new. Readers of
today want `manifest.json` (Docker 29 reads nothing else); `repositories`, `VERSION` and `json` are for those of 2015.

Its history has one entry with a layer, since there is one layer and a reader counts them (moby, image/tarexport); what
was done to make the image stays to be read in the entries before it, which are without layers now.
"""

import json
from typing import Any, ClassVar

from formats.dockerreference import docker_name, docker_tag
from formats.tarimageformatter import Rootfs, SourceImage, TarImageFormatter
from util.compression import Compression
from util.digest import Digest
from util.tarheader import END_OF_ARCHIVE

_SUFFIX = ".squash"


class SquashedDockerImage(TarImageFormatter):
    """`squash`: the image with all its layers in one, named `host/namespace/repository:tag.squash`."""

    verb: ClassVar[str] = "squash"
    revision: ClassVar[int] = 1
    media_type: ClassVar[str] = "application/x-tar"
    file_extension: ClassVar[str] = ".tar"
    summary: ClassVar[str] = "the image squashed into one layer, for docker load and podman load"
    usage: ClassVar[str] = "curl -fL {url} | docker load"
    default_compression: ClassVar[Compression] = Compression.GZIP

    def check(self, image: SourceImage, rootfs: Rootfs) -> None:
        """Raise NoDockerReference where the archive would be refused for the image's name."""
        docker_name(image)
        docker_tag(image, suffix=_SUFFIX)

    def head(self, image: SourceImage, rootfs: Rootfs) -> bytes:
        """Return the layer's folder and header."""
        return b"".join(
            (
                self.tar_folder(image.image_id),
                self.tar_file(f"{image.image_id}/VERSION", b"1.0"),
                self.tar_file(f"{image.image_id}/json", _json(_v1_image(image))),
                self.tar_file_header(_layer(image), rootfs.size),
            )
        )

    def tail(self, image: SourceImage, rootfs: Rootfs, diff_id: Digest) -> bytes:
        """Return the rest of the layer's entry, and the documents."""
        config = squashed_config(image, diff_id)
        config_name = f"{Digest.of(config).hex}.json"
        name, tag = docker_name(image), docker_tag(image, suffix=_SUFFIX)
        manifest = [{"Config": config_name, "RepoTags": [f"{name}:{tag}"], "Layers": [_layer(image)]}]
        return b"".join(
            (
                self.tar_file_padding(rootfs.size),
                self.tar_file(config_name, config),
                self.tar_file("manifest.json", _json(manifest)),
                self.tar_file("repositories", _json({name: {tag: image.image_id}})),
                END_OF_ARCHIVE,
            )
        )


def _layer(image: SourceImage) -> str:
    return f"{image.image_id}/layer.tar"


def squashed_config(image: SourceImage, diff_id: Digest) -> bytes:
    """Return the configuration of `image` as one layer with `diff_id`; the same for the same, to the byte."""
    config, document = image.config, dict(image.config.document)
    earlier = [{**entry, "empty_layer": True} for entry in document.get("history") or ()]
    squash = {
        "created": config.created,
        "created_by": f"squash {image.reference}",
        "comment": f"{image.layer_count} layers of {image.manifest_digest} in one",
    }
    document["rootfs"] = {"type": "layers", "diff_ids": [str(diff_id)]}
    document["history"] = [*earlier, {key: value for key, value in squash.items() if value}]
    return _json(_with_platform(document, image))


def _v1_image(image: SourceImage) -> dict[str, Any]:
    layered = {"rootfs", "history"}
    document = {key: value for key, value in image.config.document.items() if key not in layered}
    return _with_platform({**document, "id": image.image_id}, image)


def _with_platform(document: dict[str, Any], image: SourceImage) -> dict[str, Any]:
    """Add what very old images leave out and every reader asks for."""
    document["os"] = document.get("os") or image.platform.os
    document["architecture"] = document.get("architecture") or image.platform.architecture
    return document


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
