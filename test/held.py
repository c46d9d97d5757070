"""Makings that halt in the middle, in whatever process of whatever program, until the test lets them go on.

The law: nothing of the project knows of it. Python itself loads `sitecustomize` from PYTHONPATH in every process that a
test starts with `environment`, and there the format `rootfs` halts after its first mebibyte.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from test.waiting import eventually

ROOT = Path(__file__).parent.parent
_HOLD = """
import os, time
from formats.rootfs import RootfsTar

generator = RootfsTar.stream_generator

def held(self, image, merger):
    size, folder = 0, os.environ["TEST_HOLD"]
    for chunk in generator(self, image, merger):
        yield chunk
        size += len(chunk)
        if size >= 1 << 20 and not os.path.exists(os.path.join(folder, "go")):
            with open(os.path.join(folder, f"halted-{os.getpid()}"), "w"):
                pass
            while not os.path.exists(os.path.join(folder, "go")):
                time.sleep(0.01)

RootfsTar.stream_generator = held
"""


@dataclass(frozen=True)
class Held:
    """The makings of one test, in `folder`."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a process is started with, beside its own."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "sitecustomize.py").write_text(_HOLD)
        return {"PYTHONPATH": os.pathsep.join((str(self.folder), str(ROOT))), "TEST_HOLD": str(self.folder)}

    def halted(self) -> set[int]:
        """Return the processes that have halted, dead or alive."""
        return {int(path.name.partition("-")[2]) for path in self.folder.glob("halted-*")}

    def wait(self, count: int = 1) -> set[int]:
        """Return the processes that have halted, as soon as there are `count`."""
        eventually(lambda: len(self.halted()) >= count, seconds=120, what="nothing has halted")
        return self.halted()

    def go_on(self) -> None:
        """Let them go on, and those that come."""
        (self.folder / "go").touch()


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and is not collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, *, seconds: float = 60) -> bool:
    """Tell whether a process has ended, within `seconds`."""
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)
