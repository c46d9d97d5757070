"""What a merged tar is said to hold, held against the tar itself, for stacks of every kind."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.testing import FILES, MemoryRootfs
from test import layers, model
from test.layers import Dialect
from test.merging import merger_of
from test.strategies import Stack, archives, dialects, examples, stacks
from util.layerindex import DIRECTORY, FILE, LINK, SYMLINK
from util.streamlayerformat import StreamLayerMerger
from util.written import Written

KINDS = {ord(kind): name for kind, name in model.KINDS.items()}


def listed(merger: StreamLayerMerger) -> model.Listing:
    """Return what the merger says that it will write, with the contents that then stand where it says."""
    output = b"".join(merger.get_generator())
    listing: model.Listing = {}
    names: dict[bytes, list[bytes]] = {}
    for entry in merger.entries():
        path = entry.path or b"."
        assert path not in listing
        if entry.kind == LINK:
            names.setdefault(entry.link, [entry.link]).append(path)
            listing[path] = listing[entry.link]
            continue
        listing[path] = of(entry, output)
    for group in names.values():
        for path in group:
            listing[path] = replace(listing[path], names=tuple(sorted(group)))
    return listing


def of(entry: Written, output: bytes) -> model.Listed:
    fraction = Fraction(entry.records.get(b"mtime", b"%d" % entry.mtime).decode())
    prefix = b"SCHILY.xattr."
    return model.Listed(
        kind=KINDS[entry.kind],
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=int(fraction * 10**9),
        content=output[entry.payload : entry.payload + entry.size] if entry.kind == FILE else b"",
        link=entry.link if entry.kind == SYMLINK else b"",
        device=entry.device,
        xattrs=tuple(sorted((key[len(prefix) :], value) for key, value in entry.records.items() if prefix in key)),
        names=(entry.path or b".",),
    )


@examples(300)
@given(stack=stacks(), dialect=dialects, path_prefix=st.sampled_from([b"", b"rootfs/"]))
def test_the_entries_are_those_of_the_tar(stack: Stack, dialect: Dialect, path_prefix: bytes) -> None:
    merger = merger_of(archives(model.mended(stack)[0], dialect), path_prefix=path_prefix)
    output = b"".join(merger.get_generator())
    assert model.differences(model.listing_of_tar(output, path_prefix=path_prefix), listed(merger)) == []


@pytest.mark.parametrize("path_prefix", [b"", b"rootfs/", b"p" * 200 + b"/"])
def test_the_entries_come_in_the_order_of_the_tar(path_prefix: bytes) -> None:
    base = layers.layer(layers.file(b"d/kept", b"1"), layers.file(b"d/two", b"2"), layers.hardlink(b"e", b"d/two"))
    top = layers.layer(layers.directory(b"d", mode=0o700), layers.whiteout(b"d/two"), layers.file(b"f", b"3" * 600))
    merger = merger_of([base, top], path_prefix=path_prefix)
    order = [name.removeprefix(path_prefix) for name in model.order_of_tar(b"".join(merger.get_generator()))]
    root = path_prefix.rstrip(b"/")
    assert [entry.path for entry in merger.entries()] == [b"" if name in (b".", root) else name for name in order]


def test_a_sparse_file_has_the_size_that_it_unpacks_to() -> None:
    sparse = layers.pax_sparse_10(b"sparse", 10_000, [(4096, b"x" * 10)])
    merger = merger_of([layers.layer(sparse, layers.file(b"after", b"y"))])
    output = b"".join(merger.get_generator())
    first, second = merger.entries()
    assert (first.path, first.size) == (b"sparse", 10_000)
    assert output[first.payload : first.payload + first.size] == bytes(4096) + b"x" * 10 + bytes(5894)
    assert output[second.payload : second.payload + second.size] == b"y"


def test_no_layer_is_opened() -> None:
    merger = merger_of([layers.layer(layers.file(b"a", b"1"))])
    source = replace(merger._layers[0], open=lambda: pytest.fail("it is opened"))
    merger._layers = [source]
    assert [entry.path for entry in merger.entries()] == [b"a"]


@pytest.mark.parametrize("path_prefix", [b"", b"rootfs/"])
def test_the_root_file_system_of_the_shipped_suite_tells_the_same(path_prefix: bytes) -> None:
    rootfs = MemoryRootfs(path_prefix=path_prefix)
    told = {entry.path: entry for entry in rootfs.entries()}
    assert told.keys() - {b""} == {name.encode() for name in FILES}
    for name, content in FILES.items():
        entry = told[name.encode()]
        assert entry.kind == (DIRECTORY if content is None else FILE)
        assert rootfs.content[entry.payload : entry.payload + entry.size] == (content or b"")
