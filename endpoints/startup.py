"""What is looked at once, when a service starts: what its configuration asks for and does not get.

Invariants: whatever is wrong here is said in one line of the log and stops nothing; what must stop a start raises where
the services are made.
"""

import logging
from collections.abc import Mapping
from typing import Any

from endpoints import quaykeys
from endpoints.settings import Settings

log = logging.getLogger(__name__)


def warn_of_configuration(configuration: Mapping[str, Any]) -> None:
    """Have the log name each key that is set, not obeyed, and unsafe to pass over in silence. Raises InvalidSetting."""
    for line in quaykeys.warnings(configuration, Settings.parse(configuration)):
        log.warning("%s", line)
