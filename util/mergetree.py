"""The tree of a merge: which names a disk would hold after a stack of layers was unpacked on it, one after the other.

The law: the reference is an unpacker that applies the layers in order to an empty disk, inside a root. The tree is a
flat table of real paths (no component of which is a symlink). Whiteouts of a layer act on it before its entries do.

Layers whose order does not matter, and whose kinds do not clash with what is below, are applied as whole columns.
OCI image-spec, layer.md, "Applying Changesets".

What a stack may cost is bounded: by the names that are looked up on the way to its entries' parents, by the lengths of
the names that symlinks lead to, and by the processor time that a Deadline allows.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import accumulate

from util.deadline import Deadline
from util.layerindex import (
    DIRECTORY,
    LINK,
    SYMLINK,
    ImageTooComplex,
    LayerIndex,
    LayerLimits,
    LayerTooLarge,
    MalformedLayer,
    MetadataTooLarge,
    shown,
)

_MAX_SYMLINKS = 40  # as Linux follows in one path, before ELOOP
_BETWEEN_LOOKS = 1024  # at the clock
_FEW = 1000  # to put one of so many names into its place costs less than to sort them all again
_IN_A_TABLE = 256  # bytes of memory that a directory or a moved name takes beside its own


class DanglingHardLink(MalformedLayer):
    """A hard link to a name that does not exist where it is made."""

    code = "LAYER_HARD_LINK_DANGLING"


class ParentNotDirectory(MalformedLayer):
    """An entry below something that is neither a directory nor a symlink."""

    code = "LAYER_PARENT_NOT_DIRECTORY"


class SymlinkLoop(MalformedLayer):
    """An entry below symlinks that lead to one another, or to more of them than any system follows."""

    code = "LAYER_SYMLINK_LOOP"


class MergeTree:
    """What a disk would hold: real path → the entry that made it, or -1 minus where an implied directory stands."""

    def __init__(self, indexes: Sequence[LayerIndex], layers: Sequence[str], limits: LayerLimits | None = None) -> None:
        """Begin with an empty disk. The time that the `limits` allow begins now. Raises LayerTooLarge."""
        self.limits = limits or LayerLimits()
        entries = sum(map(len, indexes))
        if entries > self.limits.max_entries:
            raise LayerTooLarge(
                f"the image has {entries} entries; at most {self.limits.max_entries} are allowed (VERBS_MAX_ENTRIES)"
            )
        self.indexes = indexes
        self.layers = layers
        self.deadline = Deadline(self.limits)
        self._lookups = 0
        self._metadata = sum({id(index): index.metadata for index in indexes}.values())
        self._known: dict[bytes, bytes] = {}
        """The real directory, which exists, of each parent that was found by way of symlinks."""
        self._known_to_delete: dict[bytes, bytes | None] = {}
        self.bases = [0, *accumulate(map(len, indexes))]
        self.kinds = b"".join(bytes(index.kinds) for index in indexes)
        self.made: dict[bytes, int] = {}
        self.metadata: dict[bytes, int] = {}
        self.inodes: dict[int, int] = {}
        self.moved: dict[int, bytes] = {}
        self.root: int | None = None
        self._sorted: list[bytes] = []
        self._unsorted: list[bytes] = []
        self._others_of: int | None = None
        self._other_names: set[bytes] = set()

    def is_directory(self, made: int) -> bool:
        return made < 0 or self.kinds[made] == DIRECTORY

    def apply(self, layer: int) -> None:
        """Apply a layer.

        Raises DanglingHardLink, ParentNotDirectory, SymlinkLoop, ImageTooComplex, MetadataTooLarge.
        """
        self.deadline.check()
        index = self.indexes[layer]
        if index.whiteouts or index.opaques:
            self._delete(index, layer)
        if not self._apply_columns(index, layer):
            base = self.bases[layer]
            for entry, name in enumerate(index.names):
                if not entry % _BETWEEN_LOOKS:
                    self.deadline.check()
                self._put(name, base + entry, index, entry, layer)

    def complete(self, layer: int) -> None:
        """Apply a layer, and of its entries those alone whose names nothing has so far."""
        index, base = self.indexes[layer], self.bases[layer]
        self._delete(index, layer)
        for entry, name in enumerate(index.names):
            if self._real(name, layer, name) not in self.made:
                self._put(name, base + entry, index, entry, layer)

    def _apply_columns(self, index: LayerIndex, layer: int) -> bool:
        """Apply the layer at once where that is the same as entry by entry; otherwise do nothing and return False."""
        if not index.tidy:
            return False
        made, kinds, names, base = self.made, index.kinds, index.names, self.bases[layer]
        directories: list[tuple[bytes, int]] = []
        implied: list[tuple[bytes, int]] = []
        own_implied: set[bytes] = set()
        if made:
            for path, entry in index.implied:
                there = made.get(path)
                if there is None:
                    # Its parent may be a symlink; if that is real, its own parents came before it in this list.
                    parent = path.rpartition(b"/")[0]
                    if parent and parent not in made and parent not in own_implied:
                        return False
                    if parent in made and not self.is_directory(made[parent]):
                        return False
                    implied.append((path, -1 - (base + entry)))
                    own_implied.add(path)
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
        self._known = {}  # a symlink may have been replaced
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
            self._spend(path, layer, name)
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
            self._spend(missing, layer, entry)
            self.made[missing] = -1 - slot
            self._unsorted.append(missing)
            missing = missing.rpartition(b"/")[0]
        if real != parent:
            self._known[parent] = real
        return real + b"/" + last if real else last

    def _spend(self, path: bytes, layer: int, entry: bytes) -> None:
        """Count the memory that one more `path` takes, and refuse one that is longer than names may be."""
        limits = self.limits
        if len(path) > limits.max_name:
            raise MetadataTooLarge(
                f"layer {self.layers[layer]}: entry {shown(entry)} lies, by way of symlinks, at a name of {len(path)}"
                f" bytes; at most {limits.max_name} are allowed (VERBS_MAX_NAME)"
            )
        self._metadata += len(path) + _IN_A_TABLE
        if self._metadata > limits.max_metadata:
            raise MetadataTooLarge(
                f"layer {self.layers[layer]}: up to entry {shown(entry)} the image's names, and those that symlinks"
                f" lead to, take more than {limits.max_metadata} bytes; no more are allowed (VERBS_MAX_METADATA)"
            )

    def _look_up(self, layer: int, entry: bytes) -> None:
        """Count one name that is looked up."""
        self._lookups += 1
        if self._lookups > self.limits.max_lookups:
            raise ImageTooComplex(
                f"layer {self.layers[layer]}: up to entry {shown(entry)} more than {self.limits.max_lookups} names have"
                " to be looked up to find where the image's entries lie; no more are allowed (VERBS_MAX_LOOKUPS)"
            )
        self.deadline.tick()

    def _real(self, name: bytes, layer: int, entry: bytes, *, deleting: bool = False) -> bytes | None:
        """Return the real path of `name`, whose last component is not followed; it may not exist."""
        parent, _, last = name.rpartition(b"/")
        real = self._walk(parent, layer, entry, deleting=deleting)
        if real is None:
            return None
        return real + b"/" + last if real else last

    def _walk(self, path: bytes, layer: int, entry: bytes, *, deleting: bool = False) -> bytes | None:
        """Return the real directory that `path` leads to, which may not exist yet.

        `deleting` says that the layer's whiteouts are looked up. A symlink that it replaces by something else hides
        nothing of the lower layers, nor does a file: the answer is None there. Overlay drivers mark such a
        new directory as opaque.
        """
        there = self.made.get(path)
        if there is not None and self.is_directory(there):
            return path
        known = self._known.get(path)
        if known is not None and not deleting:
            return known
        if deleting and path in self._known_to_delete:
            return self._known_to_delete[path]
        found = self._walked(path, layer, entry, deleting=deleting)
        if deleting:
            self._known_to_delete[path] = found
        return found

    def _walked(self, path: bytes, layer: int, entry: bytes, *, deleting: bool) -> bytes | None:
        waiting = path.split(b"/")[::-1] if path else []
        here, followed = b"", 0
        while waiting:
            self._look_up(layer, entry)
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
                if deleting and path in self._others(layer):
                    return None
                followed += 1
                if followed > _MAX_SYMLINKS:
                    raise SymlinkLoop(
                        f"layer {self.layers[layer]}: entry {shown(entry)} lies below {shown(path)}, a loop of"
                        f" symlinks, or more than the {_MAX_SYMLINKS} that are followed"
                    )
                target = self.link_of(self.inodes.get(there, there))
                if target.startswith(b"/"):
                    here = b""
                waiting += target.split(b"/")[::-1]
            elif deleting:
                return None
            else:
                raise ParentNotDirectory(
                    f"layer {self.layers[layer]}: entry {shown(entry)} lies below {shown(path)}, which is no directory"
                )
        return here

    def _others(self, layer: int) -> set[bytes]:
        """Return the names for which the layer has something else than a symlink."""
        if self._others_of != layer:
            index = self.indexes[layer]
            self._others_of = layer
            self._other_names = {name for name, kind in zip(index.names, index.kinds, strict=True) if kind != SYMLINK}
        return self._other_names

    def folder(self, path: bytes) -> int | None:
        """Return whose metadata the directory has that `path` leads to: -1 for an implied one, None where none is."""
        try:
            real = self._walk(path, len(self.layers) - 1, path) or b""
        except MalformedLayer:
            return None
        there = self.made.get(real) if real else -1 if self.root is None else self.root
        return self.metadata.get(real, max(there, -1)) if there is not None and self.is_directory(there) else None

    def link_of(self, slot: int) -> bytes:
        layer = self.layer_of(slot)
        return self.indexes[layer].links[slot - self.bases[layer]]

    def flag_of(self, slot: int) -> int:
        layer = self.layer_of(slot)
        return self.indexes[layer].flags[slot - self.bases[layer]]

    def layer_of(self, slot: int) -> int:
        # Few layers, rarely asked: empty layers share a base, so the last that begins at or before the slot is meant.
        low, high = 0, len(self.indexes)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.bases[middle] <= slot else (low, middle)
        return low

    def _delete(self, index: LayerIndex, layer: int) -> None:
        # All are looked up in the tree as the lower layers left it, and only then carried out.
        gone, emptied = self._doomed(index, layer)
        for directory in emptied:
            if directory is not None:
                self._empty(directory)
        for path in gone:
            if path is not None and path in self.made:
                self._white_out(path)

    def _doomed(self, index: LayerIndex, layer: int) -> tuple[list[bytes | None], list[bytes | None]]:
        """Return what each whiteout of the layer means, and each opaque one; None is nothing, and so is what is not."""
        self._known_to_delete = {}
        gone = [self._real(path, layer, path, deleting=True) for path in index.whiteouts]
        emptied = [self._walk(path, layer, path, deleting=True) for path in index.opaques]
        self._known_to_delete = {}
        return gone, emptied

    def _empty(self, directory: bytes) -> None:
        self._remove_below(directory)

    def _white_out(self, path: bytes) -> None:
        if self.is_directory(self.made[path]):
            self._remove_below(path)
        self._remove(path)

    def _remove(self, path: bytes) -> None:
        there = self.made.pop(path)
        if self._known and self._leads_on(there):
            self._known = {}
        self.metadata.pop(path, None)

    def _remove_below(self, directory: bytes) -> None:
        if not directory:
            self.made.clear()
            self._known = {}
            self.metadata.clear()
            self._sorted, self._unsorted = [], []
            return
        begin, end = self._below(directory)
        for path in self._sorted[begin:end]:
            self.deadline.tick()
            if path in self.made:
                self._remove(path)
        del self._sorted[begin:end]

    def _leads_on(self, there: int) -> bool:
        """Tell whether what was `made` can lead to something else: it is a directory or a symlink."""
        return self.is_directory(there) or SYMLINK in (self.kinds[there], self.kinds[self.inodes.get(there, there)])

    def _below(self, directory: bytes) -> tuple[int, int]:
        """Return between which of the sorted names those below the directory are; not each is still made."""
        if self._unsorted:
            self.deadline.check()
            if len(self._unsorted) < len(self._sorted) // _FEW:
                for path in self._unsorted:
                    insort(self._sorted, path)
            else:
                self._sorted += self._unsorted
                self._sorted.sort()
            self._unsorted = []
        # "0" is the byte after "/": between the two lie the names below the directory, and no others.
        return bisect_left(self._sorted, directory + b"/"), bisect_left(self._sorted, directory + b"0")
