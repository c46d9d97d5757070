"""What a stack of layers unpacks to: the rules of the merge, spelled out twice, obviously and slowly.

The law: layers are applied base first and entries one after the other, to a tree of nodes (`unpacked`) or as root
to a real folder (`unpack_on_disk`). Both are written from the image-spec's layer.md and know nothing of the merge plan;
they check one another, and the engine is checked against both.

Where the specification is silent, this is what holds:
- Whiteouts look at the lower tree as it was before their layer; a whiteout never acts on its own layer. Their parents
  are followed through symlinks of that tree, but not through a symlink that the same layer replaces by something else.
- Parents that are missing are made: root:root, 0755, at the epoch. Parents that are symlinks are followed inside the
  root, also to a place that does not exist yet. The last component of a name is never followed.
- A hard link has its inode's metadata; what its own header says is of no account.
"""

import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from fractions import Fraction
from io import BytesIO

from test import layers
from test.layers import Entry

Path = tuple[bytes, ...]
LINK_LIMIT = 255  # as umoci and containerd count; nothing real comes near


class Refused(Exception):
    """A stack that cannot be unpacked; `reason` is the name of the error that the engine has for it."""

    def __init__(self, reason: str, entry: Entry) -> None:
        super().__init__(f"{reason}: {entry.name!r} -> {entry.link!r}")
        self.reason, self.entry = reason, entry


# --- Listings: what all ways of looking at a root file system are compared by -----------------------------------------


@dataclass(frozen=True, slots=True)
class Listed:
    """One name of a root file system, and all that it is. `names` are all names of its inode, itself among them."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    content: bytes = b""
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    names: tuple[bytes, ...] = ()


Listing = dict[bytes, Listed]

KINDS = {
    layers.REGULAR: "file",
    layers.OLD_REGULAR: "file",
    layers.CONTIGUOUS: "file",
    layers.SYMLINK: "symlink",
    layers.CHARACTER: "character device",
    layers.BLOCK_DEVICE: "block device",
    layers.DIRECTORY: "directory",
    layers.FIFO: "fifo",
}
MODES = {
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "fifo",
}


def listing_of_folder(folder: bytes) -> Listing:
    """Return what `folder` holds, itself as `.`, with sockets and the like refused."""
    found: list[tuple[bytes, os.stat_result]] = [(b".", os.lstat(folder))]
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(parent, name)
            found.append((os.path.relpath(path, folder), os.lstat(path)))
    names: dict[int, list[bytes]] = {}
    for path, status in found:
        names.setdefault(status.st_ino, []).append(path)
    listing: Listing = {}
    for path, status in found:
        full = os.path.join(folder, path)
        kind = MODES[stat.S_IFMT(status.st_mode)]
        content = b""
        if kind == "file":
            with open(full, "rb") as stream:
                content = stream.read()
        xattrs = [
            (os.fsencode(name), os.getxattr(full, name, follow_symlinks=False))
            for name in os.listxattr(full, follow_symlinks=False)
        ]
        listing[path] = Listed(
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            content=content,
            link=os.readlink(full) if kind == "symlink" else b"",
            device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if "device" in kind else (0, 0),
            xattrs=tuple(sorted(xattrs)),
            names=tuple(sorted(names[status.st_ino])) if kind != "directory" else (path,),
        )
    return listing


def listing_of_tar(archive: bytes, *, path_prefix: bytes = b"") -> Listing:
    """Return what a merged tar holds, as Python's tarfile reads it, and assert the invariants of every merged tar.

    These are: no name twice, names plain and inside the root, parents before children, link targets before links, hard
    links to names as they stand in the archive, nothing after the end-of-archive blocks but fill.
    """
    listing: Listing = {}
    links: dict[bytes, bytes] = {}
    root = path_prefix.rstrip(b"/") or b"."
    with tarfile.open(fileobj=BytesIO(archive), mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        members = [(info, tar.extractfile(info) if info.isreg() else None) for info in tar]
        fill = archive[tar.offset :]
        assert len(fill) >= len(layers.END), "no end of archive"
        assert len(fill) % layers.BLOCK == 0
        assert not fill.strip(b"\0")
        for info, stream in members:
            raw = info.name.encode("utf-8", "surrogateescape")
            assert not raw.startswith(b"/"), raw
            path = raw.rstrip(b"/") or raw
            assert path == root or all(part not in (b"", b".", b"..") for part in path.split(b"/")), raw
            if path_prefix:
                assert path == root or path.startswith(path_prefix), raw
                path = path[len(path_prefix) :] or b"."
                assert listing or path == b".", "the prefix's own folder comes first"
            parent = path.rpartition(b"/")[0]
            assert path not in listing, f"{path!r} comes twice"
            assert not parent or listing[parent].kind == "directory", f"{path!r} comes before its parent"
            if path == b".":
                assert not listing, "the root comes first"
            if info.islnk():
                target = info.linkname.encode("utf-8", "surrogateescape")
                assert target.startswith(path_prefix), target
                target = target[len(path_prefix) :]
                assert target in listing, f"{path!r} comes before its target {target!r}"
                assert listing[target].kind != "directory"
                links[path] = links.get(target, target)
                listing[path] = listing[target]
                continue
            prefix = "SCHILY.xattr."
            xattrs = [
                tuple(part.encode("utf-8", "surrogateescape") for part in (key[len(prefix) :], value))
                for key, value in info.pax_headers.items()
                if key.startswith(prefix)
            ]
            listing[path] = Listed(
                kind=KINDS[info.type],
                mode=info.mode,
                uid=info.uid,
                gid=info.gid,
                mtime_ns=int(Fraction(info.pax_headers.get("mtime", str(int(info.mtime)))) * 10**9),
                content=stream.read() if stream else b"",
                link=info.linkname.encode("utf-8", "surrogateescape") if info.issym() else b"",
                device=(info.devmajor, info.devminor) if info.isdev() and not info.isfifo() else (0, 0),
                xattrs=tuple(sorted((key, value) for key, value in xattrs)),
                names=(path,),
            )
    groups: dict[bytes, list[bytes]] = {}
    for path, target in links.items():
        groups.setdefault(target, [target]).append(path)
    for group in groups.values():
        for path in group:
            listing[path] = replace(listing[path], names=tuple(sorted(group)))
    return listing


def order_of_tar(archive: bytes) -> list[bytes]:
    """Return the names of an archive in their order, slashes at their ends taken off."""
    with tarfile.open(fileobj=BytesIO(archive), mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        return [info.name.encode("utf-8", "surrogateescape").rstrip(b"/") for info in tar]


def as_on_disk(listing: Listing) -> Listing:
    """Return `listing` as a Linux file system can hold it: a symlink has no mode of its own."""
    return {
        path: replace(listed, mode=0o777) if listed.kind == "symlink" else listed for path, listed in listing.items()
    }


def differences(left: Listing, right: Listing) -> list[str]:
    """Return one line for each name on which the two differ: for people who read a failed test."""
    lines = []
    for path in sorted(left.keys() | right.keys()):
        one, other = left.get(path), right.get(path)
        if one is None or other is None:
            lines.append(f"{path!r}: {one} != {other}")
        elif one != other:
            fields = [name for name in Listed.__slots__ if getattr(one, name) != getattr(other, name)]
            lines.append(
                f"{path!r}: "
                + ", ".join(f"{name} {getattr(one, name)!r} != {getattr(other, name)!r}" for name in fields)
            )
    return lines


# --- The rules that both ways of unpacking share ----------------------------------------------------------------------


def normalised(entry: Entry, name: bytes) -> Path:
    """Return the components of a name: `./a`, `/a`, `a//` are one; `..` is resolved, and refused above the root."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise Refused("PathLeavesRoot", entry)
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return tuple(parts)


def is_left_over(path: Path) -> bool:
    """Say whether a path is one of aufs' own: `.wh..wh.plnk/1.2` and the like, but no opaque whiteout."""
    return any(part.startswith(b".wh..wh.") for part in path[:-1]) or (
        bool(path) and path[-1].startswith(b".wh..wh.") and path[-1] != b".wh..wh..opq"
    )


def is_whiteout(path: Path) -> bool:
    return bool(path) and path[-1].startswith(b".wh.")


def hidden_name(entry: Entry, path: Path) -> bytes | None:
    """Return the name that a whiteout at `path` hides in its folder; None hides all (opaque)."""
    if path[-1] == b".wh..wh..opq":
        return None
    name = path[-1].removeprefix(b".wh.")
    if name in (b"", b".", b".."):
        raise Refused("BareWhiteout", entry)
    return name


def sorted_out(entries: Sequence[Entry]) -> tuple[list[tuple[Entry, Path]], list[tuple[Entry, Path]]]:
    """Return the layer's whiteouts and its other entries, each with its path; what is aufs' own is dropped."""
    whiteouts: list[tuple[Entry, Path]] = []
    others: list[tuple[Entry, Path]] = []
    for entry in entries:
        path = normalised(entry, entry.name)
        if is_left_over(path):
            continue
        (whiteouts if is_whiteout(path) else others).append((entry, path))
    return whiteouts, others


def refuse_unreadable(stack: Sequence[Sequence[Entry]]) -> None:
    """Raise Refused for what is wrong with an entry by itself, wherever in the stack it stands."""
    for entries in stack:
        for entry in entries:
            path = normalised(entry, entry.name)
            if is_left_over(path):
                continue
            if is_whiteout(path):
                hidden_name(entry, path)
            elif entry.kind == layers.HARD_LINK:
                normalised(entry, entry.link)


def replaced_by(others: Sequence[tuple[Entry, Path]]) -> set[Path]:
    """Return the paths at which a layer puts something that is no symlink."""
    return {path for entry, path in others if path and entry.kind != layers.SYMLINK}


# --- In memory --------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Node:
    """An inode: several names may lead to it."""

    kind: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    content: bytes = b""
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, "Node"] = field(default_factory=dict)
    implied: bool = False


@dataclass(slots=True)
class Tree:
    """A root file system in memory. `named_root` tells whether some layer had an entry for the root itself."""

    root: Node = field(default_factory=lambda: Node("directory", implied=True))
    named_root: bool = False

    def at(self, place: Path) -> Node | None:
        """Return the node at a place, followed through no symlink."""
        node: Node | None = self.root
        for part in place:
            node = node.children.get(part) if node is not None else None
        return node

    def place_of_folder(self, path: Path, entry: Entry, replaced: AbstractSet[Path] = frozenset()) -> Path | None:
        """Return where the folder `path` is, every symlink followed inside the root; it may not exist yet.

        None: it leads through a symlink that is in `replaced`, by the path as written or by where it stands.
        """
        place: Path = ()
        rest: list[tuple[bytes, Path | None]] = [(part, path[: index + 1]) for index, part in enumerate(path)]
        followed = 0
        while rest:
            part, as_written = rest.pop(0)
            if part == b"..":
                place = place[:-1]
                continue
            node = self.at((*place, part))
            if node is None or node.kind == "directory":
                place = (*place, part)
                continue
            if node.kind != "symlink":
                raise Refused("ParentNotDirectory", entry)
            if as_written in replaced or (*place, part) in replaced:
                return None
            followed += 1
            if followed > LINK_LIMIT:
                raise Refused("SymlinkLoop", entry)
            if node.link.startswith(b"/"):
                place = ()
            target = [step for step in node.link.split(b"/") if step not in (b"", b".")]
            rest = [(step, None) for step in target] + rest
        return place

    def made_folder(self, place: Path) -> Node:
        """Return the folder at a place, made with all its missing parents."""
        node = self.root
        for part in place:
            node = node.children.setdefault(part, Node("directory", implied=True))
        return node

    def apply(self, entries: Sequence[Entry]) -> None:
        """Apply one layer. Raises Refused, and the tree is then of no use."""
        whiteouts, others = sorted_out(entries)
        replaced = replaced_by(others)
        doomed: list[tuple[Node, bytes | None]] = []
        for entry, path in whiteouts:
            name = hidden_name(entry, path)
            try:
                place = self.place_of_folder(path[:-1], entry, replaced)
            except Refused as refusal:
                if refusal.reason != "ParentNotDirectory":
                    raise
                continue  # nothing is below a file: a whiteout of something absent
            folder = self.at(place) if place is not None else None
            if folder is not None and folder.kind == "directory":
                doomed.append((folder, name))
        for folder, hidden in doomed:
            if hidden is None:
                folder.children.clear()
            else:
                folder.children.pop(hidden, None)
        for entry, path in others:
            self.add(entry, path)

    def add(self, entry: Entry, path: Path) -> None:
        """Apply one entry that is no whiteout."""
        if not path:
            if entry.kind != layers.DIRECTORY:
                raise Refused("RootNotDirectory", entry)
            self.named_root = True
            describe(self.root, entry)
            return
        place = self.place_of_folder(path[:-1], entry)
        assert place is not None
        folder, name = self.made_folder(place), path[-1]
        old = folder.children.get(name)
        if entry.kind == layers.DIRECTORY and old is not None and old.kind == "directory":
            describe(old, entry)
            return
        folder.children.pop(name, None)
        if entry.kind == layers.HARD_LINK:
            target = normalised(entry, entry.link)
            place = self.place_of_folder(target[:-1], entry)
            node = self.at(place + target[-1:]) if place is not None and target else None
            if node is None or node.kind == "directory":
                raise Refused("DanglingHardLink", entry)
            folder.children[name] = node
        else:
            folder.children[name] = describe(Node(KINDS[entry.kind]), entry)

    def walk(self) -> Iterator[tuple[Path, Node]]:
        """Yield every name with its node, the root first, parents before children."""
        stack: list[tuple[Path, Node]] = [((), self.root)]
        while stack:
            place, node = stack.pop()
            yield place, node
            stack += [((*place, name), child) for name, child in node.children.items()]

    def listing(self) -> Listing:
        """Return all names; the root as `.`, whether or not a layer named it."""
        names: dict[int, list[bytes]] = {}
        for place, node in self.walk():
            names.setdefault(id(node), []).append(b"/".join(place) or b".")
        return {
            b"/".join(place) or b".": Listed(
                node.kind,
                node.mode,
                node.uid,
                node.gid,
                node.mtime_ns,
                node.content,
                node.link,
                node.device,
                tuple(sorted(node.xattrs.items())),
                tuple(sorted(names[id(node)])),
            )
            for place, node in self.walk()
        }

    def implied(self) -> set[bytes]:
        """Return the names of the folders that no layer described."""
        return {b"/".join(place) or b"." for place, node in self.walk() if node.implied}


def describe(node: Node, entry: Entry) -> Node:
    """Give a node all that its entry says of it, and nothing from before."""
    node.mode, node.uid, node.gid, node.mtime_ns = entry.mode, entry.uid, entry.gid, entry.mtime_ns
    node.content, node.link, node.xattrs = entry.content, entry.link, dict(entry.xattrs)
    node.device = entry.device
    node.implied = False
    return node


def unpacked(stack: Sequence[Sequence[Entry]]) -> Tree:
    """Return the root file system of these layers, base first. Raises Refused."""
    refuse_unreadable(stack)
    tree = Tree()
    for entries in stack:
        tree.apply(entries)
    return tree


def merged_listing(stack: Sequence[Sequence[Entry]], *, path_prefix: bytes = b"") -> Listing:
    """Return what the merged tar of these layers must list: the root only where a layer, or the prefix, names it."""
    tree = unpacked(stack)
    listing = tree.listing()
    if not tree.named_root and not path_prefix:
        del listing[b"."]
    return listing


def mended(stack: Sequence[Sequence[Entry]]) -> tuple[list[list[Entry]], set[str]]:
    """Return the stack without the entries that would be refused, and the reasons for which they would be.

    The entries are taken out one after the other, the first that is refused first.
    """
    left = [list(entries) for entries in stack]
    reasons: set[str] = set()
    while True:
        try:
            unpacked(left)
        except Refused as refusal:
            reasons.add(refusal.reason)
            for entries in left:
                entries[:] = [entry for entry in entries if entry is not refusal.entry]
        else:
            return left, reasons


# --- On a real folder, as root ----------------------------------------------------------------------------------------


class Folder:
    """A root file system in a folder on disk, changed by nothing but system calls."""

    def __init__(self, folder: bytes) -> None:
        self.folder = folder
        os.chmod(folder, 0o755)
        self.times = {os.lstat(folder).st_ino: 0}  # of directories, by inode: every change in one would lose its time

    def full(self, place: Path) -> bytes:
        return os.path.join(self.folder, *place)

    def kind_at(self, place: Path) -> str | None:
        try:
            return MODES[stat.S_IFMT(os.lstat(self.full(place)).st_mode)]
        except (FileNotFoundError, NotADirectoryError):
            return None

    def place_of_folder(self, path: Path, entry: Entry) -> Path:
        place = self.follow((), path, entry, seen=[])
        assert place is not None
        return place

    def follow(
        self,
        place: Path,
        path: Path,
        entry: Entry,
        *,
        seen: list[Path],
        replaced: AbstractSet[Path] = frozenset(),
        written: Path | None = (),
    ) -> Path | None:
        """Return where `path` leads from `place`, as chroot would; None where it goes through what is `replaced`."""
        for part in path:
            written = None if written is None else (*written, part)
            here = (*place, part)
            kind = "directory" if part == b".." else self.kind_at(here)
            if kind == "symlink":
                if here in replaced or written in replaced:
                    return None
                seen.append(here)
                if len(seen) > LINK_LIMIT:
                    raise Refused("SymlinkLoop", entry)
                target = os.readlink(self.full(here))
                steps = tuple(step for step in target.split(b"/") if step not in (b"", b"."))
                start = () if target.startswith(b"/") else place
                found = self.follow(start, steps, entry, seen=seen, replaced=replaced, written=None)
                if found is None:
                    return None
                place = found
            elif kind in (None, "directory"):
                place = place[:-1] if part == b".." else here
            else:
                raise Refused("ParentNotDirectory", entry)
        return place

    def make_folder(self, place: Path) -> None:
        for length in range(1, len(place) + 1):
            if self.kind_at(place[:length]) is None:
                os.mkdir(self.full(place[:length]))
                os.chown(self.full(place[:length]), 0, 0)  # a set-group-id parent would hand its group down
                os.chmod(self.full(place[:length]), 0o755)
                self.times[os.lstat(self.full(place[:length])).st_ino] = 0

    def remove(self, place: Path) -> None:
        """Remove what is at `place`, with all below it; nothing there is no error."""
        kind = self.kind_at(place)
        if kind == "directory":
            for name in os.listdir(self.full(place)):
                self.remove((*place, name))
            os.rmdir(self.full(place))
        elif kind is not None:
            os.unlink(self.full(place))

    def apply(self, entries: Sequence[Entry]) -> None:
        whiteouts, others = sorted_out(entries)
        replaced = replaced_by(others)
        doomed: list[Path] = []
        for entry, path in whiteouts:
            name = hidden_name(entry, path)
            try:
                place = self.follow((), path[:-1], entry, seen=[], replaced=replaced)
            except Refused as refusal:
                if refusal.reason != "ParentNotDirectory":
                    raise
                continue
            if place is None:
                continue
            if name is not None:
                doomed.append((*place, name))
            elif self.kind_at(place) == "directory":
                doomed += [(*place, child) for child in os.listdir(self.full(place))]
        for place in doomed:
            self.remove(place)
        for entry, path in others:
            self.add(entry, path)

    def add(self, entry: Entry, path: Path) -> None:
        if not path:
            if entry.kind != layers.DIRECTORY:
                raise Refused("RootNotDirectory", entry)
            self.describe((), entry)
            return
        parent = self.place_of_folder(path[:-1], entry)
        self.make_folder(parent)
        place = (*parent, path[-1])
        if not (entry.kind == layers.DIRECTORY and self.kind_at(place) == "directory"):
            self.remove(place)
            if entry.kind == layers.HARD_LINK:
                target = normalised(entry, entry.link)
                source = (*self.place_of_folder(target[:-1], entry), *target[-1:])
                if self.kind_at(source) in (None, "directory"):
                    raise Refused("DanglingHardLink", entry)
                os.link(self.full(source), self.full(place), follow_symlinks=False)
                return
            self.create(place, entry)
        self.describe(place, entry)

    def create(self, place: Path, entry: Entry) -> None:
        full = self.full(place)
        match KINDS[entry.kind]:
            case "file":
                with open(full, "xb") as stream:
                    stream.write(entry.content)
            case "directory":
                os.mkdir(full)
            case "symlink":
                os.symlink(entry.link, full)
            case "fifo":
                os.mkfifo(full)
            case kind:
                file_type = stat.S_IFCHR if kind == "character device" else stat.S_IFBLK
                os.mknod(full, file_type | 0o600, os.makedev(*entry.device))

    def describe(self, place: Path, entry: Entry) -> None:
        full = self.full(place)
        os.chown(full, entry.uid, entry.gid, follow_symlinks=False)
        if entry.kind != layers.SYMLINK:
            os.chmod(full, entry.mode)
        for name in os.listxattr(full, follow_symlinks=False):
            os.removexattr(full, name, follow_symlinks=False)
        for key, value in entry.xattrs.items():
            os.setxattr(full, key, value, follow_symlinks=False)
        os.utime(full, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
        if entry.kind == layers.DIRECTORY:
            self.times[os.lstat(full).st_ino] = entry.mtime_ns

    def finish(self) -> None:
        """Give the directories the times that making and removing their children took from them."""
        for parent, _, _ in os.walk(self.folder):
            time = self.times[os.lstat(parent).st_ino]
            os.utime(parent, ns=(time, time))


def unpack_on_disk(stack: Sequence[Sequence[Entry]], folder: bytes) -> None:
    """Unpack these layers, base first, into an existing empty folder. Needs root. Raises Refused."""
    refuse_unreadable(stack)
    root = Folder(folder)
    for entries in stack:
        root.apply(entries)
    root.finish()
