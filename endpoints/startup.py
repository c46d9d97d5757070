"""What is looked at once, when a service starts: what its configuration asks for and does not get.

Invariants: whatever is wrong here is said in one line of the log and stops nothing; what must stop a start raises where
the services are made.
"""

import logging
from collections.abc import Mapping
from typing import Any

from data.inspection import secret_problem, secret_sample
from data.registry import RegistryUnavailable
from data.secretbox import UnusableSecret
from endpoints import quaykeys
from endpoints.secretfiles import SecretFileUnusable
from endpoints.services import Services, secrets_of

log = logging.getLogger(__name__)


def tell(configuration: Mapping[str, Any], services: Services) -> None:
    """Have the log name what `configuration` asks for and does not get from `services`.

    Each key that is set, not obeyed, and unsafe to pass over in silence; and a DATABASE_SECRET_KEY that is not the
    registry's, so that not every robot is told of a wrong password instead.
    """
    for line in quaykeys.warnings(configuration, services.settings):
        log.warning("%s", line)
    try:
        box = secrets_of(services.settings, make=False)()
        sample = secret_sample(services.engine, box)
    except (UnusableSecret, SecretFileUnusable) as problem:
        log.error("%s", problem)  # noqa: TRY400 no traceback
    except RegistryUnavailable as problem:
        log.debug("no secret was tried: %s", problem)  # the database has been told of
    else:
        if sample is not None and not sample.readable:
            log.error("%s", secret_problem(sample, given=box is not None))
