"""What a URL says behind its question mark: parameters, each once, with a value that is allowed.

The law: what is wrong is told as InvalidQuery, naming the parameter and what is allowed.
"""

from collections.abc import Iterable

from flask import request

from endpoints.answers import InvalidQuery
from util.compression import Compression
from util.oci import InvalidPlatform, Platform


def parameter(name: str) -> str | None:
    """Return the value of the parameter, None where it is not given."""
    values = request.args.getlist(name)
    if len(values) > 1:
        raise InvalidQuery(f"{name} is given {len(values)} times; allowed: once")
    return values[0] if values else None


def flag(name: str) -> bool | None:
    text = parameter(name)
    if text not in (None, "true", "false"):
        raise InvalidQuery(f"{name} is {text!r}; allowed: true, false")
    return None if text is None else text == "true"


def platform() -> Platform | None:
    text = parameter("platform")
    try:
        return None if text is None else Platform.parse(text)
    except InvalidPlatform as problem:
        raise InvalidQuery(f"platform: {problem}") from None


def compression() -> Compression | None:
    text = parameter("compression")
    try:
        return None if text is None else Compression(text)
    except ValueError:
        raise InvalidQuery(f"compression is {text!r}; allowed: {', '.join(Compression)}") from None


def options(names: Iterable[str]) -> dict[str, str]:
    """Return those of the parameters `names` that are given; what they may be is not for here."""
    found = ((name, parameter(name)) for name in names)
    return {name: value for name, value in found if value is not None}


def check_names(*allowed: str) -> None:
    """Raise InvalidQuery for a parameter of another name, or one that is given twice."""
    for name, values in request.args.lists():
        if name not in allowed:
            raise InvalidQuery(f"{name!r} is not a parameter; allowed: {', '.join(allowed)}")
        if len(values) > 1:
            raise InvalidQuery(f"{name} is given {len(values)} times; allowed: once")
