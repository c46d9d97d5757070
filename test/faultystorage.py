"""A storage driver for tests that fails when it is told to, and writes down what it does.

The law: it stands before a real driver and is that one, but for the orders. An order is a file and is carried out once,
by whichever process takes it first; only derived images are meant.
"""

import contextlib
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.storage import drivers
from data.storage.base import OWN, BlobWriter, Storage, StorageUnavailable, StoredBlob
from util.digest import Readable

_DERIVED = f"{OWN}/derived/"


class Orders:
    """A folder of orders to fail, each a file that is carried out once, by whichever process takes it first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def give(self, step: str, number: int = 1) -> None:
        """Have the next `step` fail: open, size, create, commit, late (a commit that is done and not told), delete.

        Or `write`: then the `number`th of a writer that begins afterwards.
        """
        (self.folder / f"{step}-{number}-{uuid.uuid4().hex}").touch()

    def withdraw(self) -> None:
        """Take back what nobody has carried out, the slowness and the holding too."""
        for order in self.folder.glob("*-*"):
            order.unlink(missing_ok=True)
        self.release()
        self.slow(0)

    def slow(self, seconds: float) -> None:
        """Have every piece that is written take that long."""
        self._put("slow", str(seconds))

    def hold(self, beyond: int) -> None:
        """Have every writer that has more than `beyond` bytes halt before its next step, until `release`."""
        self._put("hold", str(beyond))

    def release(self) -> None:
        """Let those that have halted go on, and those that come."""
        (self.folder / "hold").unlink(missing_ok=True)

    def holds(self, size: int) -> bool:
        """Tell whether a writer that has `size` bytes is to halt."""
        with contextlib.suppress(FileNotFoundError):
            return size > int((self.folder / "hold").read_text())
        return False

    def _put(self, name: str, text: str) -> None:
        """Write the file `name` at one stroke: others read it all the time."""
        new = self.folder / f"{name}.new"
        new.write_text(text)
        new.replace(self.folder / name)

    def pause(self) -> float:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return float((self.folder / "slow").read_text())
        return 0

    def taken(self, step: str) -> int | None:
        """Take one order to fail at `step`, and return its number."""
        for order in self.folder.glob(f"{step}-*"):
            with contextlib.suppress(FileNotFoundError):
                order.unlink()
                return int(order.name.split("-")[1])
        return None

    def waiting(self, step: str = "*") -> int:
        """Return how many orders nobody has carried out yet."""
        return sum(1 for _ in self.folder.glob(f"{step}-*-*"))

    def note(self, event: str, path: str) -> None:
        """Write down what a storage did. One write is one line, whoever writes beside."""
        descriptor = os.open(self.folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, f"{event} {path}\n".encode())
        finally:
            os.close(descriptor)

    def noted(self) -> Counter[str]:
        """Return how often each event was."""
        with contextlib.suppress(FileNotFoundError):
            return Counter(line.split()[0] for line in (self.folder / "journal").read_text().splitlines())
        return Counter()


class FaultyStorage(Storage):
    """Another storage, which it is, but for the orders. They are about derived images alone."""

    def __init__(self, inner: Storage, orders: Orders) -> None:
        self.inner, self._orders = inner, orders

    def _obey(self, step: str, path: str) -> None:
        if path.startswith(_DERIVED) and self._orders.taken(step) is not None:
            raise StorageUnavailable(f"ordered to fail at {step} of {path}")

    def open(self, path: str, *, offset: int = 0, length: int | None = None) -> Readable:
        self._obey("open", path)
        return self.inner.open(path, offset=offset, length=length)

    def size(self, path: str) -> int:
        self._obey("size", path)
        return self.inner.size(path)

    def create(self, path: str) -> BlobWriter:
        self._obey("create", path)
        writer = self.inner.create(path)
        return _FaultyWriter(writer, self._orders, path) if path.startswith(_DERIVED) else writer

    def copy(self, source: str, target: str) -> None:
        self.inner.copy(source, target)

    def delete(self, path: str) -> None:
        self._obey("delete", path)
        self.inner.delete(path)

    def list(self, prefix: str) -> Iterator[StoredBlob]:
        return self.inner.list(prefix)

    def sweep(self, *, older_than: float, dry_run: bool = False) -> int:
        return self.inner.sweep(older_than=older_than, dry_run=dry_run)

    def local_path(self, path: str) -> str | None:
        # A server that sends the file by itself would never meet an order to fail at `open`.
        return None if self._orders.waiting("open") else self.inner.local_path(path)


class _FaultyWriter(BlobWriter):
    def __init__(self, inner: BlobWriter, orders: Orders, path: str) -> None:
        self._inner, self._orders, self._path = inner, orders, path
        self._fails_at = orders.taken("write")
        self._writes = self._size = 0
        orders.note("create", path)

    @property
    def growing(self) -> str | None:
        return self._inner.growing

    def _write(self, chunk: bytes) -> None:
        self._writes += 1
        if self._writes == self._fails_at:
            raise StorageUnavailable(f"ordered to fail at write {self._writes} of {self._path}")
        time.sleep(self._orders.pause())
        self._halt()
        self._inner.write(chunk)
        self._size += len(chunk)

    def _halt(self) -> None:
        while self._orders.holds(self._size):
            time.sleep(0.01)

    def _commit(self) -> None:
        self._halt()
        if self._orders.taken("commit") is not None:
            raise StorageUnavailable(f"ordered to fail at the commit of {self._path}")
        self._inner.commit()
        self._orders.note("commit", self._path)
        if self._orders.taken("late") is not None:
            raise StorageUnavailable(f"ordered not to tell that {self._path} is committed")

    def _abort(self) -> None:
        self._orders.note("abort", self._path)
        self._inner.abort()


def _faulty(parameters: Any) -> Storage:
    values = parameters._values
    driver, inner = values.pop("inner")
    return FaultyStorage(drivers.make_storage("inner", driver, inner), Orders(Path(values.pop("orders"))))


drivers._DRIVERS["FaultyStorage"] = _faulty
