"""A squashfs file system: one compressed file that is read in place, for HPC sites and appliances.

The law: gzip, because every kernel that has squashfs can read it; the file system's own time is the epoch. What
squashfs has no word for is left out, as it is when an image is unpacked on one: extended attributes but for those of
`user`, `trusted` and `security`. A time before 1970 or after 2106 becomes the nearest one that there is, by tar2sqfs;
mksquashfs would turn it into any other, and gets no such file.
"""

import re
from collections.abc import Sequence
from typing import ClassVar

from formats.formatter import Rootfs, SourceImage
from formats.program import Program
from formats.programformatter import ProgramFormatter
from util.compression import Compression
from util.layerindex import DIRECTORY, shown
from util.problem import Inexpressible
from util.written import Written

TAR2SQFS = Program(
    "tar2sqfs",
    "squashfs-tools-ng",
    "--version",
    tolerated=re.compile(r"^WARNING: squashfs does not support xattr prefix "),
)
# The first that reads all that a tar can say; older ones refuse some, or lose it.
MKSQUASHFS = Program(
    "mksquashfs",
    "squashfs-tools",
    "-version",
    oldest=(4, 6),
    tolerated=re.compile(r"^Unrecognised tar xattr prefix |^Empty tar filename "),
)


_LAST_TIME = (1 << 32) - 1


class TimeNotOnSquashfs(Inexpressible):
    """An entry with a time that mksquashfs does not write; the text names it."""

    code = "SQUASHFS_TIME_INEXPRESSIBLE"


class Squashfs(ProgramFormatter):
    """`squashfs`: what Apptainer, enroot, and the kernel's loop device mount."""

    verb: ClassVar[str] = "squashfs"
    revision: ClassVar[int] = 1
    media_type: ClassVar[str] = "application/vnd.squashfs"
    file_extension: ClassVar[str] = ".squashfs"
    summary: ClassVar[str] = "a squashfs file system, read in place, for HPC and appliances"
    usage: ClassVar[str] = "curl -fLo root.squashfs {url} && apptainer run root.squashfs"
    default_compression: ClassVar[Compression] = Compression.NONE
    programs: ClassVar[Sequence[Program]] = (TAR2SQFS, MKSQUASHFS)

    def arguments(self, program: Program, image: SourceImage, rootfs: Rootfs) -> Sequence[str]:
        """Return them. Raises TimeNotOnSquashfs."""
        if program.name == TAR2SQFS.name:
            return ["--quiet", "--force", "--compressor", "gzip", "--comp-extra", "level=6", "{output}"]
        root = Written(b"", DIRECTORY, 0o755, 0, 0, 0)
        for entry in rootfs.entries():
            if not 0 <= entry.mtime <= _LAST_TIME:
                raise TimeNotOnSquashfs(
                    f"the time of {shown(entry.path)} is {entry.mtime} s, and mksquashfs takes those of 1970 to 2106"
                )
            root = root if entry.path else entry
        return [
            "-", "{output}", "-tar", "-noappend", "-quiet", "-no-progress", "-exit-on-error", "-mkfs-time", "0",
            "-comp", "gzip", "-Xcompression-level", "6", "-root-mode", f"{root.mode:o}", "-root-uid", str(root.uid),
            "-root-gid", str(root.gid), "-root-time", str(root.mtime),
        ]  # fmt: skip
