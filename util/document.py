"""The JSON documents of an image, read field by field, so that every error names the field.

The law: a document is one JSON object in at most MAX_DOCUMENT_SIZE bytes of UTF-8, nested at most MAX_DEPTH deep, with
finite numbers only: whatever passes can be written again. `null` and an absent field are the same thing, because the
encoders in use write either; a value of another type than the specification's is an error, never a guess.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from util.digest import Digest, InvalidDigest
from util.platform import is_word
from util.problem import Malformed, TooLarge

MAX_DOCUMENT_SIZE = 4 << 20
"""Bytes. The least that a registry must accept for a manifest, and more than any image in use needs."""
MAX_DEPTH = 64
MAX_NUMBER = (1 << 63) - 1
_QUOTED = 100


class MalformedManifest(Malformed):
    """A manifest or an image index that its specification does not allow; the text names the field."""

    code = "MANIFEST_INVALID"


class MalformedConfig(Malformed):
    """An image configuration that its specification does not allow; the text names the field."""

    code = "CONFIG_INVALID"


class DocumentTooLarge(TooLarge):
    """A manifest or a configuration of more than MAX_DOCUMENT_SIZE bytes."""

    code = "DOCUMENT_TOO_LARGE"


def read_document(content: bytes, what: str, malformed: type[Malformed]) -> "Fields":
    """Return the fields of the JSON object that `content` writes.

    `what` is how errors call the document; they are of the class `malformed`, but for DocumentTooLarge.
    """
    if len(content) > MAX_DOCUMENT_SIZE:
        raise DocumentTooLarge(f"the {what} has {len(content)} bytes; at most {MAX_DOCUMENT_SIZE} are accepted")
    try:
        value = json.loads(content.decode("utf-8"), parse_float=_finite, parse_constant=_no_constant)
        value = _writable(value, MAX_DEPTH)
    except RecursionError:
        raise malformed(f"the {what} is malformed: it is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise malformed(f"the {what} is malformed: {error}") from None
    if not isinstance(value, dict):
        raise malformed(f"the {what} is malformed: it should be an object and is {_name_of_type(value)}")
    return Fields(value, what, malformed)


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object of a document. Every method raises `malformed`, naming the field by its path in the document."""

    values: Mapping[str, Any]
    what: str
    malformed: type[Malformed]
    path: str = ""

    def error(self, name: str, fact: str) -> Malformed:
        """Return the error to raise where `fact` is wrong about the field `name`."""
        return self.malformed(f"the {self.what} is malformed: {self._path_of(name)} {fact}")

    def required(self, name: str) -> None:
        """Make sure that the field is there and is not null."""
        if self.values.get(name) is None:
            raise self.error(name, "is missing")

    def text(self, name: str) -> str | None:
        """Return a string, None where it is absent."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong_type(name, "a string", value)
        return value

    def required_text(self, name: str) -> str:
        """Return a string that must be there."""
        self.required(name)
        return self.text(name) or ""

    def word(self, name: str) -> str | None:
        """Return a string that may be part of a platform, None where it is absent or empty."""
        value = self.text(name) or None
        if value is not None and not is_word(value):
            raise self.error(name, f"is {value[:_QUOTED]!r}, which no platform has: letters, digits and ._+- alone")
        return value

    def number(self, name: str) -> int | None:
        """Return an integer from 0 to 2^63 - 1, None where it is absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong_type(name, "an integer", value)
        if not 0 <= value <= MAX_NUMBER:
            raise self.error(name, f"is out of range: {value}")
        return value

    def flag(self, name: str) -> bool:
        """Return true or false, false where it is absent."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong_type(name, "true or false", value)
        return bool(value)

    def digest(self, name: str) -> Digest:
        """Return a digest that must be there."""
        return self._digest(name, self.required_text(name))

    def digests(self, name: str) -> tuple[Digest, ...]:
        """Return an array of digests, empty where it is absent."""
        return tuple(self._digest(f"{name}[{at}]", text) for at, text in enumerate(self.texts(name)))

    def texts(self, name: str) -> tuple[str, ...]:
        """Return an array of strings, empty where it is absent. A null among them is an empty string, as in Go."""
        texts = []
        for at, item in enumerate(self._array(name)):
            if item is not None and not isinstance(item, str):
                raise self._wrong_type(f"{name}[{at}]", "a string", item)
            texts.append(item or "")
        return tuple(texts)

    def arguments(self, name: str) -> tuple[str, ...]:
        """Return an array of strings, or the one string that very old images have in its place."""
        value = self.values.get(name)
        return (value,) if isinstance(value, str) else self.texts(name)

    def keys(self, name: str) -> tuple[str, ...]:
        """Return the names of an object that stands for a set, or the strings of an array, in the order written."""
        value = self.values.get(name)
        if isinstance(value, list):
            return self.texts(name)
        if value is not None and not isinstance(value, dict):
            raise self._wrong_type(name, "an object", value)
        return tuple(value or ())

    def text_map(self, name: str) -> dict[str, str]:
        """Return an object of strings, empty where it is absent."""
        inner = self.fields(name)
        return {key: inner.text(key) or "" for key in inner.values} if inner else {}

    def fields(self, name: str) -> "Fields | None":
        """Return an object's fields, None where it is absent."""
        value = self.values.get(name)
        return None if value is None else self._fields(name, value)

    def required_fields(self, name: str) -> "Fields":
        """Return the fields of an object that must be there."""
        self.required(name)
        return self._fields(name, self.values[name])

    def each(self, name: str) -> tuple["Fields", ...]:
        """Return the fields of each object of an array, empty where it is absent."""
        return tuple(self._fields(f"{name}[{at}]", item) for at, item in enumerate(self._array(name)))

    def _array(self, name: str) -> Sequence[Any]:
        value = self.values.get(name)
        if value is not None and not isinstance(value, list):
            raise self._wrong_type(name, "an array", value)
        return value or ()

    def _fields(self, name: str, value: object) -> "Fields":
        if not isinstance(value, dict):
            raise self._wrong_type(name, "an object", value)
        return Fields(value, self.what, self.malformed, self._path_of(name))

    def _digest(self, name: str, text: str) -> Digest:
        try:
            return Digest.parse(text)
        except InvalidDigest as error:
            raise self.error(name, f"is wrong: {error}") from None

    def _path_of(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _wrong_type(self, name: str, expected: str, value: object) -> Malformed:
        return self.error(name, f"should be {expected} and is {_name_of_type(value)}")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _writable(value: Any, depth: int) -> Any:
    """Return `value` without lone surrogates, which JSON can spell and UTF-8 cannot, and at most `depth` deep."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict | list) and not depth:
        raise RecursionError
    if isinstance(value, dict):
        return {_writable(key, depth): _writable(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_writable(item, depth - 1) for item in value]
    return value


def _name_of_type(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {str: "a string", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names[type(value)]
