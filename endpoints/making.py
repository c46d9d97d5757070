"""Derived images that are made once: whoever asks first has it made, everybody else follows, afterwards it is a file.

The law: a client gets exactly the right bytes or a cut connection. One making stores, under a lease and at a path of
its own, and a row says that an image is complete only after its object is. A making runs at its own pace and to its
own end, whoever reads of it, slowly or no more; it is read from its spool, so memory does not grow with clients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from endpoints.streams import Chunks, Stream
from util.problem import Problem

if TYPE_CHECKING:
    from data.derivedimages import DerivedRecord
    from endpoints.derive import DerivedImage
    from endpoints.services import Services

MAKINGS = "registry_verbs_makings"
"""Where a Flask application keeps the Makings of its Services."""


class Busy(Problem):
    """As many images are being made by this process as may be. `retry_after` is in seconds."""

    code = "BUSY"
    retry_after = 10


class How(StrEnum):
    """Where the bytes of a live image come from."""

    MADE = "made"  # by a making that this request began
    FOLLOWED = "followed"  # from one that was running, in this process or another one of this host
    STREAMED = "streamed"  # by a generation of its own, of which nothing is kept


@dataclass(frozen=True, slots=True)
class Stored:
    """An image that is complete in storage: `record` has its path, size and SHA-256."""

    record: "DerivedRecord"


@dataclass(frozen=True, slots=True)
class Live:
    """An image that is being made. `chunks` has begun and is closed by its reader; `size` in bytes where it is known."""

    chunks: Chunks
    size: int | None
    how: How


Serving = Stored | Live

Advance = Callable[[int, int | None], None]
"""Is told how many bytes are made, and of how many where that is known."""


class Makings:
    """The makings of one process. Safe to use from several threads; nothing runs before something is made.

    It may be made before a fork: what runs stays with the process that began it.
    """

    def __init__(self, services: "Services") -> None:
        raise NotImplementedError

    def stored(self, image: "DerivedImage") -> "DerivedRecord | None":
        """Return the record of `image` where it is complete, None elsewhere. Makes nothing and asks storage nothing.

        For a HEAD and for conditions. A database that fails is logged and has nothing.
        """
        raise NotImplementedError

    def read(self, record: "DerivedRecord", *, offset: int = 0, length: int | None = None) -> Stream:
        """Return `length` bytes from `offset` of a complete image, to its end when None. Raises what storage raises."""
        raise NotImplementedError

    def open(self, image: "DerivedImage", *, asked_by: str | None = None) -> Serving:
        """Return `image` as it is best served now, after beginning to make it where nobody has.

        A Stored one has been looked for: its object is there with its whole length. A Live one has begun: whatever can
        be found before the first byte is raised here, by whichever process it is made. Raises Busy before any work,
        and what Deriver.make raises. A failing database, storage or spool fails nobody: nothing is kept then.
        """
        raise NotImplementedError

    def stream(self, image: "DerivedImage", *, asked_by: str | None = None) -> Stream:
        """Return the bytes of `image` from wherever `open` finds them. Raises as `open` does."""
        raise NotImplementedError

    def start(self, image: "DerivedImage", *, asked_by: str | None = None) -> "DerivedRecord | None":
        """Return the record of `image` where it is complete; else see to it that it is being made, and return None.

        None also where nothing is kept: in a read-only registry, or without a database. Raises as `open` does.
        """
        raise NotImplementedError

    def make(
        self, image: "DerivedImage", *, asked_by: str | None = None, progress: Advance | None = None
    ) -> "DerivedRecord":
        """Return the record of `image` once it is complete, made by us or by whoever holds the lease.

        What `progress` raises ends the waiting, and the making too where nobody reads of it. Raises as `open` does,
        NotKept where the image could not be stored, and the making's own error.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End what runs: images that are whole are still stored, others are given up and their leases released.

        Their readers are cut. Afterwards nothing of this process is made; `open` raises Busy. Idempotent.
        """
        raise NotImplementedError


def close_all() -> None:
    """Close all Makings of this process; for a server's hook at a worker's end."""
