"""A format that registry-verbs does not ship: the root file system behind a label, as on a box of floppy disks."""

from typing import ClassVar

from formats.tarimageformatter import Rootfs, SourceImage, TarImageFormatter
from util.compression import Compression
from util.digest import Digest
from util.problem import Inexpressible

DISK = 1474560


class LabelTooLong(Inexpressible):
    """A name that does not fit on a floppy's label."""

    code = "LABEL_TOO_LONG"


class Floppy(TarImageFormatter):
    """`floppy`: a label, the root file system, and a packing list that says what it amounts to."""

    verb: ClassVar[str] = "floppy"
    revision: ClassVar[int] = 3
    media_type: ClassVar[str] = "application/x-tar"
    file_extension: ClassVar[str] = ".tar"
    summary: ClassVar[str] = "the root file system in a box with a label"
    usage: ClassVar[str] = "curl -fLO {url}"
    default_compression: ClassVar[Compression] = Compression.NONE

    def check(self, image: SourceImage, rootfs: Rootfs) -> None:
        if len(image.repository) > 11:
            raise LabelTooLong(f"the repository {image.repository!r} does not fit on a label of 11 letters")

    def head(self, image: SourceImage, rootfs: Rootfs) -> bytes:
        label = f"{image.repository}, disk 1 of {-(-rootfs.size // DISK)}\n"
        box = self.tar_folder("box") + self.tar_file("box/label", label.encode())
        return box + self.tar_file_header("box/rootfs.tar", rootfs.size)

    def tail(self, image: SourceImage, rootfs: Rootfs, diff_id: Digest) -> bytes:
        packed = self.tar_file("box/packing-list", f"{diff_id} {rootfs.size}\n".encode())
        return self.tar_file_padding(rootfs.size) + packed + bytes(1024)
