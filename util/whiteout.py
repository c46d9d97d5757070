"""Whiteouts: names in a layer that delete from the layers below it.

The law: a whiteout is a name, not a file. It acts on lower layers only, wherever it stands in its own layer, and never
appears in a root file system. OCI image-spec, layer.md, "Whiteouts" and "Opaque Whiteout".
"""

from enum import Enum

PREFIX = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."


class Whiteout(Enum):
    """What a name with the whiteout prefix stands for."""

    FILE = "the name after the prefix is gone from the layers below"
    OPAQUE = "all that the layers below have in this directory is gone"
    LEFTOVER = "aufs's own book-keeping, and all below it, means nothing"
    BARE = "the prefix alone names nothing, which no specification allows"


def classify(name: bytes) -> Whiteout | None:
    """Return what the path component `name` is, None for an ordinary one."""
    if not name.startswith(PREFIX):
        return None
    if name == PREFIX:
        return Whiteout.BARE
    if name == _OPAQUE:
        return Whiteout.OPAQUE
    return Whiteout.LEFTOVER if name.startswith(_AUFS) else Whiteout.FILE
