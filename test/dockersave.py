"""Archives as `docker save` writes them, old and new, member by member; also such as nobody should write."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from test.images import Image

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    """Return one member of an archive, for `write`."""
    header = tarfile.TarInfo(name)
    header.type, header.linkname, header.size = kind, link, len(content)
    return header, content


def symlink(name: str, target: str) -> Member:
    return member(name, kind=tarfile.SYMTYPE, link=target)


def write(path: Path, *members: Member) -> str:
    """Write an archive, and return how `import` is told of it."""
    with tarfile.open(path, "w") as tar:
        for header, content in members:
            tar.addfile(header, io.BytesIO(content))
    return f"docker-archive:{path}"


def config_of(image: Image, *, diff_ids: Sequence[str] | None = None) -> bytes:
    if diff_ids is None:
        diff_ids = [f"sha256:{hashlib.sha256(layer.content).hexdigest()}" for layer in image.layers]
    document: Mapping[str, Any] = {
        **image.platform_document,
        "config": dict(image.run),
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    return json.dumps(document).encode()


def saved(path: Path, images: Mapping[str, Image]) -> str:
    """Write `images`, by tag, as Docker wrote them until version 24: a folder for each layer."""
    members: list[Member] = []
    listed = []
    for tag, image in images.items():
        config = config_of(image)
        config_name = f"{hashlib.sha256(config).hexdigest()}.json"
        layers = []
        for at, layer in enumerate(image.layers):
            folder = hashlib.sha256(f"{tag} {at}".encode()).hexdigest()
            layers.append(f"{folder}/layer.tar")
            members += [
                member(f"{folder}/", kind=tarfile.DIRTYPE),
                member(f"{folder}/VERSION", b"1.0"),
                member(f"{folder}/json", b'{"id": "old"}'),
                member(layers[-1], layer.blob),
            ]
        members.append(member(config_name, config))
        listed.append({"Config": config_name, "RepoTags": [tag] if tag else None, "Layers": layers})
    return write(path, *members, member("manifest.json", json.dumps(listed).encode()), member("repositories", b"{}"))


def listing(*entries: Mapping[str, Any]) -> Member:
    return member("manifest.json", json.dumps(list(entries)).encode())
