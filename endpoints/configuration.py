"""The configuration as it was read: keys and values, and where they come from."""

from typing import Any


class Configuration(dict[str, Any]):
    """Keys and values. `source` is the path of the file, None where there is none; `environment` has its keys."""

    source: str | None = None
    environment: frozenset[str] = frozenset()
