"""Unified Incus and LXD images: `metadata.yaml`, and the root file system under `rootfs`.

The law: the metadata comes first, and its names carry no `./`, or importers do not find it. An architecture that Incus
has no name for is refused. There are no templates: those write what a distribution expects of an installer, such as its
host name, and no image of an application expects that.

Incus manual, "Image format"; the names of architectures are those of the kernel, which Incus and LXD know.
"""

import re
from typing import ClassVar

from formats.dates import seconds
from formats.tarimageformatter import Rootfs, SourceImage, TarImageFormatter
from util.compression import Compression
from util.digest import Digest
from util.platform import Platform
from util.problem import Inexpressible

_ARCHITECTURES = {
    Platform("linux", "386"): "i686",
    Platform("linux", "amd64"): "x86_64",
    Platform("linux", "arm", "v6"): "armv6l",
    Platform("linux", "arm", "v7"): "armv7l",
    Platform("linux", "arm", "v8"): "armv8l",
    Platform("linux", "arm64"): "aarch64",
    Platform("linux", "loong64"): "loongarch64",
    Platform("linux", "mips"): "mips",
    Platform("linux", "mips64"): "mips64",
    Platform("linux", "ppc"): "ppc",
    Platform("linux", "ppc64"): "ppc64",
    Platform("linux", "ppc64le"): "ppc64le",
    Platform("linux", "riscv64"): "riscv64",
    Platform("linux", "s390x"): "s390x",
}
_FIRST_DATE = 1  # 0 is no date to an importer, and each image has to have one
_UNPRINTABLE = re.compile("[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


class NoIncusArchitecture(Inexpressible):
    """A platform that Incus has no name for."""

    code = "INCUS_ARCHITECTURE_INEXPRESSIBLE"


class IncusImage(TarImageFormatter):
    """`incus`: what `incus image import` and `lxc image import` read."""

    verb: ClassVar[str] = "incus"
    revision: ClassVar[int] = 1
    media_type: ClassVar[str] = "application/x-tar"
    file_extension: ClassVar[str] = ".tar"
    summary: ClassVar[str] = "a unified image for Incus and LXD"
    usage: ClassVar[str] = "curl -fLo image.tar.gz {url} && incus image import image.tar.gz --alias NAME"
    default_compression: ClassVar[Compression] = Compression.GZIP
    path_prefix: ClassVar[bytes] = b"rootfs/"

    def check(self, image: SourceImage, rootfs: Rootfs) -> None:
        """Raise NoIncusArchitecture."""
        _architecture(image.platform)

    def head(self, image: SourceImage, rootfs: Rootfs) -> bytes:
        """Return the metadata's entry."""
        return self.tar_file("metadata.yaml", _metadata(image).encode())

    def tail(self, image: SourceImage, rootfs: Rootfs, diff_id: Digest) -> bytes:
        """Return nothing: the archive's end is the root file system's."""
        return b""


def _architecture(platform: Platform) -> str:
    # A baseline like amd64/v3 is no architecture of its own; the variants of arm are.
    variant = platform.variant if platform.architecture == "arm" else None
    name = _ARCHITECTURES.get(Platform(platform.os, platform.architecture, variant))
    if name is None:
        raise NoIncusArchitecture(f"Incus has no name for the platform {platform}")
    return name


def _metadata(image: SourceImage) -> str:
    architecture = _architecture(image.platform)
    properties = {
        "architecture": architecture,
        "description": f"{image.reference} ({image.platform})",
        "name": image.path,
        "release": image.tag,
    }
    lines = [
        f"architecture: {architecture}",
        f"creation_date: {max(seconds(image.config.created) or 0, _FIRST_DATE)}",
        "properties:",
        *(f"  {name}: {_quoted(text)}" for name, text in properties.items()),
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Return a text as YAML writes it in double quotes (YAML 1.2, 5.7)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + _UNPRINTABLE.sub(lambda match: f"\\U{ord(match[0]):08x}", escaped) + '"'
