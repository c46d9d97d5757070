"""Conditions, ranges and digests, as tables: RFC 9110 sections 13 and 14, RFC 9530."""

import base64
import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from endpoints.serving import (
    Asked,
    NotSatisfiable,
    Span,
    Validators,
    Verdict,
    checksum_line,
    repr_digest,
    span,
    verdict,
    wants_part,
)

SEND, NOT_MODIFIED, FAILED = Verdict.SEND, Verdict.NOT_MODIFIED, Verdict.FAILED
BEFORE = "Sun, 06 Nov 1994 08:49:36 GMT"
EXACT = "Sun, 06 Nov 1994 08:49:37 GMT"
AFTER = "Sun, 06 Nov 1994 08:49:38 GMT"
OURS = Validators("abc", 784111777)
UNDATED = Validators("abc")


# --- Conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ('"abc"', SEND),
        ('"other", "abc"', SEND),
        ('"other","abc",', SEND),
        (', ,"abc"', SEND),
        ("*", SEND),
        (" * ", SEND),
        ('"a,b", "abc"', SEND),
        ('W/"abc"', FAILED),  # a strong comparison
        ('"other"', FAILED),
        ('"ABC"', FAILED),
        ("abc", FAILED),
        ("", FAILED),
        ('"abc', FAILED),
        ('"abc" "other"', FAILED),
        ('"abc", *', FAILED),
        ('w/"abc"', FAILED),
    ],
)
def test_if_match_lets_through_what_it_names(field: str, wanted: Verdict) -> None:
    assert verdict(Asked(if_match=field), OURS) is wanted


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ('"abc"', NOT_MODIFIED),
        ('W/"abc"', NOT_MODIFIED),  # a weak comparison; a proxy that compresses makes tags weak
        ('"other", W/"abc"', NOT_MODIFIED),
        ("*", NOT_MODIFIED),
        ('"other"', SEND),
        ('"abc"; "x"', SEND),
        ("abc", SEND),
        ("", SEND),
    ],
)
def test_if_none_match_keeps_back_what_it_names(field: str, wanted: Verdict) -> None:
    assert verdict(Asked(if_none_match=field), OURS) is wanted


@pytest.mark.parametrize(
    ("field", "modified_since", "unmodified_since"),
    [
        (BEFORE, SEND, FAILED),
        (EXACT, NOT_MODIFIED, SEND),
        (AFTER, NOT_MODIFIED, SEND),
        ("Sunday, 06-Nov-94 08:49:37 GMT", NOT_MODIFIED, SEND),
        ("Sun Nov  6 08:49:37 1994", NOT_MODIFIED, SEND),
        ("Sunday, 06-Nov-94 08:49:36 GMT", SEND, FAILED),
        ("Sun Nov  6 08:49:36 1994", SEND, FAILED),
        ("Sun, 06 Nov 1994 08:49:36 +0000", SEND, SEND),  # what follows is no HTTP date, and is not there
        ("Sun, 99 Nov 1994 08:49:36 GMT", SEND, SEND),
        ("Sun, 06 Now 1994 08:49:36 GMT", SEND, SEND),
        ("784111777", SEND, SEND),
        ("", SEND, SEND),
        (f"{EXACT}, {AFTER}", SEND, SEND),
    ],
)
def test_dates_are_compared_to_the_second(field: str, modified_since: Verdict, unmodified_since: Verdict) -> None:
    assert verdict(Asked(if_modified_since=field), OURS) is modified_since
    assert verdict(Asked(if_unmodified_since=field), OURS) is unmodified_since


@pytest.mark.parametrize("field", [BEFORE, EXACT, AFTER, "Mon, 01 Jan 1900 00:00:00 GMT"])
def test_what_has_no_date_is_compared_to_none(field: str) -> None:
    assert verdict(Asked(if_modified_since=field), UNDATED) is SEND
    assert verdict(Asked(if_unmodified_since=field), UNDATED) is SEND


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (Asked(), SEND),
        (Asked(if_match='"abc"', if_unmodified_since=BEFORE), SEND),  # a tag goes before a date
        (Asked(if_match='"other"', if_none_match='"abc"'), FAILED),  # step 1 before step 3
        (Asked(if_match='"abc"', if_none_match='"abc"'), NOT_MODIFIED),
        (Asked(if_none_match='"other"', if_modified_since=AFTER), SEND),
        (Asked(if_none_match='"abc"', if_modified_since=BEFORE), NOT_MODIFIED),
        (Asked(if_unmodified_since=BEFORE, if_none_match='"abc"'), FAILED),
        (Asked(if_unmodified_since=AFTER, if_modified_since=AFTER), NOT_MODIFIED),
    ],
)
def test_conditions_are_taken_in_their_order(asked: Asked, wanted: Verdict) -> None:
    assert verdict(asked, OURS) is wanted


# --- Ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99", (0, 100)),
        ("bytes=10-19", (10, 10)),
        ("bytes=10-", (10, 90)),
        ("bytes=0-", (0, 100)),
        ("bytes=99-", (99, 1)),
        ("bytes=90-1000", (90, 10)),
        ("bytes=-1", (99, 1)),
        ("bytes=-100", (0, 100)),
        ("bytes=-1000", (0, 100)),
        ("Bytes=010-0019", (10, 10)),
        ("bytes=10-19,", (10, 10)),
        ("bytes=, 10-19 ,,", (10, 10)),
        (f"bytes=5-{'9' * 5000}", (5, 95)),
        (f"bytes=-{'9' * 5000}", (0, 100)),
        (f"bytes={'0' * 5000}-1", (0, 2)),
    ],
)
def test_one_range_is_answered_with_that_part(field: str, wanted: tuple[int, int]) -> None:
    part = span(Asked(range=field), OURS, 100)
    assert part == Span(*wanted, 100)
    assert wants_part(Asked(range=field), OURS)
    begin, end = wanted[0], wanted[0] + wanted[1] - 1
    assert part.content_range == f"bytes {begin}-{end}/100"


@pytest.mark.parametrize(
    "field",
    [
        "bytes=0-9,20-29",
        "bytes=0-9,-5",
        "bytes=-",
        "bytes=",
        "bytes",
        "bytes=,",
        "bytes=a-b",
        "bytes=0x0-9",
        "bytes=+0-9",
        "bytes=--5",
        "bytes=0-9-19",
        "bytes=0 - 9",
        "bytes = 0-9",
        "bytes=٠-٩",
        "items=0-9",
        "seconds=1-2",
        "",
        "0-9",
    ],
)
def test_what_is_no_one_range_is_answered_with_the_whole(field: str) -> None:
    assert span(Asked(range=field), OURS, 100) is None
    assert not wants_part(Asked(range=field), OURS)


@pytest.mark.parametrize(
    "field", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=-000", f"bytes={'9' * 5000}-", "bytes=9-5", "bytes=1-0"]
)
def test_a_range_without_a_byte_cannot_be_satisfied(field: str) -> None:
    with pytest.raises(NotSatisfiable):
        span(Asked(range=field), OURS, 100)
    assert wants_part(Asked(range=field), OURS)


def test_of_nothing_there_is_no_part() -> None:
    assert span(Asked(range="bytes=-5"), OURS, 0) is None
    with pytest.raises(NotSatisfiable):
        span(Asked(range="bytes=0-"), OURS, 0)


@pytest.mark.parametrize(
    ("field", "same"),
    [
        ('"abc"', True),
        (' "abc" ', True),
        (EXACT, True),
        ("Sunday, 06-Nov-94 08:49:37 GMT", True),
        ('W/"abc"', False),
        ('"other"', False),
        ('"abc", "abc"', False),
        ("abc", False),
        ("*", False),
        (BEFORE, False),
        (AFTER, False),  # what has not been modified since is not for certain the same
        ("", False),
    ],
)
def test_if_range_wants_exactly_the_same(field: str, same: bool) -> None:
    asked = Asked(range="bytes=10-19", if_range=field)
    assert span(asked, OURS, 100) == (Span(10, 10, 100) if same else None)


def test_if_range_with_a_date_is_never_the_same_as_what_has_none() -> None:
    assert span(Asked(range="bytes=0-0", if_range=EXACT), UNDATED, 100) is None


def test_if_range_of_something_else_makes_no_range_unsatisfiable() -> None:
    assert span(Asked(range="bytes=100-", if_range='"other"'), OURS, 100) is None


@given(st.integers(1, 50), st.integers(0, 60), st.none() | st.integers(0, 60))
def test_a_part_is_what_a_slice_would_be(size: int, first: int, last: int | None) -> None:
    content = bytes(range(size))
    try:
        part = span(Asked(range=f"bytes={first}-{'' if last is None else last}"), OURS, size)
    except NotSatisfiable:
        assert first >= size or (last is not None and last < first)
        return
    assert part is not None
    assert content[part.offset : part.offset + part.length] == content[first : None if last is None else last + 1]


@given(st.text(max_size=30))
def test_no_field_is_too_strange(field: str) -> None:
    for text in (field, f"bytes={field}", f'"{field}"'):
        asked = Asked(text, text, text, text, None, text)
        verdict(asked, OURS)
        span(Asked(range=text, if_range=field), OURS, 100)


# --- What is asked ----------------------------------------------------------------------------------------------------


def test_fields_are_taken_from_headers_in_any_case() -> None:
    headers = Headers({"IF-MATCH": "1", "if-none-match": "2", "If-Modified-Since": "3", "If-Unmodified-Since": "4"})
    headers.update({"if-range": "5", "RANGE": "6"})
    assert Asked.of("GET", headers.get) == Asked("1", "2", "3", "4", "5", "6")


def test_a_head_is_asked_for_no_range() -> None:
    asked = Asked.of("HEAD", Headers({"Range": "bytes=0-0"}).get)
    assert asked.range is None
    assert span(asked, OURS, 100) is None


def test_a_date_decides_only_where_one_is_given() -> None:
    assert Asked(if_modified_since=EXACT).dated
    assert Asked(if_unmodified_since=EXACT).dated
    assert not Asked(if_match="*", if_none_match="*", range="bytes=0-", if_range=EXACT).dated


@pytest.mark.parametrize(
    ("asked", "of_us"),
    [
        (Asked(), False),
        (Asked(range="bytes=0-"), False),
        (Asked(if_none_match='"abc"', if_modified_since=EXACT), False),
        (Asked(if_range='"abc"'), False),
        (Asked(range="bytes=0-", if_range='"abc"'), True),
        (Asked(if_match='"abc"'), True),
        (Asked(if_unmodified_since=EXACT), True),
    ],
)
def test_who_names_our_validators_is_sent_nowhere_else(asked: Asked, of_us: bool) -> None:
    assert asked.of_us is of_us


# --- Digests ----------------------------------------------------------------------------------------------------------


def test_the_digest_of_the_whole_is_a_structured_field() -> None:
    digest = hashlib.sha256(b'{"hello": "world"}\n')
    assert repr_digest(digest.hexdigest()) == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    # RFC 9530, appendix B.1
    assert repr_digest(digest.hexdigest()) == "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"


def test_sha256sum_reads_the_line(tmp_path: Path) -> None:
    (tmp_path / "acme_app_1.0-linux-amd64.tar").write_bytes(b"content")
    line = checksum_line(hashlib.sha256(b"content").hexdigest(), "acme_app_1.0-linux-amd64.tar")
    done = subprocess.run(["sha256sum", "--check", "--strict"], input=line.encode(), cwd=tmp_path, check=False)
    assert done.returncode == 0
