"""The flat root file system: the tar itself, as `docker export` would give it.

The law: nothing is added and nothing left out; who wants the configuration asks for another format.
"""

from typing import ClassVar

from formats.tarimageformatter import Rootfs, SourceImage, TarImageFormatter
from util.compression import Compression
from util.digest import Digest


class RootfsTar(TarImageFormatter):
    """`rootfs`: input of `docker import`, `wsl --import`, `machinectl import-tar`, `tar2sqfs`, `tar -x`."""

    verb: ClassVar[str] = "rootfs"
    revision: ClassVar[int] = 1
    media_type: ClassVar[str] = "application/x-tar"
    file_extension: ClassVar[str] = ".tar"
    summary: ClassVar[str] = "the root file system as one tar archive"
    usage: ClassVar[str] = "curl -fL {url} | tar -xp --numeric-owner -C FOLDER"
    default_compression: ClassVar[Compression] = Compression.NONE

    def head(self, image: SourceImage, rootfs: Rootfs) -> bytes:
        """Return nothing."""
        return b""

    def tail(self, image: SourceImage, rootfs: Rootfs, diff_id: Digest) -> bytes:
        """Return nothing: the archive's end is the root file system's."""
        return b""
