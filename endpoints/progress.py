"""Progress of the command line, for people: on stderr, and only where that is a terminal.

The law: a program that reads our output never sees a byte of it, and nothing is imported for it in vain.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Advance]:
    """Show `what` going on, out of `total` bytes if that is known. What comes out is called with the bytes done."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), DownloadColumn(binary_units=True), TransferSpeedColumn())
    foreseeable = (BarColumn(), TimeRemainingColumn()) if total is not None else ()
    with Progress(*columns, *foreseeable, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda size: shown.advance(task, size)
