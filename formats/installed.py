"""Which formats are installed: ours and other packages', all found the same way, by the entry point group GROUP.

The law: a format that cannot be used is reported by name and left out; it takes no other with it. Two that claim one
verb are an error, since whichever won would be a guess.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points

from formats.formatter import Formatter
from util.problem import Problem

GROUP = "registry_verbs.formats"

log = logging.getLogger(__name__)
_VERB = re.compile(r"[a-z][a-z0-9-]*")


class DuplicateVerb(Problem):
    """One verb that two installed packages offer."""

    code = "VERB_AMBIGUOUS"


def installed_formatters(found: Iterable[EntryPoint] | None = None) -> Mapping[str, Formatter]:
    """Return the formats by their verbs, in the order of the verbs. Raises DuplicateVerb, naming both packages.

    `found` are the entry points to look at, those of all installed packages by default.
    """
    claims: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP) if found is None else found:
        other = claims.setdefault(point.name, point)
        if other.value != point.value:
            raise DuplicateVerb(f"the verb {point.name} is offered twice: by {_origin(other)}, and by {_origin(point)}")
    loaded = ((verb, _load(point)) for verb, point in sorted(claims.items()))
    return {verb: formatter for verb, formatter in loaded if formatter is not None}


def _load(point: EntryPoint) -> Formatter | None:
    """Return the format that `point` names, or None after saying what is wrong with it."""
    try:
        formatter = point.load()()
        if not isinstance(formatter, Formatter):
            raise TypeError("it is no Formatter")
        if formatter.verb != point.name or not _VERB.fullmatch(point.name):
            raise ValueError(f"its verb is {formatter.verb!r}")
    except Exception:
        log.exception("the format %s of %s cannot be used and is left out", point.name, _origin(point))
        return None
    return formatter


def _origin(point: EntryPoint) -> str:
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
    return f"{package} ({point.value})"
