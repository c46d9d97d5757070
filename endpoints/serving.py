"""What is answered to a request for bytes that have a name: conditions, ranges, digests. Pure; reads no byte of a body.

The law: a condition is decided before a range (RFC 9110, 13.2.2). A field that cannot be understood is as if it had not
come (13.1, 14.2), but for If-Match: who would have us do nothing gets nothing. One range is answered with that part;
several are answered with the whole, as 14.2 allows, because no client asks so for a download. A range is of GET alone
(14.2), so a HEAD tells of the whole.

An answer may be left to somebody who sends the same bytes under other validators (S3 by its URL, nginx from its disk).
Whoever asks with one of ours in If-Match or If-Range is answered here: there it would mean nothing, or something else.
"""

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum, auto

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAGS = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
_EACH_TAG = re.compile(_TAG)
_DATE = re.compile(
    r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"  # IMF-fixdate
    r"|[A-Z][a-z]{5,8}, \d\d-[A-Z][a-z]{2}-\d\d \d\d:\d\d:\d\d GMT"  # RFC 850
    r"|[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}",  # asctime
    re.ASCII,
)
_RANGES = re.compile(r"bytes=([-0-9, \t]*)", re.IGNORECASE)
_RANGE = re.compile(r"([0-9]*)-([0-9]*)")
_DIGITS = 18
"""More than any length has. Python refuses to read numbers of thousands of digits, and a header may hold one."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The fields of a request that decide how much is answered, as they came; None where one did not."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_modified_since: str | None = None
    if_unmodified_since: str | None = None
    if_range: str | None = None
    range: str | None = None

    @classmethod
    def of(cls, method: str, header: Callable[[str], str | None]) -> "Asked":
        """Return what a request by `method` asks for; `header` looks a field up by its name."""
        return cls(
            if_match=header("If-Match"),
            if_none_match=header("If-None-Match"),
            if_modified_since=header("If-Modified-Since"),
            if_unmodified_since=header("If-Unmodified-Since"),
            if_range=header("If-Range"),
            range=header("Range") if method == "GET" else None,
        )

    @property
    def dated(self) -> bool:
        """Whether a date may decide."""
        return any((self.if_modified_since, self.if_unmodified_since))

    @property
    def of_us(self) -> bool:
        """Whether only we can answer, who know the validators that are named."""
        return any((self.if_match, self.if_unmodified_since, self.range and self.if_range))


@dataclass(frozen=True, slots=True)
class Validators:
    """What names the bytes that we would send: a strong entity tag, without quotes, and when they became these.

    `modified` is in seconds since the epoch, None where there is no such time: then no date is ever compared.
    """

    etag: str
    modified: int | None = None


class Verdict(Enum):
    """What the conditions of a GET or HEAD come to."""

    SEND = auto()
    NOT_MODIFIED = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Span:
    """`length` bytes from `offset` of the `size` there are; at least one."""

    offset: int
    length: int
    size: int

    @property
    def content_range(self) -> str:
        """The field Content-Range that says so."""
        return f"bytes {self.offset}-{self.offset + self.length - 1}/{self.size}"


class NotSatisfiable(Exception):
    """A range with no byte in it that there is."""


def verdict(asked: Asked, validators: Validators) -> Verdict:
    """Return whether to send, by the steps of RFC 9110, 13.2.2."""
    if asked.if_match is not None:
        if not _names(asked.if_match, validators.etag, weak=False):
            return Verdict.FAILED
    elif _is_later(validators.modified, asked.if_unmodified_since):
        return Verdict.FAILED
    if asked.if_none_match is not None:
        return Verdict.NOT_MODIFIED if _names(asked.if_none_match, validators.etag, weak=True) else Verdict.SEND
    if _seconds(asked.if_modified_since) is None or validators.modified is None:
        return Verdict.SEND
    return Verdict.SEND if _is_later(validators.modified, asked.if_modified_since) else Verdict.NOT_MODIFIED


def span(asked: Asked, validators: Validators, size: int) -> Span | None:
    """Return the one part of `size` bytes that is asked for, None where the whole is to be sent.

    Raises NotSatisfiable.
    """
    if asked.range is None or (asked.if_range is not None and not _same(asked.if_range, validators)):
        return None
    match = _RANGES.fullmatch(asked.range)
    ranges = [each for part in match[1].split(",") if (each := part.strip(" \t"))] if match else []
    one = _RANGE.fullmatch(ranges[0]) if len(ranges) == 1 else None
    if one is None or not (one[1] or one[2]):
        return None
    if not one[1]:
        length = min(_number(one[2]), size)
        if not _number(one[2]):
            raise NotSatisfiable
        return Span(size - length, length, size) if length else None
    first = _number(one[1])
    last = _number(one[2]) if one[2] else size - 1
    if first >= size or (one[2] and last < first):  # RFC 9110, 14.2 lets a server refuse what means nothing
        raise NotSatisfiable
    return Span(first, min(last, size - 1) - first + 1, size)


def wants_part(asked: Asked, validators: Validators) -> bool:
    """Tell whether it can matter how many bytes there are: whether `span` may return a part, or raise."""
    try:
        return span(asked, validators, 1 << 62) is not None
    except NotSatisfiable:
        return True


def repr_digest(sha256: str) -> str:
    """Return the field Repr-Digest (RFC 9530) for bytes with that hexadecimal SHA-256."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def checksum_line(sha256: str, file_name: str) -> str:
    """Return the line that `sha256sum --check` reads. A file name of ours needs no escapes."""
    return f"{sha256}  {file_name}\n"


def _names(field: str, etag: str, *, weak: bool) -> bool:
    """Tell whether an If-Match or If-None-Match names `etag`."""
    if field.strip(" \t") == "*":
        return True
    if not _TAGS.fullmatch(field):
        return False
    strong = f'"{etag}"'
    return any(each == strong or (weak and each == f"W/{strong}") for each in _EACH_TAG.findall(field))


def _same(if_range: str, validators: Validators) -> bool:
    """Tell whether an If-Range names exactly what we would send; a date has to be our own to the second."""
    if '"' in if_range:
        return if_range.strip(" \t") == f'"{validators.etag}"'
    seconds = _seconds(if_range)
    return seconds is not None and seconds == validators.modified


def _is_later(modified: int | None, field: str | None) -> bool:
    """Tell whether `modified` is after the date in `field`; False where there is none of either."""
    seconds = _seconds(field)
    return modified is not None and seconds is not None and modified > seconds


def _seconds(field: str | None) -> int | None:
    """Return an HTTP date in seconds since the epoch, None for what is none."""
    if field is None or not _DATE.fullmatch(field.strip(" \t")):
        return None
    try:
        return int(parsedate_to_datetime(field.strip(" \t")).replace(tzinfo=UTC).timestamp())
    except ValueError:
        return None


def _number(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _DIGITS else 10**_DIGITS
