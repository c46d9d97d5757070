"""Numbers of bytes as people write them."""

import pytest

from util.bytesize import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1048576", 1 << 20), ("500M", 500 << 20), ("20g", 20 << 30), ("1 TiB", 1 << 40), ("3kB", 3 << 10)],
)
def test_a_number_with_or_without_a_unit_is_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", " 1", "1 ", "-1", "+1", "1.5G", "1P", "G", "1GG", "٣", "1\n", "9" * 5000])
def test_anything_else_is_none(text: str) -> None:
    assert parse_bytes(text) is None
