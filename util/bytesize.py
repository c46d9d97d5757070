"""How many bytes a text says, as people write it: `1048576`, `500M`, `20G`, `1TiB`. A K is 1024."""

import re

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,40})\s*([KMGT]?)(?:i?B)?(?<!\s)", re.IGNORECASE)


def parse_bytes(text: str) -> int | None:
    """Return how many bytes `text` says, None where it says none."""
    match = _SIZE.fullmatch(text) if text.isascii() else None
    return int(match[1]) * _UNITS[match[2].upper()] if match else None
