"""Waiting for what other threads and processes bring about."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from endpoints import origins

if TYPE_CHECKING:
    import pytest

PATIENT = "from endpoints import origins; origins._SETTLE_SECONDS = 60.0; import app; app.main()"
"""A program for a server in which the end of a body waits as it does where `storing_is_waited_for`."""


def eventually(holds: Callable[[], Any], *, seconds: float = 60, pause: float = 0.02, what: str = "") -> Any:
    """Return what `holds` returns once that is true. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (outcome := holds()):
        assert time.monotonic() < end, what or "it does not come about"
        time.sleep(pause)
    return outcome


def storing_is_waited_for(monkeypatch: "pytest.MonkeyPatch") -> None:
    """Have the end of a body wait until the image is stored, for a test that looks for it there at once.

    A service waits for two seconds, and a disk may take longer.
    """
    monkeypatch.setattr(origins, "_SETTLE_SECONDS", 60.0)
