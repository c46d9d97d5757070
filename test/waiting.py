"""Waiting for what other threads and processes bring about."""

import time
from collections.abc import Callable
from typing import Any


def eventually(holds: Callable[[], Any], *, seconds: float = 20, pause: float = 0.02, what: str = "") -> Any:
    """Return what `holds` returns once that is true. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (outcome := holds()):
        assert time.monotonic() < end, what or "it does not come about"
        time.sleep(pause)
    return outcome
