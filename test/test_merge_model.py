"""The tests' own tools are right: the two models agree, and real programs read what the builders write."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given

from test import clients, layers, model
from test.layers import directory, file, hardlink, symlink, whiteout
from test.strategies import Stack, examples, stacks


def on_disk(stack: Stack) -> model.Listing:
    with tempfile.TemporaryDirectory() as folder:
        model.unpack_on_disk(stack, os.fsencode(folder))
        return model.listing_of_folder(os.fsencode(folder))


@examples(300)
@given(stack=stacks())
def test_the_model_in_memory_and_the_model_on_a_real_folder_agree(stack: Stack) -> None:
    try:
        expected = model.as_on_disk(model.unpacked(stack).listing())
    except model.Refused as refused:
        with pytest.raises(model.Refused, match=refused.reason):
            on_disk(stack)
        stack, _ = model.mended(stack)
        expected = model.as_on_disk(model.unpacked(stack).listing())
    assert model.differences(expected, on_disk(stack)) == []


def test_the_model_sees_each_thing_that_a_listing_compares() -> None:
    stack = [
        [
            directory(b"d", mode=0o700, uid=1, gid=2, mtime_ns=-(10**9), xattrs={b"user.x": b"\0\xff"}),
            file(b"d/f", b"text", mode=0o4755, mtime_ns=1_500_000_000),
            hardlink(b"d/g", b"d/f"),
            symlink(b"s", b"d"),
            layers.character_device(b"null", 1, 3),
            layers.block_device(b"disk", 8, 300),
            layers.fifo(b"pipe"),
        ],
        [whiteout(b"pipe")],
    ]
    listing = model.unpacked(stack).listing()
    assert model.differences(model.as_on_disk(listing), on_disk(stack)) == []
    assert listing[b"d/f"].names == listing[b"d/g"].names == (b"d/f", b"d/g")
    assert b"pipe" not in listing


REGIONS = [(0, b"h" * 512), (4096, b"m" * 512), (10_240, b""), (71_680, b"z" * 1000), (100_000, b"")]
MANY = [(at * 1024, b"%03d-" % at * 128) for at in range(60)] + [(60 * 1024, b"")]


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
@pytest.mark.parametrize(
    "build", [layers.old_gnu_sparse, layers.pax_sparse_00, layers.pax_sparse_01, layers.pax_sparse_10]
)
def test_real_programs_read_the_sparse_files_that_the_builders_write(
    build: Callable[[bytes, int, layers.Regions], bytes], program: str, tmp_path: Path
) -> None:
    archive = layers.layer(build(b"some", 100_000, REGIONS), build(b"many", 60 * 1024, MANY), file(b"after", b"1"))
    clients.run(program, "-xpf", "-", "-C", str(tmp_path), stdin=archive)
    assert (tmp_path / "some").read_bytes() == layers.expanded(100_000, REGIONS)
    assert (tmp_path / "many").read_bytes() == layers.expanded(60 * 1024, MANY)
    assert (tmp_path / "after").read_bytes() == b"1"


@pytest.mark.parametrize("dialect", ["pax", "gnu"])
def test_gnu_tar_reads_the_headers_that_the_builders_write(dialect: layers.Dialect, tmp_path: Path) -> None:
    names = [b"n" * length for length in (99, 100, 101, 255)] + [b"\xff\xfe", b"d" * 150 + b"/" + b"n" * 150]
    parents = [directory(b"d" * 150, mtime_ns=-(10**9))]
    stack = [
        parents
        + [file(name, b"%d" % at, mtime_ns=8**11 * 10**9 + at, uid=2**31 + at) for at, name in enumerate(names)]
        + [hardlink(b"l%d" % at + name[:97], name) for at, name in enumerate(names)]
        + [symlink(b"s" * 150, b"t" * 200, gid=2**22), file(b"x", xattrs={b"user.x": bytes(range(256))}, mtime_ns=1)]
        + [layers.character_device(b"null", 1, 3), layers.block_device(b"disk", 8, 300), layers.fifo(b"pipe")]
    ]
    archive = layers.layer(*stack[0], dialect=dialect)
    options = ("--xattrs", "--xattrs-include=*", "--numeric-owner", "--delay-directory-restore")
    clients.run("tar", *options, "-xpf", "-", "-C", str(tmp_path), stdin=archive)
    found = model.listing_of_folder(os.fsencode(tmp_path))
    expected = model.as_on_disk(model.unpacked(stack).listing())
    del found[b"."], expected[b"."]
    assert model.differences(expected, found) == []
