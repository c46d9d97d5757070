"""The lines of the log: one for each record, with the id of the request that it belongs to.

The law: what a client sent never makes a line of its own, nor anything but a picture on a terminal.
"""

import logging
from typing import Any

from util.printable import printable


class RequestIds(logging.Filter):
    """Gives every log record the id of its request, `-` where there is none."""

    def filter(self, record: logging.LogRecord) -> bool:
        from endpoints.audit import request_id  # not for commands, which show lines too and have no requests

        record.request_id = request_id() or "-"
        return True


class OneLine(logging.Formatter):
    """A formatter for which a message is one line, whatever a client had in it; a traceback stands below, indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 logging's name
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 logging's name
        text = super().formatException(ei)
        return "\n".join("    " + printable(line) for line in text.splitlines())


def log_to_stderr(level: int) -> None:
    """Have all records of this process from `level` on written to stderr, where nothing else is set up."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
