"""What a format changes in the root file system: files where there are none, and names that it leaves out."""

from collections.abc import Iterable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from test import layers, model
from test.layers import Entry, directory, file, hardlink, opaque, symlink, whiteout
from test.merging import source_of
from test.strategies import NAMES, Stack, archives, examples, paths, stacks
from util.mergetree import ParentNotDirectory, SymlinkLoop
from util.problem import Malformed
from util.rootfschanges import RootfsChanges
from util.streamlayerformat import StreamLayerMerger

CHANGES = RootfsChanges(added={b"etc/new": b"ours"}, left_out=(b"etc/old",))
PREFIXES = pytest.mark.parametrize("path_prefix", [b"", b"rootfs/"], ids=["bare", "rootfs"])


def merger_of(
    stack: Sequence[Sequence[Entry | bytes]], changes: RootfsChanges, prefix: bytes = b""
) -> StreamLayerMerger:
    sources = [source_of(layers.layer(*entries)) for entries in stack]
    return StreamLayerMerger(sources, path_prefix=prefix, changes=changes)


def changed(*stack: Sequence[Entry | bytes], changes: RootfsChanges = CHANGES, prefix: bytes = b"") -> model.Listing:
    """Return what is listed of the stack with the changes, whose size is as promised."""
    merger = merger_of(stack, changes, prefix)
    size = merger.size
    output = b"".join(merger.get_generator())
    assert len(output) == size
    return model.listing_of_tar(output, path_prefix=prefix)


def contents(listing: model.Listing) -> Mapping[bytes, bytes]:
    """Return the names, each at a glance: content, `-> target` for a symlink, `/` for a directory."""
    marks = {"directory": b"/", "symlink": b"-> ", "file": b""}
    return {path: marks[each.kind] + each.link + each.content for path, each in listing.items() if path != b"."}


@PREFIXES
@pytest.mark.parametrize(
    ("stack", "left"),
    [
        pytest.param([], {b"etc": b"/", b"etc/new": b"ours"}, id="no layer at all"),
        pytest.param([[]], {b"etc": b"/", b"etc/new": b"ours"}, id="nothing there"),
        pytest.param([[file(b"etc/new", b"its")]], {b"etc": b"/", b"etc/new": b"its"}, id="its own stays"),
        pytest.param(
            [[file(b"etc/new", b"its")], [whiteout(b"etc/new")]], {b"etc": b"/", b"etc/new": b"ours"}, id="deleted"
        ),
        pytest.param(
            [[file(b"etc/new")], [directory(b"etc"), opaque(b"etc")]],
            {b"etc": b"/", b"etc/new": b"ours"},
            id="deleted by an opaque whiteout",
        ),
        pytest.param(
            [[directory(b"etc/new")]], {b"etc": b"/", b"etc/new": b"/"}, id="a folder of that name is not replaced"
        ),
        pytest.param(
            [[symlink(b"etc/new", b"nowhere")]],
            {b"etc": b"/", b"etc/new": b"-> nowhere"},
            id="nor a symlink that leads nowhere",
        ),
        pytest.param(
            [[directory(b"usr/etc"), symlink(b"etc", b"usr/etc")]],
            {b"usr": b"/", b"usr/etc": b"/", b"usr/etc/new": b"ours", b"etc": b"-> usr/etc"},
            id="where the parent leads to",
        ),
        pytest.param(
            [[file(b"usr/etc/new", b"its"), file(b"usr/etc/old"), symlink(b"etc", b"/usr/etc")]],
            {b"usr": b"/", b"usr/etc": b"/", b"usr/etc/new": b"its", b"etc": b"-> /usr/etc"},
            id="what stands where the parent leads to stays, and goes",
        ),
        pytest.param(
            [[symlink(b"etc", b"srv")]],
            {b"etc": b"-> srv", b"srv": b"/", b"srv/new": b"ours"},
            id="a parent that leads to what is not there yet",
        ),
        pytest.param(
            [[directory(b"etc/old"), file(b"etc/old/a"), file(b"etc/older")]],
            {b"etc": b"/", b"etc/older": b"", b"etc/new": b"ours"},
            id="a folder is left out with all below it",
        ),
        pytest.param(
            [[symlink(b"etc/old", b"../run/old"), file(b"run/old", b"1")]],
            {b"etc": b"/", b"run": b"/", b"run/old": b"1", b"etc/new": b"ours"},
            id="a symlink is left out, not its target",
        ),
    ],
)
def test_files_are_added_where_there_are_none_and_names_left_out(
    stack: Sequence[Sequence[Entry]], left: Mapping[bytes, bytes], path_prefix: bytes
) -> None:
    assert contents(changed(*stack, prefix=path_prefix)) == left


def test_what_is_added_is_a_file_of_root_s_that_everybody_reads() -> None:
    added = changed()[b"etc/new"]
    assert (added.kind, added.mode, added.uid, added.gid, added.mtime_ns) == ("file", 0o644, 0, 0, 0)


def test_a_folder_keeps_what_its_entry_says_of_it() -> None:
    kept = changed([directory(b"etc", mode=0o700, uid=7), file(b"etc/old")])[b"etc"]
    assert (kept.mode, kept.uid) == (0o700, 7)


def test_a_name_that_is_left_out_and_added_is_replaced() -> None:
    replacing = RootfsChanges(added={b"etc/old": b"new"}, left_out=(b"etc/old",))
    assert contents(changed([symlink(b"etc/old", b"x")], changes=replacing)) == {b"etc": b"/", b"etc/old": b"new"}


def test_what_is_left_out_of_a_hard_linked_file_is_a_name() -> None:
    left = changed([file(b"etc/old", b"content"), hardlink(b"kept", b"etc/old"), hardlink(b"second", b"etc/old")])
    assert left[b"kept"].content == b"content"
    assert left[b"kept"].names == (b"kept", b"second")
    assert b"etc/old" not in left


def test_content_of_any_length_is_added() -> None:
    long = RootfsChanges(added={b"a" * 90 + b"/" + b"b" * 120: bytes(range(256)) * 9, b"empty": b""})
    listed = changed(changes=long)
    assert listed[b"a" * 90 + b"/" + b"b" * 120].content == bytes(range(256)) * 9
    assert listed[b"empty"].content == b""


def test_no_changes_change_nothing() -> None:
    stack = [[file(b"a", b"1")], [file(b"b", b"2")]]
    merger = merger_of(stack, RootfsChanges())
    plain = StreamLayerMerger([source_of(layers.layer(*entries)) for entries in stack])
    assert b"".join(merger.get_generator()) == b"".join(plain.get_generator())


@pytest.mark.parametrize(
    ("stack", "error"),
    [
        pytest.param([file(b"etc", b"x")], ParentNotDirectory, id="a file"),
        pytest.param([symlink(b"etc", b"etc")], SymlinkLoop, id="a loop"),
    ],
)
def test_a_parent_that_is_no_folder_is_an_error_that_says_whose_file_it_is(
    stack: Sequence[Entry], error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"layer added by the format: .*etc/"):
        merger_of([stack], CHANGES)


def test_what_is_added_is_what_the_formats_find() -> None:
    users = RootfsChanges(added={b"etc/passwd": b"root:x:0:0::/:/bin/sh\n"}, left_out=(b"etc/group",))
    merger = merger_of([[file(b"etc/group", b"root:x:0:\n")]], users)
    assert merger.kept_file(b"etc/passwd") == b"root:x:0:0::/:/bin/sh\n"
    assert merger.kept_file(b"etc/group") is None


@PREFIXES
def test_any_range_of_it_is_that_part_of_the_whole(path_prefix: bytes) -> None:
    stack = [[file(b"etc/old", b"1" * 700), file(b"etc/a", b"2" * 600)], [file(b"b", b"3" * 10)]]
    merger = merger_of(stack, CHANGES, path_prefix)
    whole = b"".join(merger.get_generator())
    for begin in range(0, merger.size, 300):
        for length in (1, 513, 2000):
            assert b"".join(merger.get_range(begin, length)) == whole[begin : begin + length]


def refusal_of(tree: model.Tree, added: Mapping[bytes, bytes], left_out: Iterable[bytes]) -> str | None:
    """Change the tree, and return why that is refused, None where it is not."""
    try:
        tree.apply([whiteout(name) for name in left_out])
        for name, content in added.items():
            entry, path = file(name, content), tuple(name.split(b"/"))
            place = tree.place_of_folder(path[:-1], entry)
            if place is not None and tree.at((*place, path[-1])) is None:
                tree.add(entry, path)
    except model.Refused as refusal:
        return refusal.reason
    return None


@examples(300)
@given(
    stack=stacks(),
    added=st.dictionaries(paths, st.binary(max_size=20), max_size=3),
    left_out=st.lists(st.one_of(paths, st.sampled_from(NAMES)), max_size=3),
    prefix=st.sampled_from([b"", b"rootfs/"]),
)
def test_the_changed_tar_lists_what_the_model_says(
    stack: Stack, added: Mapping[bytes, bytes], left_out: list[bytes], prefix: bytes
) -> None:
    stack = model.mended(stack)[0]
    changes = RootfsChanges(added=added, left_out=tuple(left_out))

    def merger() -> StreamLayerMerger:
        sources = [source_of(archive) for archive in archives(stack)]
        return StreamLayerMerger(sources, path_prefix=prefix, changes=changes)

    tree = model.unpacked(stack)
    reason = refusal_of(tree, added, left_out)
    if reason is not None:
        with pytest.raises(Malformed) as raised:
            merger()
        assert type(raised.value).__name__ == reason
        return
    output = b"".join(merger().get_generator())
    assert len(output) == merger().size
    expected = tree.listing()
    if not tree.named_root and not prefix:
        del expected[b"."]
    assert model.differences(expected, model.listing_of_tar(output, path_prefix=prefix)) == []
