"""What layers bring and what comes of it: known stacks by hand, and random ones against an obvious model."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given

from test import layers, model
from test.layers import Dialect, Entry, directory, file, hardlink, opaque, symlink, whiteout
from test.merging import index_of, merged
from test.strategies import Stack, archives, dialects, examples, stacks
from test.test_merge_properties import large_stack
from util.layeranalysis import How, LayerAnalysis, LayerUse, Shadow, WastedPath, analyze
from util.layerindex import LayerLimits, LayerTooLarge
from util.mergetree import DanglingHardLink

OPAQUE, WHITEOUT, REPLACED, REWRITTEN = How.OPAQUE, How.WHITEOUT, How.REPLACED, How.REWRITTEN


def analysis_of(*stack: Sequence[Entry | bytes], dialect: Dialect = "pax") -> LayerAnalysis:
    indexes = [index_of(layers.layer(*entries, dialect=dialect)) for entries in stack]
    return analyze(indexes, layers=[f"layer {at}" for at in range(len(stack))])


def shadows(*stack: Sequence[Entry | bytes]) -> list[list[tuple[int, How, int, int]]]:
    """Return for each layer which one hides how much of it, and how: (by, how, files, bytes)."""
    return [
        [(each.by, each.how, each.files, each.size) for each in layer.shadows] for layer in analysis_of(*stack).layers
    ]


# --- Known stacks -----------------------------------------------------------------------------------------------------


def test_a_layer_alone_is_kept() -> None:
    tar = layers.layer(directory(b"d"), file(b"d/a", b"12345"), symlink(b"s", b"d/a"), file(b"b", b"678"))
    found = analyze([index_of(tar)], layers=["one"])
    assert found.layers == (LayerUse(len(tar), entries=4, files=2, size=8, shadows=(), whiteouts=0, idle=()),)
    assert (found.size, found.kept_size, found.shadowed_size, found.wasted) == (8, 8, 0, ())
    assert (found.tar_size, found.squashed_size, found.efficiency) == (len(tar), len(merged([tar])), 1.0)


def test_no_layers_are_no_waste() -> None:
    found = analyze([], layers=[])
    assert (found.layers, found.wasted, found.squashed_size, found.efficiency) == ((), (), 1024, 1.0)


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        pytest.param([[file(b"a", b"11")], [file(b"a", b"222")]], [[(1, REPLACED, 1, 2)], []], id="replaced"),
        pytest.param([[file(b"a", b"11")], [file(b"a", b"22")]], [[(1, REWRITTEN, 1, 2)], []], id="same size and time"),
        pytest.param(
            [[file(b"a", b"11")], [file(b"a", b"11", mode=0o600, uid=5)]], [[(1, REWRITTEN, 1, 2)], []], id="chmod"
        ),
        pytest.param(
            [[file(b"a", b"11")], [file(b"a", b"11", mtime_ns=10**9)]], [[(1, REPLACED, 1, 2)], []], id="other time"
        ),
        pytest.param([[file(b"a", b"11")], [whiteout(b"a")]], [[(1, WHITEOUT, 1, 2)], []], id="whiteout"),
        pytest.param(
            [[file(b"a", b"11")], [whiteout(b"a"), file(b"a", b"11")]],
            [[(1, WHITEOUT, 1, 2)], []],
            id="whited out and made anew",
        ),
        pytest.param(
            [[file(b"d/a", b"11"), file(b"d/e/b", b"3"), file(b"da", b"4")], [whiteout(b"d")]],
            [[(1, WHITEOUT, 2, 3)], []],
            id="directory whited out",
        ),
        pytest.param(
            [[file(b"d/a", b"11"), file(b"b", b"3")], [opaque(b"d"), file(b"d/a", b"11")]],
            [[(1, OPAQUE, 1, 2)], []],
            id="opaque",
        ),
        pytest.param(
            [[file(b"d/a", b"11"), file(b"b", b"3")], [opaque(b"")]], [[(1, OPAQUE, 2, 3)], []], id="all opaque"
        ),
        pytest.param(
            [[file(b"d/a", b"11")], [opaque(b"d"), whiteout(b"d/a")]], [[(1, OPAQUE, 1, 2)], []], id="opaque goes first"
        ),
        pytest.param(
            [[file(b"d/a", b"11"), file(b"d/b", b"3")], [file(b"d", b"11")]],
            [[(1, REPLACED, 2, 3)], []],
            id="file over directory",
        ),
        pytest.param([[file(b"a", b"11")], [directory(b"a")]], [[(1, REPLACED, 1, 2)], []], id="directory over file"),
        pytest.param([[file(b"a", b"")], [symlink(b"a", b"b")]], [[(1, REPLACED, 1, 0)], []], id="empty file"),
        pytest.param([[symlink(b"a", b"b")], [file(b"a", b"1")]], [[], []], id="only files count"),
        pytest.param([[directory(b"d")], [directory(b"d", mode=0o700)]], [[], []], id="directory over directory"),
        pytest.param(
            [[file(b"a", b"11"), file(b"a", b"11")]],
            [[(0, REPLACED, 1, 2)]],
            id="twice in a layer, which is no rewriting",
        ),
        pytest.param(
            [[file(b"a", b"11")], [file(b"a", b"22")], [whiteout(b"a")]],
            [[(1, REWRITTEN, 1, 2)], [(2, WHITEOUT, 1, 2)], []],
            id="each by the layer above that took it",
        ),
        pytest.param(
            [[file(b"lib/a", b"11"), file(b"b", b"3")], [file(b"lib/c"), whiteout(b"b"), file(b"lib/a", b"4")]],
            [[(1, WHITEOUT, 1, 1), (1, REPLACED, 1, 2)], []],
            id="several ways",
        ),
        pytest.param(
            [[symlink(b"lib", b"usr/lib"), file(b"usr/lib/a", b"11")], [file(b"lib/a", b"3")]],
            [[(1, REPLACED, 1, 2)], []],
            id="through a symlink",
        ),
    ],
)
def test_what_is_hidden_is_told_with_the_layer_that_hides_it(
    stack: Stack, expected: list[list[tuple[int, How, int, int]]]
) -> None:
    assert shadows(*stack) == expected


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        pytest.param([[file(b"a", b"11"), hardlink(b"b", b"a")], [whiteout(b"a")]], [[], []], id="one name left"),
        pytest.param([[file(b"a", b"11"), hardlink(b"b", b"a")], [whiteout(b"b")]], [[], []], id="the first name left"),
        pytest.param(
            [[file(b"a", b"11"), hardlink(b"b", b"a")], [whiteout(b"a")], [file(b"b", b"3")]],
            [[(2, REPLACED, 1, 2)], [], []],
            id="by who takes the last name",
        ),
        pytest.param(
            [[file(b"a", b"11"), hardlink(b"b", b"a")], [whiteout(b"b"), file(b"a", b"11")]],
            [[(1, REWRITTEN, 1, 2)], []],
            id="in one layer by what comes last",
        ),
        pytest.param(
            [[file(b"a", b"11"), hardlink(b"b", b"a")], [file(b"a", b"11", mode=0o600), hardlink(b"b", b"a")]],
            [[(1, REWRITTEN, 1, 2)], []],
            id="both rewritten",
        ),
        pytest.param([[file(b"a", b"11")], [hardlink(b"b", b"a"), whiteout(b"c")]], [[], []], id="linked from above"),
        pytest.param(
            [[file(b"a", b"11")], [hardlink(b"b", b"a")], [whiteout(b"a")], [whiteout(b"b")]],
            [[(3, WHITEOUT, 1, 2)], [], [], []],
            id="kept by a name from above, till that goes",
        ),
        pytest.param(
            [[file(b"a", b"11"), file(b"b", b"3")], [hardlink(b"b", b"a")]],
            [[(1, REPLACED, 1, 1)], []],
            id="replaced by a link",
        ),
    ],
)
def test_a_file_with_several_names_counts_once_and_as_long_as_one_is_left(
    stack: Stack, expected: list[list[tuple[int, How, int, int]]]
) -> None:
    assert shadows(*stack) == expected
    found = analysis_of(*stack)
    assert found.size == sum(len(entry.content) for entries in stack for entry in entries)


@pytest.mark.parametrize(
    ("stack", "idle"),
    [
        pytest.param([[file(b"a")], [whiteout(b"a"), opaque(b"")]], (), id="both hide something"),
        pytest.param([[file(b"a")], [whiteout(b"b")]], (b".wh.b",), id="nothing there"),
        pytest.param([[file(b"a")], [file(b"b"), whiteout(b"b")]], (b".wh.b",), id="only what its own layer has"),
        pytest.param([[file(b"d/a")], [whiteout(b"d/b")]], (b"d/.wh.b",), id="nothing in the folder"),
        pytest.param([[file(b"a")], [whiteout(b"a/b")]], (b"a/.wh.b",), id="nothing is below a file"),
        pytest.param([[file(b"d/a")], [whiteout(b"d"), whiteout(b"d/a")]], (), id="a folder and what is in it"),
        pytest.param([[file(b"d/a")], [opaque(b"d"), opaque(b"d"), whiteout(b"d/a")]], (), id="twice over"),
        pytest.param([[directory(b"d")], [opaque(b"d")]], (b"d/.wh..wh..opq",), id="opaque over an empty folder"),
        pytest.param([[file(b"a")], [opaque(b"d"), file(b"d/a")]], (b"d/.wh..wh..opq",), id="opaque in a new folder"),
        pytest.param([[], [opaque(b"")]], (b".wh..wh..opq",), id="opaque over nothing"),
        pytest.param(
            [[file(b"d/a"), file(b"d/b")], [whiteout(b"d/a"), whiteout(b"d/b")], [opaque(b"d")]],
            (b"d/.wh..wh..opq",),
            id="opaque over what was deleted before",
        ),
        pytest.param([[file(b"a")], [file(b".wh..wh.plnk/1")]], (), id="what aufs left is no whiteout"),
    ],
)
def test_whiteouts_that_hide_nothing_are_told(stack: Stack, idle: tuple[bytes, ...]) -> None:
    assert analysis_of(*stack).layers[-1].idle == idle


def test_whiteouts_are_counted_and_are_no_files() -> None:
    (_, upper) = analysis_of([file(b"d/a", b"1")], [whiteout(b"d/a"), opaque(b"e"), file(b"b", b"22")]).layers
    assert (upper.entries, upper.files, upper.size, upper.whiteouts) == (1, 1, 2, 2)


def test_the_largest_waste_comes_first() -> None:
    found = analysis_of(
        [file(b"b", b"1" * 10), file(b"a", b"1" * 10), file(b"big", b"1" * 50), file(b"empty"), file(b"kept", b"1")],
        [file(b"./big", b"2" * 60), file(b"kept2", b"1"), hardlink(b"link", b"big")],
        [file(b"big", b"3"), whiteout(b"a"), whiteout(b"b"), whiteout(b"empty"), whiteout(b"link")],
        [file(b"a", b"again")],
    )
    assert found.wasted == (
        WastedPath(b"big", 110, 3, (0, 1, 2)),
        WastedPath(b"a", 10, 2, (0, 3)),
        WastedPath(b"b", 10, 1, (0,)),
    )


def test_waste_is_told_under_the_name_at_which_it_stood() -> None:
    lower = [symlink(b"lib", b"usr/lib"), file(b"usr/lib/a", b"11")]
    found = analysis_of(lower, [file(b"lib/a", b"22")], [whiteout(b"usr/lib/a")])
    assert found.wasted == (WastedPath(b"usr/lib/a", 4, 2, (0, 1)),)


def test_a_sparse_file_has_the_bytes_that_it_is_unpacked_to() -> None:
    sparse = layers.pax_sparse_10(b"disk", 100_000, [(512, b"x" * 512)])
    found = analysis_of([sparse], [whiteout(b"disk")])
    assert (found.size, found.layers[0].shadows) == (100_000, (Shadow(1, WHITEOUT, 1, 100_000),))


def test_what_squashing_leaves_is_exact() -> None:
    tars = archives([[file(b"a", b"1" * 5000), file(b"b", b"2")], [whiteout(b"a"), file(b"c", b"3" * 600)]])
    found = analyze([index_of(tar) for tar in tars], layers=["0", "1"])
    assert found.squashed_size == len(merged(tars))
    assert found.tar_size == sum(map(len, tars))


def test_a_stack_that_cannot_be_merged_is_refused() -> None:
    with pytest.raises(DanglingHardLink):
        analysis_of([hardlink(b"a", b"b")])
    index = index_of(layers.layer(file(b"a"), file(b"b")))
    with pytest.raises(LayerTooLarge, match="at most 1 are allowed"):
        analyze([index], layers=["0"], limits=LayerLimits(max_entries=1))


# --- The figure of dive -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stack", "efficiency"),
    [
        pytest.param([[file(b"a", b"1" * 10)], [file(b"b", b"1" * 30)]], 1.0, id="nothing twice"),
        pytest.param([[file(b"a", b"1" * 10)], [file(b"a", b"1" * 30)]], 10 / 40, id="the smaller counts"),
        pytest.param([[file(b"a", b"1" * 10), file(b"b", b"1" * 30)], [whiteout(b"a")]], 30 / 40, id="deleted"),
        pytest.param([[file(b"a", b"1" * 10)], [whiteout(b"a")], [file(b"a", b"1" * 10)]], 0.0, id="deleted and back"),
        pytest.param(
            [[file(b"d/a", b"1" * 10), file(b"b", b"1" * 30)], [whiteout(b"d")]],
            1.0,
            id="a deleted folder costs nothing",
        ),
        pytest.param(
            [[directory(b"d"), file(b"d/a", b"1" * 10)], [whiteout(b"d")], [file(b"d", b"1" * 5)]],
            15 / 25,
            id="it counts as what was in it",
        ),
        pytest.param(
            [[file(b"d/a", b"1" * 10)], [whiteout(b"d")], [file(b"d", b"1" * 5)]],
            10 / 15,
            id="or nothing if no entry made it",
        ),
        pytest.param([[file(b"d/a", b"1" * 10)], [opaque(b"d")]], 1.0, id="opaque ones are not seen"),
        pytest.param([[directory(b"d")], [file(b"d", b"1" * 10)]], 0.0, id="an empty folder is an empty file"),
        pytest.param([[directory(b"d"), file(b"d/a")], [file(b"d", b"1" * 10)]], 1.0, id="another folder is nothing"),
        pytest.param(
            [[directory(b"d"), file(b"d/e/a")], [file(b"d", b"1" * 10)]],
            1.0,
            id="nor one with folders that are implied",
        ),
        pytest.param(
            [[directory(b"d"), whiteout(b"d/e/a")], [file(b"d", b"1" * 10)]], 1.0, id="nor one with a whiteout in it"
        ),
        pytest.param([[file(b"a", b"1" * 10), hardlink(b"b", b"a")], [whiteout(b"b")]], 1.0, id="a link has no bytes"),
        pytest.param([[file(b"a", b"1" * 10), file(b"a", b"1" * 20)]], 1.0, id="the last in a layer counts"),
        pytest.param([[file(b"a")], [whiteout(b"a")]], 1.0, id="no bytes at all"),
    ],
)
def test_efficiency_is_as_dive_defines_it(stack: Stack, efficiency: float) -> None:
    assert analysis_of(*stack).efficiency == pytest.approx(efficiency)


# --- Random stacks ----------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What the model says of one layer."""

    files: int = 0
    size: int = 0
    shadows: Counter[tuple[int, How]] = field(default_factory=Counter)
    bytes_of: Counter[tuple[int, How]] = field(default_factory=Counter)
    idle: list[bytes] = field(default_factory=list)


class Watched:
    """The model, looked at after every single step: which files are there, and under which names?"""

    def __init__(self) -> None:
        self.tree = model.Tree()
        self.told: list[Told] = []
        self.born: dict[int, tuple[int, Entry, bytes]] = {}
        self.nodes: dict[int, model.Node] = {}  # so that none has the number of one that is gone
        self.there: dict[int, set[bytes]] = {}
        self.wasted: Counter[bytes] = Counter()
        self.stored: dict[bytes, list[int]] = defaultdict(list)

    def files(self) -> dict[int, set[bytes]]:
        found: dict[int, set[bytes]] = defaultdict(set)
        for place, node in self.tree.walk():
            if node.kind == "file":
                found[id(node)].add(b"/".join(place))
                self.nodes[id(node)] = node
        return found

    def apply(self, entries: Sequence[Entry]) -> None:
        self.told.append(Told())
        marks, others = model.sorted_out(entries)
        doomed: list[tuple[model.Node, bytes | None]] = []
        for entry, path in marks:
            try:
                place = self.tree.place_of_folder(path[:-1], entry, model.replaced_by(others))
            except model.Refused:
                place = None
            folder = None if place is None else self.tree.at(place)
            name = model.hidden_name(entry, path)
            if (
                folder is not None
                and folder.kind == "directory"
                and (folder.children if name is None else name in folder.children)
            ):
                doomed.append((folder, name))
            else:
                self.told[-1].idle.append(b"/".join(path))
        for folder, _ in (each for each in doomed if each[1] is None):
            folder.children.clear()
        self.look(OPAQUE)
        for folder, name in doomed:
            if name is not None:
                folder.children.pop(name, None)
        self.look(WHITEOUT)
        for entry, path in others:
            before = self.tree.place_of_folder(path[:-1], entry) if path else ()
            self.tree.add(entry, path)
            self.look(REPLACED, entry, b"/".join((*(before or ()), *path[-1:])))

    def look(self, how: How, entry: Entry | None = None, place: bytes = b"") -> None:
        """Put down what has gone and what has come since the last look."""
        by, there = len(self.told) - 1, self.files()
        for node in self.there.keys() - there.keys():
            layer, old, home = self.born[node]
            way = how
            now = next((each for each in there if place in there[each]), None) if place in self.there[node] else None
            if now is not None:
                new_layer, new, _ = self.born.get(now, (by, entry, b""))
                assert new is not None
                same = (len(new.content), new.mtime_ns // 10**9) == (len(old.content), old.mtime_ns // 10**9)
                way = REWRITTEN if same and new_layer != layer else how
            self.told[layer].shadows[by, way] += 1
            self.told[layer].bytes_of[by, way] += len(old.content)
            self.wasted[home] += len(old.content)
        for node in there.keys() - self.there.keys():
            assert entry is not None
            self.born[node] = (by, entry, place)
            self.told[-1].files += 1
            self.told[-1].size += len(entry.content)
            self.stored[place].append(by)
        self.there = there


def check_against_the_model(stack: Stack, dialect: Dialect = "pax") -> None:
    tars = archives(stack, dialect)
    found = analyze([index_of(tar) for tar in tars], layers=[str(at) for at in range(len(tars))])
    watched = Watched()
    for entries in stack:
        watched.apply(entries)
    for told, use in zip(watched.told, found.layers, strict=True):
        assert (use.files, use.size) == (told.files, told.size)
        assert {(each.by, each.how): (each.files, each.size) for each in use.shadows} == {
            key: (count, told.bytes_of[key]) for key, count in told.shadows.items()
        }
        assert Counter(use.idle) == Counter(told.idle)
    listing = watched.tree.listing()
    kept = {listed.names: len(listed.content) for listed in listing.values() if listed.kind == "file"}
    assert found.kept_size == sum(kept.values())
    assert sum(use.kept_files for use in found.layers) == len(kept)
    assert {each.path: each.size for each in found.wasted} == {
        path: size for path, size in watched.wasted.items() if size
    }
    for each in found.wasted:
        assert (each.times, list(each.layers)) == (
            len(watched.stored[each.path]),
            sorted(set(watched.stored[each.path])),
        )
    assert found.squashed_size == len(merged(tars))
    assert 0 <= found.efficiency <= 1


@examples(400)
@given(stack=stacks(), dialect=dialects)
def test_random_stacks_are_analyzed_as_the_model_says(stack: Stack, dialect: Dialect) -> None:
    check_against_the_model(model.mended(stack)[0], dialect)


@examples(60)
@given(lower=stacks(), upper=stacks())
def test_longer_stacks_too(lower: Stack, upper: Stack) -> None:
    check_against_the_model(model.mended(lower + upper)[0])


def test_large_layers_lose_what_is_not_in_the_merged_image() -> None:
    stack = large_stack(random.Random(3))
    found = analyze([index_of(tar) for tar in archives(stack)], layers=[str(at) for at in range(len(stack))])
    listing = model.unpacked(stack).listing()
    kept = {listed.names: len(listed.content) for listed in listing.values() if listed.kind == "file"}
    assert (found.kept_size, sum(use.kept_files for use in found.layers)) == (sum(kept.values()), len(kept))
    assert sum(each.size for each in found.wasted) == found.shadowed_size > 0
    assert found.size == sum(len(entry.content) for entries in stack for entry in entries if _is_file(entry))


def _is_file(entry: Entry) -> bool:
    path = model.normalised(entry, entry.name)
    return entry.kind == layers.REGULAR and not model.is_whiteout(path) and not model.is_left_over(path)


def test_the_order_of_sets_does_not_matter() -> None:
    linked = [file(b"a%d" % at, b"1" * (at % 3)) for at in range(50)] + [
        hardlink(b"b%d" % at, b"a%d" % at) for at in range(50)
    ]
    upper = [
        replace(entry, name=entry.name, content=b"1" * (at % 2), kind=layers.REGULAR, link=b"")
        for at, entry in enumerate(linked)
    ]
    check_against_the_model([linked, upper])
