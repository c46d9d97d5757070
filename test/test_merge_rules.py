"""The rules of the merge, one test each: what unpacking the layers one after the other leaves.

Tables have a column for the lower layer, one for the upper, and one for what is left: names, each with its content,
`/` for a directory, `-> target` for a symlink. Every merged tar goes through `listing_of_tar`, which holds the
invariants: no name twice, parents before children, link targets before links, names inside the root.
https://github.com/opencontainers/image-spec/blob/main/layer.md
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO

import pytest

from test import layers, model
from test.layers import Entry, directory, fifo, file, hardlink, opaque, symlink, whiteout
from test.merging import contents_of_merged, listing_of_merged, merged, merger_of, source_of
from util.digest import Digest, DigestMismatch
from util.problem import Damaged, Malformed
from util.streamlayerformat import LayerSource, NotComputed, StreamLayerMerger

Layer = Sequence[Entry | bytes]
Left = dict[bytes, bytes]

PREFIXES = pytest.mark.parametrize("path_prefix", [b"", b"rootfs/"], ids=["bare", "rootfs"])


def refusal(*stack: Layer) -> Malformed:
    """Return the error with which the stack is refused, before any byte of output."""
    with pytest.raises(Malformed) as refused:
        merger_of([layers.layer(*entries) for entries in stack])
    return refused.value


def reason(*stack: Layer) -> str:
    """Return the name of the error with which the stack is refused."""
    return type(refusal(*stack)).__name__


# --- Whiteouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lower", "upper", "left"),
    [
        pytest.param([file(b"a", b"1")], [whiteout(b"a")], {}, id="file"),
        pytest.param([file(b"a", b"1")], [whiteout(b"./a")], {}, id="written with a dot"),
        pytest.param([file(b"./a", b"1")], [whiteout(b"/a")], {}, id="written absolute"),
        pytest.param(
            [file(b"d/a", b"1"), file(b"d/b", b"2")], [whiteout(b"d/a")], {b"d": b"/", b"d/b": b"2"}, id="below"
        ),
        pytest.param(
            [directory(b"d/"), file(b"d/a", b"1"), file(b"d/e/b")], [whiteout(b"d")], {}, id="directory and all below"
        ),
        pytest.param(
            [symlink(b"s", b"t"), file(b"t", b"1")], [whiteout(b"s")], {b"t": b"1"}, id="symlink, not its target"
        ),
        pytest.param([fifo(b"p")], [whiteout(b"p")], {}, id="fifo"),
        pytest.param(
            [file(b"ab", b"1"), file(b"a", b"2")],
            [whiteout(b"a")],
            {b"ab": b"1"},
            id="no longer name that begins alike",
        ),
        pytest.param([file(b"a", b"1")], [whiteout(b"ab")], {b"a": b"1"}, id="no shorter name that begins alike"),
        pytest.param([file(b"d/a", b"1")], [whiteout(b"a")], {b"d": b"/", b"d/a": b"1"}, id="only in its own folder"),
        pytest.param([file(b"a b\xff", b"1")], [whiteout(b"a b\xff")], {}, id="name that is not UTF-8"),
        pytest.param([file(b".wh", b"1")], [whiteout(b".wh")], {}, id="name that is nearly the prefix"),
    ],
)
def test_a_whiteout_removes_what_lower_layers_have_at_its_name(lower: Layer, upper: Layer, left: Left) -> None:
    assert contents_of_merged(lower, upper) == left


@pytest.mark.parametrize(
    ("stack", "left"),
    [
        pytest.param([[file(b"a", b"1"), whiteout(b"a")]], {b"a": b"1"}, id="after the file"),
        pytest.param([[whiteout(b"a"), file(b"a", b"1")]], {b"a": b"1"}, id="before the file"),
        pytest.param(
            [[file(b"a", b"0")], [whiteout(b"a"), file(b"a", b"1")]], {b"a": b"1"}, id="deleted and made anew"
        ),
        pytest.param(
            [[file(b"a", b"0")], [file(b"a", b"1"), whiteout(b"a")]], {b"a": b"1"}, id="made anew, whiteout last"
        ),
        pytest.param(
            [[file(b"d/x", b"0")], [file(b"d/y", b"1"), whiteout(b"d")]],
            {b"d": b"/", b"d/y": b"1"},
            id="of an entry's own parent",
        ),
        pytest.param(
            [[file(b"d/e/x", b"0")], [directory(b"d"), file(b"d/e/y", b"1"), whiteout(b"d/e"), whiteout(b"d")]],
            {b"d": b"/", b"d/e": b"/", b"d/e/y": b"1"},
            id="of an entry's own ancestors",
        ),
        pytest.param([[file(b"d/x", b"1"), opaque(b"d")]], {b"d": b"/", b"d/x": b"1"}, id="opaque, after"),
        pytest.param([[opaque(b"d"), file(b"d/x", b"1")]], {b"d": b"/", b"d/x": b"1"}, id="opaque, before"),
        pytest.param(
            [[file(b"d/old", b"0")], [file(b"d/x", b"1"), directory(b"d/e"), file(b"d/e/y", b"2"), opaque(b"d")]],
            {b"d": b"/", b"d/x": b"1", b"d/e": b"/", b"d/e/y": b"2"},
            id="opaque, after all",
        ),
    ],
)
def test_a_whiteout_acts_on_lower_layers_only_wherever_it_stands_in_its_own(stack: list[Layer], left: Left) -> None:
    assert contents_of_merged(*stack) == left


def test_a_whiteouts_position_in_its_layer_does_not_change_the_output() -> None:
    lower = [directory(b"d", mode=0o700, mtime_ns=5), file(b"d/x", b"0"), file(b"e/x", b"0"), file(b"e/y", b"0")]
    marks = [whiteout(b"d"), opaque(b"e")]
    additions = [file(b"d/y", b"1"), file(b"e/z", b"2")]
    assert listing_of_merged(lower, marks + additions) == listing_of_merged(lower, additions + marks)


@pytest.mark.parametrize(
    "mark",
    [
        whiteout(b"none"),
        whiteout(b"none/none"),
        whiteout(b"a/none"),
        whiteout(b"s/none"),
        whiteout(b"d/none/none"),
        opaque(b"none"),
        opaque(b"d/none"),
        opaque(b"a"),
        opaque(b"s"),
    ],
    ids=lambda entry: entry.name.decode(),
)
def test_a_whiteout_of_something_absent_is_no_error_and_makes_nothing(mark: Entry) -> None:
    lower = [file(b"a", b"1"), directory(b"d"), symlink(b"s", b"nowhere")]
    unchanged = {b"a": b"1", b"d": b"/", b"s": b"-> nowhere"}
    assert contents_of_merged(lower, [mark]) == unchanged
    assert contents_of_merged([mark, *lower]) == unchanged
    assert contents_of_merged([mark]) == {}


@pytest.mark.parametrize(
    ("lower", "upper", "left"),
    [
        pytest.param(
            [file(b"d/a", b"1"), file(b"d/e/b", b"2"), file(b"c", b"3")],
            [opaque(b"d")],
            {b"d": b"/", b"c": b"3"},
            id="all below goes, the folder stays",
        ),
        pytest.param(
            [file(b"d/a", b"1"), file(b"d/e/b", b"2")],
            [directory(b"d"), opaque(b"d"), file(b"d/e/c", b"3")],
            {b"d": b"/", b"d/e": b"/", b"d/e/c": b"3"},
            id="the image-spec's own example",
        ),
        pytest.param(
            [file(b"a", b"1"), file(b"d/b", b"2")], [opaque(b""), file(b"c", b"3")], {b"c": b"3"}, id="at the root"
        ),
        pytest.param(
            [file(b"da", b"1"), file(b"d/a", b"2")],
            [opaque(b"d")],
            {b"d": b"/", b"da": b"1"},
            id="not what begins alike",
        ),
        pytest.param([file(b"d/a", b"1")], [opaque(b"./d")], {b"d": b"/"}, id="written with a dot"),
    ],
)
def test_an_opaque_whiteout_hides_all_that_lower_layers_have_below(lower: Layer, upper: Layer, left: Left) -> None:
    assert contents_of_merged(lower, upper) == left


def test_a_folder_made_opaque_keeps_its_own_metadata_unless_its_layer_has_new() -> None:
    lower = [directory(b"d", mode=0o700, uid=7), file(b"d/a")]
    assert listing_of_merged(lower, [opaque(b"d")])[b"d"].mode == 0o700
    assert listing_of_merged(lower, [opaque(b"d"), directory(b"d", mode=0o711)])[b"d"].mode == 0o711


def test_whiteouts_reach_through_all_lower_layers_and_not_through_upper_ones() -> None:
    assert contents_of_merged(
        [file(b"a", b"0"), file(b"b", b"0")], [file(b"a", b"1")], [whiteout(b"a"), opaque(b"")], [file(b"b", b"3")]
    ) == {b"b": b"3"}


@pytest.mark.parametrize("name", [b".wh.", b"d/.wh.", b"./.wh.", b".wh..", b".wh...", b"d/.wh..."])
def test_a_whiteout_without_a_name_to_delete_is_an_error(name: bytes) -> None:
    error = refusal([file(b"d/a"), file(name)])
    assert name.removeprefix(b"./").decode() in str(error)


@pytest.mark.parametrize(
    "left_over",
    [
        [file(b".wh..wh.aufs")],
        [directory(b".wh..wh.plnk/"), file(b".wh..wh.plnk/12.34", b"x")],
        [directory(b".wh..wh.orph")],
        [file(b"d/.wh..wh.anything")],
        [file(b"./.wh..wh.plnk/a/b/c", b"x")],
        [file(b".wh..wh..opqx")],
    ],
    ids=lambda entries: entries[0].name.decode(),
)
def test_what_aufs_left_over_is_dropped_with_all_below(left_over: list[Entry]) -> None:
    assert contents_of_merged([file(b"d/a", b"1")], left_over) == {b"d": b"/", b"d/a": b"1"}
    assert contents_of_merged([*left_over, file(b"d/a", b"1"), *left_over]) == {b"d": b"/", b"d/a": b"1"}


def test_a_whiteout_is_one_by_its_name_whatever_its_type() -> None:
    lower = [file(b"a"), file(b"d/b"), file(b"c", b"1")]
    assert contents_of_merged(lower, [directory(b".wh.a/"), symlink(b".wh.d", b"x")]) == {b"c": b"1"}


def test_no_whiteout_is_in_the_output() -> None:
    stack = [[file(b"a")], [whiteout(b"a"), whiteout(b"b"), opaque(b"d"), opaque(b""), file(b".wh..wh.aufs")]]
    assert merged([layers.layer(*entries) for entries in stack]).strip(b"\0") == b""


# --- Whiteouts and symlinks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mark", "left"),
    [
        pytest.param(whiteout(b"lib/x"), {b"usr/lib/y": b"2"}, id="whiteout"),
        pytest.param(opaque(b"lib"), {}, id="opaque"),
        pytest.param(whiteout(b"lib"), {b"usr/lib/x": b"1", b"usr/lib/y": b"2"}, id="of the symlink itself"),
    ],
)
def test_a_whiteouts_parent_is_followed_through_symlinks_of_the_lower_tree(mark: Entry, left: Left) -> None:
    lower = [symlink(b"lib", b"usr/lib"), file(b"usr/lib/x", b"1"), file(b"usr/lib/y", b"2")]
    merged_ = contents_of_merged(lower, [mark])
    assert {path: content for path, content in merged_.items() if path.startswith(b"usr/lib/")} == left
    assert (b"lib" in merged_) == (mark.name != b".wh.lib")


@pytest.mark.parametrize("opaque_first", [False, True])
def test_an_opaque_folder_that_replaces_a_symlink_leaves_the_symlinks_target_alone(opaque_first: bool) -> None:
    """A folder made over a removed symlink is opaque to overlayfs, and Docker writes that mark into the layer."""
    lower = [symlink(b"lib", b"usr/lib"), file(b"usr/lib/x", b"1")]
    upper = [directory(b"lib/"), opaque(b"lib"), file(b"lib/y", b"2")]
    if opaque_first:
        upper[:2] = upper[1::-1]
    assert contents_of_merged(lower, upper) == {
        b"lib": b"/",
        b"lib/y": b"2",
        b"usr": b"/",
        b"usr/lib": b"/",
        b"usr/lib/x": b"1",
    }


def test_a_whiteout_and_what_replaces_the_whited_out_symlink_do_not_reach_its_target() -> None:
    lower = [symlink(b"lib", b"usr/lib"), file(b"usr/lib/x", b"1")]
    assert contents_of_merged(lower, [whiteout(b"lib"), file(b"lib/y", b"2")]) == {
        b"lib": b"/",
        b"lib/y": b"2",
        b"usr": b"/",
        b"usr/lib": b"/",
        b"usr/lib/x": b"1",
    }


# --- One thing over another -------------------------------------------------------------------------------------------

ONE_OF_EACH = {
    "file": file(b"a", b"new"),
    "symlink": symlink(b"a", b"t"),
    "hard link": hardlink(b"a", b"t"),
    "fifo": fifo(b"a"),
    "character device": layers.character_device(b"a", 1, 3),
}
AT_A_GLANCE = {
    "file": b"new",
    "symlink": b"-> t",
    "hard link": b"t",
    "fifo": b"fifo",
    "character device": b"character device",
}


@pytest.mark.parametrize("upper", ONE_OF_EACH)
@pytest.mark.parametrize("name", [b"a", b"./a", b"/a"])
def test_a_non_directory_over_a_directory_removes_all_below_it(upper: str, name: bytes) -> None:
    lower = [file(b"t", b"t"), directory(name + b"/"), file(name + b"/x"), file(name + b"/y/z")]
    assert contents_of_merged(lower, [ONE_OF_EACH[upper]]) == {b"t": b"t", b"a": AT_A_GLANCE[upper]}
    assert contents_of_merged([*lower, ONE_OF_EACH[upper]]) == {b"t": b"t", b"a": AT_A_GLANCE[upper]}


@pytest.mark.parametrize("upper", ONE_OF_EACH)
@pytest.mark.parametrize("lower", ONE_OF_EACH)
def test_a_non_directory_replaces_a_non_directory(lower: str, upper: str) -> None:
    assert contents_of_merged([file(b"t", b"t"), ONE_OF_EACH[lower]], [ONE_OF_EACH[upper]]) == {
        b"t": b"t",
        b"a": AT_A_GLANCE[upper],
    }


@pytest.mark.parametrize("lower", ONE_OF_EACH)
def test_a_directory_replaces_a_non_directory(lower: str) -> None:
    assert contents_of_merged([file(b"t", b"t"), ONE_OF_EACH[lower]], [directory(b"a/"), file(b"a/x", b"1")]) == {
        b"t": b"t",
        b"a": b"/",
        b"a/x": b"1",
    }


def test_a_directory_over_a_symlink_to_a_directory_replaces_the_symlink() -> None:
    lower = [directory(b"d"), file(b"d/x", b"1"), symlink(b"s", b"d")]
    assert contents_of_merged(lower, [directory(b"s"), file(b"s/y", b"2")]) == {
        b"d": b"/",
        b"d/x": b"1",
        b"s": b"/",
        b"s/y": b"2",
    }


def test_a_directory_over_a_directory_keeps_the_children_and_takes_the_new_metadata() -> None:
    lower = [directory(b"d", mode=0o700, uid=1, gid=1, mtime_ns=1, xattrs={b"user.old": b"1"}), file(b"d/x", b"1")]
    upper = [directory(b"d", mode=0o2711, uid=2, gid=3, mtime_ns=4_500_000_000, xattrs={b"user.new": b"2"})]
    listing = listing_of_merged(lower, upper)
    assert listing[b"d/x"].content == b"1"
    assert listing[b"d"] == model.Listed(
        "directory", 0o2711, 2, 3, 4_500_000_000, xattrs=((b"user.new", b"2"),), names=(b"d",)
    )


def test_a_file_over_a_file_keeps_nothing_of_the_old_one() -> None:
    lower = [file(b"a", b"old", mode=0o4755, uid=1, mtime_ns=1, xattrs={b"user.x": b"1"})]
    assert listing_of_merged(lower, [file(b"a", b"new")])[b"a"] == model.Listed(
        "file", 0o644, 0, 0, 0, b"new", names=(b"a",)
    )


def test_a_directorys_metadata_does_not_change_when_children_come_and_go() -> None:
    lower = [directory(b"d", mode=0o700, uid=5, mtime_ns=7), file(b"d/x")]
    assert listing_of_merged(lower, [whiteout(b"d/x"), file(b"d/y")])[b"d"] == model.Listed(
        "directory", 0o700, 5, 0, 7, names=(b"d",)
    )


# --- Parents ----------------------------------------------------------------------------------------------------------


@PREFIXES
def test_parents_that_no_layer_has_are_made_for_root_0755_at_the_epoch(path_prefix: bytes) -> None:
    listing = listing_of_merged([file(b"a/b/c", b"1", mtime_ns=9)], path_prefix=path_prefix)
    for path in (b"a", b"a/b"):
        assert listing[path] == model.Listed("directory", 0o755, 0, 0, 0, names=(path,))


def test_a_parent_that_comes_after_its_children_gives_its_metadata_and_comes_first_in_the_output() -> None:
    stack = [[file(b"d/e/x", b"1"), directory(b"d/e", mode=0o700), directory(b"d", mode=0o711)]]
    listing = listing_of_merged(*stack)
    assert (listing[b"d"].mode, listing[b"d/e"].mode) == (0o711, 0o700)
    assert model.order_of_tar(merged([layers.layer(*stack[0])])) == [b"d", b"d/e", b"d/e/x"]


@pytest.mark.parametrize(
    ("lower", "name", "lands"),
    [
        pytest.param([symlink(b"lib", b"usr/lib")], b"lib/x", b"usr/lib/x", id="usrmerge"),
        pytest.param([symlink(b"lib", b"/usr/lib")], b"lib/x", b"usr/lib/x", id="absolute target"),
        pytest.param([symlink(b"lib", b"usr/lib")], b"./lib/a/b/x", b"usr/lib/a/b/x", id="deeper"),
        pytest.param([symlink(b"a", b"b"), symlink(b"b", b"c"), directory(b"c")], b"a/x", b"c/x", id="chain"),
        pytest.param([symlink(b"d/s", b"../e")], b"d/s/x", b"e/x", id="up and down"),
        pytest.param([symlink(b"s", b"../../../e")], b"s/x", b"e/x", id="above the root is the root"),
        pytest.param([symlink(b"s", b"/../e")], b"s/x", b"e/x", id="absolute, above the root"),
        pytest.param([symlink(b"s", b"/")], b"s/x", b"x", id="the root"),
        pytest.param([symlink(b"s", b".")], b"s/x", b"x", id="its own folder"),
        pytest.param([symlink(b"s", b"d//./e/")], b"s/x", b"d/e/x", id="odd target"),
        pytest.param([symlink(b"s", b"no/where")], b"s/x", b"no/where/x", id="to what is not there yet"),
        pytest.param([symlink(b"d/s", b"/e"), symlink(b"e", b"f")], b"d/s/x", b"f/x", id="target is a symlink"),
        pytest.param(
            [symlink(b"s", b"t/e"), symlink(b"t", b"d")], b"s/x", b"d/e/x", id="target goes through a symlink"
        ),
    ],
)
@PREFIXES
def test_a_parent_that_is_a_symlink_is_followed_inside_the_root(
    lower: list[Entry], name: bytes, lands: bytes, path_prefix: bytes
) -> None:
    below = [*lower, file(lands, b"old"), file(lands + b"2", b"other")]
    kept = {entry.name: b"-> " + entry.link for entry in lower if entry.kind == layers.SYMLINK}
    for stack in ([below, [file(name, b"new")]], [[*below, file(name, b"new")]], [lower, [file(name, b"new")]]):
        left = contents_of_merged(*stack, path_prefix=path_prefix)
        assert left[lands] == b"new"
        assert {path: left[path] for path in kept} == kept
        if below in stack:
            assert left[lands + b"2"] == b"other"


def test_a_symlink_made_in_the_same_layer_is_followed_by_what_comes_after_it_only() -> None:
    assert contents_of_merged([directory(b"d"), symlink(b"s", b"d"), file(b"s/x", b"1")]) == {
        b"d": b"/",
        b"d/x": b"1",
        b"s": b"-> d",
    }
    assert contents_of_merged([file(b"s/x", b"1"), directory(b"d"), symlink(b"s", b"d")]) == {b"d": b"/", b"s": b"-> d"}


def test_only_parents_are_followed_the_name_itself_is_replaced() -> None:
    assert contents_of_merged([symlink(b"s", b"t"), file(b"t", b"1")], [file(b"s", b"2")]) == {b"s": b"2", b"t": b"1"}


def test_a_long_chain_of_symlinks_is_followed_and_a_loop_is_an_error() -> None:
    chain = [symlink(b"s%d" % at, b"s%d" % (at + 1)) for at in range(30)]
    assert contents_of_merged(chain, [file(b"s0/x", b"1")])[b"s30/x"] == b"1"
    assert reason([symlink(b"l", b"l")], [file(b"l/x")]) == "SymlinkLoop"
    assert reason([symlink(b"a", b"b"), symlink(b"b", b"d/../a"), directory(b"d")], [file(b"a/x")]) == "SymlinkLoop"
    assert reason([symlink(b"l", b"l/l")], [hardlink(b"x", b"l/y")]) == "SymlinkLoop"


@pytest.mark.parametrize(
    "stack",
    [
        [[file(b"a")], [file(b"a/x")]],
        [[file(b"a"), file(b"a/x")]],
        [[fifo(b"a")], [directory(b"a/x/y")]],
        [[file(b"a"), symlink(b"s", b"a")], [file(b"s/x")]],
        [[file(b"a/b")], [file(b"a/b/c/d")]],
        [[file(b"a"), file(b"t")], [hardlink(b"a/x", b"t")]],
    ],
    ids=["lower", "same layer", "fifo", "through a symlink", "deeper", "hard link"],
)
def test_a_parent_that_is_a_file_is_an_error(stack: list[Layer]) -> None:
    assert reason(*stack) == "ParentNotDirectory"


def test_a_parent_that_was_a_file_may_be_replaced_before_its_children_come() -> None:
    assert contents_of_merged([file(b"a")], [directory(b"a"), file(b"a/x", b"1")]) == {b"a": b"/", b"a/x": b"1"}
    assert contents_of_merged([file(b"a")], [whiteout(b"a"), file(b"a/x", b"1")]) == {b"a": b"/", b"a/x": b"1"}
    assert contents_of_merged([file(b"a")], [file(b"a/x", b"1"), whiteout(b"a")]) == {b"a": b"/", b"a/x": b"1"}


# --- Hard links -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stack", "left"),
    [
        pytest.param([[file(b"a", b"1"), hardlink(b"b", b"a")]], {b"1": [b"a b"]}, id="same layer"),
        pytest.param([[file(b"a", b"1")], [hardlink(b"b", b"a")]], {b"1": [b"a b"]}, id="target in a lower layer"),
        pytest.param([[file(b"z", b"1")], [hardlink(b"a", b"z")]], {b"1": [b"a z"]}, id="link sorts before its target"),
        pytest.param(
            [[file(b"a", b"1")], [hardlink(b"b", b"a")], [whiteout(b"a")]], {b"1": [b"b"]}, id="target deleted later"
        ),
        pytest.param(
            [[file(b"a", b"1"), hardlink(b"b", b"a")], [whiteout(b"a")]],
            {b"1": [b"b"]},
            id="both below, target deleted",
        ),
        pytest.param(
            [[file(b"a", b"1"), hardlink(b"b", b"a")], [file(b"a", b"2")]],
            {b"1": [b"b"], b"2": [b"a"]},
            id="target replaced",
        ),
        pytest.param(
            [[file(b"a", b"1"), hardlink(b"b", b"a"), hardlink(b"c", b"b")], [whiteout(b"a")]],
            {b"1": [b"b c"]},
            id="chain",
        ),
        pytest.param(
            [[file(b"a", b"1"), hardlink(b"b", b"a"), hardlink(b"c", b"a")], [whiteout(b"a")]],
            {b"1": [b"b c"]},
            id="several links",
        ),
        pytest.param(
            [[file(b"a", b"1")], [hardlink(b"b", b"a")], [hardlink(b"c", b"b")], [whiteout(b"a"), whiteout(b"b")]],
            {b"1": [b"c"]},
            id="link after link over four layers",
        ),
        pytest.param(
            [[file(b"a", b"1"), hardlink(b"b", b"a")], [hardlink(b"a", b"b")]], {b"1": [b"a b"]}, id="linked back"
        ),
        pytest.param(
            [[file(b"./t", b"1"), hardlink(b"l", b"./t")], [whiteout(b"t")]], {b"1": [b"l"]}, id="written with dots"
        ),
        pytest.param([[file(b"t", b"1"), hardlink(b"./l", b"/t")]], {b"1": [b"l t"]}, id="written absolute"),
        pytest.param(
            [[file(b"d/t", b"1"), hardlink(b"l", b"d/../d//t")]], {b"1": [b"d/t l"]}, id="written with a way back"
        ),
        pytest.param(
            [[file(b"d/a", b"1"), hardlink(b"b", b"d/a")], [whiteout(b"d")]],
            {b"1": [b"b"]},
            id="target's folder deleted",
        ),
        pytest.param(
            [[file(b"d/a", b"1"), hardlink(b"b", b"d/a")], [file(b"d", b"2")]],
            {b"1": [b"b"], b"2": [b"d"]},
            id="target's folder replaced",
        ),
        pytest.param(
            [[file(b"d/a", b"1"), hardlink(b"b", b"d/a")], [opaque(b"d")]], {b"1": [b"b"]}, id="target's folder emptied"
        ),
        pytest.param(
            [[file(b"usr/lib/t", b"1"), symlink(b"lib", b"usr/lib")], [hardlink(b"l", b"lib/t")]],
            {b"1": [b"l usr/lib/t"]},
            id="target's parent is a symlink",
        ),
        pytest.param(
            [[file(b"t", b"1")], [file(b"t", b"2"), hardlink(b"l", b"t")]], {b"2": [b"l t"]}, id="target is the new one"
        ),
        pytest.param(
            [[file(b"t", b"1")], [hardlink(b"l", b"t"), file(b"t", b"2")]],
            {b"1": [b"l"], b"2": [b"t"]},
            id="target is the one that is there when the link comes",
        ),
        pytest.param([[file(b"a", b"")], [hardlink(b"b", b"a")]], {b"": [b"a b"]}, id="empty file"),
    ],
)
@PREFIXES
def test_hard_links_share_an_inode_and_its_content_lives_as_long_as_one_name(
    stack: list[Layer], left: dict[bytes, list[bytes]], path_prefix: bytes
) -> None:
    listing = listing_of_merged(*stack, path_prefix=path_prefix)
    files = [listed for listed in listing.values() if listed.kind == "file"]
    assert {(listed.content, b" ".join(listed.names)) for listed in files} == {
        (content, names) for content, groups in left.items() for names in groups
    }


@PREFIXES
def test_the_first_name_in_the_output_carries_the_payload_and_later_ones_link_to_it(path_prefix: bytes) -> None:
    content = b"p" * 10_000
    stack = [[file(b"m", content)], [hardlink(b"a", b"m"), hardlink(b"z", b"m")]]
    output = merged([layers.layer(*entries) for entries in stack], path_prefix=path_prefix)
    assert output.count(content) == 1
    assert len(model.listing_of_tar(output, path_prefix=path_prefix)[b"a"].names) == 3


def test_a_hard_link_has_its_inodes_metadata_whatever_its_own_header_says() -> None:
    target = file(b"t", b"1", mode=0o4755, uid=7, mtime_ns=1_500_000_000, xattrs={b"user.x": b"1"})
    for stack in (
        [[target, hardlink(b"l", b"t", mode=0, uid=9, mtime_ns=9)]],
        [[target], [hardlink(b"l", b"t", mode=0, uid=9)]],
    ):
        listing = listing_of_merged(*stack)
        assert listing[b"l"] == listing[b"t"]
        alone = listing_of_merged(*stack, [whiteout(b"t")])
        assert alone[b"l"] == model.Listed(
            "file", 0o4755, 7, 0, 1_500_000_000, b"1", xattrs=((b"user.x", b"1"),), names=(b"l",)
        )


@pytest.mark.parametrize(
    "target",
    [fifo(b"t"), layers.character_device(b"t", 5, 1), symlink(b"t", b"elsewhere")],
    ids=["fifo", "device", "symlink"],
)
def test_a_hard_link_may_lead_to_anything_but_a_directory_and_is_not_followed(target: Entry) -> None:
    listing = listing_of_merged([file(b"elsewhere", b"1"), target], [hardlink(b"l", b"t")])
    assert listing[b"l"] == listing[b"t"]
    assert listing[b"l"].names == (b"l", b"t")
    assert (
        listing_of_merged([file(b"elsewhere"), target], [hardlink(b"l", b"t")], [whiteout(b"t")])[b"l"].kind
        == listing[b"t"].kind
    )


@pytest.mark.parametrize(
    "stack",
    [
        [[hardlink(b"link", b"target")]],
        [[file(b"target")], [whiteout(b"target")], [hardlink(b"link", b"target")]],
        [[hardlink(b"link", b"target"), file(b"target")]],
        [[file(b"d/target")], [opaque(b"d")], [hardlink(b"link", b"d/target")]],
        [[file(b"target/x")], [hardlink(b"link", b"target/y")]],
        [[symlink(b"target", b"nowhere")], [hardlink(b"link", b"target/x")]],
    ],
    ids=[
        "never there",
        "deleted before",
        "comes later",
        "emptied before",
        "folder without it",
        "behind a dangling symlink",
    ],
)
def test_a_hard_link_to_what_is_not_there_is_an_error_that_names_both(stack: list[Layer]) -> None:
    error = refusal(*stack)
    assert type(error).__name__ == "DanglingHardLink"
    assert "link" in str(error)
    assert "target" in str(error)


def test_a_hard_link_to_a_directory_or_to_itself_is_an_error() -> None:
    assert reason([directory(b"d"), hardlink(b"l", b"d")])
    assert reason([directory(b"d")], [hardlink(b"l", b"d/")])
    assert reason([hardlink(b"l", b"l")])
    assert reason([file(b"l")], [hardlink(b"l", b"./l")])
    assert reason([file(b"l")], [hardlink(b"x", b"")])
    assert reason([file(b"l")], [hardlink(b"x", b"/")])


def test_a_hard_link_that_replaces_the_folder_of_its_target_is_an_error() -> None:
    """The folder goes first, as on a disk, and takes the target along."""
    assert reason([file(b"d/x")], [hardlink(b"d", b"d/x")]) == "DanglingHardLink"


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling", [b"a/b", b"./a/b", b"/a/b", b"a//b", b"a/./b", b"././/a/b", b"x/../a/b", b"a/y/../b", b"//a/b"]
)
@PREFIXES
def test_all_spellings_of_a_name_are_one_name(spelling: bytes, path_prefix: bytes) -> None:
    assert contents_of_merged([file(b"a/b", b"1")], [file(spelling, b"2")], path_prefix=path_prefix).pop(b"a/b") == b"2"
    left = contents_of_merged([file(spelling, b"1")], [file(b"a/b", b"2")])
    assert left == {b"a": b"/", b"a/b": b"2"}
    assert contents_of_merged([file(spelling, b"1")], [whiteout(b"a/b")]) == {b"a": b"/"}
    assert contents_of_merged([file(spelling, b"1"), hardlink(b"l", b"a/b")])[b"l"] == b"1"


@pytest.mark.parametrize("name", [b"..", b"../evil", b"/../evil", b"a/../../evil", b"./../evil", b"a/b/../../../evil"])
def test_a_name_that_leaves_the_root_is_an_error_that_names_layer_and_entry(name: bytes) -> None:
    for entry in (
        file(name),
        directory(name),
        symlink(name, b"x"),
        hardlink(b"link", name),
        whiteout(name + b"/x"),
        opaque(name),
    ):
        archive = layers.layer(file(b"t"), entry)
        with pytest.raises(Malformed) as refused:
            merger_of([archive])
        assert type(refused.value).__name__ == "PathLeavesRoot", entry
        assert str(Digest.of(archive)) in str(refused.value)
        assert name.decode() in str(refused.value)


def test_an_error_of_the_merge_names_the_layer_and_the_entry() -> None:
    for lower, upper in (
        (layers.layer(file(b"a")), layers.layer(file(b"a/child"))),
        (layers.layer(symlink(b"a", b"a")), layers.layer(file(b"a/child"))),
        (layers.layer(file(b"a")), layers.layer(hardlink(b"child", b"none"))),
    ):
        with pytest.raises(Malformed) as refused:
            merger_of([lower, upper])
        assert str(Digest.of(upper)) in str(refused.value)
        assert "child" in str(refused.value)


def test_a_symlinks_target_is_kept_as_it_is() -> None:
    for target in (b"/etc/x", b"../../../../outside", b"./a//b/", b"rootfs", b"\xff\xfe", b"x" * 300, b" "):
        assert listing_of_merged([symlink(b"s", target)], path_prefix=b"rootfs/")[b"s"].link == target
        assert listing_of_merged([symlink(b"s", target)])[b"s"].link == target


def test_of_duplicates_in_one_layer_the_last_wins() -> None:
    assert contents_of_merged([file(b"a", b"1"), file(b"b", b"2"), file(b"./a", b"3")]) == {b"a": b"3", b"b": b"2"}
    assert contents_of_merged([file(b"a", b"1"), symlink(b"a", b"x"), fifo(b"a")]) == {b"a": b"fifo"}
    assert contents_of_merged([directory(b"d"), file(b"d/x"), file(b"d", b"1")]) == {b"d": b"1"}
    assert contents_of_merged([file(b"d", b"1"), directory(b"d"), file(b"d/x", b"2")]) == {b"d": b"/", b"d/x": b"2"}
    listing = listing_of_merged([directory(b"d", mode=0o700), file(b"d/x", b"1"), directory(b"./d/", mode=0o711)])
    assert listing[b"d"].mode == 0o711
    assert listing[b"d/x"].content == b"1"


def test_a_duplicate_of_a_hard_links_target_does_not_change_the_link() -> None:
    assert contents_of_merged([file(b"a", b"1"), hardlink(b"l", b"a"), file(b"a", b"2")]) == {b"a": b"2", b"l": b"1"}


@pytest.mark.parametrize("dialect", ["pax", "gnu"])
@PREFIXES
def test_names_of_any_length_and_any_bytes_are_kept(dialect: layers.Dialect, path_prefix: bytes) -> None:
    names = [b"n" * length for length in (92, 93, 94, 99, 100, 101, 102, 154, 155, 156, 255)]
    names += [b"d" * 155 + b"/" + b"n" * 100, b"d" * 156 + b"/" + b"n" * 100, b"/".join([b"p" * 60] * 10)]
    names += [
        b"\xff\xfe\x80",
        "é/ü".encode(),
        b" ",
        b"a\nb",
        b"a=b",
        b"12 path=x\n",
        b"-",
        b"\\",
        b"*",
        b"c" * 99 + b"\xc3\xa9",
    ]
    stack = [[file(name, b"%d" % at) for at, name in enumerate(names)]]
    left = contents_of_merged(*stack, path_prefix=path_prefix)
    assert {name: left[name] for name in names} == {name: b"%d" % at for at, name in enumerate(names)}
    links = [hardlink(b"l%d" % at + name[:90], name) for at, name in enumerate(names)]
    listing = listing_of_merged(*stack, links, path_prefix=path_prefix, dialect=dialect)
    assert all(len(listing[name].names) == 2 for name in names)


# --- The root itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b".", b"./", b"/", b"//", b"./.", b"a/.."])
def test_an_entry_for_the_root_gives_the_roots_metadata(name: bytes) -> None:
    root = directory(name, mode=0o700, uid=3, gid=4, mtime_ns=5_000_000_000, xattrs={b"user.x": b"1"})
    expected = model.Listed("directory", 0o700, 3, 4, 5_000_000_000, xattrs=((b"user.x", b"1"),), names=(b".",))
    for path_prefix in (b"", b"rootfs/"):
        listing = listing_of_merged([file(b"x"), root], [file(b"y")], path_prefix=path_prefix)
        assert listing[b"."] == expected
        assert set(listing) == {b".", b"x", b"y"}
        later = listing_of_merged([directory(b"./", mode=0o711)], [root], path_prefix=path_prefix)
        assert later == {b".": expected}


def test_the_root_is_in_the_output_as_a_dot_only_where_a_layer_has_it() -> None:
    assert listing_of_merged([file(b"x")]).keys() == {b"x"}
    assert model.order_of_tar(merged([layers.layer(directory(b"/"), file(b"x"))])) == [b".", b"x"]


def test_with_a_prefix_the_prefixs_folder_is_always_there() -> None:
    implied = model.Listed("directory", 0o755, 0, 0, 0, names=(b".",))
    assert listing_of_merged([file(b"x")], path_prefix=b"rootfs/")[b"."] == implied
    assert listing_of_merged([], path_prefix=b"rootfs/") == {b".": implied}
    assert model.order_of_tar(merged([layers.layer(file(b"x"))], path_prefix=b"rootfs/")) == [b"rootfs", b"rootfs/x"]
    assert model.order_of_tar(merged([], path_prefix=b"rootfs/")) == [b"rootfs"]


def test_an_opaque_whiteout_at_the_root_leaves_the_roots_metadata() -> None:
    assert listing_of_merged([directory(b"./", mode=0o700), file(b"x")], [opaque(b"")])[b"."].mode == 0o700


@pytest.mark.parametrize("entry", [file(b"."), symlink(b"./", b"x"), file(b"a/.."), hardlink(b".", b"t"), fifo(b"/")])
def test_a_root_that_is_no_directory_is_an_error(entry: Entry) -> None:
    assert reason([file(b"t"), entry])


# --- What is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["pax", "gnu"])
@PREFIXES
def test_modes_owners_and_times_are_kept(dialect: layers.Dialect, path_prefix: bytes) -> None:
    entries: list[Entry] = [file(b"m%o" % mode, mode=mode) for mode in (0, 0o4755, 0o2755, 0o1777, 0o7777, 0o644)]
    entries += [directory(b"dm%o" % mode, mode=mode) for mode in (0o1777, 0o2755, 0o0)]
    entries += [file(b"u%d" % uid, uid=uid, gid=uid + 1) for uid in (1, 2**21 - 1, 2**21, 2**31, 2**32 - 2)]
    entries += [
        file(b"t%d" % time, mtime_ns=time)
        for time in (
            1,
            10**9,
            10**9 + 1,
            1_600_000_000_123_456_789,
            8**11 * 10**9,
            -1,
            -(10**9),
            -1_500_000_000,
            2**33 * 10**9 + 5,
        )
    ]
    expected = model.merged_listing([entries], path_prefix=path_prefix)
    assert model.differences(expected, listing_of_merged(entries, path_prefix=path_prefix, dialect=dialect)) == []


@PREFIXES
def test_extended_attributes_are_kept_to_the_byte(path_prefix: bytes) -> None:
    xattrs = {
        b"security.capability": b"\x01\0\0\x02\0\x04\0\0" + bytes(12),
        b"user.text": b"text",
        b"user.empty": b"",
        b"user.binary": bytes(range(256)),
        b"user.big": b"v" * 5000,
        b"trusted.lines": b"a\nb=c\n12 path=evil\n",
        "user.ü".encode(): "ü".encode(),
    }
    stack = [[file(b"f", b"1", xattrs=xattrs), directory(b"d", xattrs=xattrs)]]
    listing = listing_of_merged(*stack, path_prefix=path_prefix)
    assert dict(listing[b"f"].xattrs) == dict(listing[b"d"].xattrs) == xattrs


@PREFIXES
def test_device_nodes_and_fifos_are_kept(path_prefix: bytes) -> None:
    stack = [
        [
            layers.character_device(b"null", 1, 3, mode=0o666),
            layers.block_device(b"disk", 8, 1 << 20),
            layers.character_device(b"big", 4095, (1 << 20) - 1),
            fifo(b"pipe", mode=0o600, mtime_ns=7_000_000_000),
        ]
    ]
    expected = model.merged_listing(stack, path_prefix=path_prefix)
    assert model.differences(expected, listing_of_merged(*stack, path_prefix=path_prefix)) == []


def test_owners_are_numbers_names_of_users_are_dropped() -> None:
    named = layers.header(b"f", uid=5, gid=6, uname=b"alice", gname=b"staff")
    paxed = layers.pax_header([(b"uname", b"alice"), (b"gname", b"staff")]) + layers.header(b"g", uid=5, gid=6)
    output = merged([layers.layer(named, paxed)])
    assert b"alice" not in output
    assert b"staff" not in output
    assert model.listing_of_tar(output)[b"f"].uid == 5


def test_file_type_bits_in_a_mode_do_no_harm() -> None:
    assert listing_of_merged([layers.header(b"f", mode=0o100755)])[b"f"].mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    "sparse",
    [layers.old_gnu_sparse, layers.pax_sparse_00, layers.pax_sparse_01, layers.pax_sparse_10],
    ids=lambda build: build.__name__,
)
@PREFIXES
def test_sparse_files_keep_their_content_and_their_name(
    sparse: Callable[[bytes, int, layers.Regions], bytes], path_prefix: bytes
) -> None:
    regions = [
        (0, b"h" * 512),
        (4096, b"m" * 512),
        (10_240, b"o" * 1024),
        (20_480, b""),
        (71_680, b"z" * 1000),
        (100_000, b""),
    ]
    many = [(at * 1024, b"%03d-" % at * 128) for at in range(60)] + [(60 * 1024, b"")]
    stack: list[Entry | bytes] = [
        sparse(b"d/some", 100_000, regions),
        sparse(b"none", 5000, [(5000, b"")]),
        sparse(b"many", 60 * 1024, many),
        file(b"after", b"1"),
        hardlink(b"link", b"d/some"),
    ]
    left = contents_of_merged(stack, path_prefix=path_prefix)
    left.pop(b".", None)
    some = layers.expanded(100_000, regions)
    assert left == {
        b"d": b"/",
        b"d/some": some,
        b"link": some,
        b"none": bytes(5000),
        b"many": layers.expanded(60 * 1024, many),
        b"after": b"1",
    }


# --- Which layers are read --------------------------------------------------------------------------------------------


def test_each_needed_layer_is_opened_once_and_closed_and_others_are_not_opened() -> None:
    opened: list[int] = []
    closed: list[int] = []

    class Watched(BytesIO):
        def __init__(self, content: bytes, number: int) -> None:
            super().__init__(content)
            self.number = number
            opened.append(number)

        def close(self) -> None:
            if not self.closed:
                closed.append(self.number)
            super().close()

    stack = [[file(b"a", b"0")], [file(b"b", b"1" * 5000), file(b"c", b"1")], [whiteout(b"a"), file(b"d", b"2")], []]

    def watched(number: int) -> LayerSource:
        blob = layers.layer(*stack[number])
        source = source_of(blob)
        return replace(source, open=lambda: Watched(blob, number))

    merger = StreamLayerMerger([watched(number) for number in range(len(stack))])
    assert opened == []
    b"".join(merger.get_generator())
    assert sorted(opened) == sorted(closed) == [1, 2]

    generator = StreamLayerMerger([watched(number) for number in range(len(stack))]).get_generator()
    next(generator)
    generator.close()
    assert sorted(opened) == sorted(closed)


def test_a_layer_whose_bytes_are_not_those_of_its_digest_is_an_error() -> None:
    blob = layers.layer(file(b"a", b"1" * 100_000))
    other = blob.replace(b"1" * 100_000, b"2" * 100_000)
    source = source_of(blob)
    merger = StreamLayerMerger([replace(source, open=partial(BytesIO, other))])
    with pytest.raises(DigestMismatch):
        b"".join(merger.get_generator())


@pytest.mark.parametrize("compress", [bytes, layers.gzipped, layers.zstd_frame], ids=["none", "gzip", "zstd"])
def test_a_broken_layer_is_an_error_and_never_a_short_image(compress: Callable[[bytes], bytes]) -> None:
    blob = compress(layers.layer(file(b"a", bytes(range(256)) * 2000), file(b"b", b"2")))
    source = source_of(blob)
    for cut in (0, 1, 100, len(blob) // 2, len(blob) - 1):
        merger = StreamLayerMerger([replace(source, open=partial(BytesIO, blob[:cut]))])
        with pytest.raises(Damaged):
            b"".join(merger.get_generator())


def test_the_diff_id_is_not_known_before_the_last_byte() -> None:
    merger = merger_of([layers.layer(file(b"a", b"1"))])
    with pytest.raises(NotComputed):
        _ = merger.diff_id
    generator = merger.get_generator()
    next(generator)
    with pytest.raises(NotComputed):
        _ = merger.diff_id
    b"".join(generator)
    assert merger.diff_id.algorithm == "sha256"


# --- Files that formatters ask for ------------------------------------------------------------------------------------


@PREFIXES
def test_the_merged_passwd_and_group_can_be_asked_for(path_prefix: bytes) -> None:
    def kept(*stack: Layer) -> tuple[bytes | None, bytes | None]:
        merger = merger_of([layers.layer(*entries) for entries in stack], path_prefix=path_prefix)
        return merger.kept_file(b"etc/passwd"), merger.kept_file(b"etc/group")

    passwd, group = file(b"etc/passwd", b"root:x:0:0\n"), file(b"./etc/group", b"root:x:0:\n")
    assert kept([passwd, group]) == (b"root:x:0:0\n", b"root:x:0:\n")
    assert kept([passwd], [file(b"etc/passwd", b"new\n")]) == (b"new\n", None)
    assert kept([passwd, group], [whiteout(b"etc/passwd")]) == (None, b"root:x:0:\n")
    assert kept([passwd], [opaque(b"etc")]) == (None, None)
    assert kept([passwd], [directory(b"etc/passwd")]) == (None, None)
    assert kept([]) == (None, None)


# --- Quay's own cases -------------------------------------------------------------------------------------------------

LONG_NAME = b"/".join([b"super" * 20] * 3) + b"/name"


@pytest.mark.parametrize(
    ("stack", "left"),
    [
        pytest.param([[file(b"f", b"1")]], {b"f": b"1"}, id="single layer"),
        pytest.param([[file(b"f", b"1"), file(b"g", b"2")]], {b"f": b"1", b"g": b"2"}, id="single layer of two files"),
        pytest.param([[file(b"f", b"1")], [file(b"g", b"2")]], {b"f": b"1", b"g": b"2"}, id="two layers"),
        pytest.param(
            [[file(b"f", b"1")], [file(b"g", b"2")], [file(b"h", b"3")]],
            {b"f": b"1", b"g": b"2", b"h": b"3"},
            id="three layers",
        ),
        pytest.param([[file(b"./f", b"1")]], {b"f": b"1"}, id="single layer with a dot"),
        pytest.param([[file(b"./f", b"1")], [file(b"g", b"2")]], {b"f": b"1", b"g": b"2"}, id="dot below"),
        pytest.param([[file(b"f", b"1")], [file(b"./g", b"2")]], {b"f": b"1", b"g": b"2"}, id="dot above"),
        pytest.param([[file(b"f", b"1")], [file(b"f", b"2")]], {b"f": b"2"}, id="overwrite"),
        pytest.param([[file(b"./f", b"1")], [file(b"f", b"2")]], {b"f": b"2"}, id="overwrite, dot below"),
        pytest.param([[file(b"f", b"1")], [file(b"./f", b"2")]], {b"f": b"2"}, id="overwrite, dot above"),
        pytest.param([[file(b"./f", b"1")], [file(b"./f", b"2")]], {b"f": b"2"}, id="overwrite, both dots"),
        pytest.param([[file(b"f", b"1")], [file(b"f", b"2")], [file(b"f", b"3")]], {b"f": b"3"}, id="overwrite twice"),
        pytest.param([[file(b"f", b"1")], [whiteout(b"f")]], {}, id="delete"),
        pytest.param([[file(b"f", b"1"), file(b"g", b"2")], [whiteout(b"f")]], {b"g": b"2"}, id="delete one of two"),
        pytest.param([[file(b"./f", b"1")], [whiteout(b"f")]], {}, id="delete, dot below"),
        pytest.param([[file(b"f", b"1")], [whiteout(b"./f")]], {}, id="delete, dot above"),
        pytest.param([[file(b"f", b"1")], [whiteout(b"f")], [file(b"f", b"3")]], {b"f": b"3"}, id="delete and re-add"),
        pytest.param(
            [[file(b"f", b"1")], [whiteout(b"f")], [file(b"f", b"3")], [whiteout(b"f")]],
            {},
            id="delete, re-add, delete",
        ),
        pytest.param([[file(b"f", b"1")], [file(b"f", b"2")], [whiteout(b"f")]], {}, id="overwrite and delete"),
        pytest.param([[whiteout(b"f")], [file(b"f", b"2")]], {b"f": b"2"}, id="delete below, add above"),
        pytest.param([[file(b"d/f", b"1"), file(b"d/g", b"2")], [whiteout(b"d")]], {}, id="directory delete"),
        pytest.param(
            [[file(b"d/f", b"1")], [whiteout(b"d")], [file(b"d/g", b"3")]],
            {b"d": b"/", b"d/g": b"3"},
            id="directory delete and re-add",
        ),
        pytest.param(
            [[file(b"d/f", b"1"), file(b"e/f", b"2")], [whiteout(b"d")]],
            {b"e": b"/", b"e/f": b"2"},
            id="directory delete, not its neighbour",
        ),
        pytest.param(
            [[file(b"d/f", b"1"), file(b"d/e/f", b"2")], [whiteout(b"d/e")]],
            {b"d": b"/", b"d/f": b"1"},
            id="nested directory delete",
        ),
        pytest.param(
            [[file(b"foobar/f", b"1"), file(b"foo/f", b"2")], [whiteout(b"foo")]],
            {b"foobar": b"/", b"foobar/f": b"1"},
            id="prefix",
        ),
        pytest.param(
            [[file(b"foobar/f", b"1"), file(b"foo/f", b"2")], [whiteout(b"foobar")]],
            {b"foo": b"/", b"foo/f": b"2"},
            id="shorter prefix",
        ),
        pytest.param([[file(b"f", b"1")], []], {b"f": b"1"}, id="empty tar above"),
        pytest.param([[], [file(b"f", b"1")]], {b"f": b"1"}, id="empty tar below"),
        pytest.param([[]], {}, id="empty tar alone"),
        pytest.param([[file(LONG_NAME, b"1")]], {LONG_NAME: b"1"}, id="superlong name"),
        pytest.param(
            [[file(b"f", b"1"), hardlink(b"l", b"f")], [whiteout(b"f")]], {b"l": b"1"}, id="hard link to deleted"
        ),
        pytest.param(
            [[file(b"f", b"1"), hardlink(b"l", b"f"), hardlink(b"m", b"f")], [whiteout(b"f")]],
            {b"l": b"1", b"m": b"1"},
            id="multiple hard links",
        ),
    ],
)
@PREFIXES
def test_quays_own_cases(stack: list[Layer], left: Left, path_prefix: bytes) -> None:
    found = contents_of_merged(*stack, path_prefix=path_prefix)
    if path_prefix:
        assert found.pop(b".") == b"/"
    if LONG_NAME in left:
        found = {path: content for path, content in found.items() if content != b"/"}
    assert found == left


def test_a_layer_of_no_bytes_at_all_is_an_empty_layer() -> None:
    assert model.listing_of_tar(merged([layers.layer(file(b"f", b"1")), b"", layers.gzipped(b"")])).keys() == {b"f"}
    assert model.listing_of_tar(merged([])) == {}


@pytest.mark.parametrize(
    "blob",
    [b"not a tar", b"x" * 512, b"x" * 1024, b"\x1f\x8b\x08broken"],
    ids=["short", "a block", "two blocks", "gzip"],
)
def test_a_layer_that_is_no_tar_is_an_error(blob: bytes) -> None:
    with pytest.raises((Malformed, Damaged)):
        merger_of([blob])


# --- The defects that Quay's merger had at its end --------------------------------------------------------------------
#
# Those that no test above is named for: 2, 3, 4, 6, 9 stand in "One thing over another", "Hard links" and "Names".


@PREFIXES
def test_a_long_name_in_a_pax_record_gets_the_prefix_too(path_prefix: bytes) -> None:
    name = b"long/" + b"n" * 150
    output = merged([layers.layer(file(name, b"1"), hardlink(b"l" * 150, name))], path_prefix=path_prefix)
    assert model.listing_of_tar(output, path_prefix=path_prefix)[name].names == (b"l" * 150, name)


def test_the_root_entry_does_not_become_a_dot_below_the_prefix() -> None:
    output = merged([layers.layer(directory(b"./"), file(b"./a"))], path_prefix=b"rootfs/")
    assert model.order_of_tar(output) == [b"rootfs", b"rootfs/a"]


@PREFIXES
def test_a_hard_link_with_a_long_name_whose_target_goes_keeps_its_own_name(path_prefix: bytes) -> None:
    old, new = b"old" * 50, b"new" * 50
    for dialect in ("pax", "gnu"):
        below = layers.layer(file(old, b"1"), hardlink(new, old), dialect=dialect)
        output = merged([below, layers.layer(whiteout(old))], path_prefix=path_prefix)
        listing = model.listing_of_tar(output, path_prefix=path_prefix)
        assert listing.pop(new).content == b"1"
        assert set(listing) <= {b"."}


@pytest.mark.parametrize(
    "compress",
    [
        lambda tar: layers.gzip_members(tar, 700),
        lambda tar: layers.gzip_members(tar, 512) + layers.gzip_member(b""),
        lambda tar: layers.zstd_frames(tar, 700),
        lambda tar: layers.zstd_skippable(b"toc") + layers.zstd_frames(tar, 512) + layers.zstd_skippable(b"toc" * 100),
    ],
    ids=["gzip members", "gzip members and an empty one", "zstd frames", "zstd frames and skippable ones"],
)
def test_every_member_and_every_frame_of_a_compressed_layer_counts(compress: Callable[[bytes], bytes]) -> None:
    stack = [[file(b"a%d" % at, b"%d" % at * 300) for at in range(20)], [whiteout(b"a3")]]
    blobs = [compress(layers.layer(*entries)) for entries in stack]
    assert model.listing_of_tar(merged(blobs)) == model.merged_listing(stack)
