"""Progress of the command line, for people: on stderr, and only where that is a terminal.

The law: a program that reads our output never sees a byte of it, and nothing is imported for it in vain.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from util.printable import printable

if TYPE_CHECKING:
    from endpoints.stock import Made

Advance = Callable[[int], None]

Show = Callable[[int, "Mapping[str, Made]"], None]


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
        task = shown.add_task(printable(what), total=total)
        yield lambda size: shown.advance(task, size)


@contextmanager
def jobs_progress(total: int) -> Iterator[Show]:
    """Show how many of `total` jobs have ended, and how far those are that run. What comes out is told both."""
    if not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn
    from rich.text import Text

    in_bytes = DownloadColumn(binary_units=True)

    class Amount(MofNCompleteColumn):
        """Jobs are counted one by one, bytes in units."""

        def render(self, task: Task) -> Text:
            return super().render(task) if task.id == 0 else in_bytes.render(task)

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        Amount(),
        console=Console(stderr=True),
        transient=True,
    ) as shown:
        all_jobs = shown.add_task("derived images", total=total)
        lines: dict[str, TaskID] = {}

        def show(ended: int, running: "Mapping[str, Made]") -> None:
            shown.update(all_jobs, completed=ended)
            for gone in lines.keys() - running.keys():
                shown.remove_task(lines.pop(gone))
            for what, made in running.items():
                if what not in lines:
                    lines[what] = shown.add_task(printable(what), total=None)
                shown.update(lines[what], completed=made.done, total=made.total)

        yield show
