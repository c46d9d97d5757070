"""A deadline in processor time: work that a stranger's image causes ends, however it is made.

It is the time of the thread that works, so a busy machine refuses nothing that an idle one would do.
"""

import threading
import time

from util.layerindex import ImageTooComplex, LayerLimits

_TICKS = 1024


class Deadline:
    """When the work on an image has to be done. Its time begins when it is made, and anew in another thread."""

    def __init__(self, limits: LayerLimits) -> None:
        self._seconds = limits.plan_seconds
        self._ticks = 0
        self._met = False
        self._thread = 0
        self._end = 0.0
        self.check()

    def tick(self) -> None:
        """Look at the clock now and then. Raises ImageTooComplex."""
        self._ticks += 1
        if self._ticks >= _TICKS:
            self.check()

    def check(self) -> None:
        """Raise ImageTooComplex when the time is over."""
        self._ticks = 0
        now, thread = time.thread_time(), threading.get_ident()
        if thread != self._thread:
            self._thread, self._end = thread, now + self._seconds
        if now > self._end and not self._met:
            raise ImageTooComplex(
                f"the image takes more than {self._seconds} s of processor time to be planned; no more are allowed"
                " (VERBS_PLAN_SECONDS)"
            )

    def met(self) -> None:
        """Say that the work is done: what else happens has no deadline."""
        self._met = True
