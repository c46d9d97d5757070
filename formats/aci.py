"""App Container Images: a `manifest`, and the root file system under `rootfs`. Specification 0.8.11.

The law: the manifest is a function of the image's configuration, and says nothing that the configuration does not say:
what App Container has no word for is left out with a note (the annotation NOTE), and an image that it cannot name is
refused. The mapping is docker2aci's where that is right.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from formats.appc import appc_of_platform, identifier, mount_points, platform_of_appc, port
from formats.dates import date
from formats.tarimageformatter import Rootfs, SourceImage, TarImageFormatter
from util.compression import Compression
from util.digest import Digest

__all__ = ["ACIImage", "platform_of_appc"]

SPECIFICATION = "0.8.11"
NOTE = "registry-verbs/left-out"

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9.-]*")
_NUMBER = re.compile(rb"[0-9]+")


class ACIImage(TarImageFormatter):
    """`aci`: what rkt and everything else that speaks appc fetches and runs."""

    verb: ClassVar[str] = "aci"
    revision: ClassVar[int] = 1
    media_type: ClassVar[str] = "application/x-tar"
    file_extension: ClassVar[str] = ".aci"
    summary: ClassVar[str] = "an App Container Image"
    usage: ClassVar[str] = "curl -fLo image.aci {url}"
    default_compression: ClassVar[Compression] = Compression.GZIP
    path_prefix: ClassVar[bytes] = b"rootfs/"

    def check(self, image: SourceImage, rootfs: Rootfs) -> None:
        """Raise NoAppcName or NoAppcPlatform."""
        _manifest(image, rootfs)

    def head(self, image: SourceImage, rootfs: Rootfs) -> bytes:
        """Return the manifest's entry: first, so that a reader of the stream knows what it gets."""
        manifest = _manifest(image, rootfs)
        return self.tar_file("manifest", json.dumps(manifest, separators=(",", ":")).encode())

    def tail(self, image: SourceImage, rootfs: Rootfs, diff_id: Digest) -> bytes:
        """Return nothing: the archive's end is the root file system's."""
        return b""


def _manifest(image: SourceImage, rootfs: Rootfs) -> Mapping[str, Any]:
    os, arch = appc_of_platform(image.platform)
    left_out: list[str] = []
    manifest: dict[str, Any] = {
        "acKind": "ImageManifest",
        "acVersion": SPECIFICATION,
        "name": identifier(image.host, image.path),
        "labels": _named({"version": image.tag, "os": os, "arch": arch}),
    }
    if image.config.entrypoint or image.config.cmd:
        manifest["app"] = _app(image, rootfs, left_out)
    manifest["annotations"] = _named(_annotations(image, left_out))
    return manifest


def _app(image: SourceImage, rootfs: Rootfs, left_out: list[str]) -> Mapping[str, Any]:
    config = image.config
    user, group = _user_and_group(config.user, rootfs)
    app = {
        "exec": [*config.entrypoint, *config.cmd],
        "user": user,
        "group": group,
        "workingDirectory": f"/{config.working_dir.lstrip('/')}" if config.working_dir else None,
        "environment": _named(_environment(config.env, left_out)),
        "mountPoints": [{"name": name, "path": path, "readOnly": False} for name, path in mount_points(config.volumes)],
        "ports": _ports(config.exposed_ports, left_out),
        "userLabels": dict(config.labels),
    }
    return {key: value for key, value in app.items() if value}


def _user_and_group(user_and_group: str, rootfs: Rootfs) -> tuple[str, str]:
    """Return who the app runs as. A group that is not said is the user's own in the image, else named as the user."""
    user, _, group = user_and_group.partition(":")
    user = user or "0"
    return user, group or _primary_group(user, rootfs) or user


def _primary_group(user: str, rootfs: Rootfs) -> str | None:
    for line in (rootfs.kept_file(b"etc/passwd") or b"").splitlines():
        name, _, uid, gid, *_ = [*line.split(b":"), b"", b"", b""]
        if user.encode() in (name, uid) and _NUMBER.fullmatch(gid):
            return gid.decode()
    return None


def _environment(env: Iterable[str], left_out: list[str]) -> Mapping[str, str]:
    variables: dict[str, str] = {}
    for variable in env:
        name, equals, value = variable.partition("=")
        if equals and _ENVIRONMENT_NAME.fullmatch(name):
            variables[name] = value
        elif variable:
            left_out.append(f"environment variable {name!r}")
    return variables


def _ports(exposed_ports: Iterable[str], left_out: list[str]) -> list[Mapping[str, Any]]:
    ports = {exposed: port(exposed) for exposed in exposed_ports}
    left_out.extend(f"port {exposed!r}" for exposed in sorted(ports) if ports[exposed] is None)
    return [
        {
            "name": each.name,
            "protocol": each.protocol,
            "port": each.port,
            "count": each.count,
            "socketActivated": False,
        }
        for each in sorted({each for each in ports.values() if each})
    ]


def _annotations(image: SourceImage, left_out: Iterable[str]) -> Mapping[str, str]:
    config = image.config
    comment = config.document.get("comment")
    annotations = {
        "created": date(config.created),
        "authors": config.author,
        "homepage": f"{image.url_scheme}://{image.reference}",
        "docker-comment": comment if isinstance(comment, str) else None,
        "appc.io/docker/originalname": image.reference,
        "appc.io/docker/registryurl": image.host,
        "appc.io/docker/repository": image.path,
        "appc.io/docker/tag": image.tag,
        "appc.io/docker/imageid": image.image_id,
        "appc.io/docker/manifesthash": str(image.manifest_digest),
        "appc.io/docker/entrypoint": json.dumps(config.entrypoint) if config.entrypoint else None,
        "appc.io/docker/cmd": json.dumps(config.cmd) if config.cmd else None,
        NOTE: ", ".join(left_out),
    }
    return {name: text for name, text in annotations.items() if text}


def _named(values: Mapping[str, str]) -> list[Mapping[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]
