"""An ext4 file system as debugfs reads it: what the tests hold ours against.

The law: nothing here knows how ours is made.
"""

import os
import re
import tempfile
from pathlib import Path

from test import model
from test.clients import run

_NAME = re.compile(rb"/(\d+)/(\d{6})/(-?\d+)/(-?\d+)/([^/\0]*)/(\d*)/\n")
_INODE = re.compile(
    rb"Inode: (?P<number>\d+) +Type: (?P<type>[A-Za-z ]+?) +Mode: +(?P<mode>\d+) .*?"
    rb"User: +(?P<uid>-?\d+) +Group: +(?P<gid>-?\d+) .*?Size: (?P<size>\d+)\n.*?Links: (?P<links>\d+) .*?"
    rb"mtime: 0x(?P<seconds>[0-9a-f]{8}):(?P<extra>[0-9a-f]{8}) ",
    re.DOTALL,
)
_FAST = re.compile(rb'Fast link dest: "(.*)"\n', re.DOTALL)
_DEVICE = re.compile(rb"Device major/minor number: (\d+):(\d+) ")
_ATTRIBUTE = re.compile(rb"^  (\S+) \(\d+\)", re.MULTILINE)
_KINDS = {
    b"regular": "file",
    b"directory": "directory",
    b"symlink": "symlink",
    b"character special": "character device",
    b"block special": "block device",
    b"FIFO": "fifo",
}


class Ext4Image:
    """The file system in the file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def listing(self) -> model.Listing:
        """Return all that it holds, its root as `.`; each count of links is that of the names."""
        names: dict[int, list[bytes]] = {2: [b"."]}
        level, folders = [(b"", 2)], set()
        while level:
            below: list[tuple[bytes, int]] = []
            for (parent, number), told in zip(level, self._ask([f"ls -p <{each}>" for _, each in level]), strict=True):
                folders.add(number)
                for match in _NAME.finditer(told):
                    path, inode = parent + match[5], int(match[1])
                    if match[5] in (b".", b"..") or not inode:
                        continue
                    names.setdefault(inode, []).append(path)
                    if match[2].startswith(b"04"):
                        below.append((path + b"/", inode))
            level = below
        numbers = sorted(names)
        listing: model.Listing = {}
        with tempfile.TemporaryDirectory() as folder_name:
            folder = Path(folder_name)
            texts = self._ask([f"stat <{number}>" for number in numbers])
            self._ask([f'dump <{number}> "{folder / str(number)}"' for number in set(numbers) - folders])
            for number, text in zip(numbers, texts, strict=True):
                listed = self._listed(number, text, folder, tuple(sorted(names[number])))
                listing |= dict.fromkeys(names[number], listed)
        return listing

    def _listed(self, number: int, text: bytes, folder: Path, names: tuple[bytes, ...]) -> model.Listed:
        found = _INODE.search(text)
        assert found is not None, text
        assert int(found["number"]) == number
        kind = _KINDS[found["type"]]
        subfolders = 0 if kind != "directory" else int(found["links"]) - 2
        assert kind == "directory" or int(found["links"]) == len(names)
        assert subfolders >= 0
        fast, device = _FAST.search(text), _DEVICE.search(text)
        content = (folder / str(number)).read_bytes() if kind in ("file", "symlink") and not fast else b""
        seconds, extra = int(found["seconds"], 16), int(found["extra"], 16)
        seconds += ((extra & 3) << 32) - ((seconds >> 31) << 32)
        return model.Listed(
            kind=kind,
            mode=int(found["mode"], 8),
            uid=int(found["uid"]) & 0xFFFFFFFF,
            gid=int(found["gid"]) & 0xFFFFFFFF,
            mtime_ns=seconds * 10**9 + (extra >> 2),
            content=content if kind == "file" else b"",
            link=(fast[1] if fast else content) if kind == "symlink" else b"",
            device=(int(device[1]), int(device[2])) if device else (0, 0),
            xattrs=self._attributes(number, text, folder),
            names=names,
        )

    def _attributes(self, number: int, text: bytes, folder: Path) -> tuple[tuple[bytes, bytes], ...]:
        _, _, attributes = text.partition(b"Extended attributes:\n")
        keys = sorted(match[1] for match in _ATTRIBUTE.finditer(attributes))
        files = [folder / f"{number}-{at}" for at in range(len(keys))]
        asked = [f'ea_get -f "{file}" <{number}> {os.fsdecode(key)}' for key, file in zip(keys, files, strict=True)]
        if asked:
            self._ask(asked)
        return tuple((key, file.read_bytes()) for key, file in zip(keys, files, strict=True))

    def _ask(self, commands: list[str]) -> list[bytes]:
        """Return what debugfs says to each command."""
        if not commands:
            return []
        with tempfile.NamedTemporaryFile("wb") as script:
            script.write(b"".join(os.fsencode(command) + b"\n" for command in commands))
            script.flush()
            said = run("debugfs", "-f", script.name, str(self._path))
        answers = re.split(rb"^debugfs: .*\n", said, flags=re.MULTILINE)
        assert len(answers) == len(commands) + 1, said
        return answers[1:]
