"""What a format changes in a root file system: files that it adds where there are none, and names that it leaves out.

The law: changes are one more layer, above all others, so that whatever holds of layers holds of them: sizes, ranges,
symlinked parents, hard links. It only completes: of its files those count whose names nothing has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from util.tarheader import END_OF_ARCHIVE, padding, render_header
from util.whiteout import PREFIX


@dataclass(frozen=True, slots=True)
class RootfsChanges:
    """`added` are files by their names, of root's, readable by everybody; `left_out` goes with all that is below.

    Names are relative to the root, without `.` and `..`. One in both is replaced.
    """

    added: Mapping[bytes, bytes] = field(default_factory=dict)
    left_out: tuple[bytes, ...] = ()

    def layer(self) -> bytes:
        """Return the changes as a layer's tar; nothing where there are none."""
        if not self.added and not self.left_out:
            return b""
        parts = [render_header(_whiteout(name), mode=0o644) for name in self.left_out]
        for name, content in self.added.items():
            parts += render_header(name, mode=0o644, size=len(content)), content, bytes(padding(len(content)))
        return b"".join((*parts, END_OF_ARCHIVE))


def _whiteout(name: bytes) -> bytes:
    parent, slash, last = name.rpartition(b"/")
    return parent + slash + PREFIX + last
