"""WSL distributions: the root file system, with what Windows wants to find in it.

The law: whatever the image has of it stays. Where it has none, `etc/wsl-distribution.conf` gives the name that Windows
registers the distribution by, and `etc/wsl.conf` says whether it is started by systemd, which the image's command
tells. `etc/resolv.conf` is left out, for WSL writes it. A user who is logged in has to be root at first, as after
`wsl --import`: who a service runs as is seldom somebody who has a shell.

Microsoft, "Build a Custom Linux Distribution for WSL"; WSL 2.4.4 and later.
"""

import re
from typing import ClassVar

from formats.tarimageformatter import Rootfs, SourceImage, TarImageFormatter
from util.compression import Compression
from util.digest import Digest
from util.problem import Inexpressible
from util.rootfschanges import RootfsChanges

_ARCHITECTURES = ("amd64", "arm64")
_INITS = ("/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_ROOT = re.compile(rb"^root:[^:\n]*:0:[0-9]+:", re.MULTILINE)


class NoDistribution(Inexpressible):
    """An image that Windows could not start as a distribution."""

    code = "WSL_INEXPRESSIBLE"


class WslDistribution(TarImageFormatter):
    """`wsl`: what `wsl --install --from-file` reads, and a double click."""

    verb: ClassVar[str] = "wsl"
    revision: ClassVar[int] = 1
    media_type: ClassVar[str] = "application/x-tar"
    file_extension: ClassVar[str] = ".wsl"
    summary: ClassVar[str] = "a distribution for the Windows Subsystem for Linux"
    usage: ClassVar[str] = "curl -fLo image.wsl {url} && wsl --install --from-file image.wsl"
    default_compression: ClassVar[Compression] = Compression.GZIP

    def check(self, image: SourceImage, rootfs: Rootfs) -> None:
        """Raise NoDistribution."""
        platform = image.platform
        if platform.os != "linux" or platform.architecture not in _ARCHITECTURES:
            raise NoDistribution(f"the image is for {platform}; WSL runs linux/amd64 and linux/arm64")
        if not _ROOT.search(rootfs.kept_file(b"etc/passwd") or b""):
            raise NoDistribution("the image's etc/passwd has no user root with the uid 0, whom WSL starts as")

    def changes(self, image: SourceImage) -> RootfsChanges:
        """Return the two files that WSL reads, and that the third is left out."""
        program, *_ = (*image.config.entrypoint, *image.config.cmd, "")
        added = {
            b"etc/wsl-distribution.conf": f"[oobe]\ndefaultName = {_name(image)}\n",
            b"etc/wsl.conf": f"[boot]\nsystemd = {str(program in _INITS).lower()}\n",
        }
        return RootfsChanges({name: text.encode() for name, text in added.items()}, (b"etc/resolv.conf",))

    def head(self, image: SourceImage, rootfs: Rootfs) -> bytes:
        """Return nothing."""
        return b""

    def tail(self, image: SourceImage, rootfs: Rootfs, diff_id: Digest) -> bytes:
        """Return nothing: the archive's end is the root file system's."""
        return b""


def _name(image: SourceImage) -> str:
    """Return what Windows may call the distribution: repository and tag, or the first digits of a digest."""
    algorithm, _, hexadecimal = image.tag.rpartition(":")
    tag = f"{algorithm}-{hexadecimal[:12]}" if algorithm else image.tag
    return _NOT_IN_A_NAME.sub("-", f"{image.repository}-{tag}")
