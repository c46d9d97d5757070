"""The merge plan: in which order what survives of a stack of layers is written.

The law: the plan is a pure function of the layer indexes, and after it every size is known. Each layer is read once,
front to back, base first, so an entry is written where its payload lies. What must come earlier is moved there: a
directory whose metadata comes from a higher layer is written where the lower one stood; an implied directory right
before the first entry that needs it; the first surviving name of a hard-linked file at its payload.

What a plan may cost, and how much larger than its layers an image may be, has limits: see LayerLimits.

It works on runs of neighbours that are written in the same way, found in columns of one byte per entry, because looking
at each of a hundred thousand entries would take longer than inflating them.
"""

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from util.layerindex import (
    DIRECTORY,
    JOINED,
    LINK,
    PATCHABLE,
    PRESENT,
    SYMLINK,
    VERBATIM,
    LayerIndex,
    LayerLimits,
    LayerTooLarge,
    OutputTooLarge,
    Sparse,
)
from util.mergetree import MergeTree
from util.tarheader import BLOCK, END_OF_ARCHIVE, LONGEST_PREFIX, HeaderPatch, is_plain, padding, render_header

_ALIVE = 0xFF
_ALWAYS = 16 << 20  # bytes that an image may have, however small its layers are
_SPECIAL = 16
_ANCHOR = 32
_RUNS = re.compile(rb"[Ccj]j*|[Rr]r*|[Ssa]")


class How(Enum):
    """How the entries of a run get into the output."""

    COPY = auto()
    """Header and payload as they lie in the layer's tar, one piece from the first to the last."""
    PATCH = auto()
    """The same, each header with the path prefix in the field that ustar has for it."""
    RENDER = auto()
    """Each header made anew, and its payload after it."""


@dataclass(frozen=True, slots=True)
class Run:
    """Entries `first` to `stop` of a layer, which are written one after the other in the same way."""

    how: How
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Step:
    """One entry that is not written under its own name, or not where it stands, or not with its own metadata.

    `entry` is the number, in the whole stack, of the entry whose metadata it has, -1 for an implied directory. From
    `begin` to `end` its payload lies in the layer's uncompressed tar.
    """

    entry: int
    path: bytes = b""
    begin: int = 0
    end: int = 0
    link: bytes | None = None


class MergePlan:
    """What to write of each layer, in order, and how many bytes that makes."""

    def __init__(self, tree: MergeTree, path_prefix: bytes) -> None:
        self._tree = tree
        self._prefix = path_prefix
        self._how = How.PATCH if path_prefix else How.COPY
        copyable = VERBATIM if not path_prefix else PATCHABLE if len(path_prefix) <= LONGEST_PREFIX else 0
        self._classes = _classes(copyable)
        self.patch = HeaderPatch(path_prefix)
        self._alive = bytearray(tree.bases[-1])
        self._standing: dict[int, dict[bytes, int]] = defaultdict(dict)
        self._links: dict[int, bytes] = {}
        self._promoted: dict[int, tuple[bytes, int]] = {}
        self._rehomed: dict[int, tuple[bytes, int]] = {}
        self._find_homes()
        self._before = {slot: sorted(standing.items()) for slot, standing in self._standing.items()}
        self._anchors = sorted(self._before)
        self._special = sorted({slot for slot in self._exceptions() if self._alive[slot] or slot in self._promoted})
        root = self.root()
        self.head = b"" if root is None else self.header(root)
        """The header of the root itself, which comes first."""
        measured = [self._measure(layer) for layer in range(len(tree.indexes))]
        self.sizes = [size for size, _, _ in measured]
        """How many bytes are written while each layer is read."""
        self.ends = [end for _, end, _ in measured]
        """Where, in each layer's uncompressed tar, the last byte that is written ends; 0 where none is."""
        self.size = len(self.head) + sum(self.sizes) + len(END_OF_ARCHIVE)
        self.holes = sum(holes for _, _, holes in measured)
        """How many of the plan's bytes are in no layer, because sparse files are written with their holes."""

    def _find_homes(self) -> None:
        """Decide which entries are written, which name of a hard-linked file carries it, where directories stand."""
        tree = self._tree
        made, metadata = tree.made, tree.metadata
        alive = self._alive
        for path, slot in made.items():
            if slot >= 0:
                alive[slot] = _ALIVE
            else:
                self._standing[-1 - slot][path] = metadata.get(path, -1)
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
                alive[first] = 0
                self._promoted[inode] = (home, inode)
                self._raise_parents(home, inode)

    def _raise_parents(self, path: bytes, slot: int) -> None:
        """Let the directories above `path` stand before `slot`."""
        made = self._tree.made
        parent = path.rpartition(b"/")[0]
        while parent:
            self._tree.deadline.tick()
            there = made[parent]
            position = there if there >= 0 else -1 - there
            if position < slot or (there < 0 and position == slot):
                return  # and so do those above it, for parents stand before what is in them
            if there >= 0:
                self._alive[there] = 0
                metadata = self._tree.metadata.get(parent, there)
                self._rehomed.pop(there, None)
            else:
                metadata = self._tree.metadata.get(parent, -1)
                del self._standing[position][parent]
            self._standing[slot][parent] = metadata
            made[parent] = -1 - slot
            self._tree.metadata[parent] = metadata
            if metadata < 0:
                del self._tree.metadata[parent]
            parent = parent.rpartition(b"/")[0]

    def _exceptions(self) -> Iterator[int]:
        """Yield the slots that are not written as they stand in their layer."""
        tree = self._tree
        yield from tree.moved
        yield from self._rehomed
        yield from self._promoted
        for slot, home in self._links.items():
            if (
                self._prefix
                or not tree.flag_of(slot) & VERBATIM
                or tree.kinds[slot] != LINK
                or tree.link_of(slot) != home
            ):
                yield slot

    def root(self) -> Step | None:
        """Return the entry of the root itself, which comes first, if there is one."""
        if self._tree.root is None and not self._prefix:
            return None
        return Step(-1 if self._tree.root is None else self._tree.root)

    def steps(self, layer: int) -> Iterator[Run | Step]:
        """Yield what is written while the layer is read, front to back."""
        index, base = self._tree.indexes[layer], self._tree.bases[layer]
        columns = self._columns(layer).translate(self._classes)
        for match in _RUNS.finditer(columns):
            first, stop = match.span()
            letter = columns[first]
            if letter in b"CRSa":
                for path, metadata in self._before.get(base + first, ()):
                    yield Step(metadata, path)
            if letter in b"Ccj":
                yield Run(self._how, first, stop)
            elif letter in b"Rr":
                yield Run(How.RENDER, first, stop)
            elif letter in b"Ss":
                yield self._exception(base + first, index, first)

    def _columns(self, layer: int) -> bytearray:
        """Return the layer's flags, without those of entries that are gone, and with what the plan knows of each."""
        tree = self._tree
        base, stop = tree.bases[layer], tree.bases[layer + 1]
        flags = int.from_bytes(tree.indexes[layer].flags, "little")
        alive = int.from_bytes(self._alive[base:stop], "little")
        columns = bytearray((flags & alive).to_bytes(stop - base, "little"))
        for table, mark in ((self._special, _SPECIAL | PRESENT), (self._anchors, _ANCHOR)):
            for slot in table[bisect_left(table, base) : bisect_left(table, stop)]:
                columns[slot - base] |= mark
        return columns

    def _exception(self, slot: int, index: LayerIndex, entry: int) -> Step:
        if slot in self._promoted:
            path, metadata = self._promoted[slot]
        elif slot in self._rehomed:
            path, metadata = self._rehomed[slot]
            return Step(metadata, path)
        else:
            path, metadata = self._tree.moved.get(slot) or index.names[entry], slot
        if slot in self._links:
            return Step(metadata, path, link=self._links[slot])
        begin = index.payloads[entry]
        return Step(metadata, path, begin, begin + index.sizes[entry])

    def header(self, step: Step) -> bytes:
        """Return the header that the step begins with, and all its extensions."""
        slot, path = step.entry, step.path
        if slot < 0:
            name = self._prefix + path + b"/" if path else self._prefix or b"./"
            return render_header(name, kind=b"5", mode=0o755)
        tree = self._tree
        # A hard link has its inode's metadata, whatever its own header says.
        slot = slot if step.link is None else tree.inodes[slot]
        layer = tree.layer_of(slot)
        return self._rendered(tree.indexes[layer], slot - tree.bases[layer], path, step.link)

    def headers(self, layer: int, run: Run) -> Iterator[bytes]:
        """Yield the header of each entry of a run that is rendered, and all its extensions."""
        index = self._tree.indexes[layer]
        for entry in range(run.first, run.stop):
            yield self._rendered(index, entry, index.names[entry], None)

    def _rendered(self, index: LayerIndex, entry: int, path: bytes, hard: bytes | None) -> bytes:
        """Return the header of `path` with the entry's metadata, as a hard link to `hard` where that is given."""
        kind, link, size = index.kinds[entry], b"", 0
        name = self._prefix + path
        if hard is not None:
            kind, link = LINK, self._prefix + hard
        elif kind == DIRECTORY:
            name = name + b"/" if path else self._prefix or b"./"
        elif kind == SYMLINK:
            link = index.links[entry]
        else:
            size = index.file_size(entry)
        return render_header(
            name,
            kind=_KINDS[kind],
            mode=index.modes[entry],
            uid=index.uids[entry],
            gid=index.gids[entry],
            size=size,
            mtime=index.mtimes[entry],
            link=link,
            devices=index.devices.get(entry, (0, 0)) if kind != LINK else (0, 0),
            records=index.records.get(entry) if kind != LINK else None,
        )

    def lengths(self, layer: int, run: Run) -> Iterator[int]:
        """Yield how many bytes each entry of a run that is rendered takes, its payload and padding included."""
        index = self._tree.indexes[layer]
        names, uids, gids, sizes, mtimes = index.names, index.uids, index.gids, index.sizes, index.mtimes
        links, records, sparse, prefix = index.links, index.records, index.sparse, self._prefix
        for entry in range(run.first, run.stop):
            size = sizes[entry] if entry not in sparse else sparse[entry].size
            # With a slash the name is a directory's; a file's that has no room for one is rendered to be measured.
            name, link, owner = prefix + names[entry] + b"/", links.get(entry, b""), (uids[entry], gids[entry])
            if entry not in records and is_plain(name, link, owner, size, mtimes[entry]):
                yield BLOCK + size + -size % BLOCK
            else:
                yield len(self._rendered(index, entry, names[entry], None)) + size + -size % BLOCK

    def sparse_of(self, step: Step) -> Sparse | None:
        """Return where the pieces of the file that the step writes belong, None when it is stored as it is."""
        if step.entry < 0 or step.link is not None:
            return None
        layer = self._tree.layer_of(step.entry)
        return self._tree.indexes[layer].sparse.get(step.entry - self._tree.bases[layer])

    def length(self, step: Step) -> int:
        """Return how many bytes the step takes, its payload and padding included."""
        holes = self.sparse_of(step)
        size = holes.size if holes else step.end - step.begin
        return len(self.header(step)) + size + padding(size)

    def without(self, layer: int, step: Run | Step, skip: int) -> tuple[Run | Step | None, int]:
        """Return what is left of a step without its first `skip` bytes: whole entries, and the bytes still to skip."""
        if isinstance(step, Step):
            length = self.length(step)
            return (None, skip - length) if skip >= length else (step, skip)
        index, first = self._tree.indexes[layer], step.first
        if step.how is How.RENDER:
            for length in self.lengths(layer, step):
                if skip < length:
                    break
                skip -= length
                first += 1
        else:
            at, end = index.starts[first] + skip, index.end(step.stop - 1)
            if at >= end:
                return None, at - end
            first = bisect_right(index.starts, at, first, step.stop) - 1
            skip = at - index.starts[first]
        return (None if first == step.stop else Run(step.how, first, step.stop)), skip

    def _measure(self, layer: int) -> tuple[int, int, int]:
        """Return how many bytes are written of a layer, where in its tar the last ends, and how many are holes."""
        index, size, end, holes = self._tree.indexes[layer], 0, 0, 0
        sparse, deadline = list(index.sparse), self._tree.deadline
        for step in self.steps(layer):
            deadline.tick()
            if isinstance(step, Step):
                size += self.length(step)
                end = step.end or end
                expanded = self.sparse_of(step)
                holes += expanded.size - (step.end - step.begin) if expanded else 0
            elif step.how is How.RENDER:
                for length in self.lengths(layer, step):
                    size += length
                    deadline.tick()
                for entry in sparse[bisect_left(sparse, step.first) : bisect_left(sparse, step.stop)]:
                    holes += index.sparse[entry].size - index.sizes[entry]
                with_payload = (entry for entry in range(step.stop - 1, step.first - 1, -1) if index.sizes[entry])
                last = next(with_payload, None)
                end = end if last is None else index.payloads[last] + index.sizes[last]
            else:
                end = index.end(step.stop - 1)
                size += end - index.starts[step.first]
        return size, end, holes

    def index(self, layer: int) -> LayerIndex:
        """Return the index of the layer."""
        return self._tree.indexes[layer]

    def located(self, slot: int) -> tuple[LayerIndex, int]:
        """Return the index that has the entry with the number `slot` in the whole stack, and its number there."""
        layer = self._tree.layer_of(slot)
        return self._tree.indexes[layer], slot - self._tree.bases[layer]

    def entry_of(self, path: bytes) -> tuple[int, int] | None:
        """Return the layer and the entry whose payload the name `path` has; symlinks are not followed."""
        slot = self._tree.made.get(path)
        if slot is None or slot < 0:
            return None
        slot = self._tree.inodes.get(slot, slot)
        layer = self._tree.layer_of(slot)
        return layer, slot - self._tree.bases[layer]

    def folder(self, path: bytes) -> tuple[int, int, int] | None:
        """Return mode, owner and group of the directory that `path` leads to; symlinks are followed inside the root."""
        slot = self._tree.folder(path)
        if slot is None:
            return None
        if slot < 0:
            return 0o755, 0, 0
        index, entry = self.located(slot)
        return index.modes[entry], index.uids[entry], index.gids[entry]


_KINDS = [bytes((kind,)) for kind in range(256)]


def _classes(copyable: int) -> bytes:
    """Return the table that makes of an entry's column the letter of how it is written.

    `copyable` is the flag of what can be copied. C, R and S begin with directories that stand before them; j goes on
    with what a C or c began; what has gone is a dot, or an a where directories stand there.
    """
    table = bytearray(b"." * 256)
    for column in range(64):
        anchored = bool(column & _ANCHOR)
        if not column & PRESENT:
            letter = b"a" if anchored else b"."
        elif column & _SPECIAL:
            letter = b"S" if anchored else b"s"
        elif not column & copyable:
            letter = b"R" if anchored else b"r"
        elif anchored:
            letter = b"C"
        else:
            letter = b"j" if column & JOINED else b"c"
        table[column] = letter[0]
    return bytes(table)


def plan_merge(
    indexes: Sequence[LayerIndex],
    *,
    layers: Sequence[str],
    path_prefix: bytes = b"",
    limits: LayerLimits | None = None,
    completed: bool = False,
    tree: MergeTree | None = None,
) -> MergePlan:
    """Return the plan of the stack `indexes`, base first; `layers` is how errors call them.

    With a `path_prefix` that ends with a slash, each name and hard link target gets it, and its directory comes first.
    `completed` says that the last layer only has what the others lack; what it deletes goes all the same.
    `tree` is one of the same stack, to which nothing is applied yet, for who wants to see how it comes about.
    Raises DanglingHardLink, ParentNotDirectory, SymlinkLoop, MalformedLayer, LayerTooLarge, MetadataTooLarge,
    OutputTooLarge, ImageTooComplex.
    """
    limits = limits or LayerLimits()
    tree = tree or MergeTree(indexes, layers, limits)
    own = len(indexes) - completed
    for layer in range(own):
        tree.apply(layer)
    if completed:
        tree.complete(own)
    plan = MergePlan(tree, path_prefix)
    if plan.size > limits.max_size:
        raise LayerTooLarge(f"the image has {plan.size} bytes; at most {limits.max_size} are allowed (VERBS_MAX_SIZE)")
    stored = sum(index.size for index in indexes)
    if plan.size - plan.holes > limits.max_growth * stored + _ALWAYS:
        raise OutputTooLarge(
            f"the image would have {plan.size} bytes, more than {limits.max_growth} times the {stored} bytes of its"
            " layers; no more are allowed (VERBS_MAX_GROWTH)"
        )
    tree.deadline.met()
    return plan
