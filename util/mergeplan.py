"""The merge plan: which entries of a stack of layers survive, and in which order they are written.

The law: the reference is an unpacker that applies the layers in order to an empty disk, inside a root. The plan applies
them to a flat table of real paths (no component of which is a symlink); it is a pure function of the layer indexes, and
after it every size is known. Whiteouts of a layer act on the table before its entries do.

Each layer is read once, front to back, base first, so an entry is written where its payload lies. What must come
earlier is moved there: a directory whose metadata comes from a higher layer is written where the lower one stood; an
implied directory right before the first entry that needs it; the first surviving name of a hard-linked file at its
payload.

Layers whose order does not matter, and whose kinds do not clash with what is below, are applied as whole columns.
OCI image-spec, layer.md, "Applying Changesets".
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from util.layerindex import (
    DIRECTORY,
    LINK,
    SYMLINK,
    LayerIndex,
    LayerLimits,
    LayerTooLarge,
    MalformedLayer,
    shown,
)
from util.tarheader import BLOCK, END_OF_ARCHIVE, is_plain, padding, render_header

_MAX_SYMLINKS = 40
_NOT_VERBATIM = re.compile(rb"[^\x01\x03]")
_NOT_JOINED = re.compile(rb"[^\x02\x03]")


class DanglingHardLink(MalformedLayer):
    """A hard link to a name that does not exist where it is made."""

    code = "LAYER_HARD_LINK_DANGLING"


class ParentNotDirectory(MalformedLayer):
    """An entry below something that is neither a directory nor a symlink."""

    code = "LAYER_PARENT_NOT_DIRECTORY"


class SymlinkLoop(MalformedLayer):
    """An entry below symlinks that lead to one another."""

    code = "LAYER_SYMLINK_LOOP"


@dataclass(frozen=True, slots=True)
class Step:
    """Something to write: bytes of the layer's uncompressed tar from `begin` to `end`, and what goes before them.

    `entry` is the number, in the whole stack, of the entry whose header is rendered first, -1 for an implied directory;
    with `None` the bytes are headers and payloads that are copied as they are.
    """

    begin: int
    end: int
    entry: int | None = None
    path: bytes = b""
    link: bytes | None = None


class _Tree:
    """What a disk would hold: real path → the entry that made it, or -1 minus where an implied directory stands."""

    def __init__(self, indexes: Sequence[LayerIndex], layers: Sequence[str]) -> None:
        self.indexes = indexes
        self.layers = layers
        self.bases = [0, *accumulate(map(len, indexes))]
        self.kinds = b"".join(bytes(index.kinds) for index in indexes)
        self.made: dict[bytes, int] = {}
        self.metadata: dict[bytes, int] = {}
        self.inodes: dict[int, int] = {}
        self.moved: dict[int, bytes] = {}
        self.root: int | None = None
        self._sorted: list[bytes] = []
        self._unsorted: list[bytes] = []

    def is_directory(self, made: int) -> bool:
        return made < 0 or self.kinds[made] == DIRECTORY

    def apply(self, layer: int) -> None:
        index = self.indexes[layer]
        if index.whiteouts or index.opaques:
            self._delete(index, layer)
        if not self._apply_columns(index, layer):
            base = self.bases[layer]
            for entry, name in enumerate(index.names):
                self._put(name, base + entry, index, entry, layer)

    def _apply_columns(self, index: LayerIndex, layer: int) -> bool:
        """Apply the layer at once where that is the same as entry by entry; otherwise do nothing and return False."""
        if not index.tidy:
            return False
        made, kinds, names, base = self.made, index.kinds, index.names, self.bases[layer]
        directories: list[tuple[bytes, int]] = []
        implied: list[tuple[bytes, int]] = []
        if made:
            for path, entry in index.implied:
                there = made.get(path)
                if there is None:
                    # Its parent may be a symlink; if that is real, its own parents came before it in this list.
                    parent = path.rpartition(b"/")[0]
                    if parent and parent not in made and not any(parent == other for other, _ in implied):
                        return False
                    if parent in made and not self.is_directory(made[parent]):
                        return False
                    implied.append((path, -1 - (base + entry)))
                elif not self.is_directory(there):
                    return False
            order = None
            for path in made.keys() & set(names):
                order = order if order is not None else {name: entry for entry, name in enumerate(names)}
                entry = order[path]
                if (kinds[entry] == DIRECTORY) != self.is_directory(made[path]):
                    return False
                if kinds[entry] == DIRECTORY:
                    directories.append((path, base + entry))
        else:
            implied = [(path, -1 - (base + entry)) for path, entry in index.implied]
        inodes: dict[int, int] = {}
        links = [entry for entry in index.links if kinds[entry] == LINK]
        if links:
            own = {name: entry for entry, name in enumerate(names)}
            for entry in links:
                target = own.get(index.links[entry])
                if target is None or kinds[target] == DIRECTORY:
                    return False
                inodes[base + entry] = inodes.get(base + target, base + target)
        kept = [(path, made[path]) for path, _ in directories]
        made.update(implied)
        made.update(zip(names, range(base, base + len(names)), strict=True))
        made.update(kept)
        self.metadata.update(directories)
        self.inodes.update(inodes)
        self._unsorted += names
        self._unsorted += [path for path, _ in implied]
        root = made.pop(b"", None)
        if root is not None:
            self.root = root
            self.metadata.pop(b"", None)
        return True

    def _put(self, name: bytes, slot: int, index: LayerIndex, entry: int, layer: int) -> None:
        kind = index.kinds[entry]
        if not name:
            self.root = slot
            return
        path = self._located(name, slot, layer, name)
        there = self.made.get(path)
        if kind == DIRECTORY:
            if there is not None and self.is_directory(there):
                self.metadata[path] = slot
                return
        elif there is not None and self.is_directory(there):
            self._remove_below(path)
        if there is not None:
            self._remove(path)
        if kind == LINK:
            target = index.links[entry]
            real = self._real(target, layer, name)
            inode = None if real is None else self.made.get(real)
            if inode is None:
                raise DanglingHardLink(
                    f"layer {self.layers[layer]}: entry {shown(name)} is a hard link to {shown(target)},"
                    " which does not exist"
                )
            if self.is_directory(inode):
                raise DanglingHardLink(
                    f"layer {self.layers[layer]}: entry {shown(name)} is a hard link to the directory {shown(target)}"
                )
            self.inodes[slot] = self.inodes.get(inode, inode)
        self.made[path] = slot
        self._unsorted.append(path)
        if path != name:
            self.moved[slot] = path

    def _located(self, name: bytes, slot: int, layer: int, entry: bytes) -> bytes:
        """Return the real path of `name`, whose parents are made where they lack."""
        parent, _, last = name.rpartition(b"/")
        if not parent:
            return name
        there = self.made.get(parent)
        if there is not None and self.is_directory(there):
            return name
        real = self._walk(parent, layer, entry) or b""
        missing = real
        while missing and missing not in self.made:
            self.made[missing] = -1 - slot
            self._unsorted.append(missing)
            missing = missing.rpartition(b"/")[0]
        return real + b"/" + last if real else last

    def _real(self, name: bytes, layer: int, entry: bytes, *, deleting: LayerIndex | None = None) -> bytes | None:
        """Return the real path of `name`, whose last component is not followed; it may not exist."""
        parent, _, last = name.rpartition(b"/")
        real = self._walk(parent, layer, entry, deleting=deleting)
        if real is None:
            return None
        return real + b"/" + last if real else last

    def _walk(self, path: bytes, layer: int, entry: bytes, *, deleting: LayerIndex | None = None) -> bytes | None:
        """Return the real directory that `path` leads to, which may not exist yet.

        `deleting` is the layer whose whiteouts are looked up. A symlink that it replaces by something else hides
        nothing of the lower layers, nor does a file: the answer is None there. Overlay drivers mark such a
        new directory as opaque.
        """
        waiting = path.split(b"/")[::-1] if path else []
        here, followed = b"", 0
        while waiting:
            part = waiting.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                here = here.rpartition(b"/")[0]
                continue
            path = here + b"/" + part if here else part
            there = self.made.get(path)
            if there is None or self.is_directory(there):
                here = path
            elif self.kinds[there] == SYMLINK or self.kinds[self.inodes.get(there, there)] == SYMLINK:
                if deleting is not None and self._replaces(deleting, path):
                    return None
                followed += 1
                if followed > _MAX_SYMLINKS:
                    raise SymlinkLoop(
                        f"layer {self.layers[layer]}: entry {shown(entry)} lies below {shown(path)}, a loop of symlinks"
                    )
                target = self.link_of(self.inodes.get(there, there))
                if target.startswith(b"/"):
                    here = b""
                waiting += target.split(b"/")[::-1]
            elif deleting is not None:
                return None
            else:
                raise ParentNotDirectory(
                    f"layer {self.layers[layer]}: entry {shown(entry)} lies below {shown(path)}, which is no directory"
                )
        return here

    @staticmethod
    def _replaces(index: LayerIndex, path: bytes) -> bool:
        return any(name == path and index.kinds[entry] != SYMLINK for entry, name in enumerate(index.names))

    def link_of(self, slot: int) -> bytes:
        layer = self.layer_of(slot)
        return self.indexes[layer].links[slot - self.bases[layer]]

    def layer_of(self, slot: int) -> int:
        # Few layers, rarely asked: empty layers share a base, so the last that begins at or before the slot is meant.
        low, high = 0, len(self.indexes)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.bases[middle] <= slot else (low, middle)
        return low

    def _delete(self, index: LayerIndex, layer: int) -> None:
        # All are looked up in the tree as the lower layers left it, and only then carried out.
        gone = [self._real(path, layer, path, deleting=index) for path in index.whiteouts]
        emptied = [self._walk(path, layer, path, deleting=index) for path in index.opaques]
        for directory in emptied:
            if directory is not None:
                self._remove_below(directory)
        for path in gone:
            if path is not None and (there := self.made.get(path)) is not None:
                if self.is_directory(there):
                    self._remove_below(path)
                self._remove(path)

    def _remove(self, path: bytes) -> None:
        del self.made[path]
        self.metadata.pop(path, None)

    def _remove_below(self, directory: bytes) -> None:
        if not directory:
            self.made.clear()
            self.metadata.clear()
            self._sorted, self._unsorted = [], []
            return
        if self._unsorted:
            self._sorted += self._unsorted
            self._sorted.sort()
            self._unsorted = []
        # "0" is the byte after "/": between the two lie the names below the directory, and no others.
        names = self._sorted
        begin, end = bisect_left(names, directory + b"/"), bisect_left(names, directory + b"0")
        for path in names[begin:end]:
            if path in self.made:
                self._remove(path)
        del names[begin:end]


class MergePlan:
    """What to write of each layer, in order, and how many bytes that makes."""

    def __init__(self, tree: _Tree, path_prefix: bytes) -> None:
        self._tree = tree
        self._prefix = path_prefix
        self._before: dict[int, list[tuple[bytes, int]]] = defaultdict(list)
        self._links: dict[int, bytes] = {}
        self._promoted: dict[int, tuple[bytes, int]] = {}
        self._rehomed: dict[int, tuple[bytes, int]] = {}
        self._find_homes()
        self._alive = sorted(slot for slot in tree.made.values() if slot >= 0 and slot not in self._absent)
        self._anchors = sorted(self._before)
        self.ends: list[int] = []
        """Where, in each layer's uncompressed tar, the last byte that is written ends; 0 where none is."""
        self.size = self._count()

    def _find_homes(self) -> None:
        """Decide which name of a hard-linked file carries its payload, and where directories stand."""
        tree = self._tree
        made, metadata = tree.made, tree.metadata
        self._absent: set[int] = set()
        for path, slot in made.items():
            if slot < 0:
                self._before[-1 - slot].append((path, metadata.get(path, -1)))
        for path, slot in metadata.items():
            there = made[path]
            if there >= 0:
                self._rehomed[there] = (path, slot)
        names: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        if tree.inodes:
            wanted = set(tree.inodes.values())
            for path, slot in made.items():
                if slot in tree.inodes:
                    names[tree.inodes[slot]].append((slot, path))
                elif slot in wanted:
                    names[slot].append((slot, path))
        for inode, linked in names.items():
            linked.sort()
            first, home = linked[0]
            for slot, _ in linked[1:]:
                self._links[slot] = home
            if first != inode:
                self._absent.add(first)
                self._promoted[inode] = (home, inode)
                self._raise_parents(home, inode)
        for standing in self._before.values():
            standing.sort()

    def _raise_parents(self, path: bytes, slot: int) -> None:
        """Let the directories above `path` stand before `slot`."""
        made = self._tree.made
        parent = path.rpartition(b"/")[0]
        while parent:
            there = made[parent]
            position = there if there >= 0 else -1 - there
            if position > slot or (there >= 0 and position == slot):
                if there >= 0:
                    self._absent.add(there)
                    metadata = self._tree.metadata.get(parent, there)
                    self._rehomed.pop(there, None)
                else:
                    metadata = self._tree.metadata.get(parent, -1)
                    self._before[position] = [item for item in self._before[position] if item[0] != parent]
                self._before[slot].append((parent, metadata))
                made[parent] = -1 - slot
                self._tree.metadata[parent] = metadata
                if metadata < 0:
                    del self._tree.metadata[parent]
            parent = parent.rpartition(b"/")[0]

    def root(self) -> Step | None:
        """Return the entry of the root itself, which comes first, if there is one."""
        if self._tree.root is None and not self._prefix:
            return None
        return Step(0, 0, -1 if self._tree.root is None else self._tree.root)

    def steps(self, layer: int) -> Iterator[Step]:
        """Yield what is written while the layer is read, front to back."""
        tree, index = self._tree, self._tree.indexes[layer]
        base, stop = tree.bases[layer], tree.bases[layer + 1]
        low, high = bisect_left(self._alive, base), bisect_left(self._alive, stop)
        alive = self._alive[low:high]
        if self._promoted:
            alive = sorted({*alive, *(slot for slot in self._promoted if base <= slot < stop)})
        anchors = self._anchors[bisect_left(self._anchors, base) : bisect_left(self._anchors, stop)]
        if self._prefix:
            yield from self._each(layer, alive, anchors)
            return
        # Where a run of bytes that can be copied as they are must end: something is missing, special or stands between.
        special: set[int] = {base + match.start() for match in _NOT_VERBATIM.finditer(index.flags)}
        for table in (tree.moved, self._rehomed, self._promoted, self._links):
            special.update(slot for slot in table if base <= slot < stop)
        special.update(
            base + entry
            for entry in index.links
            if index.kinds[entry] == LINK and self._link(base + entry) != index.links[entry]
        )
        breaks = special.copy()
        if len(alive) < stop - base:
            breaks.update(set(range(base, stop)).difference(alive))
        breaks.update(anchors)
        breaks.update(base + match.start() for match in _NOT_JOINED.finditer(index.flags))
        living = set(alive) if len(alive) < stop - base else range(base, stop)
        begin = base
        starts, end = index.starts, index.end
        for slot in sorted(breaks):
            if slot > begin:
                yield Step(starts[begin - base], end(slot - 1 - base))
            for path, metadata in self._before.get(slot, ()):
                yield Step(0, 0, metadata, path)
            begin = slot
            if slot in special and slot in living:
                yield self._rendered(slot, index, slot - base)
                begin = slot + 1
            elif slot not in living:
                begin = slot + 1
        if begin < stop:
            yield Step(starts[begin - base], end(stop - 1 - base))

    def _each(self, layer: int, alive: list[int], anchors: list[int]) -> Iterator[Step]:
        index, base = self._tree.indexes[layer], self._tree.bases[layer]
        standing = 0
        for slot in alive:
            while standing < len(anchors) and anchors[standing] <= slot:
                for path, metadata in self._before[anchors[standing]]:
                    yield Step(0, 0, metadata, path)
                standing += 1
            yield self._rendered(slot, index, slot - base)
        for anchor in anchors[standing:]:
            for path, metadata in self._before[anchor]:
                yield Step(0, 0, metadata, path)

    def _link(self, slot: int) -> bytes | None:
        """Return the name that the entry at `slot` links to, None when it carries its own payload."""
        return self._links.get(slot)

    def _rendered(self, slot: int, index: LayerIndex, entry: int) -> Step:
        if slot in self._promoted:
            path, metadata = self._promoted[slot]
        elif slot in self._rehomed:
            path, metadata = self._rehomed[slot]
            return Step(0, 0, metadata, path)
        else:
            path, metadata = self._tree.moved.get(slot) or index.names[entry], slot
        if slot in self._links:
            return Step(0, 0, metadata, path, self._links[slot])
        begin = index.payloads[entry]
        return Step(begin, begin + index.sizes[entry], metadata, path)

    def header(self, step: Step) -> bytes:
        """Return the header that the step begins with, and all its extensions."""
        return self._header(step, measure=False)

    def _header(self, step: Step, *, measure: bool) -> bytes:
        slot = step.entry
        name = self._prefix + step.path
        if slot is None:
            return b""
        if slot < 0:
            return render_header(name + b"/" if step.path else self._prefix or b"./", kind=b"5", mode=0o755)
        layer = self._tree.layer_of(slot)
        index, entry = self._tree.indexes[layer], slot - self._tree.bases[layer]
        kind, link = index.kinds[entry], b""
        size = 0
        if step.link is not None:
            inode = self._tree.inodes[slot]
            layer = self._tree.layer_of(inode)
            index, entry = self._tree.indexes[layer], inode - self._tree.bases[layer]
            kind, link = LINK, self._prefix + step.link
        elif kind == DIRECTORY:
            name = name + b"/" if step.path else self._prefix or b"./"
        elif kind == SYMLINK:
            link = index.links[entry]
        else:
            size = index.file_size(entry)
        uid, gid, mtime = index.uids[entry], index.gids[entry], index.mtimes[entry]
        records = index.records.get(entry) if kind != LINK else None
        if measure and not records and is_plain(name, link, (uid, gid), size, mtime):
            return _SOME_BLOCK
        return render_header(
            name,
            kind=bytes((kind,)),
            mode=index.modes[entry],
            uid=uid,
            gid=gid,
            size=size,
            mtime=mtime,
            link=link,
            devices=index.devices.get(entry, (0, 0)) if kind != LINK else (0, 0),
            records=records,
        )

    def sparse_of(self, step: Step) -> tuple[int, tuple[tuple[int, int], ...]] | None:
        """Return the full size and the pieces of the file that the step writes, None when it is stored as it is."""
        if step.entry is None or step.entry < 0 or (step.end == step.begin and step.link is not None):
            return None
        layer = self._tree.layer_of(step.entry)
        sparse = self._tree.indexes[layer].sparse.get(step.entry - self._tree.bases[layer])
        return (sparse.size, sparse.pieces) if sparse and step.link is None else None

    def _count(self) -> int:
        size = len(END_OF_ARCHIVE)
        root = self.root()
        if root is not None:
            size += len(self.header(root))
        for layer in range(len(self._tree.indexes)):
            sparse = self._tree.indexes[layer].sparse
            end = 0
            for step in self.steps(layer):
                length = step.end - step.begin
                end = max(end, step.end if length else 0)
                if step.entry is not None:
                    size += len(self._header(step, measure=True))
                    if sparse and (holes := self.sparse_of(step)):
                        length = holes[0]
                    length += padding(length)
                size += length
            self.ends.append(end)
        return size

    def entry_of(self, path: bytes) -> tuple[int, int] | None:
        """Return the layer and the entry whose payload the name `path` has; symlinks are not followed."""
        slot = self._tree.made.get(path)
        if slot is None or slot < 0:
            return None
        slot = self._tree.inodes.get(slot, slot)
        layer = self._tree.layer_of(slot)
        return layer, slot - self._tree.bases[layer]


_SOME_BLOCK = bytes(BLOCK)


def plan_merge(
    indexes: Sequence[LayerIndex],
    *,
    layers: Sequence[str],
    path_prefix: bytes = b"",
    limits: LayerLimits | None = None,
) -> MergePlan:
    """Return the plan of the stack `indexes`, base first; `layers` is how errors call them.

    With a `path_prefix` that ends with a slash, each name and hard link target gets it, and its directory comes first.
    Raises DanglingHardLink, ParentNotDirectory, SymlinkLoop, MalformedLayer, LayerTooLarge.
    """
    limits = limits or LayerLimits()
    entries = sum(map(len, indexes))
    if entries > limits.max_entries:
        raise LayerTooLarge(
            f"the image has {entries} entries; at most {limits.max_entries} are allowed (VERBS_MAX_ENTRIES)"
        )
    tree = _Tree(indexes, layers)
    for layer in range(len(indexes)):
        tree.apply(layer)
    plan = MergePlan(tree, path_prefix)
    if plan.size > limits.max_size:
        raise LayerTooLarge(f"the image has {plan.size} bytes; at most {limits.max_size} are allowed (VERBS_MAX_SIZE)")
    return plan
