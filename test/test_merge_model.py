"""The two models agree: what the tree in memory says is what system calls do on a real folder."""

import os
import tempfile

import pytest
from hypothesis import given

from test import layers, model
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
