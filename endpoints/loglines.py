"""The lines of the log: one for each record, with the id of the request that it belongs to.

The law: what a client sent never makes a line of its own.
"""

import logging
from typing import Any

from endpoints.audit import request_id


class RequestIds(logging.Filter):
    """Gives every log record the id of its request, `-` where there is none."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id() or "-"
        return True


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {0x2028: "\\u2028", 0x2029: "\\u2029"}


class OneLine(logging.Formatter):
    """A formatter for which a message is one line, whatever a client had in it; a traceback stands below, indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 logging's name
        return super().formatMessage(record).translate(_CONTROLS)

    def formatException(self, ei: Any) -> str:  # noqa: N802 logging's name
        text = super().formatException(ei)
        return "\n".join("    " + line.translate(_CONTROLS) for line in text.splitlines())
