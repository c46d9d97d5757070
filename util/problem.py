"""What can be wrong with an input: one base class, and a few kinds that every way in answers alike.

The law: a problem is a fact, raised by exactly one module, and its text is one sentence that names the thing
(tag, layer digest, entry, key). `code` is for programs, stays the same for ever, and is what the JSON answer
carries. Which HTTP status or exit code a kind becomes is decided by the ways in, not here.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from util.printable import one_line

_LONGEST = 2000
"""Characters of a text. What is quoted in one may be as long as a document."""


class Problem(Exception):
    """A fact about an input that ends the work; `str()` is one sentence for people, in characters that can be shown."""

    code: ClassVar[str] = "UNKNOWN"

    def __str__(self) -> str:
        return one_line(super().__str__(), most=_LONGEST)


class Missing(Problem):
    """What was asked for does not exist here."""


class Unsupported(Problem):
    """It exists, but is not a container image: an artifact, a chart, a document of an unknown type."""


class Inexpressible(Problem):
    """The image is sound, but the asked-for format has no word for something in it; the text names the field."""


class Unavailable(Problem):
    """It could be done where something was installed that is not installed here; the text names it."""


class Malformed(Problem):
    """The image's own content breaks its specification, for every reader and for ever."""


class TooLarge(Problem):
    """The image exceeds a configured limit; the text names the limit and the setting that raises it."""


class Damaged(Problem):
    """What storage holds is not what the registry says it holds: absent, cut short, or other bytes."""


@contextmanager
def letting_go() -> Iterator[None]:
    """Have a problem that passes hold nothing of what it was found in.

    Whoever makes an image keeps its problem until all have been told, with its traceback, and that would keep whole
    layer indexes and plans in memory.
    """
    try:
        yield
    except Problem as problem:
        traceback.clear_frames(problem.__traceback__)
        raise
