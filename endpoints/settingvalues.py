"""The values that settings have: what reads them, and how one that cannot be used is refused.

Invariants: a reader is given a key and a value of the key's own type or the text of one, and returns the value or
raises InvalidSetting, whose text names the key, the value and what is allowed. A secret is in no error.
"""

import json
from collections.abc import Callable, Sequence

from util.bytesize import parse_bytes
from util.problem import Problem

_DIGITS = 18  # so that each number is one of 64 bits


class InvalidSetting(Problem):
    """A configuration value that cannot be used, or a key of ours that does not exist."""

    code = "SETTING_INVALID"


def refused(key: str, value: object, allowed: str) -> InvalidSetting:
    return InvalidSetting(f"{key} is {value!r}; allowed: {allowed}")


def text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise refused(key, value, "a text that is not empty")
    return value.strip()


def choice(*allowed: str) -> Callable[[str, object], str]:
    def read(key: str, value: object) -> str:
        if value not in allowed:
            raise refused(key, value, " or ".join(allowed))
        return str(value)

    return read


def flag(key: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    known = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if isinstance(value, (str, int)) and str(value).strip().lower() in known:
        return known[str(value).strip().lower()]
    raise refused(key, value, "true or false")


def count(key: str, value: object) -> int:
    text = str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if not text.isascii() or not text.isdigit() or len(text) > _DIGITS or int(text) == 0:
        raise refused(key, value, "a whole number above zero")
    return int(text)


def count_or_none(key: str, value: object) -> int:
    """Return a number, or the zero that turns off what it is for."""
    text = str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if not text.isascii() or not text.isdigit() or len(text) > _DIGITS:
        raise refused(key, value, "a whole number; 0 turns it off")
    return int(text)


def size(key: str, value: object) -> int:
    text = str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    found = parse_bytes(text)
    if not found:
        raise refused(key, value, "a number of bytes above zero, also written as 500M, 20G or 1T")
    return found


def structure(key: str, value: object, allowed: str, *, secret: bool = False) -> object:
    """Return `value`, or what it writes as JSON when it is a text. With `secret` no error shows it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise refused(key, "…" if secret else value, f"{allowed} (as JSON: {error})") from None


def names(key: str, value: object, allowed: str = 'a list of storage names, e.g. ["default"]') -> tuple[str, ...]:
    value = structure(key, value, allowed)
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise refused(key, value, allowed)
    return tuple(value)


def usernames(key: str, value: object) -> frozenset[str]:
    return frozenset(names(key, value, 'a list of user names, e.g. ["admin"]'))


def secret(key: str, value: object) -> str:
    if isinstance(value, bytes):  # as a Flask application may have its own
        value = value.hex()
    if not isinstance(value, (str, int)) or isinstance(value, bool) or not str(value):
        raise refused(key, "…", "a text that is not empty")
    return str(value)  # never shown in an error
