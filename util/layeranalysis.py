"""The analysis of a stack of layers: what each adds, what of that is in the merged image, and what hides the rest.

The law: it is a pure function of the layer indexes. Bytes are those of files' contents, each file counted in the layer
that brings it and once, whatever its names. It is kept if one of its names is left when all layers are applied;
otherwise it is shadowed by the layer that took the last one. So for each layer, and for the image, bytes are kept bytes
and shadowed bytes.

Looking at each of a hundred thousand entries takes long, so what happens to names is seen where the merge does it, and
entries are only looked at where they are lost. The work has a deadline, as planning has.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from util.deadline import Deadline
from util.layerindex import FILE, LayerIndex, LayerLimits
from util.mergeplan import plan_merge
from util.mergetree import MergeTree

OPAQUE_NAME = b".wh..wh..opq"


class How(StrEnum):
    """What hides a file. In the order in which a layer does it."""

    OPAQUE = "opaque"
    """A directory is said to have nothing of the lower layers."""
    WHITEOUT = "whiteout"
    """It, or a directory above it, is deleted."""
    REPLACED = "replaced"
    """Something else has its name, or stands where a directory above it stood; in its own layer, too."""
    REWRITTEN = "rewritten"
    """A file of the same size and time has its name: as far as an index tells, only metadata has changed, if that."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """So many files of a layer, of so many bytes, are hidden by the layer `by` in the way `how`."""

    by: int
    how: How
    files: int
    size: int


@dataclass(frozen=True, slots=True)
class LayerUse:
    """What one layer brings, and what comes of it.

    Sizes are in bytes; `tar_size` is that of the uncompressed tar. `entries`: all but whiteouts. `idle`: the names of
    whiteouts that hide nothing, as the lower layers have nothing there. `shadows` stand in the order of the layers.
    """

    tar_size: int
    entries: int
    files: int
    size: int
    shadows: tuple[Shadow, ...]
    whiteouts: int
    idle: tuple[bytes, ...]

    @property
    def shadowed_files(self) -> int:
        return sum(shadow.files for shadow in self.shadows)

    @property
    def shadowed_size(self) -> int:
        return sum(shadow.size for shadow in self.shadows)

    @property
    def kept_files(self) -> int:
        return self.files - self.shadowed_files

    @property
    def kept_size(self) -> int:
        return self.size - self.shadowed_size


@dataclass(frozen=True, slots=True)
class WastedPath:
    """A name under which files are stored that the merged image does not have.

    `size`: of those, in bytes. `times`: how often a file is stored under the name, one that is kept too; `layers`: in
    which.
    """

    path: bytes
    size: int
    times: int
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerAnalysis:
    """A stack of layers, base first. `wasted` has the largest first; `squashed_size`: of the merged, uncompressed tar.

    `efficiency` is what `dive` calls so, from 0 to 1: the sum over all names of the smallest file under it, divided by
    the sum of all files; a whiteout of a file counts as an empty one, that of a directory as one of what it deletes.
    """

    layers: tuple[LayerUse, ...]
    wasted: tuple[WastedPath, ...]
    squashed_size: int
    efficiency: float

    @property
    def tar_size(self) -> int:
        """Of the uncompressed tars of all layers, in bytes."""
        return sum(layer.tar_size for layer in self.layers)

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers)

    @property
    def kept_size(self) -> int:
        return sum(layer.kept_size for layer in self.layers)

    @property
    def shadowed_size(self) -> int:
        return sum(layer.shadowed_size for layer in self.layers)


def analyze(
    indexes: Sequence[LayerIndex], *, layers: Sequence[str], limits: LayerLimits | None = None
) -> LayerAnalysis:
    """Return the analysis of the stack `indexes`, base first; `layers` is how errors call them.

    Raises what plan_merge raises: a stack that cannot be merged cannot be analyzed.
    """
    limits = limits or LayerLimits()
    tree = _WatchedTree(indexes, layers, limits)
    plan = plan_merge(indexes, layers=layers, limits=limits, tree=tree)
    deadline = Deadline(limits)
    shadows: list[Counter[tuple[int, How]]] = [Counter() for _ in indexes]
    counts: list[Counter[tuple[int, How]]] = [Counter() for _ in indexes]
    wasted: dict[bytes, int] = defaultdict(int)
    for slot, loss in sorted(_lost_files(tree).items()):
        deadline.tick()
        layer, size = tree.layer_with(slot), tree.size_of(slot)
        key = (loss[0], tree.how(slot, size, loss))
        shadows[layer][key] += size
        counts[layer][key] += 1
        if size:
            wasted[tree.path_of(slot)] += size
    uses = [
        LayerUse(
            tar_size=index.size,
            entries=len(index),
            files=index.kinds.count(FILE),
            size=_added(index),
            shadows=tuple(
                Shadow(by, how, counts[layer][by, how], shadows[layer][by, how])
                for by, how in sorted(counts[layer], key=lambda key: (key[0], _ORDER.index(key[1])))
            ),
            whiteouts=len(index.whiteouts) + len(index.opaques),
            idle=tuple(tree.idle[layer]),
        )
        for layer, index in enumerate(indexes)
    ]
    return LayerAnalysis(tuple(uses), _wasted(tree, wasted), plan.size, _efficiency(indexes, tree.deleted, deadline))


_Loss = tuple[int, int, int, bool]
"""A name is taken: by which layer, how (as a place in _ORDER), and by which of its entries, if by one; True says that
this has the very name then, and False that it stands above. They compare as they follow one another.
"""
_ORDER = tuple(How)
_OPAQUE, _WHITEOUT, _REPLACED = range(3)


class _WatchedTree(MergeTree):
    """A tree that writes down which entry loses its name, to which layer, and how."""

    def __init__(self, indexes: Sequence[LayerIndex], layers: Sequence[str], limits: LayerLimits) -> None:
        super().__init__(indexes, layers, limits)
        self.lost: dict[int, _Loss] = {}
        self.idle: list[list[bytes]] = [[] for _ in indexes]
        """For each layer the whiteouts that find nothing."""
        self.deleted: list[dict[bytes, int]] = [{} for _ in indexes]
        """For each layer the directories that whiteouts delete, if an entry made them, with the bytes below each."""
        self._by, self._how, self._new, self._direct = 0, 0, -1, False
        self._deleted_slots: list[int] = []
        """What the whiteout that is being carried out has taken so far."""

    def apply(self, layer: int) -> None:
        self._by = layer
        super().apply(layer)

    def layer_with(self, slot: int) -> int:
        return bisect_right(self.bases, slot) - 1

    def size_of(self, slot: int) -> int:
        """Return the bytes of the file that the entry brings, 0 for what is none."""
        if self.kinds[slot] != FILE:
            return 0
        layer = self.layer_with(slot)
        return self.indexes[layer].file_size(slot - self.bases[layer])

    def path_of(self, slot: int) -> bytes:
        """Return where the entry was put."""
        layer = self.layer_with(slot)
        return self.moved.get(slot) or self.indexes[layer].names[slot - self.bases[layer]]

    def how(self, slot: int, size: int, loss: _Loss) -> How:
        """Return how the file of the entry, which has `size` bytes, was lost."""
        _, order, new, direct = loss
        if not direct:
            return _ORDER[order]
        new = self.inodes.get(new, new)
        there, here = self.layer_with(new), self.layer_with(slot)
        if self.kinds[new] != FILE or there == here or self.size_of(new) != size:
            return How.REPLACED
        times = self.indexes[there].mtimes[new - self.bases[there]], self.indexes[here].mtimes[slot - self.bases[here]]
        return How.REWRITTEN if times[0] == times[1] else How.REPLACED

    def _apply_columns(self, index: LayerIndex, layer: int) -> bool:
        made = self.made
        there = [(path, made[path]) for path in made.keys() & set(index.names)] if index.tidy and made else []
        if not super()._apply_columns(index, layer):
            return False
        for path, old in there:
            new = made[path]
            if new != old and old >= 0:
                self.lost[old] = (layer, _REPLACED, new, True)
        return True

    def _put(self, name: bytes, slot: int, index: LayerIndex, entry: int, layer: int) -> None:
        self._how, self._new, self._direct = _REPLACED, slot, True
        super()._put(name, slot, index, entry, layer)

    def _delete(self, index: LayerIndex, layer: int) -> None:
        gone, emptied = self._doomed(index, layer)
        for path, real in zip(index.whiteouts, gone, strict=True):
            if real is None or real not in self.made:
                folder, slash, name = path.rpartition(b"/")
                self.idle[layer].append(folder + slash + b".wh." + name)
        for path, real in zip(index.opaques, emptied, strict=True):
            if real is None or not self._has_below(real):
                self.idle[layer].append(path + b"/" + OPAQUE_NAME if path else OPAQUE_NAME)
        super()._delete(index, layer)

    def _has_below(self, directory: bytes) -> bool:
        if not directory:
            return bool(self.made)
        begin, end = self._below(directory)
        at = begin
        while at < end and self._sorted[at] not in self.made:
            at += 1
        del self._sorted[begin:at]  # or each of many would look at the same names again
        return at < end

    def _empty(self, directory: bytes) -> None:
        self._how, self._new, self._direct = _OPAQUE, -1, False
        super()._empty(directory)

    def _white_out(self, path: bytes) -> None:
        self._how, self._new, self._direct = _WHITEOUT, -1, False
        made = self.made[path]
        described = self.is_directory(made) and (made >= 0 or path in self.metadata)
        self._deleted_slots = []
        super()._white_out(path)
        if described:
            self.deleted[self._by][path] = sum(map(self.size_of, self._deleted_slots))
        self._deleted_slots = []

    def _remove(self, path: bytes) -> None:
        slot = self.made[path]
        if slot >= 0:
            if slot not in self.lost:
                self._deleted_slots.append(slot)
            self.lost[slot] = (self._by, self._how, self._new, self._direct)
        super()._remove(path)

    def _remove_below(self, directory: bytes) -> None:
        direct, self._direct = self._direct, False
        if not directory:
            loss = (self._by, self._how, self._new, False)
            self.lost.update((slot, loss) for slot in self.made.values() if slot >= 0)
        super()._remove_below(directory)
        self._direct = direct


def _lost_files(tree: _WatchedTree) -> dict[int, _Loss]:
    """Return the files that are not in the merged image, each with what took the last of its names."""
    linked: dict[int, list[int]] = defaultdict(list)
    for slot, inode in tree.inodes.items():
        linked[inode].append(slot)
    kinds = tree.kinds
    lost = {slot: loss for slot, loss in tree.lost.items() if kinds[slot] == FILE and slot not in linked}
    for inode, slots in linked.items():
        losses = [tree.lost.get(slot) for slot in (inode, *slots)]
        found = [loss for loss in losses if loss is not None]
        if kinds[inode] == FILE and len(found) == len(losses):
            lost[inode] = max(found)
    return lost


def _added(index: LayerIndex) -> int:
    """Return the bytes of the files that the layer brings."""
    stored = sum(index.sizes)
    return stored + sum(sparse.size - index.sizes[entry] for entry, sparse in index.sparse.items())


def _wasted(tree: _WatchedTree, wasted: Mapping[bytes, int]) -> tuple[WastedPath, ...]:
    times: dict[bytes, list[int]] = {path: [] for path in wasted}
    moved_in: list[dict[int, bytes]] = [{} for _ in tree.indexes]
    for slot, path in tree.moved.items() if times else ():
        layer = tree.layer_with(slot)
        moved_in[layer][slot - tree.bases[layer]] = path
    for layer, index in enumerate(tree.indexes if times else ()):
        moved = moved_in[layer]
        for entry, name in enumerate(index.names):
            path = moved.get(entry, name) if moved else name
            if path in times and index.kinds[entry] == FILE:
                times[path].append(layer)
    return tuple(
        WastedPath(path, size, len(times[path]), tuple(dict.fromkeys(times[path])))
        for path, size in sorted(wasted.items(), key=lambda item: (-item[1], item[0]))
    )


def _efficiency(indexes: Sequence[LayerIndex], deleted: Sequence[Mapping[bytes, int]], deadline: Deadline) -> float:
    """Return the figure of `dive`: names are taken as they are written, and of directories only empty ones count."""
    smallest: dict[bytes, int] = {}
    total = 0
    for index, directories in zip(indexes, deleted, strict=True):
        sizes = dict(zip(index.names, index.sizes, strict=True))
        for entry, sparse in index.sparse.items():
            sizes[index.names[entry]] = sparse.size
        for folder in _folders(index, deadline):
            sizes.pop(folder, None)
        sizes.pop(b"", None)
        total += sum(sizes.values())
        again = {path: min(smallest[path], sizes[path]) for path in smallest.keys() & sizes.keys()}
        smallest.update(sizes)
        smallest.update(again)
        for path in index.whiteouts:
            size = directories.get(path, 0)
            total += size
            smallest[path] = min(smallest.get(path, size), size)
    return sum(smallest.values()) / total if total else 1.0


def _folders(index: LayerIndex, deadline: Deadline) -> set[bytes]:
    """Return those of the layer's directories that are not empty in it by itself."""
    folders = {name.rpartition(b"/")[0] for name in index.names}
    named: set[bytes] | None = None
    for name in (*(path for path, _ in index.implied), *index.whiteouts):
        folder = name.rpartition(b"/")[0]
        while folder and folder not in folders:
            deadline.tick()
            if named is None:
                named = set(index.names)
            # One without an entry counts for nothing, and of those a few whiteouts can name any number.
            if folder in named:
                folders.add(folder)
            folder = folder.rpartition(b"/")[0]
    return folders
