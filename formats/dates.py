"""Dates as image configurations write them: RFC 3339, or whatever somebody took for it.

The law: a text that is no date is none, and no error; so is the one with which Go says that it has none.
"""

import re
from datetime import datetime

_RFC_3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_NEVER = "0001-01-01T00:00:00Z"


def date(text: str | None) -> str | None:
    """Return `text` where it is a date as RFC 3339 writes it, and not the one that means none."""
    return None if _parsed(text) is None else text


def seconds(text: str | None) -> int | None:
    """Return the whole seconds since 1970 of the date `text`, None where it is none."""
    parsed = _parsed(text)
    return None if parsed is None else int(parsed.timestamp())


def _parsed(text: str | None) -> datetime | None:
    """Return the date without its fraction."""
    match = _RFC_3339.fullmatch(text or "")
    if match is None or text == _NEVER:
        return None
    try:
        return datetime.fromisoformat(match[1] + match[2])
    except ValueError:
        return None
